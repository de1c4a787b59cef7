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

#include "sums_x86.h"

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

// Tables of a query, as they are.
struct Tables {
    void set(const std::uint8_t* tables, std::size_t) { bytes = tables; }
    const std::uint8_t* bytes;
};

inline void add_pairs(const std::uint8_t* block, std::size_t pairs, const Tables& tables, BlockSums& sums) {
    std::size_t p = 0;
    for (; p + 2 <= pairs; p += 2) {
        prefetch_ahead(block + p * kBlockRows);
        const __m256i a = PairCodes(block + p * kBlockRows).look_up(tables.bytes + 2 * p * kSub);
        const __m256i b = PairCodes(block + (p + 1) * kBlockRows).look_up(tables.bytes + 2 * (p + 1) * kSub);
        sums.both = _mm256_add_epi16(sums.both, _mm256_add_epi16(a, b));
        sums.odd = _mm256_add_epi16(sums.odd, _mm256_add_epi16(_mm256_srli_epi16(a, 8), _mm256_srli_epi16(b, 8)));
    }
    if (p < pairs) sums.add(PairCodes(block + p * kBlockRows).look_up(tables.bytes + 2 * p * kSub));
}

template <std::size_t NQ>
inline void add_pairs(const std::uint8_t* block, std::size_t pairs, const Tables* tables, BlockSums* sums) {
    if constexpr (NQ == 1) return add_pairs(block, pairs, tables[0], sums[0]);
    for (std::size_t p = 0; p < pairs; ++p) {
        if (p % 2 == 0) prefetch_ahead(block + p * kBlockRows);
        const PairCodes codes(block + p * kBlockRows);
        for (std::size_t i = 0; i < NQ; ++i) sums[i].add(codes.look_up(tables[i].bytes + 2 * p * kSub));
    }
}

template <std::size_t NQ, class Scan>
inline void with_adder(std::size_t m, const Tables* tables, Scan scan) {
    scan([&](const std::uint8_t* block, BlockSums* sums) { add_pairs<NQ>(block, m / 2, tables, sums); });
}

// Which rows have sums of at least `threshold`, one bit each.
inline std::uint32_t rows_reaching(const BlockSums& sums, int threshold) {
    const __m256i below = _mm256_set1_epi16(static_cast<short>(threshold - 1));
    const __m256i even = _mm256_cmpgt_epi16(sums.even(), below), odd = _mm256_cmpgt_epi16(sums.odd, below);
    const __m256i by_row = _mm256_or_si256(_mm256_srli_epi16(even, 8), _mm256_slli_epi16(odd, 8));
    return static_cast<std::uint32_t>(_mm256_movemask_epi8(by_row));
}

// Whether the sum of some row is at least `threshold`.
inline bool reaches(const BlockSums& sums, int threshold) {
    const __m256i best = _mm256_max_epi16(sums.even(), sums.odd), least = _mm256_set1_epi16(static_cast<short>(threshold));
    return _mm256_movemask_epi8(_mm256_cmpgt_epi16(least, best)) != -1;
}

#include "scan_x86.h"

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

// The entries of one table for eight rows.
struct FloatTable {
    explicit FloatTable(const float* entries) : low(_mm256_loadu_ps(entries)), high(_mm256_loadu_ps(entries + 8)) {}
    // By the lowest four bits of each lane.
    __m256 look_up(__m256i codes) const {
        const __m256 upper = _mm256_castsi256_ps(_mm256_slli_epi32(codes, 28));  // bit 3 chooses, as a sign
        return _mm256_blendv_ps(_mm256_permutevar8x32_ps(low, codes), _mm256_permutevar8x32_ps(high, codes), upper);
    }
    __m256 low, high;
};

// Eight sums in double.
struct EightSums {
    EightSums() : low(_mm256_setzero_pd()), high(low) {}
    void add(__m256 x) {
        low = _mm256_add_pd(low, _mm256_cvtps_pd(low_half(x)));
        high = _mm256_add_pd(high, _mm256_cvtps_pd(high_half(x)));
    }
    __m256d low, high;
};

void sum_entries(const float* lut, const std::uint8_t* codes, std::size_t m, double* sums) noexcept {
    EightSums even[2], odd[2];
    for (std::size_t p = 0; p < m / 2; ++p, codes += kSumRows, lut += 2 * kSub) {
        const FloatTable even_table(lut), odd_table(lut + kSub);
        for (std::size_t half = 0; half < 2; ++half) {
            const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes + 8 * half));
            const __m256i pairs = _mm256_cvtepu8_epi32(bytes);
            even[half].add(even_table.look_up(pairs));
            odd[half].add(odd_table.look_up(_mm256_srli_epi32(pairs, 4)));
        }
    }
    for (std::size_t half = 0; half < 2; ++half) {
        _mm256_storeu_pd(sums + 8 * half, _mm256_add_pd(even[half].low, odd[half].low));
        _mm256_storeu_pd(sums + 8 * half + 4, _mm256_add_pd(even[half].high, odd[half].high));
    }
}

struct Lanes {
    Lanes(__m256 low_lanes, __m256 high_lanes) : low(low_lanes), high(high_lanes) {}
    explicit Lanes(float value) : low(_mm256_set1_ps(value)), high(low) {}
    static Lanes load(const float* from) { return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}; }
    void store(float* to) const {
        _mm256_storeu_ps(to, low);
        _mm256_storeu_ps(to + 8, high);
    }
    float least() const {
        const __m256 both = _mm256_min_ps(low, high);
        return reduce<min4>(_mm_min_ps(low_half(both), high_half(both)));
    }
    // The first lane of the given value, which some lane has.
    std::size_t first(float value) const {
        const __m256 wanted = _mm256_set1_ps(value);
        const int in_low = _mm256_movemask_ps(_mm256_cmp_ps(low, wanted, _CMP_EQ_OQ));
        const int in_high = _mm256_movemask_ps(_mm256_cmp_ps(high, wanted, _CMP_EQ_OQ));
        return static_cast<std::size_t>(__builtin_ctz(static_cast<unsigned>(in_low | in_high << 8 | 1 << 16))) % kSub;
    }
    __m256 low, high;
};
inline Lanes operator+(Lanes a, Lanes b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
inline Lanes operator-(Lanes a, Lanes b) { return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)}; }
inline Lanes operator*(Lanes a, Lanes b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }

#include "code_search.h"

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

// Rows of halves that are widened once for all rows of a, if they are short enough for the stack.
constexpr std::size_t kWidened = 4, kLongestWidened = 2048;

void gemm_nt_f16(const float* a, std::size_t na, const std::uint16_t* b, std::size_t nb, std::size_t d,
                 float* c) noexcept {
    if (na < 4 || d > kLongestWidened) return gemm(a, na, b, nb, d, c);
    float rows[kWidened * kLongestWidened];
    for (std::size_t j = 0; j < nb; j += kWidened) {
        const std::size_t count = std::min(kWidened, nb - j), size = count * d;
        std::size_t t = 0;
        for (; t + kLanes <= size; t += kLanes) _mm256_storeu_ps(rows + t, load8(b + j * d + t));
        for (; t < size; ++t) rows[t] = _cvtsh_ss(b[j * d + t]);
        if (count == kWidened) {
            gemm_column<kWidened>(a, na, rows, d, c + j, nb);
        } else {
            for (std::size_t i = 0; i < count; ++i) gemm_column<1>(a, na, rows + i * d, d, c + j + i, nb);
        }
    }
}

// The first n < 32 bytes with zeros behind.
inline __m256i load32(const std::uint8_t* bytes, std::size_t n) {
    std::uint8_t padded[32] = {};
    std::memcpy(padded, bytes, n);
    return load32(padded);
}

// Sums of products of signed bytes. x86 multiplies unsigned bytes by signed ones: the sign of x moves over to y.
struct ByteSums {
    ByteSums() : sums(_mm256_setzero_si256()) {}
    void add(__m256i x, __m256i y) {
        const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(x), _mm256_sign_epi8(y, x));
        sums = _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    }
    __m256i sums;
};

// NA x NB products of rows of bytes, with NB <= 4 of the four sums in use.
template <int NA, int NB>
inline void byte_tile(const std::uint8_t* a, const std::uint8_t* b, std::size_t d, float* c, std::size_t c_stride) {
    const std::size_t stride = byte_stride(d);
    ByteSums sums[NA][4];
    std::size_t t = sizeof(float);
    for (; t + 32 <= stride; t += 32)
        for (int i = 0; i < NA; ++i) {
            const __m256i x = load32(a + i * stride + t);
            for (int j = 0; j < NB; ++j) sums[i][j].add(x, load32(b + j * stride + t));
        }
    for (int i = 0; t < stride && i < NA; ++i) {
        const __m256i x = load32(a + i * stride + t, stride - t);
        for (int j = 0; j < NB; ++j) sums[i][j].add(x, load32(b + j * stride + t, stride - t));
    }
    for (int i = 0; i < NA; ++i) {
        float products[4];
        const __m128i four = totals(sums[i][0].sums, sums[i][1].sums, sums[i][2].sums, sums[i][3].sums);
        _mm_storeu_ps(products, _mm_cvtepi32_ps(four));
        for (int j = 0; j < NB; ++j) c[i * c_stride + j] = products[j] * (scale_of(a + i * stride) * scale_of(b + j * stride));
    }
}

template <int NB>
inline void byte_column(const std::uint8_t* a, std::size_t na, const std::uint8_t* b, std::size_t d, float* c,
                        std::size_t nb) {
    std::size_t i = 0;
    for (; i + 2 <= na; i += 2) byte_tile<2, NB>(a + i * byte_stride(d), b, d, c + i * nb, nb);
    for (; i < na; ++i) byte_tile<1, NB>(a + i * byte_stride(d), b, d, c + i * nb, nb);
}

void gemm_nt_i8(const std::uint8_t* a, std::size_t na, const std::uint8_t* b, std::size_t nb, std::size_t d,
                float* c) noexcept {
    std::size_t j = 0;
    for (; j + 4 <= nb; j += 4) byte_column<4>(a, na, b + j * byte_stride(d), d, c + j, nb);
    for (; j < nb; ++j) byte_column<1>(a, na, b + j * byte_stride(d), d, c + j, nb);
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
    nullptr,  // a register holds codes of several pairs there, and pshufb has one table
    quantize_tables,
    pq_tables,
    sum_entries,
    search_codes,
    gemm_nt,
    gemm_nt_f16,
    gemm_nt_i8,
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
