// The scan of a block of queries: list by list, so that queries that visit the same list share its codes.
#pragma once

#include <algorithm>
#include <vector>

#include "index_view.h"
#include "limits.h"
#include "query_tables.h"
#include "topk.h"

namespace vqdistill {

// A query on its way through its lists.
struct QueryScan {
    QueryTables tables;
    Span<Scored> lists;  // to visit, best first: id = list, score = its term; the index into it is the tag of candidates
    TopR found;          // reset by the caller: the best R, or all above a score
    std::int64_t rows = 0;  // in the lists visited so far

    std::size_t next = 0;  // list to visit next

    float base(std::size_t list) const {
        return static_cast<float>(tables.scale.bias + (tables.constant + lists[list].score));
    }
};

// Rows that lists hold together while codes are scanned as one list; see ListScan::flat_lists.
constexpr std::size_t kFlatRows = 8192;

// Rows of an epoch that pay for one more thread, which takes about 20 us to start and to end.
constexpr std::int64_t kThreadRows = 100'000;

// Every query visits its lists in epochs, each twice as long as all before: the best lists first, which raise the bar for
// the others. What is found is the best R of all rows visited, whatever the order.
class ListScan {
public:
    // REQUIRES the view's arrays to outlive it. With `flat` the lists are runs of rows, see flat_lists.
    ListScan(const IndexView& index, const Kernels& kernels);

    struct Visit {
        std::uint32_t list, query, tag;
    };
    // What a thread needs to scan lists one after the other.
    struct Run {
        std::vector<ScanHit> hits;
        std::size_t unchecked = 0;  // blocks scanned since the limits were looked at
    };
    // A thread's share in the epoch of a heavy query.
    struct Helper {
        QueryScan query;
        Run run;
    };
    struct Scratch {
        std::vector<Visit> visits, ordered;
        std::vector<std::uint32_t> next;  // place of each list's next visit
        Run run;
        std::vector<Helper> helpers;
    };

    // Runs that take the place of lists where every list is visited and all rows share one base.
    std::size_t flat_lists() const {
        std::size_t runs = 0;
        for (const RowSet& set : index_.sets) runs += flat_runs(set);
        return runs;
    }

    // Scans what each of the queries visits; up to `threads` threads share the long epochs of a query that is alone.
    // Throws what limits.check() throws.
    void run(Span<QueryScan> queries, const AllowView& allow, bool flat, std::size_t threads,
             CallLimits& limits, Scratch& scratch) const;

private:
    struct Part;
    // Rows of a set, counted within it.
    struct Rows {
        const RowSet* set;
        std::size_t begin, end;
    };

    // As long as kFlatRows, or a 256th of the rows: so that a query has few of them.
    std::size_t flat_blocks() const {
        return std::max(kFlatRows / kBlockRows, block_count(index_.n()) / 256 + 1);
    }
    std::size_t flat_runs(const RowSet& set) const {
        return (block_count(index_.rows_in(set)) + flat_blocks() - 1) / flat_blocks();
    }
    // Calls call(rows) for the rows of a list in each set that has some, by rising position.
    template <class Call>
    void for_pieces(std::size_t list, bool flat, Call call) const;
    void order_by_list(std::size_t lists, Scratch& scratch) const;
    void prefetch_head(std::size_t list, bool flat) const;
    void begin_epoch(QueryScan& query, std::uint32_t number, bool flat, std::vector<Visit>& visits) const;
    void share_epoch(QueryScan& query, const AllowView& allow, bool flat, std::size_t threads, CallLimits& limits,
                     Scratch& scratch) const;
    void scan_list(bool flat, Span<QueryScan> queries, const Visit* visits, std::size_t nq, const AllowView& allow,
                   CallLimits& limits, Run& run) const;
    std::size_t scan_rows(Rows rows, Part* parts, std::size_t nq, const AllowView& allow, CallLimits& limits,
                          Run& run) const;

    IndexView index_;
    const Kernels& kernels_;
};

}  // namespace vqdistill
