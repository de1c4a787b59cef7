// The resident arrays of an index, as C++ sees them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common.h"
#include "disk_tier.h"
#include "dispatch.h"
#include "matrix_view.h"

namespace vqdistill {

// A residual network for queries, see adapter.h; without units there is none.
struct AdapterView {
    std::size_t units = 0, rank = 0;  // rank <= units
    MatrixView down;                  // (units, d)
    const float* bias = nullptr;      // (units)
    MatrixView up;                    // (d, units)
    bool unit = false;                // adapted queries have unit norm
};

// REQUIRES: the arrays outlive the view and agree with each other: list_offsets starts at 0, never falls, and ends at n
// with packed holding block_count(n) blocks; m is even, <= kMaxM.
struct IndexView {
    Metric metric;
    bool residual;
    std::size_t nlist, d, m, dsub;
    const std::int64_t* list_offsets;  // (nlist + 1): list l = positions list_offsets[l] .. list_offsets[l+1]
    MatrixView router;                 // (nlist, d): order in which a query visits the lists
    MatrixView coarse;                 // (nlist, d): what the codes of a list are residuals of
    const float* mean;                 // (d)
    const float* rotation;             // (m * dsub, d); null for additive codes
    MatrixView codewords;              // (m, 16, dsub); dsub = d for additive codes
    const std::uint8_t* packed;        // (block_count(n), m/2, 32)
    AdapterView query_adapter;         // what every stage sees
    AdapterView verify_adapter;        // what dense rows are scored with, on top of it

    bool additive() const { return rotation == nullptr; }
    std::size_t n() const { return static_cast<std::size_t>(list_offsets[nlist]); }
};

// The rows that a search may find; null pointers = all.
struct AllowView {
    const std::uint32_t* blocks = nullptr;  // (block_count(n)): bit r of b = position 32 b + r
    const std::int64_t* per_list = nullptr;  // (nlist): allowed rows of each list
};

}  // namespace vqdistill
