// The scan of the x86 levels. A level includes it within its target region and anonymous namespace, once for each order
// of codes that it scans, behind what differs:
//   BlockSums      sums of a block, zeros at first: those of sums_x86.h, or others
//   Tables         those of a query, in the form in which they are looked up
//   with_adder<NQ>  calls scan(add), where add(block, sums) adds the entries of all pairs to the sums of NQ queries, which
//                  share the unpacking of the codes
//   write_hits     adds the rows of a block whose bit is set to what a query found
//   rows_reaching  which rows of a block have sums of at least a threshold, one bit each
//   reaches        whether one has
// So it is compiled for each of them, under internal names; it includes nothing, so that nothing else is.

// A block with rows that may be hits.
struct OpenBlock {
    std::uint32_t number;
    BlockSums sums;
};

// Writes a block behind `open` and returns whether it stays there: without a branch that nobody can predict.
inline std::size_t keep_if(bool stays, std::uint32_t number, const BlockSums& sums, OpenBlock* open) {
    *open = {number, sums};
    return stays;
}

// Writes the hits of a block.
inline void write_block(const ScanCodes& codes, const OpenBlock& block, ScanQuery& query) {
    const std::uint32_t allowed = codes.allow == nullptr ? ~0u : codes.allow[block.number];
    const std::uint32_t passed = rows_reaching(block.sums, query.threshold) & allowed;
    write_hits(passed, block.sums, block.number * kBlockRows, query);
}

// Blocks with hits that are written together.
constexpr std::size_t kOpenBlocks = 16;

// How many blocks every query has places for, at most kOpenBlocks.
inline std::size_t blocks_with_places(const ScanQuery* queries, std::size_t nq) {
    std::size_t blocks = kOpenBlocks;
    for (std::size_t i = 0; i < nq; ++i) blocks = std::min(blocks, (queries[i].places - queries[i].found) / kBlockRows);
    return blocks;
}

// Takes NQ queries through blocks until one of them lacks places; returns how many. Hits are written for some blocks
// together: a branch on each block that has one would be mispredicted, and throw away what was begun of the next two.
template <std::size_t NQ>
std::size_t scan(const ScanCodes& codes, ScanQuery* queries) {
    Tables tables[NQ];
    for (std::size_t i = 0; i < NQ; ++i) tables[i].set(queries[i].tables, codes.m);
    const std::size_t block_bytes = codes.m / 2 * kBlockRows;
    OpenBlock open[NQ][kOpenBlocks];
    std::size_t b = 0;
    with_adder<NQ>(codes.m, tables, [&](const auto& add) {
        for (std::size_t most; b < codes.nblocks && (most = blocks_with_places(queries, NQ)) > 0;) {
            std::size_t count[NQ] = {};
            for (bool places = true; places && b < codes.nblocks; ++b) {
                if (codes.allow != nullptr && codes.allow[b] == 0) continue;
                BlockSums sums[NQ];
                add(codes.packed + b * block_bytes, sums);
                for (std::size_t i = 0; i < NQ; ++i) {
                    const bool passes = reaches(sums[i], queries[i].threshold);
                    count[i] += keep_if(passes, static_cast<std::uint32_t>(b), sums[i], open[i] + count[i]);
                    places &= count[i] < most;
                }
            }
            for (std::size_t i = 0; i < NQ; ++i)
                for (std::size_t at = 0; at < count[i]; ++at) write_block(codes, open[i][at], queries[i]);
        }
    });
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
