// Where rows would stand in the rankings of queries that were made without them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "dispatch.h"

namespace vqdistill {

// Queries, what each ranks, and which of them are tried for the rows of a cell.
struct Rankings {
    const float* queries;  // (nqueries, d)
    std::size_t d;
    const float* scores;  // (nqueries, depth), falling; depth > 0
    std::size_t depth;
    const std::int64_t* offsets;  // (cells + 1,) queries of cell c: members[offsets[c]] .. members[offsets[c + 1] - 1]
    const std::int32_t* members;
    std::size_t cells;
};

// Rows (n, d) in an order in which those of a cell follow each other: order[starts[c]] .. order[starts[c + 1] - 1].
struct CellRows {
    const float* x;
    const std::int64_t* order;
    const std::int64_t* starts;
};

// For each row the `most` queries, of those tried, that rank it best: `queries` and `ranks` (n, most), which hold -1 and
// the highest int32 where there is none before; equal ranks by their place among the members. A query that would rank a
// row behind all its scores, or at the last, does not count. What a row gets depends neither on the others nor on threads.
void best_ranks(const Kernels& kernels, const Rankings& rankings, const CellRows& rows, std::size_t most,
                std::size_t threads, std::int32_t* queries, std::int32_t* ranks);

}  // namespace vqdistill
