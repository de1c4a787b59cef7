// Additive codes of many rows: products with the codebooks, then the search of each row, over threads.
#pragma once

#include <cstddef>
#include <cstdint>

#include "dispatch.h"

namespace vqdistill {

// Rows and what shapes the metric of each: A_i = I + eta x_i x_i^T + sum_r weights[i][r] q_r q_r^T.
struct AdditiveRows {
    const float* y;  // (n, d) targets
    std::size_t n, d;
    const float* x;  // (n, d) own directions
    float eta;       // >= 0; 0 switches x off
    const std::int32_t* lists;  // (n, per_row) numbers of queries in -1 .. nqueries - 1; -1 ends the list of a row
    const float* weights;       // (n, per_row) >= 0
    std::size_t per_row;
    const float* queries;  // (nqueries, d)
    std::size_t nqueries;
};

// Searches codes (n, m) for the codebooks words (m, 16, d); see Kernels::search_codes. The codes of a row depend neither
// on the other rows nor on `threads`. Memory: nqueries * m * 16 floats, and a fixed amount a thread.
void encode_additive(const Kernels& kernels, const AdditiveRows& rows, const float* words, std::size_t m,
                     const AdditiveEffort& effort, std::size_t threads, std::uint8_t* codes);

}  // namespace vqdistill
