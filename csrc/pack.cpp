#include "pack.h"

#include <algorithm>
#include <cstring>

namespace vqdistill {

bool pack_codes(const std::uint8_t* codes, std::size_t n, std::size_t m, std::uint8_t* packed) noexcept {
    std::memset(packed, 0, block_count(n) * (m / 2) * kBlockRows);
    std::uint8_t all_bits = 0;
    for (std::size_t row = 0; row < n; ++row, codes += m) {
        std::uint8_t* out = packed + row / kBlockRows * (m / 2) * kBlockRows + row % kBlockRows;
        for (std::size_t p = 0; p < m / 2; ++p) {
            all_bits |= codes[2 * p] | codes[2 * p + 1];
            out[p * kBlockRows] = static_cast<std::uint8_t>(codes[2 * p] | codes[2 * p + 1] << 4);
        }
    }
    return all_bits < kSub;
}

void to_quads(std::uint8_t* packed, std::size_t nblocks, std::size_t m) noexcept {
    std::uint8_t block[kMaxM / 2 * kBlockRows];
    const std::size_t block_bytes = m / 2 * kBlockRows;
    for (; nblocks > 0; --nblocks, packed += block_bytes) {
        std::copy_n(packed, block_bytes, block);
        for (std::size_t p = 0; p < m / 2; ++p)
            for (std::size_t r = 0; r < kBlockRows; ++r)
                packed[place_in_block(true, p, r)] = block[place_in_block(false, p, r)];
    }
}

void tables_to_quads(std::uint8_t* tables, std::size_t m) noexcept {
    std::uint8_t quad[2 * kQuad * kSub];
    for (; m > 0; m -= 2 * kQuad, tables += sizeof quad) {
        std::copy_n(tables, sizeof quad, quad);
        for (std::size_t j = 0; j < 2 * kQuad; ++j) std::copy_n(quad + j * kSub, kSub, tables + place_of_table(true, j));
    }
}

void unpack_codes(const std::uint8_t* packed, bool quads, std::size_t n, std::size_t m, std::uint8_t* codes) noexcept {
    for (std::size_t row = 0; row < n; ++row)
        for (std::size_t p = 0; p < m / 2; ++p) {
            const std::uint8_t pair = pair_at(packed, quads, m, row, p);
            *codes++ = pair & 15;
            *codes++ = pair >> 4;
        }
}

void copy_row(const std::uint8_t* packed, bool quads, std::size_t m, std::size_t row, std::uint8_t* out,
              std::size_t stride) noexcept {
    const std::uint8_t* pairs = packed + row / kBlockRows * (m / 2) * kBlockRows;
    if (!quads) {
        pairs += row % kBlockRows;
        for (std::size_t p = 0; p < m / 2; ++p) out[p * stride] = pairs[p * kBlockRows];
        return;
    }
    pairs += row % kBlockRows * kQuad;
    for (; m > 0; m -= 2 * kQuad, pairs += kQuad * kBlockRows, out += kQuad * stride)
        for (std::size_t p = 0; p < kQuad; ++p) out[p * stride] = pairs[p];
}

}  // namespace vqdistill
