// Row-major codes <-> blocks of 32 rows, as the scan reads them (see Kernels::scan_pq4).
#pragma once

#include <cstddef>
#include <cstdint>

#include "common.h"

namespace vqdistill {

// codes (n, m), m even, one code < 16 a byte -> packed (block_count(n), m/2, 32); rows behind the last get code 0.
// Returns false, having written part of the output, if a code is 16 or more.
bool pack_codes(const std::uint8_t* codes, std::size_t n, std::size_t m, std::uint8_t* packed) noexcept;

// The first n rows of packed (block_count(n), m/2, 32) -> codes (n, m).
void unpack_codes(const std::uint8_t* packed, std::size_t n, std::size_t m, std::uint8_t* codes) noexcept;

// The codes of one row for subspaces 2p (low 4 bits) and 2p + 1.
inline std::uint8_t pair_at(const std::uint8_t* packed, std::size_t m, std::size_t row, std::size_t p) {
    return packed[(row / kBlockRows * (m / 2) + p) * kBlockRows + row % kBlockRows];
}

}  // namespace vqdistill
