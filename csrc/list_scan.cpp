#include "list_scan.h"

#include <algorithm>

#include "parallel.h"

namespace vqdistill {
namespace {

// Rows of the first epoch: enough for a bar that few later rows pass.
constexpr std::int64_t kFirstEpoch = 2048;
constexpr std::int64_t kEpochGrowth = 3;
// Hits of a query between two looks at its bar: few, so that the bar rises soon, but enough to keep the kernel in its
// loop.
constexpr std::size_t kHitPlaces = 256;
// Codes of the next list that are fetched early.
constexpr std::size_t kHeadBytes = 8192;
// Lists for each visit up to which visits are counted by list rather than sorted.
constexpr std::size_t kListsAVisit = 8;
// Blocks between two looks at the limits of a call, about a millisecond: so that it can be ended in time.
constexpr std::size_t kMaxBlocks = std::size_t{1} << 14;
// What a piece of a list counts as, beside its blocks.
constexpr std::size_t kPieceBlocks = 64;

float code_score(float base, float step, int sum) { return base + step * static_cast<float>(sum); }

// The lowest sum with which a row at `position` or behind can pass the bar; kMaxSum + 1 if there is none. The scores do
// not fall as the sum grows, because rounding is monotone, so that the integer comparison decides exactly as floats
// would.
int lowest_sum(float base, float step, std::int64_t position, const Scored& bar) {
    const auto passes = [&](int sum) { return better({code_score(base, step, sum), 0, position}, bar); };
    const float guess = step > 0.0f ? (bar.score - base) / step : 0.0f;
    // NaN compares false: from the lowest sum on then.
    int sum = guess > 0.0f ? static_cast<int>(std::min(guess, static_cast<float>(kMaxSum))) : 0;
    while (sum > 0 && passes(sum - 1)) --sum;
    while (sum <= kMaxSum && !passes(sum)) {
        // One step decides, but for a step lost in rounding, or scores that are NaN.
        if (!passes(kMaxSum)) return kMaxSum + 1;
        ++sum;
    }
    return sum;
}

}  // namespace

// One query's part in the scan of a list.
struct ListScan::Part {
    QueryScan* query;
    float base;
    std::uint32_t tag;

    int threshold(std::size_t begin) const {  // of rows from position `begin` on
        return lowest_sum(base, query->tables.scale.step, static_cast<std::int64_t>(begin), query->found.bar());
    }
    // Keeps hits of blocks from `first_block` on that are rows of the list.
    void keep(const ScanQuery& hits, std::size_t first_block, Rows rows) const {
        const std::size_t first_row = first_block * kBlockRows;
        const ScanHit *hit = hits.hits, *end = hits.hits + hits.found;  // by rising row
        while (hit < end && first_row + hit->row < rows.begin) ++hit;
        while (hit < end && first_row + end[-1].row >= rows.end) --end;
        const float step = query->tables.scale.step;
        query->found.push_all(static_cast<std::size_t>(end - hit), [&](std::size_t i) {
            return Scored{code_score(base, step, static_cast<int>(hit[i].sum)), tag,
                          static_cast<std::int64_t>(rows.set->first + first_row + hit[i].row)};
        });
    }
};

ListScan::ListScan(const IndexView& index, const Kernels& kernels) : index_(index), kernels_(kernels) {}

template <class Call>
void ListScan::for_pieces(std::size_t list, bool flat, Call call) const {
    const std::size_t run_rows = flat_blocks() * kBlockRows;
    for (const RowSet& set : index_.sets) {
        if (!flat) {
            const auto begin = static_cast<std::size_t>(set.list_offsets[list]);
            const auto end = static_cast<std::size_t>(set.list_offsets[list + 1]);
            if (begin < end) call(Rows{&set, begin, end});
        } else if (const std::size_t runs = flat_runs(set); list >= runs) {
            list -= runs;
        } else {
            call(Rows{&set, list * run_rows, std::min((list + 1) * run_rows, index_.rows_in(set))});
            return;
        }
    }
}

void ListScan::run(Span<QueryScan> queries, const AllowView& allow, bool flat, std::size_t threads, CallLimits& limits,
                   Scratch& scratch) const {
    std::vector<Visit>& visits = scratch.visits;
    const auto open = [](const QueryScan& query) { return query.next < query.lists.size; };
    while (std::any_of(queries.begin(), queries.end(), open)) {
        visits.clear();
        const std::int64_t rows_before = queries[0].rows;
        for (std::size_t i = 0; i < queries.size; ++i)
            begin_epoch(queries[i], static_cast<std::uint32_t>(i), flat, visits);
        const auto paying = static_cast<std::size_t>((queries[0].rows - rows_before) / kThreadRows);
        if (queries.size == 1 && std::min(threads, paying) > 1) {
            share_epoch(queries[0], allow, flat, std::min(threads, paying), limits, scratch);
            continue;
        }
        if (queries.size > 1) order_by_list(flat ? flat_lists() : index_.nlist, scratch);
        for (std::size_t first = 0, nq; first < visits.size(); first += nq) {
            for (nq = 1; nq < kScanQueries && first + nq < visits.size(); ++nq)
                if (visits[first + nq].list != visits[first].list) break;
            if (first + nq < visits.size()) prefetch_head(visits[first + nq].list, flat);
            scan_list(flat, queries, visits.data() + first, nq, allow, limits, scratch.run);
        }
    }
}

// Brings visits, which come query by query, into the order of their lists, and those of a list into that of queries.
void ListScan::order_by_list(std::size_t lists, Scratch& scratch) const {
    std::vector<Visit>& visits = scratch.visits;
    if (visits.size() < lists / kListsAVisit) {
        std::sort(visits.begin(), visits.end(), [](const Visit& a, const Visit& b) {
            return a.list != b.list ? a.list < b.list : a.query < b.query;
        });
        return;
    }
    std::vector<std::uint32_t>& next = scratch.next;
    next.assign(lists + 1, 0);
    for (const Visit& visit : visits) ++next[visit.list + 1];
    for (std::size_t list = 0; list < lists; ++list) next[list + 1] += next[list];
    scratch.ordered.resize(visits.size());
    for (const Visit& visit : visits) scratch.ordered[next[visit.list]++] = visit;
    visits.swap(scratch.ordered);
}

// Scans the visits of a query's epoch on a few threads. Each takes list after list, so that a slow one delays no other,
// and keeps what it finds in a copy of the query, whose bar then rises as fast as if it were alone.
void ListScan::share_epoch(QueryScan& query, const AllowView& allow, bool flat, std::size_t threads, CallLimits& limits,
                           Scratch& scratch) const {
    const std::vector<Visit>& visits = scratch.visits;
    std::vector<Helper>& helpers = scratch.helpers;
    if (helpers.size() < threads) helpers.resize(threads);
    for (std::size_t i = 0; i < threads; ++i) helpers[i].query = query;
    std::atomic<std::size_t> started{0};
    run_parallel(visits.size(), threads, [&](const auto& next) {
        Helper& helper = helpers[started++];
        for (std::size_t visit = next(), after; visit < visits.size(); visit = after) {
            after = next();
            if (after < visits.size()) prefetch_head(visits[after].list, flat);
            scan_list(flat, {&helper.query, 1}, &visits[visit], 1, allow, limits, helper.run);
        }
    });
    // A row's tag tells whether it was found in this epoch, or copied with the query.
    for (std::size_t i = 0; i < threads; ++i)
        for (const Scored& row : helpers[i].query.found.best())
            if (row.tag >= visits.front().tag) query.found.push(row);
}

// Fetches the first codes of a list while another one is scanned: a list is too short for a kernel to do so in time.
void ListScan::prefetch_head(std::size_t list, bool flat) const {
    if (flat) return;  // its codes follow those being scanned
    const std::size_t block_bytes = index_.m / 2 * kBlockRows;
    for_pieces(list, flat, [&](const Rows& rows) {
        const std::size_t first = rows.begin / kBlockRows;
        const std::uint8_t* const codes = rows.set->packed + first * block_bytes;
        const std::size_t bytes = std::min(kHeadBytes, (block_count(rows.end) - first) * block_bytes);
        for (std::size_t at = 0; at < bytes; at += 64) __builtin_prefetch(codes + at);
    });
}

// Adds the visits of a query's next epoch, if it has lists left.
void ListScan::begin_epoch(QueryScan& query, std::uint32_t number, bool flat, std::vector<Visit>& visits) const {
    const std::int64_t until = std::max(kFirstEpoch, kEpochGrowth * query.rows);
    for (; query.next < query.lists.size && query.rows < until; ++query.next) {
        const auto list = static_cast<std::size_t>(query.lists[query.next].id);
        std::int64_t count = 0;
        for_pieces(list, flat, [&](const Rows& rows) { count += static_cast<std::int64_t>(rows.end - rows.begin); });
        query.rows += count;
        if (count > 0)
            visits.push_back({static_cast<std::uint32_t>(list), number, static_cast<std::uint32_t>(query.next)});
    }
}

// Scans a list for the queries of its first nq visits.
void ListScan::scan_list(bool flat, Span<QueryScan> queries, const Visit* visits, std::size_t nq, const AllowView& allow,
                         CallLimits& limits, Run& run) const {
    run.hits.resize(kScanQueries * kHitPlaces);
    Part parts[kScanQueries];
    for (std::size_t i = 0; i < nq; ++i) {
        QueryScan& query = queries[visits[i].query];
        parts[i] = {&query, query.base(visits[i].tag), visits[i].tag};
    }
    for_pieces(visits[0].list, flat, [&](const Rows& rows) { nq = scan_rows(rows, parts, nq, allow, limits, run); });
}

// Scans rows of one list for the first nq parts; returns how many of them can gain from rows behind, and leaves these in
// front.
std::size_t ListScan::scan_rows(Rows rows, Part* parts, std::size_t nq, const AllowView& allow, CallLimits& limits,
                                Run& run) const {
    const std::size_t block_bytes = index_.m / 2 * kBlockRows, last = block_count(rows.end);
    const auto scan_codes = index_.quads ? kernels_.scan_quads : kernels_.scan_pq4;
    ScanCodes codes{nullptr, 0, index_.m, nullptr};
    for (std::size_t block = rows.begin / kBlockRows; block < last;) {
        run.unchecked += kPieceBlocks;
        if (run.unchecked >= kMaxBlocks) {
            limits.check();
            run.unchecked = 0;
        }
        ScanQuery scans[kScanQueries];
        std::size_t active = 0;
        for (std::size_t i = 0; i < nq; ++i) {
            const int threshold = parts[i].threshold(rows.set->first + rows.begin);
            if (threshold > parts[i].query->tables.highest) continue;
            parts[active] = parts[i];
            scans[active] = {parts[active].query->tables.tables, threshold, run.hits.data() + active * kHitPlaces, kHitPlaces, 0};
            ++active;
        }
        nq = active;
        if (nq == 0) return 0;
        codes.packed = rows.set->packed + block * block_bytes;
        codes.nblocks = std::min(last - block, kMaxBlocks);
        codes.allow = allow.blocks == nullptr ? nullptr : allow.blocks + rows.set->first_block + block;
        const std::size_t scanned = scan_codes(codes, scans, nq);
        run.unchecked += nq * scanned;
        for (std::size_t i = 0; i < nq; ++i) parts[i].keep(scans[i], block, rows);
        block += scanned;
    }
    return nq;
}

}  // namespace vqdistill
