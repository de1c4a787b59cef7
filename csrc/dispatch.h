// The table of kernels, one constant per CPU level, and the choice among them.
//
// Levels, slowest first: scalar everywhere, then avx2 and avx512 on x86-64, or neon on 64-bit ARM.
//
// To add one: write kernels_<level>.cpp with one `extern const Kernels`, its body in a target region unless the
// baseline has its instructions, and add its line to kLevels in dispatch.cpp; setup.py and the Makefile take every
// source of this folder. A slot that gains nothing over another level points at that level's function. tests/kernels/
// and tests/native/fuzz_kernels.cpp then hold it to the contracts below.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "common.h"

namespace vqdistill {

// A row that passed the threshold of a scan.
struct ScanHit {
    std::uint32_t row;  // counted from the first row of the first block
    std::uint32_t sum;
};

// Queries that share one pass over the codes: their sums fill the registers of AVX2.
constexpr std::size_t kScanQueries = 4;

// What a scan reads.
struct ScanCodes {
    // (nblocks, m/2, 32): [b][p][r] = codes of row r for subspaces 2p (low 4 bits) and 2p+1, a pair;
    // or in quads (nblocks, m/8, 32, 4): [b][g][r][i] = the same for pair p = 4g + i.
    const std::uint8_t* packed;
    std::size_t nblocks, m;
    const std::uint32_t* allow;  // (nblocks): bit r = row r may be a hit; null = all rows may
};

// One of the queries of a scan, and what it finds.
struct ScanQuery {
    const std::uint8_t* tables;  // (m, 16); for quads (m/8, 2, 4, 16): the even subspaces of each, then the odd ones
    int threshold;               // of a row's sum, in [0, kMaxSum + 1]
    ScanHit* hits;
    std::size_t places;  // of hits; at least 32
    std::size_t found;   // hits written so far; the scan adds behind them
};

// Additive codebooks C (m, 16, d), as a search for codes sees them.
struct AdditiveBooks {
    const float* gram;  // (m, 16, m, 16): inner products of all codewords
    const float* own;   // (m, 16, 16): those of each codebook with itself
    std::size_t m;      // <= kMaxM
};

// A row y whose codes are searched under the metric A = I + sum_t u_t u_t^T.
struct AdditiveRow {
    const float* products;  // (m, 16): <y, C[j][k]>
    const float* terms;     // (m, nterms, 16): <u_t, C[j][k]>
    const float* offsets;   // (nterms): <u_t, y>
    std::size_t nterms;
    float* scratch;  // additive_scratch(m, nterms) floats
};

// How long the codes of a row are searched.
struct AdditiveEffort {
    bool fresh;           // start from greedy codes, not from given ones
    std::size_t sweeps;   // most passes of a descent over the m codes
    std::size_t rounds;   // further descents, each from the best codes with a few changed at random
};

// Codes that a round changes.
constexpr std::size_t kFlips = 4;

constexpr std::size_t additive_scratch(std::size_t m, std::size_t nterms) { return 3 * m * kSub + 2 * nterms; }

// How 8-bit tables stand for float ones: lut[j][k] ~ lo_j + step * table[j][k], with bias = sum_j lo_j.
struct TableScale {
    double bias;
    float step;
};

// Bytes of a row of signed bytes with its scale in front.
constexpr std::size_t byte_stride(std::size_t d) { return sizeof(float) + d; }
// Rows that sum_entries takes together.
constexpr std::size_t kSumRows = 16;
// So that sums of products of bytes fit 32 bits.
constexpr std::size_t kLongestBytes = INT32_MAX / (127 * 127);

// Score of one dense row as it is stored on disk; larger is better. `row` needs no alignment.
using DenseScore = float (*)(const float* query, const std::uint8_t* row, std::size_t d) noexcept;

// All pointers may be unaligned beyond their element type; nothing is read or written outside the stated shapes.
// Kernels do not allocate, throw or print. The result for one query, row or block does not depend on what else is in
// the call.
struct Kernels {
    const char* name;

    // Scans blocks of 4-bit codes for rows whose sum of table entries is >= threshold, in row order, for 1 to
    // kScanQueries queries in one pass. A row of a dropped block (see ScanCodes) is no hit; what a query finds does not
    // depend on the others. Returns the blocks scanned, counted from the first: it stops before the one for which some
    // query might not have 32 free places.
    // REQUIRES tables (m, 16) with max(tables[2p]) + max(tables[2p+1]) <= 255 for all p: pairs are added in bytes, and
    // 128 pairs stay below 2^15. Integer: all levels agree bit for bit.
    std::size_t (*scan_pq4)(const ScanCodes& codes, ScanQuery* queries, std::size_t nq) noexcept;

    // The same on codes in quads, with tables in their order, m a multiple of 8; null at levels that gain nothing by it.
    std::size_t (*scan_quads)(const ScanCodes& codes, ScanQuery* queries, std::size_t nq) noexcept;

    // Turns float tables lut (m, 16) of one query into bytes (m, 16), m even, <= kMaxM:
    //   lo_j = min lut[j], range_j = max lut[j] - lo_j, step = max_p(range_2p + range_2p+1) / 254,
    //   table[j][k] = rint((lut[j][k] - lo_j) / step)
    // 254 and not 255, because rounding can add 1/2 to each of a pair. Error: |lut - (lo + step * table)| <= step / 2
    // an entry, <= m * step / 2 a sum, and about sqrt(m / 12) * step when rounding errors are independent. A step too
    // small to be inverted counts as 0. If anything overflows, tables are 0 and bias is NaN. All levels agree bit for
    // bit.
    TableScale (*quantize_tables)(const float* lut, std::size_t m, std::uint8_t* tables) noexcept;

    // Tables of one query for product codes: lut[j][k] = init[j][k] + <rotated[j*dsub ..], codeword k of subspace j>.
    //   rotated (m*dsub);  words_t (m, dsub, 16) codewords with k innermost;  init (m, 16);  lut (m, 16)
    // |error| <= 2 (dsub + 1) eps (|init| + sum |terms|), eps = 2^-24.
    void (*pq_tables)(const float* rotated, const float* words_t, const float* init, std::size_t m, std::size_t dsub,
                      float* lut) noexcept;

    // Sums of the float tables lut (m, 16), m even, for kSumRows rows of codes (m/2, kSumRows): [p][r] = a pair of row r.
    // sums (kSumRows) = entries of even subspaces + those of odd ones, each added up by rising subspace, in double. All
    // levels agree bit for bit.
    void (*sum_entries)(const float* lut, const std::uint8_t* codes, std::size_t m, double* sums) noexcept;

    // Searches the codes (m) of one row for the least e^T A e, e = y - sum_j C[j][codes[j]], by iterated conditional
    // modes: each code in turn is set to its best given the others. Ties go to the code at hand, else to the lowest.
    // Given codes only get better, up to rounding. What is random depends on the first codes alone.
    // REQUIRES finite values. All levels agree bit for bit.
    void (*search_codes)(const AdditiveBooks& books, const AdditiveRow& row, const AdditiveEffort& effort,
                         std::uint8_t* codes) noexcept;

    // c[i][j] = <a_i, b_j> for a (na, d), b (nb, d), c (na, nb). Each element is computed in the same order of
    // operations whatever na and nb. |error| <= 2 (d/8 + 8) eps sum |terms|, as for the dense scores below.
    void (*gemm_nt)(const float* a, std::size_t na, const float* b, std::size_t nb, std::size_t d, float* c) noexcept;

    // The same with halves (IEEE binary16) as b.
    void (*gemm_nt_f16)(const float* a, std::size_t na, const std::uint16_t* b, std::size_t nb, std::size_t d,
                        float* c) noexcept;

    // The same for rows of signed bytes on both sides, stored as dense i8 rows are: c[i][j] = float(sum of the products
    // of bytes) * (scale_i * scale_j). REQUIRES d <= kLongestBytes, and no byte of -128. Integer: all levels agree bit
    // for bit.
    void (*gemm_nt_i8)(const std::uint8_t* a, std::size_t na, const std::uint8_t* b, std::size_t nb, std::size_t d,
                       float* c) noexcept;

    // Dense rows: f32 d floats; f16 d halves; bf16 d upper halves of floats; i8 one float scale, then d signed bytes,
    // x = scale * byte, rounded to float. dot: <q, x>; l2: -|q - x|^2, from differences, so that it does not cancel.
    DenseScore dot_f32, dot_f16, dot_bf16, dot_i8;
    DenseScore l2_f32, l2_f16, l2_bf16, l2_i8;
};

// Levels that this machine can run, slowest first.
std::vector<std::string> available_levels();

// REQUIRES nothing. Throws std::invalid_argument with a sentence if `level` is unknown or cannot run here.
const Kernels& find_kernels(const std::string& level);

// The level in use: the best one, or what the environment variable VQDISTILL_CPU names, if it is set and not empty.
// Chosen at the first call, which throws as find_kernels does.
const Kernels& active_kernels();

}  // namespace vqdistill
