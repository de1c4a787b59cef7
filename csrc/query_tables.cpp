#include "query_tables.h"

#include <algorithm>
#include <cmath>

#include "pack.h"

namespace vqdistill {
namespace {

// Queries projected together: they share one pass over the codewords and stay in L2 meanwhile.
constexpr std::size_t kProjected = 32;
// Codes below this length are scanned whole: the cuts would cost more than they save.
constexpr std::size_t kFewestCut = 16;

double squared_norm(const float* x, std::size_t d) {
    double sum = 0.0;
    for (std::size_t i = 0; i < d; ++i) sum += static_cast<double>(x[i]) * x[i];
    return sum;
}

bool is_identity(const float* matrix, std::size_t rows, std::size_t d) {
    if (rows != d) return false;
    for (std::size_t i = 0; i < rows * d; ++i)
        if (matrix[i] != (i % (d + 1) == 0 ? 1.0f : 0.0f)) return false;
    return true;
}

// What the entries of a table of bytes are like.
struct TableMoments {
    explicit TableMoments(const std::uint8_t* table) {
        int sum = 0, squares = 0;
        for (std::size_t k = 0; k < kSub; ++k) {
            sum += table[k];
            squares += table[k] * table[k];
        }
        mean = static_cast<float>(sum) / kSub;
        variance = static_cast<float>(squares) / kSub - mean * mean;
    }
    float mean, variance;
};

int highest_entry(const std::uint8_t* table) {
    std::uint8_t highest = 0;
    for (std::size_t k = 0; k < kSub; ++k) highest = std::max(highest, table[k]);
    return highest;
}

// Bounds of whole sums and, for the cuts, of what is behind each.
void bound_sums(std::size_t m, const Cuts& cuts, QueryTables& query) {
    query.highest = 0;
    for (std::size_t j = 0; j < m; ++j) query.highest += highest_entry(query.tables + j * kSub);
    float mean = 0.0f, variance = 0.0f;
    int highest = 0;
    for (std::size_t cut = cuts.count, j = m; cut > 0;) {
        const std::uint8_t* const table = query.tables + --j * kSub;
        const TableMoments moments(table);
        mean += moments.mean;
        variance += moments.variance;
        highest += highest_entry(table);
        if (j != 2 * cuts.pairs[cut - 1]) continue;
        const float likely = mean + cuts.deviations * std::sqrt(std::max(0.0f, variance));
        query.rest[--cut] = static_cast<int>(std::clamp(std::ceil(likely), 0.0f, static_cast<float>(highest)));
    }
}

}  // namespace

Cuts Cuts::of(std::size_t m, float deviations) {
    if (m < kFewestCut || !std::isfinite(deviations)) return {};
    return {2, {m / 8, m / 4}, deviations};
}

TableBuilder::TableBuilder(const IndexView& index, const Kernels& kernels)
    : index_(index),
      kernels_(kernels),
      rotates_(!index.additive() && !is_identity(index.rotation, index.m * index.dsub, index.d)),
      table_init_(index.m * kSub, 0.0f) {
    if (index.additive()) return;
    words_t_.resize(index.m * index.dsub * kSub);
    for (std::size_t j = 0; j < index.m; ++j)
        for (std::size_t c = 0; c < kSub; ++c) {
            const float* word = index.codewords.f32 + (j * kSub + c) * index.dsub;
            for (std::size_t t = 0; t < index.dsub; ++t) words_t_[(j * index.dsub + t) * kSub + c] = word[t];
            if (index.metric == Metric::l2)
                table_init_[j * kSub + c] = static_cast<float>(-squared_norm(word, index.dsub));
        }
}

void TableBuilder::build(const float* queries, std::size_t q, const Cuts& cuts, bool keep_lut,
                         Scratch& scratch) const {
    const std::size_t size = index_.m * kSub;
    scratch.lut.resize((keep_lut ? q : std::min(q, kProjected)) * size);
    scratch.tables.resize(q * size + kLine);
    std::uint8_t* const all_tables = line_from(scratch.tables.data());
    scratch.queries.resize(q);
    for (std::size_t first = 0; first < q; first += kProjected) {
        const std::size_t count = std::min(kProjected, q - first);
        float* const luts = scratch.lut.data() + (keep_lut ? first * size : 0);
        const float* const part = queries + first * index_.d;
        if (index_.additive())
            index_.codewords.products(kernels_, part, count, size, index_.d, luts);
        else
            product_luts(part, count, luts, scratch);
        for (std::size_t i = 0; i < count; ++i) {
            QueryTables& query = scratch.queries[first + i];
            std::uint8_t* const tables = all_tables + (first + i) * size;
            query.tables = tables;
            query.lut = keep_lut ? luts + i * size : nullptr;
            query.scale = kernels_.quantize_tables(luts + i * size, index_.m, tables);
            query.constant = constant_term(part + i * index_.d);
            bound_sums(index_.m, cuts, query);
            if (index_.quads) tables_to_quads(tables, index_.m);
        }
    }
}

// From R q, or 2 R (q - mean) for l2, where the scores hold twice the inner product.
void TableBuilder::product_luts(const float* queries, std::size_t q, float* luts, Scratch& scratch) const {
    const std::size_t d = index_.d, d_out = index_.m * index_.dsub;
    if (index_.metric == Metric::l2) {
        scratch.centered.resize(std::max(scratch.centered.size(), q * d));
        for (std::size_t i = 0; i < q * d; ++i) scratch.centered[i] = 2.0f * (queries[i] - index_.mean[i % d]);
        queries = scratch.centered.data();
    }
    if (rotates_) {
        scratch.projected.resize(std::max(scratch.projected.size(), q * d_out));
        kernels_.gemm_nt(queries, q, index_.rotation, d_out, d, scratch.projected.data());
        queries = scratch.projected.data();
    }
    for (std::size_t i = 0; i < q; ++i)
        kernels_.pq_tables(queries + i * d_out, words_t_.data(), table_init_.data(), index_.m,
                           index_.dsub, luts + i * index_.m * kSub);
}

// What all rows of a query have in common; residual codes have a term a list instead.
float TableBuilder::constant_term(const float* query) const {
    const auto* mean = reinterpret_cast<const std::uint8_t*>(index_.mean);
    if (index_.metric == Metric::l2) return kernels_.l2_f32(query, mean, index_.d);
    return index_.residual ? 0.0f : kernels_.dot_f32(query, mean, index_.d);
}

}  // namespace vqdistill
