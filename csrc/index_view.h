// The resident arrays of an index, as C++ sees them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common.h"
#include "disk_tier.h"
#include "dispatch.h"

namespace vqdistill {

// A matrix of float32 or of halves, row-major; exactly one pointer is set.
struct MatrixView {
    const float* f32 = nullptr;
    const std::uint16_t* f16 = nullptr;

    // out[i][j] = <x_i, row first + j>, for x (nx, d), out (nx, count).
    void products(const Kernels& kernels, const float* x, std::size_t nx, std::size_t first, std::size_t count,
                  std::size_t d, float* out) const {
        if (f32 != nullptr)
            kernels.gemm_nt(x, nx, f32 + first * d, count, d, out);
        else
            kernels.gemm_nt_f16(x, nx, f16 + first * d, count, d, out);
    }
    // <x, row>
    float product(const Kernels& kernels, const float* x, std::size_t row, std::size_t d) const {
        if (f32 != nullptr) return kernels.dot_f32(x, reinterpret_cast<const std::uint8_t*>(f32 + row * d), d);
        return kernels.dot_f16(x, reinterpret_cast<const std::uint8_t*>(f16 + row * d), d);
    }
};

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
