// The scan of codes in quads with AVX-512: the four tables of a quad fill a register, in which one permutation looks up the
// codes of 16 rows, and one product adds the four entries of each row. What scan_x86.h wants to stand before it; included
// as that is, in a namespace of its own.

// Tables of a query, as they are: of each quad those of the low codes, then those of the high ones.
struct Tables {
    void set(const std::uint8_t* tables, std::size_t) { bytes = tables; }
    __m512i low(std::size_t quad) const { return load64(bytes + 2 * quad * 64); }
    __m512i high(std::size_t quad) const { return load64(bytes + (2 * quad + 1) * 64); }
    const std::uint8_t* bytes;
};

// Sums of a block, one lane a row.
struct BlockSums {
    BlockSums() : first(_mm512_setzero_si512()), second(first) {}
    __m512i first, second;
};

// Writes eight sums at a time, those that passed in front: the places of a whole block are free.
inline void write_hits(std::uint32_t passed, const BlockSums& sums, std::uint32_t first_row, ScanQuery& query) {
    const __m256i eight_sums[] = {_mm512_castsi512_si256(sums.first), _mm512_extracti64x4_epi64(sums.first, 1),
                                  _mm512_castsi512_si256(sums.second), _mm512_extracti64x4_epi64(sums.second, 1)};
    ScanHit* hits = query.hits + query.found;
    __m512i rows = _mm512_add_epi64(_mm512_set1_epi64(first_row), _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7));
    for (const __m256i eight : eight_sums) {
        const auto mask = static_cast<__mmask8>(passed);
        const __m512i pairs = _mm512_or_si512(rows, _mm512_slli_epi64(_mm512_cvtepu32_epi64(eight), 32));
        _mm512_storeu_si512(hits, _mm512_maskz_compress_epi64(mask, pairs));
        hits += _mm_popcnt_u32(mask);
        passed >>= 8;
        rows = _mm512_add_epi64(rows, _mm512_set1_epi64(8));
    }
    query.found = static_cast<std::size_t>(hits - query.hits);
}

// The codes of 16 rows for a quad, apart, as places in its tables.
struct QuadCodes {
    explicit QuadCodes(const std::uint8_t* codes) {
        const __m512i pairs = load64(codes);
        low = places(pairs);
        high = places(_mm512_srli_epi16(pairs, 4));
    }
    static __m512i places(__m512i codes) {
        constexpr int kAndOr = 0xEA;  // (a & b) | c
        return _mm512_ternarylogic_epi32(codes, _mm512_set1_epi8(15), _mm512_set1_epi32(0x30201000), kAndOr);
    }
    __m512i low, high;
};

// The sums of 16 rows with the entries of a quad. Those of the two codes of a pair add up in bytes.
inline __m512i add_entries(__m512i sums, __m512i low_tables, __m512i high_tables, const QuadCodes& codes) {
    const __m512i low = _mm512_permutexvar_epi8(codes.low, low_tables);
    const __m512i both = _mm512_add_epi8(low, _mm512_permutexvar_epi8(codes.high, high_tables));
    return _mm512_dpbusd_epi32(sums, both, _mm512_set1_epi8(1));
}

// Adds the entries of all rows of a block for one quad to the sums of NQ queries, whose tables are Tables or HeldTables.
template <std::size_t NQ, class AnyTables>
inline void add_quad(const std::uint8_t* block, std::size_t quad, const AnyTables* tables, BlockSums* sums) {
    const QuadCodes rows(block + 2 * quad * 64), more(block + (2 * quad + 1) * 64);
    for (std::size_t i = 0; i < NQ; ++i) {
        const __m512i low = tables[i].low(quad), high = tables[i].high(quad);
        sums[i].first = add_entries(sums[i].first, low, high, rows);
        sums[i].second = add_entries(sums[i].second, low, high, more);
    }
}

// All tables of a query with few subspaces, in registers.
template <std::size_t Quads>
struct HeldTables {
    explicit HeldTables(const Tables& tables) {
        for (std::size_t quad = 0; quad < Quads; ++quad) {
            lows[quad] = tables.low(quad);
            highs[quad] = tables.high(quad);
        }
    }
    __m512i low(std::size_t quad) const { return lows[quad]; }
    __m512i high(std::size_t quad) const { return highs[quad]; }
    // Adds all pairs of a block.
    void operator()(const std::uint8_t* block, BlockSums* sums) const {
#pragma GCC unroll 8
        for (std::size_t quad = 0; quad < Quads; ++quad) add_quad<1>(block, quad, this, sums);
    }
    __m512i lows[Quads], highs[Quads];
};

// Nothing is fetched ahead: the CPU's own prefetching reads codes from memory half as fast again as with it (Zen 4).
template <std::size_t NQ, class Scan>
inline void with_adder(std::size_t m, const Tables* tables, Scan scan) {
    if constexpr (NQ == 1) {
        switch (m / (2 * kQuad)) {
            case 1: return scan(HeldTables<1>(*tables));
            case 2: return scan(HeldTables<2>(*tables));
            case 3: return scan(HeldTables<3>(*tables));
            case 4: return scan(HeldTables<4>(*tables));
            case 5: return scan(HeldTables<5>(*tables));
            case 6: return scan(HeldTables<6>(*tables));
            case 7: return scan(HeldTables<7>(*tables));
            case 8: return scan(HeldTables<8>(*tables));
        }
    }
    scan([&](const std::uint8_t* block, BlockSums* sums) {
        for (std::size_t quad = 0; quad < m / (2 * kQuad); ++quad) add_quad<NQ>(block, quad, tables, sums);
    });
}

// Which rows have sums of at least `threshold`, one bit each.
inline std::uint32_t rows_reaching(const BlockSums& sums, int threshold) {
    const __m512i least = _mm512_set1_epi32(threshold);
    const __mmask16 first = _mm512_cmpge_epi32_mask(sums.first, least);
    return first | static_cast<std::uint32_t>(_mm512_cmpge_epi32_mask(sums.second, least)) << 16;
}

inline bool reaches(const BlockSums& sums, int threshold) {
    const __m512i least = _mm512_set1_epi32(threshold);
    const __mmask16 first = _mm512_cmpge_epi32_mask(sums.first, least);
    return _kortestz_mask16_u8(first, _mm512_cmpge_epi32_mask(sums.second, least)) == 0;
}
