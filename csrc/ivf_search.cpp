#include "ivf_search.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "pack.h"
#include "parallel.h"

namespace vqdistill {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
// Queries of a block share passes over router, codewords and lists; more than this gains little, and their state should
// stay in L2.
constexpr std::size_t kMaxBlockQueries = 128;
constexpr std::size_t kBlockBytes = 1 << 20;

}  // namespace

// Of a codes-only search a few more than k, because 8-bit tables order the rows around rank k differently from the float
// tables, by which the k are chosen. At the usual score density the margin is three standard deviations.
std::size_t candidate_count(std::size_t k, std::size_t refine, std::size_t n) {
    const std::size_t wanted = refine > 0 ? std::max(refine, k) : k + k / 8 + 16;
    return std::max<std::size_t>(1, std::min(wanted, n));
}

// What one thread needs; it only grows, so that a search allocates nothing after the first ones.
struct Workspace {
    Adapter::Scratch adapted, verified;
    TableBuilder::Scratch tables;
    Router::Scratch routes;
    ListScan::Scratch scan;
    std::vector<QueryScan> queries;
    std::vector<Scored> flat;  // the runs of rows that every query visits
    std::vector<std::uint8_t> codes;  // of rescore
    std::vector<Verifier::Job> jobs;
    Verifier verifier;
    std::size_t threads = 1;  // that may scan for the block's query, if it is alone
};

// Borrows an idle workspace for the time of a call.
struct IvfSearch::Lease {
    explicit Lease(const IvfSearch& owner) : owner(owner) {
        const std::lock_guard<std::mutex> lock(owner.mutex_);
        if (owner.idle_.empty()) {
            work = std::make_unique<Workspace>();
            owner.idle_.reserve(++owner.workspaces_);  // so that giving it back cannot fail
        } else {
            work = std::move(owner.idle_.back());
            owner.idle_.pop_back();
        }
    }
    ~Lease() {
        const std::lock_guard<std::mutex> lock(owner.mutex_);
        owner.idle_.push_back(std::move(work));
    }
    const IvfSearch& owner;
    std::unique_ptr<Workspace> work;
};

IvfSearch::IvfSearch(const IndexView& index, const DiskTier& dense)
    : index_(index),
      dense_(dense),
      kernels_(active_kernels()),
      query_adapter_(index.query_adapter, index.d, kernels_),
      verify_adapter_(index.verify_adapter, index.d, kernels_),
      router_(index, kernels_),
      tables_(index, kernels_),
      scan_(index, kernels_) {}

IvfSearch::~IvfSearch() = default;

// All rows have the same base then, so that lists do not matter.
bool IvfSearch::scans_everything(const ProbeRule& probe, const AllowView& allow) const {
    return probe.most == index_.nlist && probe.lift == 0.0f && !index_.residual && allow.per_list == nullptr;
}

// Calls search(first, count, work) for blocks of the q queries, each of which takes about query_bytes. Threads for
// which there is no block go to those that there are.
template <class Search>
void IvfSearch::run_blocks(std::size_t q, std::size_t query_bytes, std::size_t threads, Search search) const {
    if (q == 0) return;
    const std::size_t fitting = std::clamp<std::size_t>(kBlockBytes / query_bytes, 1, kMaxBlockQueries);
    const std::size_t per_block = std::min(fitting, (q + threads - 1) / threads);
    const std::size_t blocks = (q + per_block - 1) / per_block;
    run_parallel(blocks, threads, [&](const auto& next) {
        const Lease lease(*this);
        for (std::size_t block = next(); block < blocks; block = next()) {
            const std::size_t first = block * per_block;
            lease.work->threads = std::max<std::size_t>(1, (threads + block) / blocks);
            search(first, std::min(per_block, q - first), *lease.work);
        }
    });
}

void IvfSearch::search(const float* queries, std::size_t q, const SearchOptions& options, CallLimits& limits,
                       float* scores, std::int64_t* positions, QueryStats* stats) const {
    const std::size_t candidates = candidate_count(options.k, options.refine, index_.n()), k = options.k;
    const std::size_t bytes =
        index_.m * kSub * (options.refine > 0 ? 1 : 5) + 2 * candidates * sizeof(Scored) + 4 * index_.d;
    run_blocks(q, bytes, options.threads, [&](std::size_t first, std::size_t count, Workspace& work) {
        const float* const block = query_adapter_.apply(queries + first * index_.d, count, work.adapted);
        if (work.queries.size() < count) work.queries.resize(count);
        for (std::size_t i = 0; i < count; ++i) work.queries[i].found.reset(candidates);
        find_candidates(block, count, options.probe, options.allow, options.refine == 0, limits, stats + first, work);
        if (options.refine > 0) verify(block, count, k, options.stop, limits, stats + first, work);
        for (std::size_t i = 0; i < count; ++i) {
            Span<Scored> found = work.queries[i].found.best();
            if (options.refine > 0)
                found.size = work.jobs[i].read;
            else
                rescore(work.queries[i], found, work.codes);
            const std::size_t kept = sort_best(found, k), row = (first + i) * k;
            for (std::size_t j = 0; j < k; ++j) {
                scores[row + j] = j < kept ? found[j].score : -kInf;
                positions[row + j] = j < kept ? found[j].id : -1;
            }
        }
    });
}

void IvfSearch::plan(const float* queries, std::size_t q, const ProbeRule& probe, const AllowView& allow, bool keep_lut,
                     CallLimits& limits, SearchPlan& plan) const {
    plan.every_list = scans_everything(probe, allow);
    const std::size_t bytes = index_.m * kSub * 5 + 4 * index_.d;
    run_blocks(q, bytes, 1, [&](std::size_t first, std::size_t count, Workspace& work) {
        const float* const block = query_adapter_.apply(queries + first * index_.d, count, work.adapted);
        tables_.plan(block, count, keep_lut, plan, work.tables);
        if (plan.every_list) return;
        router_.route(block, count, probe, allow, limits, work.routes);
        for (std::size_t i = 0; i < count; ++i) {
            for (const Scored& list : work.routes.lists[i]) {
                plan.lists.push_back(static_cast<std::int32_t>(list.id));
                plan.terms.push_back(list.score);
            }
            plan.offsets.push_back(static_cast<std::int64_t>(plan.lists.size()));
        }
    });
}

void IvfSearch::candidates(const PlanView& plan, std::size_t q, const CandidateOptions& options, CallLimits& limits,
                           const CandidatesOut& out, QueryStats* stats) const {
    const bool flat = plan.offsets == nullptr;
    const std::size_t bytes = index_.m * kSub + 2 * options.count * sizeof(Scored);
    run_blocks(q, bytes, options.threads, [&](std::size_t first, std::size_t count, Workspace& work) {
        if (work.queries.size() < count) work.queries.resize(count);
        for (std::size_t i = 0; i < count; ++i) work.queries[i].found.reset(options.count);
        tables_.take(plan, first, count, work.tables);
        if (!flat) {
            if (work.routes.lists.size() < count) work.routes.lists.resize(count);
            for (std::size_t i = 0; i < count; ++i) {
                std::vector<Scored>& lists = work.routes.lists[i];
                lists.clear();
                for (std::int64_t at = plan.offsets[first + i]; at < plan.offsets[first + i + 1]; ++at)
                    lists.push_back({plan.terms[at], 0, plan.lists[at]});
            }
        }
        scan(count, flat, options.allow, limits, stats + first, work);
        for (std::size_t i = 0; i < count; ++i) {
            const QueryScan& query = work.queries[i];
            const Span<Scored> found = work.queries[i].found.best();
            const std::size_t kept = sort_best(found, options.count), row = (first + i) * options.count;
            for (std::size_t j = 0; j < options.count; ++j) {
                const bool there = j < kept;
                out.scores[row + j] = there ? found[j].score : -kInf;
                out.positions[row + j] = there ? found[j].id : -1;
                out.lists[row + j] = there ? list_of(query, found[j], flat) : -1;
            }
            if (!options.rescore) continue;
            rescore(query, {found.data, kept}, work.codes);
            for (std::size_t j = 0; j < options.count; ++j) out.rescored[row + j] = j < kept ? found[j].score : -kInf;
        }
    });
}

std::int32_t IvfSearch::list_of(const QueryScan& query, const Scored& candidate, bool flat) const {
    if (!flat) return static_cast<std::int32_t>(query.lists[candidate.tag].id);
    const RowSet& set = index_.set_of(static_cast<std::size_t>(candidate.id));
    const std::int64_t row = candidate.id - static_cast<std::int64_t>(set.first);
    return static_cast<std::int32_t>(std::upper_bound(set.list_offsets, set.list_offsets + index_.nlist + 1, row) -
                                     set.list_offsets - 1);
}

void IvfSearch::score(const float* queries, std::size_t q, const std::int64_t* positions, std::size_t count,
                      const std::int64_t* reads, std::size_t threads, CallLimits& limits, float* scores,
                      QueryStats* stats) const {
    std::fill(scores, scores + q * count, -kInf);
    run_blocks(q, count * sizeof(Scored) + 4 * index_.d, threads, [&](std::size_t first, std::size_t many, Workspace& work) {
        const float* const block = query_adapter_.apply(queries + first * index_.d, many, work.adapted);
        const float* const exact = verify_adapter_.apply(block, many, work.verified);
        work.flat.clear();
        for (std::size_t i = first; i < first + many; ++i)
            for (std::size_t j = 0; j < static_cast<std::size_t>(reads[i]); ++j)
                work.flat.push_back({0.0f, static_cast<std::uint32_t>(j), positions[i * count + j]});
        work.jobs.clear();
        Scored* next = work.flat.data();
        for (std::size_t i = first; i < first + many; next += reads[i++])
            work.jobs.push_back({exact + (i - first) * index_.d, {next, static_cast<std::size_t>(reads[i])}, 0, stats + i});
        work.verifier.run(dense_, kernels_, index_.metric, 1, {0.0f, 1.0f}, {work.jobs.data(), many}, limits);
        for (std::size_t i = 0; i < many; ++i)
            for (const Scored& row : work.jobs[i].candidates) scores[(first + i) * count + row.tag] = row.score;
    });
}

RangeHits IvfSearch::range_search(const float* queries, std::size_t q, const RangeOptions& options, CallLimits& limits,
                                  QueryStats* stats) const {
    std::vector<std::vector<Scored>> results(q);
    const std::size_t bytes = index_.m * kSub * 5 + 4 * index_.d;
    run_blocks(q, bytes, options.threads, [&](std::size_t first, std::size_t count, Workspace& work) {
        const float* const block = query_adapter_.apply(queries + first * index_.d, count, work.adapted);
        if (work.queries.size() < count) work.queries.resize(count);
        for (std::size_t i = 0; i < count; ++i) work.queries[i].found.reset_above(options.threshold - options.margin);
        find_candidates(block, count, options.probe, options.allow, !options.verify, limits, stats + first, work);
        if (options.verify) verify(block, count, 1, {0.0f, 1.0f}, limits, stats + first, work);
        for (std::size_t i = 0; i < count; ++i) {
            const Span<Scored> found = work.queries[i].found.best();
            if (!options.verify) rescore(work.queries[i], found, work.codes);
            std::copy_if(found.begin(), found.end(), std::back_inserter(results[first + i]),
                         [&](const Scored& row) { return row.score >= options.threshold; });
            std::sort(results[first + i].begin(), results[first + i].end(), better);
        }
    });
    RangeHits hits;
    for (const std::vector<Scored>& result : results) {
        hits.counts.push_back(static_cast<std::int64_t>(result.size()));
        for (const Scored& row : result) {
            hits.scores.push_back(row.score);
            hits.positions.push_back(row.id);
        }
    }
    return hits;
}

// Routes and scans a block of queries, whose `found` are reset.
void IvfSearch::find_candidates(const float* queries, std::size_t q, const ProbeRule& probe, const AllowView& allow,
                                bool keep_lut, CallLimits& limits, QueryStats* stats, Workspace& work) const {
    const bool flat = scans_everything(probe, allow);
    if (!flat) router_.route(queries, q, probe, allow, limits, work.routes);
    tables_.build(queries, q, keep_lut, work.tables);
    scan(q, flat, allow, limits, stats, work);
}

// Scans for a block of queries, whose lists and tables are in `work`.
void IvfSearch::scan(std::size_t q, bool flat, const AllowView& allow, CallLimits& limits, QueryStats* stats,
                     Workspace& work) const {
    prepare(q, flat, work);
    scan_.run({work.queries.data(), q}, allow, flat, work.threads, limits, work.scan);
    for (std::size_t i = 0; i < q; ++i) {
        stats[i].lists = static_cast<std::int64_t>(flat ? index_.nlist : work.queries[i].lists.size);
        stats[i].codes = work.queries[i].rows;
        stats[i].candidates = static_cast<std::int64_t>(work.queries[i].found.best().size);
    }
}

void IvfSearch::prepare(std::size_t q, bool flat, Workspace& work) const {
    if (flat) {
        work.flat.clear();
        for (std::size_t i = 0; i < scan_.flat_lists(); ++i) work.flat.push_back({0.0f, 0, static_cast<std::int64_t>(i)});
    }
    for (std::size_t i = 0; i < q; ++i) {
        QueryScan& query = work.queries[i];
        query.tables = work.tables.queries[i];
        query.lists = flat ? Span<Scored>{work.flat.data(), work.flat.size()} : Span<Scored>{work.routes.lists[i].data(), work.routes.lists[i].size()};
        query.rows = 0;
        query.next = 0;
    }
}

void IvfSearch::verify(const float* queries, std::size_t q, std::size_t k, const StopRule& rule, CallLimits& limits,
                       QueryStats* stats, Workspace& work) const {
    const float* const exact = verify_adapter_.apply(queries, q, work.verified);
    work.jobs.clear();
    for (std::size_t i = 0; i < q; ++i)
        work.jobs.push_back({exact + i * index_.d, work.queries[i].found.best(), 0, stats + i});
    work.verifier.run(dense_, kernels_, index_.metric, k, rule, {work.jobs.data(), q}, limits);
}

// Replaces 8-bit scores by those of the float tables, summed in double: the reported scores of a codes-only search.
void IvfSearch::rescore(const QueryScan& query, Span<Scored> candidates, std::vector<std::uint8_t>& codes) const {
    const std::size_t group_bytes = index_.m / 2 * kSumRows;
    codes.resize(std::max(codes.size(), (candidates.size + kSumRows - 1) / kSumRows * group_bytes));
    for (std::size_t i = 0; i < candidates.size; ++i) {
        const auto position = static_cast<std::size_t>(candidates[i].id);
        const RowSet& set = index_.set_of(position);
        copy_row(set.packed, index_.quads, index_.m, position - set.first,
                 codes.data() + i / kSumRows * group_bytes + i % kSumRows, kSumRows);
    }
    for (std::size_t first = 0; first < candidates.size; first += kSumRows) {
        double sums[kSumRows];
        kernels_.sum_entries(query.tables.lut, codes.data() + first / kSumRows * group_bytes, index_.m, sums);
        for (std::size_t i = first; i < std::min(first + kSumRows, candidates.size); ++i) {
            const double term = static_cast<double>(query.tables.constant) + query.lists[candidates[i].tag].score;
            candidates[i].score = static_cast<float>(term + sums[i - first]);
        }
    }
}

}  // namespace vqdistill
