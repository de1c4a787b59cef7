// What the kernels of the x86 levels load and add; included by each as scan_x86.h is, before what differs between them.

inline __m256i load32(const std::uint8_t* bytes) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes)); }

inline __m256i load_table(const std::uint8_t* table) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
}

// The scale of a row of bytes.
inline float scale_of(const std::uint8_t* row) {
    float scale;
    std::memcpy(&scale, row, sizeof scale);
    return scale;
}

// The four sums of four registers.
inline __m128i totals(__m256i a, __m256i b, __m256i c, __m256i d) {
    const __m256i halves = _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d));
    return _mm_add_epi32(_mm256_castsi256_si128(halves), _mm256_extracti128_si256(halves, 1));
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

// How far ahead codes are fetched. Measured on Zen 3, 32-byte codes from memory: 480 M rows/s without, 590 at 512
// bytes, 740 at 2 KiB, 810 at 4 KiB; no effect on codes in L2.
constexpr std::size_t kPrefetchBytes = 4096;

// The bytes may lie behind the codes: as an integer, because prefetching there is harmless but a pointer is not.
inline void prefetch_ahead(const std::uint8_t* bytes) {
    _mm_prefetch(reinterpret_cast<const char*>(reinterpret_cast<std::uintptr_t>(bytes) + kPrefetchBytes), _MM_HINT_T0);
}
