// Random calls of every kernel on every CPU level that runs: integer kernels must equal the scalar level bit for bit,
// float kernels must keep their error budget against double and must not depend on what else is in the call.
//
//   fuzz_kernels [blocks] [seed]
//
// A round makes one call of each kernel from one seed, and the next round takes the next seed, until as many blocks of
// codes were compared. The first mismatch ends the program with the seed of its round: fuzz_kernels 1 <seed> repeats
// it.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "dispatch.h"
#include "pack.h"

using namespace vqdistill;

namespace {

constexpr double kEps = 0x1p-24;
constexpr double kTiny = 1e-30;          // what underflows may add to an error
constexpr std::size_t kFloatRounds = 8;  // one in so many rounds calls the float kernels

// SplitMix64 (Steele, Lea, Flood 2014): most of a round is drawing numbers, and the Mersenne twister took twice as
// long.
class Random {
public:
    using result_type = std::uint64_t;
    static constexpr std::uint64_t min() { return 0; }
    static constexpr std::uint64_t max() { return UINT64_MAX; }

    explicit Random(std::uint64_t seed) : state_(seed) {}
    std::uint64_t operator()() {
        std::uint64_t z = state_ += 0x9E3779B97F4A7C15u;
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
        z = (z ^ z >> 27) * 0x94D049BB133111EBu;
        return z ^ z >> 31;
    }
    // Uniform in low .. high, both included.
    std::size_t in(std::size_t low, std::size_t high) { return low + (*this)() % (high - low + 1); }
    bool one_in(std::size_t n) { return (*this)() % n == 0; }
    float normal() { return normal_(*this); }

private:
    std::uint64_t state_;
    std::normal_distribution<float> normal_;
};

// n elements at any alignment, which end where their memory ends, so that the address sanitizer sees a step beyond.
template <class T>
class Buffer {
public:
    Buffer(std::size_t n, Random& random) : offset_(random.in(0, 64 / sizeof(T))), memory_(offset_ + n) {}
    T* data() { return memory_.data() + offset_; }
    const T* data() const { return memory_.data() + offset_; }
    T& operator[](std::size_t i) { return data()[i]; }
    const T& operator[](std::size_t i) const { return data()[i]; }
    std::size_t size() const { return memory_.size() - offset_; }
    T* begin() { return data(); }
    T* end() { return data() + size(); }

private:
    std::size_t offset_;
    std::vector<T> memory_;
};

std::uint64_t round_seed;

[[noreturn]] void fail(const Kernels& level, const char* kernel, const std::string& call) {
    std::fprintf(stderr, "mismatch: %s of level %s (%s); repeat it with: fuzz_kernels 1 %llu\n", kernel, level.name,
                 call.c_str(), static_cast<unsigned long long>(round_seed));
    std::exit(1);
}

std::string text(const char* name, std::size_t value) { return std::string(name) + " " + std::to_string(value) + " "; }

// ---- scan

std::size_t random_m(Random& random) {
    if (random.one_in(16)) return kMaxM;
    return 2 * random.in(1, random.one_in(2) ? 128 : 20);
}

void fill_codes(Buffer<std::uint8_t>& packed, Random& random) {
    const std::size_t kind = random.in(0, 7);
    for (std::size_t at = 0; at < packed.size(); at += sizeof(std::uint64_t)) {  // blocks are multiples of 32 bytes
        const std::uint64_t eight = kind == 0 ? 0 : kind == 1 ? UINT64_MAX : random();
        std::memcpy(packed.data() + at, &eight, sizeof eight);
    }
}

// Tables whose pairs add up to 255 at most: they reach it, or are small, or hold only the extremes.
void fill_tables(std::uint8_t* tables, std::size_t m, Random& random) {
    const std::size_t kind = random.in(0, 4);
    for (std::size_t p = 0; p < m / 2; ++p) {
        const std::size_t split = random.one_in(4) ? 255 * random.in(0, 1) : random.in(0, 255);
        for (std::size_t j = 0; j < 2; ++j)
            for (std::size_t k = 0; k < kSub; ++k) {
                const std::size_t most = j == 0 ? split : kMaxPairSum - split;
                const std::size_t entry = kind == 0 ? most : kind == 1 ? most * random.in(0, 1) : random.in(0, most);
                tables[(2 * p + j) * kSub + k] = static_cast<std::uint8_t>(kind == 2 ? entry / 32 : entry);
            }
    }
}

struct ScanCall {
    explicit ScanCall(Random& random)
        : m(random_m(random)),
          nblocks(random.in(0, 48)),
          nq(random.in(1, kScanQueries)),
          packed(nblocks * m / 2 * kBlockRows, random),
          quads(packed.size(), random),
          tables(nq * m * kSub, random),
          quad_tables(tables.size(), random),
          allow(nblocks, random) {
        fill_codes(packed, random);
        std::copy(packed.begin(), packed.end(), quads.begin());
        if (has_quads()) to_quads(quads.data(), nblocks, m);
        for (std::size_t i = 0; i < nq; ++i) fill_tables(tables.data() + i * m * kSub, m, random);
        std::copy(tables.begin(), tables.end(), quad_tables.begin());
        if (has_quads()) tables_to_quads(quad_tables.data(), nq * m);
        const std::size_t mask = random.in(0, 3);
        for (std::uint32_t& rows : allow)
            rows = static_cast<std::uint32_t>(random() & random() & (mask == 1 && random.one_in(2) ? 0 : ~0u));
        codes = {packed.data(), nblocks, m, nullptr};
        if (mask != 0) codes.allow = allow.data();
        for (std::size_t i = 0; i < nq; ++i) {
            queries[i] = {tables.data() + i * m * kSub, some_sum(i, random), nullptr, 0, 0};
            queries[i].places = random.one_in(2) ? nblocks * kBlockRows + kBlockRows : random.in(32, 300);
            queries[i].found = random.one_in(4) ? random.in(0, queries[i].places) : 0;
        }
    }

    // A bound that decides something: the sum of a random row, or next to it, or an end of the range.
    int some_sum(std::size_t query, Random& random) {
        if (nblocks == 0 || random.one_in(6)) return random.one_in(4) ? kMaxSum + 1 : 0;
        const std::uint8_t* block = packed.data() + random.in(0, nblocks - 1) * m / 2 * kBlockRows;
        const std::uint8_t* of_query = tables.data() + query * m * kSub;
        const std::size_t row = random.in(0, kBlockRows - 1);
        int sum = static_cast<int>(random.in(0, 1));
        for (std::size_t p = 0; p < m / 2; ++p) {
            const std::uint8_t pair = block[p * kBlockRows + row];
            sum += of_query[2 * p * kSub + (pair & 15)] + of_query[(2 * p + 1) * kSub + (pair >> 4)];
        }
        return sum;
    }

    bool has_quads() const { return m % (2 * kQuad) == 0; }

    std::string what() const {
        return text("m", m) + text("nblocks", nblocks) + text("queries", nq);
    }

    std::size_t m, nblocks, nq;
    Buffer<std::uint8_t> packed, quads, tables, quad_tables;
    Buffer<std::uint32_t> allow;
    ScanCodes codes;
    ScanQuery queries[kScanQueries];
};

struct ScanResult {
    std::size_t scanned;
    std::vector<std::vector<ScanHit>> hits;
};

ScanResult scan(decltype(Kernels::scan_pq4) kernel, bool quads, const ScanCall& call) {
    ScanCodes codes = call.codes;
    if (quads) codes.packed = call.quads.data();
    ScanQuery queries[kScanQueries];
    ScanResult result{0, {}};
    for (std::size_t i = 0; i < call.nq; ++i) result.hits.emplace_back(call.queries[i].places);
    for (std::size_t i = 0; i < call.nq; ++i) {
        queries[i] = call.queries[i];
        if (quads) queries[i].tables = call.quad_tables.data() + i * call.m * kSub;
        queries[i].hits = result.hits[i].data();
    }
    result.scanned = kernel(codes, queries, call.nq);
    for (std::size_t i = 0; i < call.nq; ++i) {
        result.hits[i].resize(queries[i].found);
        result.hits[i].erase(result.hits[i].begin(), result.hits[i].begin() + static_cast<long>(call.queries[i].found));
    }
    return result;
}

bool same(const ScanResult& a, const ScanResult& b) {
    const auto same_hit = [](const ScanHit& x, const ScanHit& y) { return x.row == y.row && x.sum == y.sum; };
    for (std::size_t i = 0; i < a.hits.size(); ++i)
        if (!std::equal(a.hits[i].begin(), a.hits[i].end(), b.hits[i].begin(), b.hits[i].end(), same_hit)) return false;
    return a.scanned == b.scanned;
}

// Returns the blocks compared.
std::size_t fuzz_scan(const std::vector<const Kernels*>& levels, Random& random) {
    const ScanCall call(random);
    const ScanResult wanted = scan(levels[0]->scan_pq4, false, call);
    for (const Kernels* level : levels) {
        if (!same(scan(level->scan_pq4, false, call), wanted)) fail(*level, "scan_pq4", call.what());
        if (!call.has_quads() || level->scan_quads == nullptr) continue;
        if (!same(scan(level->scan_quads, true, call), wanted)) fail(*level, "scan_quads", call.what());
    }
    return wanted.scanned;
}

// ---- tables of bytes

void fill_lut(Buffer<float>& lut, Random& random) {
    const float infinity = std::numeric_limits<float>::infinity();
    const float scale = std::ldexp(1.0f, static_cast<int>(random.in(0, 270)) - 145);
    const float offset = random.one_in(2) ? 0.0f : scale * 100.0f * random.normal();
    const bool flat = random.one_in(16);
    for (float& entry : lut) entry = offset + (flat ? 0.0f : scale * random.normal());
    if (random.one_in(16)) lut[random.in(0, lut.size() - 1)] = random.one_in(2) ? infinity : -infinity;
}

void fuzz_quantize(const std::vector<const Kernels*>& levels, Random& random) {
    const std::size_t m = random_m(random);
    Buffer<float> lut(m * kSub, random);
    fill_lut(lut, random);
    Buffer<std::uint8_t> wanted(m * kSub, random);
    const TableScale scale = levels[0]->quantize_tables(lut.data(), m, wanted.data());
    for (const Kernels* level : levels) {
        Buffer<std::uint8_t> tables(m * kSub, random);
        const TableScale found = level->quantize_tables(lut.data(), m, tables.data());
        const bool same_bias = std::isnan(scale.bias) ? std::isnan(found.bias) : found.bias == scale.bias;
        if (!same_bias || found.step != scale.step || !std::equal(tables.begin(), tables.end(), wanted.begin()))
            fail(*level, "quantize_tables", text("m", m));
    }
    for (std::size_t p = 0; p < m * kSub; p += 2 * kSub) {
        const auto top = [&](std::size_t from) {
            return *std::max_element(wanted.data() + from, wanted.data() + from + kSub);
        };
        if (top(p) + top(p + kSub) > kMaxPairSum) fail(*levels[0], "quantize_tables", text("pair beyond 255, m", m));
    }
}

// ---- floats

// A sum in double with what bounds the error of the same sum in float.
struct Sum {
    double value = 0.0, magnitude = 0.0;
    void add(double term) {
        value += term;
        magnitude += std::fabs(term);
    }
    bool near(float got, double roundings) const {
        return std::fabs(got - value) <= 2 * roundings * kEps * magnitude + kTiny;
    }
};

double roundings(std::size_t d) { return static_cast<double>(d) / 8 + 8; }

double half_value(std::uint16_t half) {
    const int exponent = half >> 10 & 31, mantissa = half & 1023;
    const double magnitude = exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
    return half & 0x8000 ? -magnitude : magnitude;
}

std::uint16_t random_half(Random& random) {
    const auto half = static_cast<std::uint16_t>(random());
    return (half >> 10 & 31) == 31 ? static_cast<std::uint16_t>(half & 0xBFFF) : half;  // no infinity, no NaN
}

void fill_normal(Buffer<float>& x, Random& random) {
    for (float& element : x) element = random.normal();
}

// The product of all of a and b; then each element again, alone.
template <class B, class Value>
void check_gemm(const Kernels& level, const char* name,
                void (*gemm)(const float*, std::size_t, const B*, std::size_t, std::size_t, float*) noexcept,
                const Buffer<float>& a, const Buffer<B>& b, std::size_t d, Value value, Random& random) {
    const std::size_t na = a.size() / d, nb = b.size() / d;
    Buffer<float> c(na * nb, random);
    gemm(a.data(), na, b.data(), nb, d, c.data());
    for (std::size_t i = 0; i < na; ++i)
        for (std::size_t j = 0; j < nb; ++j) {
            Sum sum;
            for (std::size_t t = 0; t < d; ++t) sum.add(double{a[i * d + t]} * value(b[j * d + t]));
            float alone;
            gemm(a.data() + i * d, 1, b.data() + j * d, 1, d, &alone);
            if (!sum.near(c[i * nb + j], roundings(d)) || alone != c[i * nb + j])
                fail(level, name, text("na", na) + text("nb", nb) + text("d", d));
        }
}

void fuzz_gemm(const std::vector<const Kernels*>& levels, Random& random) {
    const std::size_t d = random.in(1, 130), na = random.in(1, 9), nb = random.in(1, 19);
    Buffer<float> a(na * d, random), b(nb * d, random);
    Buffer<std::uint16_t> halves(nb * d, random);
    fill_normal(a, random);
    fill_normal(b, random);
    for (std::uint16_t& half : halves) half = random_half(random);
    for (const Kernels* level : levels) {
        check_gemm(*level, "gemm_nt", level->gemm_nt, a, b, d, [](float x) { return double{x}; }, random);
        check_gemm(*level, "gemm_nt_f16", level->gemm_nt_f16, a, halves, d, half_value, random);
    }
}

void fuzz_gemm_i8(const std::vector<const Kernels*>& levels, Random& random) {
    const std::size_t d = random.in(1, 130), na = random.in(1, 9), nb = random.in(1, 19);
    const auto rows = [&](std::size_t n) {
        Buffer<std::uint8_t> bytes(n * byte_stride(d), random);
        for (std::uint8_t& byte : bytes) byte = static_cast<std::uint8_t>(static_cast<int>(random.in(0, 254)) - 127);
        for (std::size_t i = 0; i < n; ++i) {
            const float scale = random.normal();
            std::memcpy(bytes.data() + i * byte_stride(d), &scale, sizeof scale);
        }
        return bytes;
    };
    const Buffer<std::uint8_t> a = rows(na), b = rows(nb);
    Buffer<float> wanted(na * nb, random), c(na * nb, random);
    levels[0]->gemm_nt_i8(a.data(), na, b.data(), nb, d, wanted.data());
    for (const Kernels* level : levels) {
        level->gemm_nt_i8(a.data(), na, b.data(), nb, d, c.data());
        if (!std::equal(c.begin(), c.end(), wanted.begin()))
            fail(*level, "gemm_nt_i8", text("na", na) + text("nb", nb) + text("d", d));
    }
}

void fuzz_pq_tables(const std::vector<const Kernels*>& levels, Random& random) {
    const std::size_t m = random.in(1, 40), dsub = random.in(1, 20);
    Buffer<float> rotated(m * dsub, random), words(m * dsub * kSub, random), init(m * kSub, random);
    for (Buffer<float>* buffer : {&rotated, &words, &init}) fill_normal(*buffer, random);
    for (const Kernels* level : levels) {
        Buffer<float> lut(m * kSub, random);
        level->pq_tables(rotated.data(), words.data(), init.data(), m, dsub, lut.data());
        for (std::size_t at = 0; at < m * kSub; ++at) {
            const std::size_t j = at / kSub;
            Sum sum;
            sum.add(init[at]);
            for (std::size_t t = 0; t < dsub; ++t)
                sum.add(double{rotated[j * dsub + t]} * words[(j * dsub + t) * kSub + at % kSub]);
            if (!sum.near(lut[at], static_cast<double>(dsub + 1)))
                fail(*level, "pq_tables", text("m", m) + text("dsub", dsub));
        }
    }
}

void fuzz_sum_entries(const std::vector<const Kernels*>& levels, Random& random) {
    const std::size_t m = 2 * random.in(1, kMaxM / 2);
    Buffer<float> lut(m * kSub, random);
    fill_normal(lut, random);
    Buffer<std::uint8_t> codes(m / 2 * kSumRows, random);
    for (std::uint8_t& pair : codes) pair = static_cast<std::uint8_t>(random.in(0, 255));
    Buffer<double> wanted(kSumRows, random), sums(kSumRows, random);
    for (std::size_t r = 0; r < kSumRows; ++r) {
        double by_parity[2] = {};
        for (std::size_t j = 0; j < m; ++j) by_parity[j % 2] += lut[j * kSub + (codes[j / 2 * kSumRows + r] >> j % 2 * 4 & 15)];
        wanted[r] = by_parity[0] + by_parity[1];
    }
    for (const Kernels* level : levels) {
        level->sum_entries(lut.data(), codes.data(), m, sums.data());
        if (!std::equal(sums.begin(), sums.end(), wanted.begin())) fail(*level, "sum_entries", text("m", m));
    }
}

// ---- additive codes

// Rows in general position: bit for bit the same codes need the same rounding in every step.
void fuzz_search_codes(const std::vector<const Kernels*>& levels, Random& random) {
    const std::size_t m = random.in(1, random.one_in(8) ? 40 : 9), size = m * kSub, nterms = random.in(0, 9), d = 4;
    Buffer<float> words(size * d, random), y(d, random), gram(size * size, random), own(size * kSub, random);
    Buffer<float> products(size, random), terms(size * nterms, random), offsets(nterms, random);
    for (Buffer<float>* buffer : {&words, &y, &terms, &offsets}) fill_normal(*buffer, random);
    levels[0]->gemm_nt(words.data(), size, words.data(), size, d, gram.data());
    levels[0]->gemm_nt(y.data(), 1, words.data(), size, d, products.data());
    for (std::size_t row = 0; row < size; ++row)
        std::copy_n(gram.data() + row * size + row / kSub * kSub, kSub, own.data() + row * kSub);
    const AdditiveEffort effort{random.one_in(2), random.in(0, 5), random.in(0, 5)};
    Buffer<std::uint8_t> start(m, random), wanted(m, random), codes(m, random);
    for (std::uint8_t& code : start) code = static_cast<std::uint8_t>(random.in(0, kSub - 1));
    for (const Kernels* level : levels) {
        Buffer<float> scratch(additive_scratch(m, nterms), random);
        std::copy(start.begin(), start.end(), codes.begin());
        level->search_codes({gram.data(), own.data(), m},
                            {products.data(), terms.data(), offsets.data(), nterms, scratch.data()}, effort,
                            codes.data());
        if (level == levels[0]) std::copy(codes.begin(), codes.end(), wanted.begin());
        if (!std::equal(codes.begin(), codes.end(), wanted.begin()))
            fail(*level, "search_codes", text("m", m) + text("terms", nterms) + text("rounds", effort.rounds));
    }
}

// ---- dense rows

// A dense row as it is stored, and its values.
struct DenseRow {
    Buffer<std::uint8_t> bytes;
    std::vector<double> values;
};

template <class T>
void put(Buffer<std::uint8_t>& bytes, std::size_t at, T value) {
    std::memcpy(bytes.data() + at, &value, sizeof value);
}

DenseRow f32_row(std::size_t d, Random& random) {
    DenseRow row{{4 * d, random}, {}};
    for (std::size_t i = 0; i < d; ++i) {
        const float x = random.normal();
        put(row.bytes, 4 * i, x);
        row.values.push_back(x);
    }
    return row;
}

DenseRow f16_row(std::size_t d, Random& random) {
    DenseRow row{{2 * d, random}, {}};
    for (std::size_t i = 0; i < d; ++i) {
        const std::uint16_t half = random_half(random);
        put(row.bytes, 2 * i, half);
        row.values.push_back(half_value(half));
    }
    return row;
}

DenseRow bf16_row(std::size_t d, Random& random) {
    DenseRow row{{2 * d, random}, {}};
    for (std::size_t i = 0; i < d; ++i) {
        float x = random.normal();
        std::uint32_t bits;
        std::memcpy(&bits, &x, sizeof bits);
        put(row.bytes, 2 * i, static_cast<std::uint16_t>(bits >> 16));
        bits &= 0xFFFF0000u;
        std::memcpy(&x, &bits, sizeof bits);
        row.values.push_back(x);
    }
    return row;
}

DenseRow i8_row(std::size_t d, Random& random) {
    DenseRow row{{4 + d, random}, {}};
    const float scale = 0.01f * random.normal();
    put(row.bytes, 0, scale);
    for (std::size_t i = 0; i < d; ++i) {
        const auto x = static_cast<std::int8_t>(random());
        put(row.bytes, 4 + i, x);
        row.values.push_back(scale * x);  // rounded to float, as the kernels have it
    }
    return row;
}

void fuzz_dense(const std::vector<const Kernels*>& levels, Random& random) {
    const std::size_t d = random.in(1, random.one_in(8) ? 1100 : 140);
    Buffer<float> query(d, random);
    fill_normal(query, random);
    const struct {
        const char* dtype;
        DenseRow row;
        DenseScore Kernels::*dot, Kernels::*l2;
    } cases[] = {
        {"f32", f32_row(d, random), &Kernels::dot_f32, &Kernels::l2_f32},
        {"f16", f16_row(d, random), &Kernels::dot_f16, &Kernels::l2_f16},
        {"bf16", bf16_row(d, random), &Kernels::dot_bf16, &Kernels::l2_bf16},
        {"i8", i8_row(d, random), &Kernels::dot_i8, &Kernels::l2_i8},
    };
    for (const auto& [dtype, row, dot, l2] : cases) {
        Sum product, distance;
        for (std::size_t i = 0; i < d; ++i) {
            product.add(query[i] * row.values[i]);
            distance.add(-(query[i] - row.values[i]) * (query[i] - row.values[i]));
        }
        for (const Kernels* level : levels) {
            const std::string call = std::string(dtype) + text(", d", d);
            if (!product.near((level->*dot)(query.data(), row.bytes.data(), d), roundings(d)))
                fail(*level, "dot", call);
            if (!distance.near((level->*l2)(query.data(), row.bytes.data(), d), roundings(d))) fail(*level, "l2", call);
        }
    }
}

std::size_t run_round(const std::vector<const Kernels*>& levels, std::uint64_t seed) {
    round_seed = seed;
    Random random(seed);
    const std::size_t blocks = fuzz_scan(levels, random);
    fuzz_quantize(levels, random);
    if (seed % kFloatRounds == 0) {
        fuzz_gemm(levels, random);
        fuzz_gemm_i8(levels, random);
        fuzz_pq_tables(levels, random);
        fuzz_sum_entries(levels, random);
        fuzz_search_codes(levels, random);
        fuzz_dense(levels, random);
    }
    return blocks;
}

}  // namespace

int main(int argc, char** argv) {
    const std::size_t wanted = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 100'000;
    const std::uint64_t first = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1;
    std::vector<const Kernels*> levels;
    std::string names;
    for (const std::string& name : available_levels()) {
        levels.push_back(&find_kernels(name));
        names += " " + name;
    }
    std::size_t blocks = 0, rounds = 0;
    do blocks += run_round(levels, first + rounds++);
    while (blocks < wanted);
    std::printf("no mismatch: %zu blocks, seeds %llu..%llu, levels%s\n", blocks, static_cast<unsigned long long>(first),
                static_cast<unsigned long long>(first + rounds - 1), names.c_str());
}
