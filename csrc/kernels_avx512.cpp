// The AVX-512 level (F, BW, DQ, VL, VBMI and VNNI: Ice Lake, Zen 4 and later). Everything between the two target lines is
// compiled for it.
//
// It has what was measured to be faster than AVX2, and takes the rest from there. Figures are AVX2 -> AVX-512, the scan's
// from Ice Lake, the others from Zen 4.
//   scan, M rows/s a query, 32-byte codes: 450 -> 630 for queries in batches, 345 -> 420 for one from L3. The look-ups of
//     VBMI in 32-byte registers gained 5 % on Zen 4, but lose a quarter on Ice Lake, which does one where it does two pshufb.
//   scan of quads, the same on Zen 4: 1470 -> 2360 for four queries, 1180 -> 1680 for one from L3, 810 -> 1350 from memory.
//   dense rows of 384 elements in L2, G elements/s: dot_i8 15.9 -> 17.7, l2_i8 12.2 -> 15.1, l2_bf16 15.1 -> 17.4;
//     f32, f16 and dot_bf16 lose up to 7 %, as Zen 4 halves such registers and adding up 16 lanes takes longer.
//   quantize_tables 4.5 -> 4.8 G entries/s; pq_tables the same.
//   search_codes loses about 5 %.
//   gemm_nt, G products/s, 512 rows of b: 25 -> 21 for one row of a, 44 -> 43 for 16; gemm_nt_f16 35 -> 26, 43 -> 44.
//   gemm_nt_i8, the same: 58 -> 85 for one row of a, 56 -> 123 for 32; with rows of 100 bytes 7 -> 43 and 7 -> 64.
#if defined(__x86_64__)

// The header passes what it calls undefined to its own built-ins, and GCC 12 warns of it.
#if !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#if !defined(__clang__)
#pragma GCC diagnostic pop
#endif

#include <algorithm>
#include <cstring>
#include <limits>

#include "dispatch.h"

VQD_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,avx2,fma,f16c,bmi,bmi2,popcnt")

namespace vqdistill {
namespace {

constexpr std::size_t kLanes = 16;

#include "sums_x86.h"

inline __m512i load64(const std::uint8_t* bytes) { return _mm512_loadu_si512(bytes); }

// Tables of a query, each one twice, so that those of two pairs of subspaces fill a register.
struct Tables {
    void set(const std::uint8_t* tables, std::size_t m) {
        for (std::size_t p = 0; p < m / 2; ++p) {
            _mm256_store_si256(reinterpret_cast<__m256i*>(first[p]), load_table(tables + 2 * p * kSub));
            _mm256_store_si256(reinterpret_cast<__m256i*>(second[p]), load_table(tables + (2 * p + 1) * kSub));
        }
    }
    alignas(64) std::uint8_t first[kMaxM / 2][kBlockRows], second[kMaxM / 2][kBlockRows];
};

// The codes of two pairs of subspaces, apart.
struct TwoPairs {
    explicit TwoPairs(const std::uint8_t* codes) {
        const __m512i low4 = _mm512_set1_epi8(15), pairs = load64(codes);
        first = _mm512_and_si512(pairs, low4);
        second = _mm512_and_si512(_mm512_srli_epi16(pairs, 4), low4);
    }
    // Table entries of all rows for both of a pair, added in bytes: <= 255 by contract of the tables.
    __m512i look_up(const Tables& tables, std::size_t p) const {
        return _mm512_add_epi8(_mm512_shuffle_epi8(load64(tables.first[p]), first),
                               _mm512_shuffle_epi8(load64(tables.second[p]), second));
    }
    __m512i first, second;
};

// Sums as BlockSums has them, of every other pair in each half.
struct TwoSums {
    TwoSums() : both(_mm512_setzero_si512()), odd(both) {}
    void add(__m512i bytes) {
        both = _mm512_add_epi16(both, bytes);
        odd = _mm512_add_epi16(odd, _mm512_srli_epi16(bytes, 8));
    }
    void add_to(BlockSums& sums) const {
        sums.both = _mm256_add_epi16(sums.both, folded(both));
        sums.odd = _mm256_add_epi16(sums.odd, folded(odd));
    }
    static __m256i folded(__m512i x) {
        return _mm256_add_epi16(_mm512_castsi512_si256(x), _mm512_extracti64x4_epi64(x, 1));
    }
    __m512i both, odd;
};

// The same for one pair.
inline __m256i look_up_pair(const std::uint8_t* block, std::size_t p, const Tables& tables) {
    const __m256i low4 = _mm256_set1_epi8(15), pair = load32(block + p * kBlockRows);
    return _mm256_add_epi8(
        _mm256_shuffle_epi8(load32(tables.first[p]), _mm256_and_si256(pair, low4)),
        _mm256_shuffle_epi8(load32(tables.second[p]), _mm256_and_si256(_mm256_srli_epi16(pair, 4), low4)));
}

template <std::size_t NQ>
inline void add_pairs(const std::uint8_t* block, std::size_t pairs, const Tables* tables, BlockSums* sums) {
    TwoSums two[NQ];
    std::size_t p = 0;
    for (; p + 2 <= pairs; p += 2) {
        prefetch_ahead(block + p * kBlockRows);
        const TwoPairs codes(block + p * kBlockRows);
        for (std::size_t i = 0; i < NQ; ++i) two[i].add(codes.look_up(tables[i], p));
    }
    for (std::size_t i = 0; i < NQ; ++i) {
        two[i].add_to(sums[i]);
        if (p < pairs) sums[i].add(look_up_pair(block, p, tables[i]));
    }
}

template <std::size_t NQ, class Scan>
inline void with_adder(std::size_t m, const Tables* tables, Scan scan) {
    scan([&](const std::uint8_t* block, BlockSums* sums) { add_pairs<NQ>(block, m / 2, tables, sums); });
}

// Which rows have sums of at least `threshold`, one bit each.
inline std::uint32_t rows_reaching(const BlockSums& sums, int threshold) {
    const __m256i least = _mm256_set1_epi16(static_cast<short>(threshold));
    const __mmask16 even = _mm256_cmpge_epi16_mask(sums.even(), least), odd = _mm256_cmpge_epi16_mask(sums.odd, least);
    return _pdep_u32(even, 0x55555555u) | _pdep_u32(odd, 0xAAAAAAAAu);
}

// Whether the sum of some row is at least `threshold`.
inline bool reaches(const BlockSums& sums, int threshold) {
    const __m256i best = _mm256_max_epi16(sums.even(), sums.odd);
    return _mm256_cmpge_epi16_mask(best, _mm256_set1_epi16(static_cast<short>(threshold))) != 0;
}

#include "scan_x86.h"

namespace quads {

#include "quads_avx512.h"
#include "scan_x86.h"

}  // namespace quads

// Adds 16 floats to 16 sums in double.
inline void add_floats(__m512 x, __m512d* sums) {
    sums[0] = _mm512_add_pd(sums[0], _mm512_cvtps_pd(_mm512_castps512_ps256(x)));
    sums[1] = _mm512_add_pd(sums[1], _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1)));
}

void sum_entries(const float* lut, const std::uint8_t* codes, std::size_t m, double* sums) noexcept {
    const __m512d zero = _mm512_setzero_pd();
    __m512d even[] = {zero, zero}, odd[] = {zero, zero};
    for (std::size_t p = 0; p < m / 2; ++p, codes += kSumRows, lut += 2 * kSub) {
        const __m512i pairs = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes)));
        add_floats(_mm512_permutexvar_ps(pairs, _mm512_loadu_ps(lut)), even);  // by the lowest four bits
        add_floats(_mm512_permutexvar_ps(_mm512_srli_epi32(pairs, 4), _mm512_loadu_ps(lut + kSub)), odd);
    }
    _mm512_storeu_pd(sums, _mm512_add_pd(even[0], odd[0]));
    _mm512_storeu_pd(sums + 8, _mm512_add_pd(even[1], odd[1]));
}

inline bool finite(double x) { return x - x == 0.0; }

TableScale quantize_tables(const float* lut, std::size_t m, std::uint8_t* tables) noexcept {
    float lo[kMaxM], range[kMaxM], widest = 0.0f;
    double bias = 0.0;
    for (std::size_t j = 0; j < m; ++j) {
        const __m512 entries = _mm512_loadu_ps(lut + j * kSub);
        lo[j] = _mm512_reduce_min_ps(entries);
        range[j] = _mm512_reduce_max_ps(entries) - lo[j];
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
    const __m512 factor = _mm512_set1_ps(inverse);
    for (std::size_t j = 0; j < m; ++j) {
        const __m512 above = _mm512_sub_ps(_mm512_loadu_ps(lut + j * kSub), _mm512_set1_ps(lo[j]));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(tables + j * kSub),
                         _mm512_cvtusepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(above, factor))));
    }
    return {bias, flat ? 0.0f : widest / top};
}

// The first n < 16 lanes set: a masked load does not touch what lies behind.
inline __mmask16 first_lanes(std::size_t n) { return static_cast<__mmask16>((1u << n) - 1); }

inline __m512 load16(const float* x) { return _mm512_loadu_ps(x); }
inline __m512 load16(const float* x, std::size_t n) { return _mm512_maskz_loadu_ps(first_lanes(n), x); }

// 64 signed bytes of a row at i, or the first n < 64 of them with zeros behind.
inline __m512i bytes_at(const std::uint8_t* row, std::size_t i) { return load64(row + sizeof(float) + i); }
inline __m512i bytes_at(const std::uint8_t* row, std::size_t i, std::size_t n) {
    return _mm512_maskz_loadu_epi8((std::uint64_t{1} << n) - 1, row + sizeof(float) + i);
}

// Both halves added up.
inline __m256i folded(__m512i x) {
    return _mm256_add_epi32(_mm512_castsi512_si256(x), _mm512_extracti64x4_epi64(x, 1));
}

// The instruction multiplies unsigned bytes by signed ones: rows of b count as 128 more, and 128 times the sum of a row of
// a, its excess, comes off again, modulo 2^32.
inline __m512i top_bits() { return _mm512_set1_epi8(-128); }

inline int excess_of(const std::uint8_t* row, std::size_t d) {
    __m512i sum = _mm512_setzero_si512();
    std::size_t t = 0;
    for (; t + 64 <= d; t += 64) sum = _mm512_dpbusd_epi32(sum, top_bits(), bytes_at(row, t));
    if (t < d) sum = _mm512_dpbusd_epi32(sum, top_bits(), bytes_at(row, t, d - t));
    return _mm512_reduce_add_epi32(sum);
}

// NA x NB sums of products of bytes, with the excess; NB <= 4.
template <int NA, int NB>
struct ByteSums {
    ByteSums() {
        for (int i = 0; i < NA; ++i)
            for (int j = 0; j < 4; ++j) sums[i][j] = _mm512_setzero_si512();
    }
    // `part` says which bytes of a row: bytes_at(row, part...).
    template <class... Part>
    void add(const std::uint8_t* a, const std::uint8_t* b, std::size_t stride, Part... part) {
        __m512i x[NA];
        for (int i = 0; i < NA; ++i) x[i] = bytes_at(a + i * stride, part...);
        for (int j = 0; j < NB; ++j) {
            const __m512i y = _mm512_xor_si512(bytes_at(b + j * stride, part...), top_bits());
            for (int i = 0; i < NA; ++i) sums[i][j] = _mm512_dpbusd_epi32(sums[i][j], y, x[i]);
        }
    }
    __m512i sums[NA][4];
};

template <int NA, int NB>
inline void byte_tile(const std::uint8_t* a, const int* excess, const std::uint8_t* b, std::size_t d, float* c,
                      std::size_t c_stride) {
    const std::size_t stride = byte_stride(d);
    ByteSums<NA, NB> tile;
    std::size_t t = 0;
    for (; t + 64 <= d; t += 64) tile.add(a, b, stride, t);
    if (t < d) tile.add(a, b, stride, t, d - t);
    for (int i = 0; i < NA; ++i) {
        float products[4];
        const __m512i* const sums = tile.sums[i];
        const __m128i four = totals(folded(sums[0]), folded(sums[1]), folded(sums[2]), folded(sums[3]));
        _mm_storeu_ps(products, _mm_cvtepi32_ps(_mm_sub_epi32(four, _mm_set1_epi32(excess[i]))));
        for (int j = 0; j < NB; ++j) c[i * c_stride + j] = products[j] * (scale_of(a + i * stride) * scale_of(b + j * stride));
    }
}

template <int NB>
inline void byte_column(const std::uint8_t* a, const int* excess, std::size_t na, const std::uint8_t* b, std::size_t d,
                        float* c, std::size_t nb) {
    std::size_t i = 0;
    for (; i + 4 <= na; i += 4) byte_tile<4, NB>(a + i * byte_stride(d), excess + i, b, d, c + i * nb, nb);
    for (; i < na; ++i) byte_tile<1, NB>(a + i * byte_stride(d), excess + i, b, d, c + i * nb, nb);
}

void gemm_nt_i8(const std::uint8_t* a, std::size_t na, const std::uint8_t* b, std::size_t nb, std::size_t d,
                float* c) noexcept {
    constexpr std::size_t kTogether = 32;  // rows of a
    const std::size_t stride = byte_stride(d);
    for (std::size_t first = 0; first < na; first += kTogether) {
        const std::size_t count = std::min(kTogether, na - first);
        const std::uint8_t* const rows = a + first * stride;
        int excess[kTogether];
        for (std::size_t i = 0; i < count; ++i) excess[i] = excess_of(rows + i * stride, d);
        std::size_t j = 0;
        for (; j + 4 <= nb; j += 4) byte_column<4>(rows, excess, count, b + j * stride, d, c + first * nb + j, nb);
        for (; j < nb; ++j) byte_column<1>(rows, excess, count, b + j * stride, d, c + first * nb + j, nb);
    }
}

// A row reader loads sixteen elements at i, or the first n < 16 of them with zeros behind.
struct Bf16Row {
    const std::uint8_t* bytes;
    __m512 at(std::size_t i) const { return widened(load32(bytes + 2 * i)); }
    __m512 at(std::size_t i, std::size_t n) const {
        return widened(_mm256_maskz_loadu_epi16(first_lanes(n), bytes + 2 * i));
    }
    static __m512 widened(__m256i sixteen) {
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(sixteen), 16));
    }
};

struct I8Row {
    explicit I8Row(const std::uint8_t* row) : bytes(row + sizeof(float)) {
        float factor;
        std::memcpy(&factor, row, sizeof factor);
        scale = _mm512_set1_ps(factor);
    }
    __m512 scale;
    const std::uint8_t* bytes;
    __m512 at(std::size_t i) const { return scaled(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes + i))); }
    __m512 at(std::size_t i, std::size_t n) const { return scaled(_mm_maskz_loadu_epi8(first_lanes(n), bytes + i)); }
    __m512 scaled(__m128i sixteen) const {
        return _mm512_mul_ps(scale, _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(sixteen)));
    }
};

struct Dot {
    static __m512 add(__m512 sum, __m512 q, __m512 x) { return _mm512_fmadd_ps(q, x, sum); }
};

struct NegativeL2 {
    static __m512 add(__m512 sum, __m512 q, __m512 x) {
        const __m512 difference = _mm512_sub_ps(q, x);
        return _mm512_fnmadd_ps(difference, difference, sum);
    }
};

// Four accumulators hide the latency of the additions.
template <class Score, class Row>
float dense_score(const float* query, const std::uint8_t* bytes, std::size_t d) noexcept {
    const Row row{bytes};
    __m512 sums[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
    std::size_t i = 0;
    for (; i + 4 * kLanes <= d; i += 4 * kLanes)
        for (std::size_t s = 0; s < 4; ++s)
            sums[s] = Score::add(sums[s], load16(query + i + s * kLanes), row.at(i + s * kLanes));
    for (; i + kLanes <= d; i += kLanes) sums[0] = Score::add(sums[0], load16(query + i), row.at(i));
    if (i < d) sums[1] = Score::add(sums[1], load16(query + i, d - i), row.at(i, d - i));
    return _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_add_ps(sums[2], sums[3])));
}

}  // namespace
}  // namespace vqdistill

VQD_TARGET_END

namespace vqdistill {

extern const Kernels kAvx2Kernels, kAvx512Kernels;
// Copied from a constant when the library is loaded, by code that runs on every CPU: it stands outside of the region.
const Kernels kAvx512Kernels = {
    "avx512",
    scan_pq4,
    quads::scan_pq4,
    quantize_tables,
    kAvx2Kernels.pq_tables,
    sum_entries,
    kAvx2Kernels.search_codes,
    kAvx2Kernels.gemm_nt,
    kAvx2Kernels.gemm_nt_f16,
    gemm_nt_i8,
    kAvx2Kernels.dot_f32,
    kAvx2Kernels.dot_f16,
    kAvx2Kernels.dot_bf16,
    dense_score<Dot, I8Row>,
    kAvx2Kernels.l2_f32,
    kAvx2Kernels.l2_f16,
    dense_score<NegativeL2, Bf16Row>,
    dense_score<NegativeL2, I8Row>,
};

}  // namespace vqdistill

#endif
