// The resident arrays of an index, as C++ sees them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

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

// Rows in list order. REQUIRES: list_offsets starts at 0, never falls, and ends at n, the rows of the set, with packed
// holding block_count(n) blocks.
struct RowSet {
    const std::int64_t* list_offsets;  // (nlist + 1): list l = rows list_offsets[l] .. list_offsets[l+1]
    const std::uint8_t* packed;        // block_count(n) blocks, see ScanCodes
    std::size_t first = 0;             // position of the first row: those of the sets before come first
    std::size_t first_block = 0;       // in AllowView::blocks
};

// The rows that a search may find; null pointers = all.
struct AllowView {
    const std::uint32_t* blocks = nullptr;   // (blocks of all sets): bit r of b = row 32 b + r of its set
    const std::int64_t* per_list = nullptr;  // (nlist): allowed rows of each list
};

// REQUIRES: the arrays outlive the view and agree with each other; m is even, <= kMaxM; there is a set.
struct IndexView {
    Metric metric;
    bool residual;
    std::size_t nlist, d, m, dsub;
    bool quads;                        // the codes are in quads: only if the active kernels scan them
    std::vector<RowSet> sets;          // by rising position
    AllowView alive;                   // rows that were not deleted; null pointers = none was
    const std::int64_t* whole;         // (nlist): rows of each list of the index that this is a part of; null = it is none
    MatrixView router;                 // (nlist, d): order in which a query visits the lists
    MatrixView coarse;                 // (nlist, d): what the codes of a list are residuals of
    const float* mean;                 // (d)
    const float* rotation;             // (m * dsub, d); null for additive codes
    MatrixView codewords;              // (m, 16, dsub); dsub = d for additive codes
    AdapterView query_adapter;         // what every stage sees
    AdapterView verify_adapter;        // what dense rows are scored with, on top of it

    bool additive() const { return rotation == nullptr; }
    std::size_t rows_in(const RowSet& set) const { return static_cast<std::size_t>(set.list_offsets[nlist]); }
    // Positions, those of deleted rows included.
    std::size_t n() const { return sets.back().first + rows_in(sets.back()); }
    const RowSet& set_of(std::size_t position) const {
        std::size_t i = sets.size() - 1;
        while (sets[i].first > position) --i;
        return sets[i];
    }
    // Rows of a list that are alive, those of the other parts of the index included.
    std::int64_t list_rows(std::size_t list) const {
        if (whole != nullptr) return whole[list];
        if (alive.per_list != nullptr) return alive.per_list[list];
        std::int64_t rows = 0;
        for (const RowSet& set : sets) rows += set.list_offsets[list + 1] - set.list_offsets[list];
        return rows;
    }
};

}  // namespace vqdistill
