#include "additive.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "parallel.h"

namespace vqdistill {
namespace {

// Rows of a task: their products with the codewords stay in L2.
constexpr std::size_t kTaskRows = 32;

std::size_t task_count(std::size_t rows) { return (rows + kTaskRows - 1) / kTaskRows; }

// c (na, nb) = a (na, d) @ b (nb, d).T over threads.
std::vector<float> products(const Kernels& kernels, const float* a, std::size_t na, const float* b, std::size_t nb,
                            std::size_t d, std::size_t threads) {
    std::vector<float> c(na * nb);
    run_parallel(task_count(na), threads, [&](const auto& next) {
        for (std::size_t task; (task = next()) < task_count(na);) {
            const std::size_t first = task * kTaskRows, count = std::min(kTaskRows, na - first);
            kernels.gemm_nt(a + first * d, count, b, nb, d, c.data() + first * nb);
        }
    });
    return c;
}

// What one thread needs to encode rows.
class RowEncoder {
public:
    RowEncoder(const Kernels& kernels, const AdditiveRows& rows, const float* words, const AdditiveBooks& books,
               const float* query_products)
        : kernels_(kernels),
          rows_(rows),
          words_(words),
          books_(books),
          query_products_(query_products),
          size_(books.m * kSub),
          y_products_(kTaskRows * size_),
          x_products_(rows.eta > 0 ? kTaskRows * size_ : 0),
          terms_(size_ * (rows.per_row + 1)),
          offsets_(rows.per_row + 1),
          scratch_(additive_scratch(books.m, rows.per_row + 1)) {}

    void encode(std::size_t first, std::size_t count, const AdditiveEffort& effort, std::uint8_t* codes) {
        const std::size_t d = rows_.d;
        kernels_.gemm_nt(rows_.y + first * d, count, words_, size_, d, y_products_.data());
        if (rows_.eta > 0) kernels_.gemm_nt(rows_.x + first * d, count, words_, size_, d, x_products_.data());
        for (std::size_t i = 0; i < count; ++i) {
            const std::size_t nterms = gather_terms(first + i, x_products_.data() + i * size_);
            const AdditiveRow row{y_products_.data() + i * size_, terms_.data(), offsets_.data(), nterms,
                                  scratch_.data()};
            kernels_.search_codes(books_, row, effort, codes + (first + i) * books_.m);
        }
    }

private:
    // Fills terms_ and offsets_ for one row; returns how many terms it has.
    std::size_t gather_terms(std::size_t i, const float* x_products) {
        const std::int32_t* list = rows_.lists + i * rows_.per_row;
        const std::size_t queries = static_cast<std::size_t>(std::find(list, list + rows_.per_row, -1) - list);
        const std::size_t nterms = queries + (rows_.eta > 0);
        std::size_t t = 0;
        if (rows_.eta > 0) put_term(i, t++, nterms, rows_.eta, rows_.x + i * rows_.d, x_products);
        for (std::size_t r = 0; r < queries; ++r) {
            const auto query = static_cast<std::size_t>(list[r]);
            put_term(i, t++, nterms, rows_.weights[i * rows_.per_row + r], rows_.queries + query * rows_.d,
                     query_products_ + query * size_);
        }
        return nterms;
    }

    void put_term(std::size_t i, std::size_t t, std::size_t nterms, float weight, const float* direction,
                  const float* direction_products) {
        const float root = std::sqrt(weight);
        offsets_[t] = root * kernels_.dot_f32(direction, reinterpret_cast<const std::uint8_t*>(rows_.y + i * rows_.d),
                                              rows_.d);
        float* out = terms_.data() + t * kSub;
        for (std::size_t j = 0; j < books_.m; ++j, out += nterms * kSub, direction_products += kSub)
            for (std::size_t k = 0; k < kSub; ++k) out[k] = root * direction_products[k];
    }

    const Kernels& kernels_;
    const AdditiveRows& rows_;
    const float* words_;
    AdditiveBooks books_;
    const float* query_products_;
    std::size_t size_;
    std::vector<float> y_products_, x_products_, terms_, offsets_, scratch_;
};

std::vector<float> own_blocks(const std::vector<float>& gram, std::size_t m) {
    std::vector<float> own(m * kSub * kSub);
    for (std::size_t row = 0; row < m * kSub; ++row)
        std::copy_n(gram.data() + row * m * kSub + row / kSub * kSub, kSub, own.data() + row * kSub);
    return own;
}

}  // namespace

void encode_additive(const Kernels& kernels, const AdditiveRows& rows, const float* words, std::size_t m,
                     const AdditiveEffort& effort, std::size_t threads, std::uint8_t* codes) {
    const std::size_t size = m * kSub;
    const std::vector<float> gram = products(kernels, words, size, words, size, rows.d, threads);
    const std::vector<float> own = own_blocks(gram, m);
    const std::vector<float> of_queries = products(kernels, rows.queries, rows.nqueries, words, size, rows.d, threads);
    run_parallel(task_count(rows.n), threads, [&](const auto& next) {
        RowEncoder encoder(kernels, rows, words, {gram.data(), own.data(), m}, of_queries.data());
        for (std::size_t task; (task = next()) < task_count(rows.n);) {
            const std::size_t first = task * kTaskRows;
            encoder.encode(first, std::min(kTaskRows, rows.n - first), effort, codes);
        }
    });
}

}  // namespace vqdistill
