// The AVX2 level (with FMA and F16C: Haswell, Zen and later). Everything between the two target lines is compiled for
// it.
#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>
#include <cstring>
#include <limits>

#include "dispatch.h"

VQD_TARGET_BEGIN("avx2,fma,f16c")

namespace vqdistill {
namespace {

constexpr std::size_t kLanes = 8;
// How far ahead codes are fetched. Measured on Zen 3, 32-byte codes from memory: 480 M rows/s without, 590 at
// 512 bytes, 740 at 2 KiB, 810 at 4 KiB; no effect on codes in L2.
constexpr std::size_t kPrefetchBytes = 4096;

inline __m256i load32(const std::uint8_t* bytes) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes)); }

inline __m256i load_table(const std::uint8_t* table) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
}

// Sums of a block as 16-bit lanes: `both` holds even row + 256 * odd row, modulo 2^16, `odd` the odd rows.
struct BlockSums {
    BlockSums() : both(_mm256_setzero_si256()), odd(both) {}
    void add(__m256i bytes) {
        both = _mm256_add_epi16(both, bytes);
        odd = _mm256_add_epi16(odd, _mm256_srli_epi16(bytes, 8));
    }
    __m256i even() const { return _mm256_sub_epi16(both, _mm256_slli_epi16(odd, 8)); }
    __m256i both, odd;
};

// The codes of a pair of subspaces, apart.
struct PairCodes {
    explicit PairCodes(const std::uint8_t* codes) {
        const __m256i low4 = _mm256_set1_epi8(15), pair = load32(codes);
        first = _mm256_and_si256(pair, low4);
        second = _mm256_and_si256(_mm256_srli_epi16(pair, 4), low4);
    }
    // Table entries of all rows for both, added in bytes: <= 255 by contract of the tables.
    __m256i look_up(const std::uint8_t* tables) const {
        return _mm256_add_epi8(_mm256_shuffle_epi8(load_table(tables), first),
                               _mm256_shuffle_epi8(load_table(tables + kSub), second));
    }
    __m256i first, second;
};

// The bytes may lie behind the codes: as an integer, because prefetching there is harmless but a pointer is not.
inline void prefetch_ahead(const std::uint8_t* bytes) {
    _mm_prefetch(reinterpret_cast<const char*>(reinterpret_cast<std::uintptr_t>(bytes) + kPrefetchBytes), _MM_HINT_T0);
}

// Adds pairs first..last of a block to the sums of one query; with `Ahead`, fetches codes a line at a time meanwhile.
template <bool Ahead = false>
inline void add_pairs(const std::uint8_t* block, std::size_t first, std::size_t last, const std::uint8_t* tables,
                      BlockSums& sums) {
    std::size_t p = first;
    for (; p + 2 <= last; p += 2) {
        if constexpr (Ahead) prefetch_ahead(block + p * kBlockRows);
        const __m256i a = PairCodes(block + p * kBlockRows).look_up(tables + 2 * p * kSub);
        const __m256i b = PairCodes(block + (p + 1) * kBlockRows).look_up(tables + 2 * (p + 1) * kSub);
        sums.both = _mm256_add_epi16(sums.both, _mm256_add_epi16(a, b));
        sums.odd = _mm256_add_epi16(sums.odd, _mm256_add_epi16(_mm256_srli_epi16(a, 8), _mm256_srli_epi16(b, 8)));
    }
    if (p < last) sums.add(PairCodes(block + p * kBlockRows).look_up(tables + 2 * p * kSub));
}

// Adds pairs 0..last of a block to the sums of NQ queries, which share the unpacking of the codes.
template <std::size_t NQ, bool Ahead = false>
inline void add_first_pairs(const std::uint8_t* block, std::size_t last, const ScanQuery* queries, BlockSums* sums) {
    if constexpr (NQ == 1) return add_pairs<Ahead>(block, 0, last, queries[0].tables, sums[0]);
    for (std::size_t p = 0; p < last; ++p) {
        if (Ahead && p % 2 == 0) prefetch_ahead(block + p * kBlockRows);
        const PairCodes codes(block + p * kBlockRows);
        for (std::size_t i = 0; i < NQ; ++i) sums[i].add(codes.look_up(queries[i].tables + 2 * p * kSub));
    }
}

// Which rows have sums of at least `threshold`: lanes of all ones, even and odd rows.
struct Passed {
    Passed(const BlockSums& sums, int threshold) {
        const __m256i below = _mm256_set1_epi16(static_cast<short>(threshold - 1));
        even = _mm256_cmpgt_epi16(sums.even(), below);
        odd = _mm256_cmpgt_epi16(sums.odd, below);
    }
    bool none() const {
        const __m256i any = _mm256_or_si256(even, odd);
        return _mm256_testz_si256(any, any);
    }
    std::uint32_t rows() const {
        const __m256i by_row = _mm256_or_si256(_mm256_srli_epi16(even, 8), _mm256_slli_epi16(odd, 8));
        return static_cast<std::uint32_t>(_mm256_movemask_epi8(by_row));
    }
    __m256i even, odd;
};

// Adds the rows of a block whose bit in `passed` is set to what a query found.
inline void write_hits(std::uint32_t passed, const BlockSums& sums, std::uint32_t first_row, ScanQuery& query) {
    alignas(32) std::uint16_t even_odd[2][kBlockRows / 2];
    _mm256_store_si256(reinterpret_cast<__m256i*>(even_odd[0]), sums.even());
    _mm256_store_si256(reinterpret_cast<__m256i*>(even_odd[1]), sums.odd);
    for (; passed != 0; passed &= passed - 1) {
        const auto row = static_cast<std::uint32_t>(__builtin_ctz(passed));
        query.hits[query.found++] = {first_row + row, even_odd[row % 2][row / 2]};
    }
}

// A block whose fate is open.
struct OpenBlock {
    std::uint32_t number;
    BlockSums sums;
};

// Writes a block behind `open` and returns whether it stays there: without a branch that nobody can predict.
inline std::size_t keep_if(bool stays, std::uint32_t number, const BlockSums& sums, OpenBlock* open) {
    *open = {number, sums};
    return stays;
}

inline void prefetch(const std::uint8_t* bytes, std::size_t size) {
    for (std::size_t at = 0; at < size; at += 64) _mm_prefetch(reinterpret_cast<const char*>(bytes + at), _MM_HINT_T0);
}

// Takes a query through the rest of the blocks that passed its first cut.
inline void finish_blocks(const ScanCodes& codes, OpenBlock* open, std::size_t count, ScanQuery& query) {
    const std::size_t block_bytes = codes.m / 2 * kBlockRows;
    std::size_t done = codes.pairs[0];
    for (std::size_t s = 1; s < codes.ncuts; done = codes.pairs[s++]) {
        std::size_t kept = 0;
        for (std::size_t i = 0; i < count; ++i) {
            OpenBlock block = open[i];
            const std::uint8_t* bytes = codes.packed + block.number * block_bytes;
            add_pairs(bytes, done, codes.pairs[s], query.tables, block.sums);
            kept += keep_if(!Passed(block.sums, query.cuts[s]).none(), block.number, block.sums, open + kept);
        }
        count = kept;
    }
    for (std::size_t i = 0; i < count; ++i) {
        OpenBlock& block = open[i];
        add_pairs(codes.packed + block.number * block_bytes, done, codes.m / 2, query.tables, block.sums);
        const Passed passed(block.sums, query.threshold);
        if (passed.none()) continue;
        const std::uint32_t allowed = codes.allow == nullptr ? ~0u : codes.allow[block.number];
        write_hits(passed.rows() & allowed, block.sums, block.number * kBlockRows, query);
    }
}

// Blocks taken through the first cut together, so that the rest of those that pass is in cache when its turn comes.
constexpr std::size_t kOpenBlocks = 16;

// How many blocks every query has places for, at most kOpenBlocks.
inline std::size_t blocks_with_places(const ScanQuery* queries, std::size_t nq) {
    std::size_t blocks = kOpenBlocks;
    for (std::size_t i = 0; i < nq; ++i) blocks = std::min(blocks, (queries[i].places - queries[i].found) / kBlockRows);
    return blocks;
}

// Takes NQ queries through blocks first..last, with cuts.
template <std::size_t NQ>
inline void scan_with_cuts(const ScanCodes& codes, std::size_t first, std::size_t last, ScanQuery* queries) {
    const std::size_t block_bytes = codes.m / 2 * kBlockRows, head = codes.pairs[0] * kBlockRows;
    OpenBlock open[NQ][kOpenBlocks];
    std::size_t count[NQ] = {};
    for (std::size_t b = first; b < last; ++b) {
        if (codes.allow != nullptr && codes.allow[b] == 0) continue;
        const std::uint8_t* block = codes.packed + b * block_bytes;
        if (b + kOpenBlocks < codes.nblocks) prefetch(block + kOpenBlocks * block_bytes, head);
        BlockSums sums[NQ];
        add_first_pairs<NQ>(block, codes.pairs[0], queries, sums);
        bool any = false;
        for (std::size_t i = 0; i < NQ; ++i) {
            const bool passes = !Passed(sums[i], queries[i].cuts[0]).none();
            count[i] += keep_if(passes, static_cast<std::uint32_t>(b), sums[i], open[i] + count[i]);
            any |= passes;
        }
        if (any) prefetch(block + head, block_bytes - head);
    }
    for (std::size_t i = 0; i < NQ; ++i) finish_blocks(codes, open[i], count[i], queries[i]);
}

template <std::size_t NQ>
inline void scan_whole(const ScanCodes& codes, std::size_t first, std::size_t last, ScanQuery* queries) {
    const std::size_t block_bytes = codes.m / 2 * kBlockRows;
    for (std::size_t b = first; b < last; ++b) {
        const std::uint32_t allowed = codes.allow == nullptr ? ~0u : codes.allow[b];
        if (allowed == 0) continue;
        const std::uint8_t* block = codes.packed + b * block_bytes;
        BlockSums sums[NQ];
        add_first_pairs<NQ, true>(block, codes.m / 2, queries, sums);
        for (std::size_t i = 0; i < NQ; ++i) {
            const Passed passed(sums[i], queries[i].threshold);
            if (!passed.none())
                write_hits(passed.rows() & allowed, sums[i], static_cast<std::uint32_t>(b * kBlockRows), queries[i]);
        }
    }
}

template <std::size_t NQ>
std::size_t scan(const ScanCodes& codes, ScanQuery* queries) {
    std::size_t b = 0;
    while (b < codes.nblocks) {
        const std::size_t last = std::min(codes.nblocks, b + blocks_with_places(queries, NQ));
        if (last == b) break;
        if (codes.ncuts > 0)
            scan_with_cuts<NQ>(codes, b, last, queries);
        else
            scan_whole<NQ>(codes, b, last, queries);
        b = last;
    }
    return b;
}

std::size_t scan_pq4(const ScanCodes& codes, ScanQuery* queries, std::size_t nq) noexcept {
    switch (nq) {
        case 1:
            return scan<1>(codes, queries);
        case 2:
            return scan<2>(codes, queries);
        case 3:
            return scan<3>(codes, queries);
        default:
            return scan<4>(codes, queries);
    }
}

template <__m128 (*op)(__m128, __m128)>
inline float reduce(__m128 x) {
    x = op(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(op(x, _mm_shuffle_ps(x, x, 1)));
}

inline __m128 min4(__m128 a, __m128 b) { return _mm_min_ps(a, b); }
inline __m128 max4(__m128 a, __m128 b) { return _mm_max_ps(a, b); }
inline __m128 add4(__m128 a, __m128 b) { return _mm_add_ps(a, b); }

inline __m128 low_half(__m256 x) { return _mm256_castps256_ps128(x); }
inline __m128 high_half(__m256 x) { return _mm256_extractf128_ps(x, 1); }
inline float sum8(__m256 x) { return reduce<add4>(_mm_add_ps(low_half(x), high_half(x))); }

inline bool finite(double x) { return x - x == 0.0; }

// (x - lo) * inverse of 16 entries, rounded to the nearest even integer, as bytes.
inline __m128i quantize16(const float* lut, float lo, float inverse) {
    const __m256 base = _mm256_set1_ps(lo), factor = _mm256_set1_ps(inverse);
    const __m256i first = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_sub_ps(_mm256_loadu_ps(lut), base), factor));
    const __m256i second = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_sub_ps(_mm256_loadu_ps(lut + 8), base), factor));
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(first, second), 0xd8);
    return _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
}

TableScale quantize_tables(const float* lut, std::size_t m, std::uint8_t* tables) noexcept {
    float lo[kMaxM], range[kMaxM], widest = 0.0f;
    double bias = 0.0;
    for (std::size_t j = 0; j < m; ++j) {
        const __m256 a = _mm256_loadu_ps(lut + j * kSub), b = _mm256_loadu_ps(lut + j * kSub + 8);
        const __m256 low = _mm256_min_ps(a, b), high = _mm256_max_ps(a, b);
        lo[j] = reduce<min4>(_mm_min_ps(low_half(low), high_half(low)));
        range[j] = reduce<max4>(_mm_max_ps(low_half(high), high_half(high))) - lo[j];
        bias += lo[j];
    }
    for (std::size_t j = 0; j < m; j += 2) widest = range[j] + range[j + 1] > widest ? range[j] + range[j + 1] : widest;
    if (!finite(widest) || !finite(bias)) {
        std::memset(tables, 0, m * kSub);
        return {std::numeric_limits<double>::quiet_NaN(), 0.0f};
    }
    const float top = kMaxPairSum - 1;
    const bool flat = !finite(top / widest);
    const float inverse = flat ? 0.0f : top / widest;
    for (std::size_t j = 0; j < m; ++j)
        _mm_storeu_si128(reinterpret_cast<__m128i*>(tables + j * kSub), quantize16(lut + j * kSub, lo[j], inverse));
    return {bias, flat ? 0.0f : widest / top};
}

void pq_tables(const float* rotated, const float* words_t, const float* init, std::size_t m, std::size_t dsub,
               float* lut) noexcept {
    for (std::size_t j = 0; j < m; ++j, lut += kSub, init += kSub) {
        __m256 a = _mm256_loadu_ps(init), b = _mm256_loadu_ps(init + 8);
        for (std::size_t t = 0; t < dsub; ++t, words_t += kSub) {
            const __m256 x = _mm256_set1_ps(rotated[j * dsub + t]);
            a = _mm256_fmadd_ps(x, _mm256_loadu_ps(words_t), a);
            b = _mm256_fmadd_ps(x, _mm256_loadu_ps(words_t + 8), b);
        }
        _mm256_storeu_ps(lut, a);
        _mm256_storeu_ps(lut + 8, b);
    }
}

// The first n < 8 lanes set, for loads that must not touch what lies behind.
inline __m256i first_lanes(std::size_t n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

inline __m256 load8(const float* x) { return _mm256_loadu_ps(x); }
inline __m256 load8(const float* x, std::size_t n) { return _mm256_maskload_ps(x, first_lanes(n)); }
inline __m256 load8(const std::uint16_t* x) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x)));
}
inline __m256 load8(const std::uint16_t* x, std::size_t n) {
    std::uint16_t padded[kLanes] = {};
    std::memcpy(padded, x, n * sizeof(std::uint16_t));
    return load8(padded);
}

// NA x NB inner products with one accumulator each, so that an element's operations are the same in every tile.
template <int NA, int NB, class B>
inline void gemm_tile(const float* a, const B* b, std::size_t d, float* c, std::size_t c_stride) {
    __m256 sums[NA][NB];
    for (int i = 0; i < NA; ++i)
        for (int j = 0; j < NB; ++j) sums[i][j] = _mm256_setzero_ps();
    std::size_t t = 0;
    for (; t + kLanes <= d; t += kLanes) {
        __m256 x[NA];
        for (int i = 0; i < NA; ++i) x[i] = _mm256_loadu_ps(a + i * d + t);
        for (int j = 0; j < NB; ++j) {
            const __m256 y = load8(b + j * d + t);
            for (int i = 0; i < NA; ++i) sums[i][j] = _mm256_fmadd_ps(x[i], y, sums[i][j]);
        }
    }
    for (int j = 0; j < NB; ++j) {
        const __m256 y = load8(b + j * d + t, d - t);
        for (int i = 0; i < NA; ++i)
            c[i * c_stride + j] = sum8(_mm256_fmadd_ps(load8(a + i * d + t, d - t), y, sums[i][j]));
    }
}

// All rows of a against NB rows of b, which stay in L1 meanwhile.
template <int NB, class B>
inline void gemm_column(const float* a, std::size_t na, const B* b, std::size_t d, float* c, std::size_t nb) {
    std::size_t i = 0;
    for (; i + 3 <= na; i += 3) gemm_tile<3, NB>(a + i * d, b, d, c + i * nb, nb);
    for (; i < na; ++i) gemm_tile<1, NB>(a + i * d, b, d, c + i * nb, nb);
}

template <class B>
inline void gemm(const float* a, std::size_t na, const B* b, std::size_t nb, std::size_t d, float* c) {
    std::size_t j = 0;
    // A single query has no second row to fill the pipeline of multiplications: eight rows of b do.
    for (; na == 1 && j + 8 <= nb; j += 8) gemm_tile<1, 8>(a, b + j * d, d, c + j, nb);
    for (; j + 4 <= nb; j += 4) gemm_column<4>(a, na, b + j * d, d, c + j, nb);
    for (; j < nb; ++j) gemm_column<1>(a, na, b + j * d, d, c + j, nb);
}

void gemm_nt(const float* a, std::size_t na, const float* b, std::size_t nb, std::size_t d, float* c) noexcept {
    gemm(a, na, b, nb, d, c);
}

void gemm_nt_f16(const float* a, std::size_t na, const std::uint16_t* b, std::size_t nb, std::size_t d,
                 float* c) noexcept {
    gemm(a, na, b, nb, d, c);
}

// A row reader loads eight elements at i, or the first n < 8 of them with zeros behind.
struct F32Row {
    const std::uint8_t* bytes;
    __m256 at(std::size_t i) const { return load8(reinterpret_cast<const float*>(bytes) + i); }
    __m256 at(std::size_t i, std::size_t n) const { return load8(reinterpret_cast<const float*>(bytes) + i, n); }
};

struct F16Row {
    const std::uint8_t* bytes;
    __m256 at(std::size_t i) const { return load8(reinterpret_cast<const std::uint16_t*>(bytes) + i); }
    __m256 at(std::size_t i, std::size_t n) const {
        return load8(reinterpret_cast<const std::uint16_t*>(bytes) + i, n);
    }
};

struct Bf16Row {
    const std::uint8_t* bytes;
    __m256 at(std::size_t i) const { return widened(bytes + 2 * i); }
    __m256 at(std::size_t i, std::size_t n) const {
        std::uint8_t padded[2 * kLanes] = {};
        std::memcpy(padded, bytes + 2 * i, 2 * n);
        return widened(padded);
    }
    static __m256 widened(const std::uint8_t* eight) {
        const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(eight));
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
    }
};

struct I8Row {
    explicit I8Row(const std::uint8_t* row)
        : scale(_mm256_broadcast_ss(reinterpret_cast<const float*>(row))), bytes(row + sizeof(float)) {}
    __m256 scale;
    const std::uint8_t* bytes;
    __m256 at(std::size_t i) const { return scaled(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes + i))); }
    __m256 at(std::size_t i, std::size_t n) const {
        std::uint8_t padded[kLanes] = {};
        std::memcpy(padded, bytes + i, n);
        return scaled(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(padded)));
    }
    __m256 scaled(__m128i eight) const { return _mm256_mul_ps(scale, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(eight))); }
};

struct Dot {
    static __m256 add(__m256 sum, __m256 q, __m256 x) { return _mm256_fmadd_ps(q, x, sum); }
};

struct NegativeL2 {
    static __m256 add(__m256 sum, __m256 q, __m256 x) {
        const __m256 difference = _mm256_sub_ps(q, x);
        return _mm256_fnmadd_ps(difference, difference, sum);
    }
};

// Four accumulators hide the latency of the additions.
template <class Score, class Row>
float dense_score(const float* query, const std::uint8_t* bytes, std::size_t d) noexcept {
    const Row row{bytes};
    __m256 sums[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps()};
    std::size_t i = 0;
    for (; i + 4 * kLanes <= d; i += 4 * kLanes)
        for (std::size_t s = 0; s < 4; ++s)
            sums[s] = Score::add(sums[s], _mm256_loadu_ps(query + i + s * kLanes), row.at(i + s * kLanes));
    for (; i + kLanes <= d; i += kLanes) sums[0] = Score::add(sums[0], _mm256_loadu_ps(query + i), row.at(i));
    if (i < d) sums[1] = Score::add(sums[1], _mm256_maskload_ps(query + i, first_lanes(d - i)), row.at(i, d - i));
    return sum8(_mm256_add_ps(_mm256_add_ps(sums[0], sums[1]), _mm256_add_ps(sums[2], sums[3])));
}

}  // namespace

extern const Kernels kAvx2Kernels;
const Kernels kAvx2Kernels = {
    "avx2",
    scan_pq4,
    quantize_tables,
    pq_tables,
    gemm_nt,
    gemm_nt_f16,
    dense_score<Dot, F32Row>,
    dense_score<Dot, F16Row>,
    dense_score<Dot, Bf16Row>,
    dense_score<Dot, I8Row>,
    dense_score<NegativeL2, F32Row>,
    dense_score<NegativeL2, F16Row>,
    dense_score<NegativeL2, Bf16Row>,
    dense_score<NegativeL2, I8Row>,
};

}  // namespace vqdistill

VQD_TARGET_END

#endif
