// The scalar level: the definition of every slot, written for reading, and the level of CPUs without a file of their
// own.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>

#include "dispatch.h"
#include "pack.h"

namespace vqdistill {
namespace {

constexpr std::size_t kLanes = 8;

// Adds the table entries of all rows of a block to sums.
template <bool kQuads>
void add_pairs(const std::uint8_t* block, std::size_t pairs, const std::uint8_t* tables, std::uint16_t* sums) {
    for (std::size_t p = 0; p < pairs; ++p) {
        const std::uint8_t* even = tables + place_of_table(kQuads, 2 * p);
        const std::uint8_t* odd = tables + place_of_table(kQuads, 2 * p + 1);
        for (std::size_t r = 0; r < kBlockRows; ++r) {
            const std::uint8_t pair = block[place_in_block(kQuads, p, r)];
            sums[r] = static_cast<std::uint16_t>(sums[r] + even[pair & 15] + odd[pair >> 4]);
        }
    }
}

bool has_places(const ScanQuery* queries, std::size_t nq) {
    return std::all_of(queries, queries + nq, [](const ScanQuery& q) { return q.found + kBlockRows <= q.places; });
}

template <bool kQuads>
std::size_t scan(const ScanCodes& codes, ScanQuery* queries, std::size_t nq) noexcept {
    std::size_t b = 0;
    for (; b < codes.nblocks && has_places(queries, nq); ++b) {
        const std::uint32_t allowed = codes.allow == nullptr ? ~0u : codes.allow[b];
        if (allowed == 0) continue;
        for (ScanQuery* query = queries; query != queries + nq; ++query) {
            std::uint16_t sums[kBlockRows] = {};
            add_pairs<kQuads>(codes.packed + b * (codes.m / 2) * kBlockRows, codes.m / 2, query->tables, sums);
            for (std::size_t r = 0; r < kBlockRows; ++r)
                if (sums[r] >= query->threshold && (allowed >> r & 1))
                    query->hits[query->found++] = {static_cast<std::uint32_t>(b * kBlockRows + r), sums[r]};
        }
    }
    return b;
}

TableScale quantize_tables(const float* lut, std::size_t m, std::uint8_t* tables) noexcept {
    float lo[kMaxM], range[kMaxM], widest = 0.0f;
    double bias = 0.0;
    for (std::size_t j = 0; j < m; ++j) {
        const auto [low, high] = std::minmax_element(lut + j * kSub, lut + (j + 1) * kSub);
        lo[j] = *low;
        range[j] = *high - *low;
        bias += lo[j];
    }
    for (std::size_t j = 0; j < m; j += 2) widest = std::max(widest, range[j] + range[j + 1]);
    if (!std::isfinite(widest) || !std::isfinite(bias)) {
        std::memset(tables, 0, m * kSub);
        return {std::numeric_limits<double>::quiet_NaN(), 0.0f};
    }
    const float top = kMaxPairSum - 1;
    const bool flat = !std::isfinite(top / widest);
    const float inverse = flat ? 0.0f : top / widest;
    for (std::size_t j = 0; j < m; ++j)
        for (std::size_t k = 0; k < kSub; ++k)
            tables[j * kSub + k] = static_cast<std::uint8_t>(std::lrint((lut[j * kSub + k] - lo[j]) * inverse));
    return {bias, flat ? 0.0f : widest / top};
}

void pq_tables(const float* rotated, const float* words_t, const float* init, std::size_t m, std::size_t dsub,
               float* lut) noexcept {
    for (std::size_t j = 0; j < m; ++j, lut += kSub, init += kSub) {
        std::copy(init, init + kSub, lut);
        for (std::size_t t = 0; t < dsub; ++t, words_t += kSub)
            for (std::size_t k = 0; k < kSub; ++k) lut[k] += rotated[j * dsub + t] * words_t[k];
    }
}

void sum_entries(const float* lut, const std::uint8_t* codes, std::size_t m, double* sums) noexcept {
    double even[kSumRows] = {}, odd[kSumRows] = {};
    for (std::size_t p = 0; p < m / 2; ++p, codes += kSumRows, lut += 2 * kSub)
        for (std::size_t r = 0; r < kSumRows; ++r) {
            even[r] += lut[codes[r] & 15];
            odd[r] += lut[kSub + (codes[r] >> 4)];
        }
    for (std::size_t r = 0; r < kSumRows; ++r) sums[r] = even[r] + odd[r];
}

struct Lanes {
    Lanes() = default;
    explicit Lanes(float value) { std::fill(x, x + kSub, value); }
    static Lanes load(const float* from) {
        Lanes lanes;
        std::copy(from, from + kSub, lanes.x);
        return lanes;
    }
    void store(float* to) const { std::copy(x, x + kSub, to); }
    float least() const { return *std::min_element(x, x + kSub); }
    // The first lane of the given value, which some lane has.
    std::size_t first(float value) const { return static_cast<std::size_t>(std::find(x, x + kSub, value) - x) % kSub; }
    float x[kSub];
};

template <class Op>
Lanes by_lane(const Lanes& a, const Lanes& b, Op op) {
    Lanes out;
    std::transform(a.x, a.x + kSub, b.x, out.x, op);
    return out;
}
Lanes operator+(const Lanes& a, const Lanes& b) { return by_lane(a, b, std::plus<float>()); }
Lanes operator-(const Lanes& a, const Lanes& b) { return by_lane(a, b, std::minus<float>()); }
Lanes operator*(const Lanes& a, const Lanes& b) { return by_lane(a, b, std::multiplies<float>()); }

#include "code_search.h"

template <class T>
T load(const std::uint8_t* bytes) {
    T value;
    std::memcpy(&value, bytes, sizeof(T));
    return value;
}

// IEEE 754 binary16 to binary32: exact for every value, infinities and NaN included.
float half_to_float(std::uint16_t half) {
    const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000u) << 16;
    const std::uint32_t exponent = (half >> 10) & 31u;
    const std::uint32_t mantissa = half & 1023u;
    if (exponent == 0) {  // zero or subnormal: mantissa * 2^-24
        const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
        return sign ? -magnitude : magnitude;
    }
    const std::uint32_t biased = exponent == 31 ? 255u : exponent + (127u - 15u);
    const std::uint32_t bits = sign | biased << 23 | mantissa << 13;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// A row reader knows how element i of a dense row is stored.
struct F32Row {
    const std::uint8_t* bytes;
    float operator[](std::size_t i) const { return load<float>(bytes + i * sizeof(float)); }
};

struct F16Row {
    const std::uint8_t* bytes;
    float operator[](std::size_t i) const {
        return half_to_float(load<std::uint16_t>(bytes + i * sizeof(std::uint16_t)));
    }
};

struct Bf16Row {
    const std::uint8_t* bytes;
    float operator[](std::size_t i) const {
        const std::uint32_t bits = static_cast<std::uint32_t>(load<std::uint16_t>(bytes + i * 2)) << 16;
        float value;
        std::memcpy(&value, &bits, sizeof value);
        return value;
    }
};

struct I8Row {
    explicit I8Row(const std::uint8_t* row) : scale(load<float>(row)), bytes(row + sizeof(float)) {}
    float scale;
    const std::uint8_t* bytes;
    float operator[](std::size_t i) const { return scale * static_cast<float>(static_cast<std::int8_t>(bytes[i])); }
};

// Eight partial sums, so that rounding errors grow with d / 8 and the compiler may use the baseline's SIMD.
template <class Term>
float sum_of(std::size_t d, Term term) {
    float lanes[kLanes] = {};
    std::size_t i = 0;
    for (; i + kLanes <= d; i += kLanes)
        for (std::size_t lane = 0; lane < kLanes; ++lane) lanes[lane] += term(i + lane);
    for (std::size_t lane = 0; i < d; ++i, ++lane) lanes[lane] += term(i);
    float sum = 0.0f;
    for (float lane : lanes) sum += lane;
    return sum;
}

template <class Row>
float dot(const float* query, const std::uint8_t* bytes, std::size_t d) noexcept {
    const Row row{bytes};
    return sum_of(d, [&](std::size_t i) { return query[i] * row[i]; });
}

template <class Row>
float l2(const float* query, const std::uint8_t* bytes, std::size_t d) noexcept {
    const Row row{bytes};
    return -sum_of(d, [&](std::size_t i) { return (query[i] - row[i]) * (query[i] - row[i]); });
}

void gemm_nt(const float* a, std::size_t na, const float* b, std::size_t nb, std::size_t d, float* c) noexcept {
    for (std::size_t j = 0; j < nb; ++j)
        for (std::size_t i = 0; i < na; ++i)
            c[i * nb + j] = sum_of(d, [x = a + i * d, y = b + j * d](std::size_t t) { return x[t] * y[t]; });
}

void gemm_nt_f16(const float* a, std::size_t na, const std::uint16_t* b, std::size_t nb, std::size_t d,
                 float* c) noexcept {
    for (std::size_t j = 0; j < nb; ++j)
        for (std::size_t i = 0; i < na; ++i)
            c[i * nb + j] =
                sum_of(d, [x = a + i * d, y = b + j * d](std::size_t t) { return x[t] * half_to_float(y[t]); });
}

void gemm_nt_i8(const std::uint8_t* a, std::size_t na, const std::uint8_t* b, std::size_t nb, std::size_t d,
                float* c) noexcept {
    for (std::size_t i = 0; i < na; ++i)
        for (std::size_t j = 0; j < nb; ++j) {
            const std::uint8_t *x = a + i * byte_stride(d), *y = b + j * byte_stride(d);
            std::int32_t sum = 0;
            for (std::size_t t = sizeof(float); t < byte_stride(d); ++t)
                sum += static_cast<std::int8_t>(x[t]) * static_cast<std::int8_t>(y[t]);
            c[i * nb + j] = static_cast<float>(sum) * (load<float>(x) * load<float>(y));
        }
}

}  // namespace

extern const Kernels kScalarKernels;
const Kernels kScalarKernels = {
    "scalar",    scan<false>, scan<true>,   quantize_tables, pq_tables,  sum_entries, search_codes,
    gemm_nt,     gemm_nt_f16, gemm_nt_i8,
    dot<F32Row>, dot<F16Row>, dot<Bf16Row>, dot<I8Row>,      l2<F32Row>, l2<F16Row>,  l2<Bf16Row>, l2<I8Row>,
};

}  // namespace vqdistill
