// The search: adapt -> route -> tables -> scan -> candidates -> verify.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <tuple>
#include <vector>

#include "adapter.h"
#include "disk_tier.h"
#include "dispatch.h"
#include "index_view.h"
#include "limits.h"
#include "list_scan.h"
#include "query_tables.h"
#include "route.h"
#include "verify.h"

namespace vqdistill {

struct SearchOptions {
    std::size_t k;        // results a query, >= 1
    ProbeRule probe;      // lists a query
    std::size_t refine;   // most candidates whose dense rows are scored; 0 = codes only
    StopRule stop;        // when fewer are enough
    AllowView allow;      // rows that may be found
    std::size_t threads;  // >= 1
};

inline bool operator==(const SearchOptions& a, const SearchOptions& b) {
    const auto all = [](const SearchOptions& of) {
        return std::tie(of.k, of.probe.most, of.probe.lift, of.probe.temperature, of.refine, of.stop.misses,
                        of.stop.error, of.allow.blocks, of.allow.per_list, of.threads);
    };
    return all(a) == all(b);
}

struct CandidateOptions {
    std::size_t count;  // candidates a query, >= 1
    bool rescore;       // by the float tables of the plan, too
    AllowView allow;
    std::size_t threads;
};

// Where the candidates of q queries go, (q, count) each, best code first; behind the last one -inf, -1 and -1.
struct CandidatesOut {
    float* scores;            // by 8-bit tables, which choose them
    float* rescored;          // by float tables, if wanted
    std::int64_t* positions;
    std::int32_t* lists;
};

struct RangeOptions {
    float threshold;  // results score at least this
    float margin;     // candidates are rows whose code scores at least threshold - margin
    bool verify;      // by dense rows; otherwise results have the scores of their codes
    ProbeRule probe;
    AllowView allow;
    std::size_t threads;
};

// What a range search found, query after query.
struct RangeHits {
    std::vector<std::int64_t> counts;  // (q)
    std::vector<float> scores;         // best first within a query
    std::vector<std::int64_t> positions;
};

// Candidates of a search for k results in an index of n rows: refine of them are verified, or none if it is 0.
std::size_t candidate_count(std::size_t k, std::size_t refine, std::size_t n);

struct Workspace;

// Safe under concurrent calls. Results for a query depend on nothing but the query and the options other than threads.
// Calls throw std::system_error if the disk refuses, std::bad_alloc, and what limits.check() throws.
class IvfSearch {
public:
    IvfSearch(const IndexView& index, const DiskTier& dense);
    ~IvfSearch();

    const IndexView& index() const { return index_; }
    const DiskTier& dense() const { return dense_; }

    // queries (q, d) -> scores (q, k), positions (q, k), best first; -inf and -1 where nothing was found; stats (q). A
    // row whose score is NaN or -inf is not found.
    void search(const float* queries, std::size_t q, const SearchOptions& options, CallLimits& limits, float* scores,
                std::int64_t* positions, QueryStats* stats) const;

    // A search in which other parts of the index take part begins with what all of them need to know of queries (q, d): an
    // index with no row of its own can tell.
    void plan(const float* queries, std::size_t q, const ProbeRule& probe, const AllowView& allow, bool keep_lut,
              CallLimits& limits, SearchPlan& plan) const;

    // Then each finds what search() would verify; stats (q). REQUIRES the plan to be one of the whole index.
    void candidates(const PlanView& plan, std::size_t q, const CandidateOptions& options, CallLimits& limits,
                    const CandidatesOut& out, QueryStats* stats) const;

    // At last: exact scores (q, count) of the first reads[i] of the positions (q, count) of each query, and -inf.
    void score(const float* queries, std::size_t q, const std::int64_t* positions, std::size_t count,
               const std::int64_t* reads, std::size_t threads, CallLimits& limits, float* scores,
               QueryStats* stats) const;

    // Every row of the visited lists that scores at least the threshold, as far as the margin covers the error of its
    // code; stats (q).
    RangeHits range_search(const float* queries, std::size_t q, const RangeOptions& options, CallLimits& limits,
                           QueryStats* stats) const;

private:
    struct Lease;

    template <class Search>
    void run_blocks(std::size_t q, std::size_t query_bytes, std::size_t threads, Search search) const;
    void find_candidates(const float* queries, std::size_t q, const ProbeRule& probe, const AllowView& allow,
                         bool keep_lut, CallLimits& limits, QueryStats* stats, Workspace& work) const;
    void scan(std::size_t q, bool flat, const AllowView& allow, CallLimits& limits, QueryStats* stats,
              Workspace& work) const;
    void prepare(std::size_t q, bool flat, Workspace& work) const;
    void verify(const float* queries, std::size_t q, std::size_t k, const StopRule& rule, CallLimits& limits,
                QueryStats* stats, Workspace& work) const;
    void rescore(const QueryScan& query, Span<Scored> candidates, std::vector<std::uint8_t>& codes) const;
    std::int32_t list_of(const QueryScan& query, const Scored& candidate, bool flat) const;
    bool scans_everything(const ProbeRule& probe, const AllowView& allow) const;

    IndexView index_;
    DiskTier dense_;
    const Kernels& kernels_;
    Adapter query_adapter_, verify_adapter_;
    Router router_;
    TableBuilder tables_;
    ListScan scan_;

    mutable std::mutex mutex_;
    mutable std::vector<std::unique_ptr<Workspace>> idle_;
    mutable std::size_t workspaces_ = 0;  // made so far: as many as threads were searching at the same time
};

}  // namespace vqdistill
