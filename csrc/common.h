// What every other file may use: spans, constants of the index layout, and target regions.
#pragma once

#include <cstddef>
#include <cstdint>

namespace vqdistill {

// Rows whose codes are interleaved for the scan: one byte of each fills a 32-byte register.
constexpr std::size_t kBlockRows = 32;
// Pairs of subspaces whose codes of a row lie side by side in codes in quads (see ScanCodes).
constexpr std::size_t kQuad = 4;
// Codewords of a subspace: a code has 4 bits, and its table of bytes fills one 16-byte look-up.
constexpr std::size_t kSub = 16;
constexpr std::size_t kMaxM = 256;
// The tables of two neighbouring subspaces never add up to more than one byte (see Kernels::quantize_tables) ...
constexpr int kMaxPairSum = 255;
// ... so a whole row stays below 2^15, and sums may be compared as signed 16-bit integers.
constexpr int kMaxSum = static_cast<int>(kMaxM / 2) * kMaxPairSum;
static_assert(kMaxSum + 1 <= INT16_MAX, "a scan threshold must fit a signed 16-bit lane");

// Bytes of a cache line.
constexpr std::size_t kLine = 64;

// Where the first line at or behind `bytes` begins.
inline std::uint8_t* line_from(std::uint8_t* bytes) {
    return bytes + (0 - reinterpret_cast<std::uintptr_t>(bytes)) % kLine;
}

// A view of memory that somebody else owns and keeps alive.
template <class T>
struct Span {
    T* data = nullptr;
    std::size_t size = 0;

    T& operator[](std::size_t i) const { return data[i]; }
    T* begin() const { return data; }
    T* end() const { return data + size; }
};

constexpr std::size_t block_count(std::size_t rows) { return (rows + kBlockRows - 1) / kBlockRows; }

}  // namespace vqdistill

// A target region lets functions use instructions beyond the baseline without compiler flags for the whole file, which
// would compile shared templates for that CPU too and link them into baseline callers. Open it after all #include
// lines.
#define VQD_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define VQD_TARGET_BEGIN(features) \
    VQD_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define VQD_TARGET_END _Pragma("clang attribute pop")
#else
#define VQD_TARGET_BEGIN(features) _Pragma("GCC push_options") VQD_PRAGMA(GCC target(features))
#define VQD_TARGET_END _Pragma("GCC pop_options")
#endif
