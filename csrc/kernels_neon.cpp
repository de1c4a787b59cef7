// The NEON level: what every 64-bit ARM processor has, so that no target region is needed.
#if defined(__aarch64__)

#include <arm_neon.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "dispatch.h"

namespace vqdistill {
namespace {

constexpr std::size_t kLanes = 8;
// As measured for AVX2; not measured on ARM.
constexpr std::size_t kPrefetchBytes = 4096;

// Sums of a block: 16-bit lanes in the order of the rows.
struct BlockSums {
    void add(uint8x16_t first, uint8x16_t second) {
        rows[0] = vaddw_u8(rows[0], vget_low_u8(first));
        rows[1] = vaddw_high_u8(rows[1], first);
        rows[2] = vaddw_u8(rows[2], vget_low_u8(second));
        rows[3] = vaddw_high_u8(rows[3], second);
    }
    bool reach(int threshold) const {
        const uint16x8_t best = vmaxq_u16(vmaxq_u16(rows[0], rows[1]), vmaxq_u16(rows[2], rows[3]));
        return vmaxvq_u16(best) >= threshold;
    }
    uint16x8_t rows[4] = {};
};

// The codes of a pair of subspaces for half of a block, apart.
struct PairCodes {
    explicit PairCodes(const std::uint8_t* codes) {
        const uint8x16_t pair = vld1q_u8(codes);
        first = vandq_u8(pair, vdupq_n_u8(15));
        second = vshrq_n_u8(pair, 4);
    }
    // Table entries of all rows for both, added in bytes: <= 255 by contract of the tables.
    uint8x16_t look_up(uint8x16_t first_table, uint8x16_t second_table) const {
        return vaddq_u8(vqtbl1q_u8(first_table, first), vqtbl1q_u8(second_table, second));
    }
    uint8x16_t first, second;
};

// Adds the entries of all pairs of a block to the sums of NQ queries, which share the unpacking of the codes.
template <std::size_t NQ>
inline void add_pairs(const std::uint8_t* block, std::size_t pairs, const ScanQuery* queries, BlockSums* sums) {
    for (std::size_t p = 0; p < pairs; ++p) {
        const PairCodes upper(block + p * kBlockRows), lower(block + p * kBlockRows + kBlockRows / 2);
        for (std::size_t i = 0; i < NQ; ++i) {
            const std::uint8_t* tables = queries[i].tables + 2 * p * kSub;
            const uint8x16_t even = vld1q_u8(tables), odd = vld1q_u8(tables + kSub);
            sums[i].add(upper.look_up(even, odd), lower.look_up(even, odd));
        }
    }
}

// One bit for each of eight rows whose sum is at least `threshold`.
inline std::uint32_t passed8(uint16x8_t sums, int threshold) {
    const uint8x8_t passed = vmovn_u16(vcgeq_u16(sums, vdupq_n_u16(static_cast<std::uint16_t>(threshold))));
    return vaddv_u8(vand_u8(passed, vcreate_u8(0x8040201008040201u)));
}

// Adds the allowed rows of a block that reach the threshold to what a query found.
inline void write_hits(const BlockSums& sums, std::uint32_t allowed, std::uint32_t first_row, ScanQuery& query) {
    std::uint16_t by_row[kBlockRows];
    std::uint32_t passed = 0;
    for (std::uint32_t part = 0; part < 4; ++part) {
        vst1q_u16(by_row + 8 * part, sums.rows[part]);
        passed |= passed8(sums.rows[part], query.threshold) << 8 * part;
    }
    for (passed &= allowed; passed != 0; passed &= passed - 1) {
        const auto row = static_cast<std::uint32_t>(__builtin_ctz(passed));
        query.hits[query.found++] = {first_row + row, by_row[row]};
    }
}

template <std::size_t NQ>
std::size_t scan(const ScanCodes& codes, ScanQuery* queries) {
    const std::size_t block_bytes = codes.m / 2 * kBlockRows;
    // A later block, which may lie behind the codes: as an integer, because prefetching there is
    // harmless but a pointer is not.
    const std::uintptr_t ahead = (kPrefetchBytes + block_bytes - 1) / block_bytes * block_bytes;
    std::size_t b = 0;
    for (; b < codes.nblocks; ++b) {
        bool full = false;
        for (std::size_t i = 0; i < NQ; ++i) full |= queries[i].found + kBlockRows > queries[i].places;
        if (full) break;
        const std::uint32_t allowed = codes.allow == nullptr ? ~0u : codes.allow[b];
        if (allowed == 0) continue;
        const std::uint8_t* block = codes.packed + b * block_bytes;
        for (std::size_t at = 0; at < block_bytes; at += 64)
            __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<std::uintptr_t>(block) + ahead + at));
        BlockSums sums[NQ];
        add_pairs<NQ>(block, codes.m / 2, queries, sums);
        for (std::size_t i = 0; i < NQ; ++i)
            if (sums[i].reach(queries[i].threshold))
                write_hits(sums[i], allowed, static_cast<std::uint32_t>(b * kBlockRows), queries[i]);
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

// The sixteen entries of a float table.
struct Entries {
    explicit Entries(const float* lut)
        : parts{vld1q_f32(lut), vld1q_f32(lut + 4), vld1q_f32(lut + 8), vld1q_f32(lut + 12)} {}
    float least() const { return vminvq_f32(vminq_f32(vminq_f32(parts[0], parts[1]), vminq_f32(parts[2], parts[3]))); }
    float largest() const {
        return vmaxvq_f32(vmaxq_f32(vmaxq_f32(parts[0], parts[1]), vmaxq_f32(parts[2], parts[3])));
    }
    // (entry - lo) * inverse, rounded to the nearest even integer, as bytes.
    uint8x16_t quantized(float lo, float inverse) const {
        uint16x4_t words[4];
        for (int i = 0; i < 4; ++i) {
            const float32x4_t steps = vmulq_n_f32(vsubq_f32(parts[i], vdupq_n_f32(lo)), inverse);
            words[i] = vqmovn_u32(vcvtnq_u32_f32(steps));
        }
        return vcombine_u8(vqmovn_u16(vcombine_u16(words[0], words[1])), vqmovn_u16(vcombine_u16(words[2], words[3])));
    }
    float32x4_t parts[4];
};

TableScale quantize_tables(const float* lut, std::size_t m, std::uint8_t* tables) noexcept {
    float lo[kMaxM], range[kMaxM], widest = 0.0f;
    double bias = 0.0;
    for (std::size_t j = 0; j < m; ++j) {
        const Entries entries(lut + j * kSub);
        lo[j] = entries.least();
        range[j] = entries.largest() - lo[j];
        bias += lo[j];
    }
    for (std::size_t j = 0; j < m; j += 2) widest = range[j] + range[j + 1] > widest ? range[j] + range[j + 1] : widest;
    if (!std::isfinite(widest) || !std::isfinite(bias)) {
        std::memset(tables, 0, m * kSub);
        return {std::numeric_limits<double>::quiet_NaN(), 0.0f};
    }
    const float top = kMaxPairSum - 1;
    const bool flat = !std::isfinite(top / widest);
    const float inverse = flat ? 0.0f : top / widest;
    for (std::size_t j = 0; j < m; ++j) vst1q_u8(tables + j * kSub, Entries(lut + j * kSub).quantized(lo[j], inverse));
    return {bias, flat ? 0.0f : widest / top};
}

void pq_tables(const float* rotated, const float* words_t, const float* init, std::size_t m, std::size_t dsub,
               float* lut) noexcept {
    for (std::size_t j = 0; j < m; ++j, lut += kSub, init += kSub) {
        Entries sums(init);
        for (std::size_t t = 0; t < dsub; ++t, words_t += kSub)
            for (std::size_t i = 0; i < 4; ++i)
                sums.parts[i] = vfmaq_n_f32(sums.parts[i], vld1q_f32(words_t + 4 * i), rotated[j * dsub + t]);
        for (std::size_t i = 0; i < 4; ++i) vst1q_f32(lut + 4 * i, sums.parts[i]);
    }
}

// Eight floats in two registers.
struct F32x8 {
    float32x4_t low = vdupq_n_f32(0.0f), high = vdupq_n_f32(0.0f);
};

inline F32x8 operator-(F32x8 a, F32x8 b) { return {vsubq_f32(a.low, b.low), vsubq_f32(a.high, b.high)}; }
inline F32x8 operator+(F32x8 a, F32x8 b) { return {vaddq_f32(a.low, b.low), vaddq_f32(a.high, b.high)}; }
inline F32x8 multiply_add(F32x8 sum, F32x8 a, F32x8 b) {
    return {vfmaq_f32(sum.low, a.low, b.low), vfmaq_f32(sum.high, a.high, b.high)};
}
inline float sum8(F32x8 x) { return vaddvq_f32(vaddq_f32(x.low, x.high)); }

// How eight elements of a row are stored: bytes of any alignment.
struct F32 {
    static constexpr std::size_t kBytes = 4;
    static F32x8 load(const std::uint8_t* bytes) {
        return {vreinterpretq_f32_u8(vld1q_u8(bytes)), vreinterpretq_f32_u8(vld1q_u8(bytes + 16))};
    }
};

struct F16 {
    static constexpr std::size_t kBytes = 2;
    static F32x8 load(const std::uint8_t* bytes) {
        const float16x8_t halves = vreinterpretq_f16_u8(vld1q_u8(bytes));
        return {vcvt_f32_f16(vget_low_f16(halves)), vcvt_high_f32_f16(halves)};
    }
};

struct Bf16 {
    static constexpr std::size_t kBytes = 2;
    static F32x8 load(const std::uint8_t* bytes) {
        const uint16x8_t halves = vreinterpretq_u16_u8(vld1q_u8(bytes));
        return {vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(halves), 16)),
                vreinterpretq_f32_u32(vshll_high_n_u16(halves, 16))};
    }
};

struct I8 {
    static constexpr std::size_t kBytes = 1;
    static F32x8 load(const std::uint8_t* bytes) {
        const int16x8_t words = vmovl_s8(vreinterpret_s8_u8(vld1_u8(bytes)));
        return {vcvtq_f32_s32(vmovl_s16(vget_low_s16(words))), vcvtq_f32_s32(vmovl_high_s16(words))};
    }
};

// The first n < 8 elements with zeros behind.
template <class Stored>
inline F32x8 load_first(const std::uint8_t* bytes, std::size_t n) {
    std::uint8_t padded[kLanes * Stored::kBytes] = {};
    std::memcpy(padded, bytes, n * Stored::kBytes);
    return Stored::load(padded);
}

inline const std::uint8_t* bytes_of(const void* x) { return static_cast<const std::uint8_t*>(x); }

// NA x NB inner products with one accumulator each, so that an element's operations are the same in every tile.
template <int NA, int NB, class Stored>
inline void gemm_tile(const float* a, const std::uint8_t* b, std::size_t d, float* c, std::size_t c_stride) {
    F32x8 sums[NA][NB];
    std::size_t t = 0;
    for (; t + kLanes <= d; t += kLanes) {
        F32x8 x[NA];
        for (int i = 0; i < NA; ++i) x[i] = F32::load(bytes_of(a + i * d + t));
        for (int j = 0; j < NB; ++j) {
            const F32x8 y = Stored::load(b + (j * d + t) * Stored::kBytes);
            for (int i = 0; i < NA; ++i) sums[i][j] = multiply_add(sums[i][j], x[i], y);
        }
    }
    for (int j = 0; j < NB; ++j) {
        const F32x8 y = load_first<Stored>(b + (j * d + t) * Stored::kBytes, d - t);
        for (int i = 0; i < NA; ++i)
            c[i * c_stride + j] = sum8(multiply_add(sums[i][j], load_first<F32>(bytes_of(a + i * d + t), d - t), y));
    }
}

// All rows of a against NB rows of b, which stay in L1 meanwhile.
template <int NB, class Stored>
inline void gemm_column(const float* a, std::size_t na, const std::uint8_t* b, std::size_t d, float* c,
                        std::size_t nb) {
    std::size_t i = 0;
    for (; i + 2 <= na; i += 2) gemm_tile<2, NB, Stored>(a + i * d, b, d, c + i * nb, nb);
    for (; i < na; ++i) gemm_tile<1, NB, Stored>(a + i * d, b, d, c + i * nb, nb);
}

template <class Stored>
inline void gemm(const float* a, std::size_t na, const std::uint8_t* b, std::size_t nb, std::size_t d, float* c) {
    const std::size_t stride = d * Stored::kBytes;
    std::size_t j = 0;
    for (; j + 4 <= nb; j += 4) gemm_column<4, Stored>(a, na, b + j * stride, d, c + j, nb);
    for (; j < nb; ++j) gemm_column<1, Stored>(a, na, b + j * stride, d, c + j, nb);
}

void gemm_nt(const float* a, std::size_t na, const float* b, std::size_t nb, std::size_t d, float* c) noexcept {
    gemm<F32>(a, na, bytes_of(b), nb, d, c);
}

void gemm_nt_f16(const float* a, std::size_t na, const std::uint16_t* b, std::size_t nb, std::size_t d,
                 float* c) noexcept {
    gemm<F16>(a, na, bytes_of(b), nb, d, c);
}

// One sum of products of signed bytes; pairs of them are added up in 32 bits.
inline std::int32_t byte_sum(const std::uint8_t* x, const std::uint8_t* y, std::size_t d) {
    int32x4_t sums = vdupq_n_s32(0);
    const auto add = [&sums](const std::uint8_t* a, const std::uint8_t* b) {
        const int8x16_t s = vreinterpretq_s8_u8(vld1q_u8(a)), t = vreinterpretq_s8_u8(vld1q_u8(b));
        sums = vpadalq_s16(sums, vmull_s8(vget_low_s8(s), vget_low_s8(t)));
        sums = vpadalq_s16(sums, vmull_high_s8(s, t));
    };
    std::size_t i = 0;
    for (; i + 16 <= d; i += 16) add(x + i, y + i);
    std::uint8_t padded[2][16] = {};
    std::memcpy(padded[0], x + i, d - i);
    std::memcpy(padded[1], y + i, d - i);
    add(padded[0], padded[1]);
    return vaddvq_s32(sums);
}

void gemm_nt_i8(const std::uint8_t* a, std::size_t na, const std::uint8_t* b, std::size_t nb, std::size_t d,
                float* c) noexcept {
    for (std::size_t j = 0; j < nb; ++j)
        for (std::size_t i = 0; i < na; ++i) {
            const std::uint8_t *x = a + i * byte_stride(d), *y = b + j * byte_stride(d);
            float of_x, of_y;
            std::memcpy(&of_x, x, sizeof of_x);
            std::memcpy(&of_y, y, sizeof of_y);
            c[i * nb + j] = static_cast<float>(byte_sum(x + sizeof of_x, y + sizeof of_y, d)) * (of_x * of_y);
        }
}

// A row whose elements are what they are stored as, and one with a scale before them.
template <class Stored>
struct PlainRow {
    const std::uint8_t* bytes;
    F32x8 at(std::size_t i) const { return Stored::load(bytes + i * Stored::kBytes); }
    F32x8 at(std::size_t i, std::size_t n) const { return load_first<Stored>(bytes + i * Stored::kBytes, n); }
};

struct ScaledRow {
    explicit ScaledRow(const std::uint8_t* row) : bytes(row + sizeof(float)) { std::memcpy(&scale, row, sizeof scale); }
    F32x8 at(std::size_t i) const { return scaled(I8::load(bytes + i)); }
    F32x8 at(std::size_t i, std::size_t n) const { return scaled(load_first<I8>(bytes + i, n)); }
    F32x8 scaled(F32x8 x) const { return {vmulq_n_f32(x.low, scale), vmulq_n_f32(x.high, scale)}; }
    const std::uint8_t* bytes;
    float scale;
};

struct Dot {
    static F32x8 add(F32x8 sum, F32x8 q, F32x8 x) { return multiply_add(sum, q, x); }
    static float score(float sum) { return sum; }
};

struct NegativeL2 {
    static F32x8 add(F32x8 sum, F32x8 q, F32x8 x) { return multiply_add(sum, q - x, q - x); }
    static float score(float sum) { return -sum; }
};

// Four accumulators hide the latency of the additions.
template <class Score, class Row>
float dense_score(const float* query, const std::uint8_t* bytes, std::size_t d) noexcept {
    const Row row{bytes};
    F32x8 sums[4];
    std::size_t i = 0;
    for (; i + 4 * kLanes <= d; i += 4 * kLanes)
        for (std::size_t s = 0; s < 4; ++s)
            sums[s] = Score::add(sums[s], F32::load(bytes_of(query + i + s * kLanes)), row.at(i + s * kLanes));
    for (; i + kLanes <= d; i += kLanes) sums[0] = Score::add(sums[0], F32::load(bytes_of(query + i)), row.at(i));
    if (i < d) sums[1] = Score::add(sums[1], load_first<F32>(bytes_of(query + i), d - i), row.at(i, d - i));
    return Score::score(sum8((sums[0] + sums[1]) + (sums[2] + sums[3])));
}

struct Lanes {
    Lanes() = default;
    explicit Lanes(float value) {
        for (float32x4_t& four : x) four = vdupq_n_f32(value);
    }
    static Lanes load(const float* from) {
        Lanes lanes;
        for (std::size_t i = 0; i < 4; ++i) lanes.x[i] = vld1q_f32(from + 4 * i);
        return lanes;
    }
    void store(float* to) const {
        for (std::size_t i = 0; i < 4; ++i) vst1q_f32(to + 4 * i, x[i]);
    }
    float least() const { return vminvq_f32(vminq_f32(vminq_f32(x[0], x[1]), vminq_f32(x[2], x[3]))); }
    // The first lane of the given value, which some lane has.
    std::size_t first(float value) const {
        float lanes[kSub];
        store(lanes);
        std::size_t k = 0;
        while (k + 1 < kSub && lanes[k] != value) ++k;
        return k;
    }
    float32x4_t x[4];
};

template <float32x4_t (*op)(float32x4_t, float32x4_t)>
inline Lanes by_lane(const Lanes& a, const Lanes& b) {
    Lanes out;
    for (std::size_t i = 0; i < 4; ++i) out.x[i] = op(a.x[i], b.x[i]);
    return out;
}
inline Lanes operator+(const Lanes& a, const Lanes& b) { return by_lane<vaddq_f32>(a, b); }
inline Lanes operator-(const Lanes& a, const Lanes& b) { return by_lane<vsubq_f32>(a, b); }
inline Lanes operator*(const Lanes& a, const Lanes& b) { return by_lane<vmulq_f32>(a, b); }

#include "code_search.h"

}  // namespace

extern const Kernels kScalarKernels, kNeonKernels;
const Kernels kNeonKernels = {
    "neon",
    scan_pq4,
    nullptr,
    quantize_tables,
    pq_tables,
    kScalarKernels.sum_entries,
    search_codes,
    gemm_nt,
    gemm_nt_f16,
    gemm_nt_i8,
    dense_score<Dot, PlainRow<F32>>,
    dense_score<Dot, PlainRow<F16>>,
    dense_score<Dot, PlainRow<Bf16>>,
    dense_score<Dot, ScaledRow>,
    dense_score<NegativeL2, PlainRow<F32>>,
    dense_score<NegativeL2, PlainRow<F16>>,
    dense_score<NegativeL2, PlainRow<Bf16>>,
    dense_score<NegativeL2, ScaledRow>,
};

}  // namespace vqdistill

#endif
