// Row-major codes <-> blocks of 32 rows, as the scan reads them (see ScanCodes).
#pragma once

#include <cstddef>
#include <cstdint>

#include "common.h"

namespace vqdistill {

// codes (n, m), m even, one code < 16 a byte -> packed (block_count(n), m/2, 32); rows behind the last get code 0.
// Returns false, having written part of the output, if a code is 16 or more.
bool pack_codes(const std::uint8_t* codes, std::size_t n, std::size_t m, std::uint8_t* packed) noexcept;

// Brings packed codes (nblocks, m/2, 32), m a multiple of 8, into quads, in place.
void to_quads(std::uint8_t* packed, std::size_t nblocks, std::size_t m) noexcept;

// Brings tables (m, 16), m a multiple of 8, into the order of quads, in place (see ScanQuery).
void tables_to_quads(std::uint8_t* tables, std::size_t m) noexcept;

// The first n rows of packed codes, which may be in quads -> codes (n, m).
void unpack_codes(const std::uint8_t* packed, bool quads, std::size_t n, std::size_t m, std::uint8_t* codes) noexcept;

// Where tables have the one of subspace j.
inline std::size_t place_of_table(bool quads, std::size_t j) {
    const std::size_t first = j / (2 * kQuad) * (2 * kQuad);
    return kSub * (quads ? first + j % 2 * kQuad + j % (2 * kQuad) / 2 : j);
}

// Where a block has pair p of row r.
inline std::size_t place_in_block(bool quads, std::size_t p, std::size_t r) {
    return quads ? (p / kQuad * kBlockRows + r) * kQuad + p % kQuad : p * kBlockRows + r;
}

// Copies the codes of a row of packed codes, pair by pair, to every stride-th byte from `out` on.
void copy_row(const std::uint8_t* packed, bool quads, std::size_t m, std::size_t row, std::uint8_t* out,
              std::size_t stride) noexcept;

// The codes of one row for subspaces 2p (low 4 bits) and 2p + 1.
inline std::uint8_t pair_at(const std::uint8_t* packed, bool quads, std::size_t m, std::size_t row, std::size_t p) {
    return packed[row / kBlockRows * (m / 2) * kBlockRows + place_in_block(quads, p, row % kBlockRows)];
}

}  // namespace vqdistill
