#include "ranking.h"

#include <algorithm>
#include <functional>
#include <vector>

#include "parallel.h"

namespace vqdistill {
namespace {

// Queries stay in L1 while rows, which stay in L2 while the queries of their cell pass, are multiplied with them.
constexpr std::size_t kQueriesAtOnce = 16, kRowsAtOnce = 256;

// What one thread needs to rank the rows of a cell.
class CellRanker {
public:
    CellRanker(const Kernels& kernels, const Rankings& rankings, const CellRows& rows, std::size_t most,
               std::int32_t* queries, std::int32_t* ranks)
        : kernels_(kernels),
          rankings_(rankings),
          rows_(rows),
          most_(most),
          queries_(queries),
          ranks_(ranks),
          x_(kRowsAtOnce * rankings.d),
          q_(kQueriesAtOnce * rankings.d),
          products_(kQueriesAtOnce * kRowsAtOnce) {}

    void rank(std::size_t cell) {
        const std::int64_t* const tried = rankings_.offsets + cell;
        for (std::int64_t at = rows_.starts[cell]; at < rows_.starts[cell + 1]; at += kRowsAtOnce) {
            const std::int64_t* const rows = rows_.order + at;
            const std::size_t count = at_most(rows_.starts[cell + 1] - at, kRowsAtOnce);
            gather(rows_.x, rows, count, x_.data());
            for (std::int64_t first = tried[0]; first < tried[1]; first += kQueriesAtOnce) {
                const std::int32_t* const members = rankings_.members + first;
                const std::size_t queries = at_most(tried[1] - first, kQueriesAtOnce);
                gather(rankings_.queries, members, queries, q_.data());
                kernels_.gemm_nt(q_.data(), queries, x_.data(), count, rankings_.d, products_.data());
                for (std::size_t i = 0; i < queries; ++i) place_all(members[i], products_.data() + i * count, rows, count);
            }
        }
    }

private:
    static std::size_t at_most(std::int64_t left, std::size_t most) {
        return std::min(static_cast<std::size_t>(left), most);
    }

    template <class Number>
    void gather(const float* matrix, const Number* numbers, std::size_t count, float* out) const {
        for (std::size_t i = 0; i < count; ++i)
            std::copy_n(matrix + static_cast<std::size_t>(numbers[i]) * rankings_.d, rankings_.d, out + i * rankings_.d);
    }

    // Places a query for each of the rows that it scores above its last.
    void place_all(std::int32_t query, const float* products, const std::int64_t* rows, std::size_t count) {
        const float* const falling = rankings_.scores + static_cast<std::size_t>(query) * rankings_.depth;
        const float last = falling[rankings_.depth - 1];
        for (std::size_t i = 0; i < count; ++i) {
            if (!(products[i] > last)) continue;
            const float* const place =
                std::lower_bound(falling, falling + rankings_.depth, products[i], std::greater<float>());
            put(static_cast<std::size_t>(rows[i]), query, static_cast<std::int32_t>(place - falling));
        }
    }

    // Keeps a query among the best of a row, behind those of equal rank.
    void put(std::size_t row, std::int32_t query, std::int32_t rank) {
        std::int32_t* const ranks = ranks_ + row * most_;
        std::int32_t* const queries = queries_ + row * most_;
        std::size_t place = most_;
        while (place > 0 && ranks[place - 1] > rank) --place;
        if (place == most_) return;
        std::copy_backward(ranks + place, ranks + most_ - 1, ranks + most_);
        std::copy_backward(queries + place, queries + most_ - 1, queries + most_);
        ranks[place] = rank;
        queries[place] = query;
    }

    const Kernels& kernels_;
    const Rankings& rankings_;
    const CellRows& rows_;
    std::size_t most_;
    std::int32_t* queries_;
    std::int32_t* ranks_;
    std::vector<float> x_, q_, products_;
};

}  // namespace

void best_ranks(const Kernels& kernels, const Rankings& rankings, const CellRows& rows, std::size_t most,
                std::size_t threads, std::int32_t* queries, std::int32_t* ranks) {
    run_parallel(rankings.cells, threads, [&](const auto& next) {
        CellRanker ranker(kernels, rankings, rows, most, queries, ranks);
        for (std::size_t cell; (cell = next()) < rankings.cells;) ranker.rank(cell);
    });
}

}  // namespace vqdistill
