#include "ivf_search.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "pack.h"
#include "parallel.h"
#include "topk.h"

namespace vqdistill {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
// Lists whose routing scores are computed together: keeps temporaries small for any nlist.
constexpr std::size_t kRouteChunk = 1024;
// Queries of a block share one pass over router and projection; more than this gains nothing.
constexpr std::size_t kMaxBlockQueries = 32;
constexpr std::size_t kBlockBytes = 512 << 10;
// Hits between two looks at the bar: few, so that the bar rises soon, but enough to keep the kernel in its loop.
constexpr std::size_t kHitPlaces = 128;
// Blocks a kernel call may take: keeps row numbers within 32 bits.
constexpr std::size_t kMaxScanBlocks = std::size_t{1} << 26;

// Candidates of a codes-only search: a few more than k, because 8-bit tables order the rows around rank k differently
// from the float tables, by which the k are chosen. At the usual score density the margin is three standard deviations.
std::size_t candidate_count(const SearchOptions& options, std::size_t n) {
    const std::size_t wanted =
        options.refine > 0 ? std::max(options.refine, options.k) : options.k + options.k / 8 + 16;
    return std::max<std::size_t>(1, std::min(wanted, n));
}

float code_score(float base, float step, int sum) { return base + step * static_cast<float>(sum); }

// The lowest sum with which a row at `position` or behind can pass the bar; kMaxSum + 1 if there is none. The scores do
// not fall as the sum grows, because rounding is monotone, so that the integer comparison decides exactly as floats
// would.
int lowest_sum(float base, float step, std::int64_t position, const Scored& bar) {
    int low = 0, high = kMaxSum + 1;
    while (low < high) {
        const int middle = (low + high) / 2;
        if (better({code_score(base, step, middle), 0, position}, bar))
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

// Best first; what is not a score goes to the end and is reported as missing.
void write_best(Span<Scored> found, std::size_t k, float* scores, std::int64_t* positions) {
    for (Scored& item : found)
        if (std::isnan(item.score)) item.score = -kInf;
    const std::size_t kept = std::min(k, found.size);
    if (kept < found.size) std::nth_element(found.begin(), found.begin() + kept, found.end(), better);
    std::sort(found.begin(), found.begin() + kept, better);
    for (std::size_t i = 0; i < k; ++i) {
        const bool missing = i >= kept || found[i].score == -kInf;
        scores[i] = missing ? -kInf : found[i].score;
        positions[i] = missing ? -1 : found[i].id;
    }
}

double squared_norm(const float* x, std::size_t d) {
    double sum = 0.0;
    for (std::size_t i = 0; i < d; ++i) sum += static_cast<double>(x[i]) * x[i];
    return sum;
}

}  // namespace

// What one thread needs; it only grows, so that a search allocates nothing after the first ones.
struct Workspace {
    std::vector<float> centered, projected, routed, lut;
    std::vector<std::uint8_t> tables;
    IoScratch io;
    std::vector<ScanHit> hits;
    std::vector<TopR> routes;
    std::vector<Span<Scored>> lists;  // of each query of the block, best first: id = list, score = routing score
    TopR candidates;
    float step = 0.0f;
    SearchStats stats;
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
        work->stats = {};
    }
    ~Lease() {
        const std::lock_guard<std::mutex> lock(owner.mutex_);
        owner.idle_.push_back(std::move(work));
    }
    const IvfSearch& owner;
    std::unique_ptr<Workspace> work;
};

SearchStats& SearchStats::operator+=(const SearchStats& other) {
    lists += other.lists;
    codes += other.codes;
    candidates += other.candidates;
    dense_rows += other.dense_rows;
    dense_bytes += other.dense_bytes;
    return *this;
}

IvfSearch::IvfSearch(const IndexView& index, const DiskTier& dense)
    : index_(index),
      dense_(dense),
      kernels_(active_kernels()),
      words_t_(index.additive() ? 0 : index.m * index.dsub * kSub),
      table_init_(index.m * kSub, 0.0f) {
    for (std::size_t j = 0; j < index.m && !index.additive(); ++j)
        for (std::size_t c = 0; c < kSub; ++c) {
            const float* word = index.codewords + (j * kSub + c) * index.dsub;
            for (std::size_t t = 0; t < index.dsub; ++t) words_t_[(j * index.dsub + t) * kSub + c] = word[t];
            if (index.metric == Metric::l2)
                table_init_[j * kSub + c] = static_cast<float>(-squared_norm(word, index.dsub));
        }
    if (index.metric == Metric::l2)
        for (std::size_t l = 0; l < index.nlist; ++l)
            route_bias_.push_back(static_cast<float>(-squared_norm(index.router + l * index.d, index.d)));
}

IvfSearch::~IvfSearch() = default;

// All rows have the same base then, so that lists do not matter.
bool IvfSearch::scans_everything(const SearchOptions& options) const {
    return options.nprobe == index_.nlist && !index_.residual;
}

std::size_t IvfSearch::queries_per_block(std::size_t q, const SearchOptions& options) const {
    const std::size_t floats = index_.d + index_.projected() + std::min(index_.nlist, kRouteChunk);
    const std::size_t bytes = floats * sizeof(float) + 2 * options.nprobe * sizeof(Scored);
    const std::size_t fitting = std::clamp<std::size_t>(kBlockBytes / bytes, 1, kMaxBlockQueries);
    return std::min(fitting, (q + options.threads - 1) / options.threads);
}

SearchStats IvfSearch::search(const float* queries, std::size_t q, const SearchOptions& options, float* scores,
                              std::int64_t* positions) const {
    SearchStats total;
    if (q == 0) return total;
    const std::size_t per_block = queries_per_block(q, options);
    const std::size_t blocks = (q + per_block - 1) / per_block;
    std::mutex mutex;
    run_parallel(blocks, options.threads, [&](const auto& next) {
        const Lease lease(*this);
        for (std::size_t block = next(); block < blocks; block = next()) {
            const std::size_t first = block * per_block, count = std::min(per_block, q - first);
            search_block(queries + first * index_.d, count, options, scores + first * options.k,
                         positions + first * options.k, *lease.work);
        }
        const std::lock_guard<std::mutex> lock(mutex);
        total += lease.work->stats;
    });
    return total;
}

void IvfSearch::search_block(const float* queries, std::size_t q, const SearchOptions& options, float* scores,
                             std::int64_t* positions, Workspace& work) const {
    if (!scans_everything(options)) route(queries, q, options.nprobe, work);
    project(queries, q, work);
    for (std::size_t slot = 0; slot < q; ++slot) {
        const float* query = queries + slot * index_.d;
        const float constant = constant_term(query, work.centered.data() + slot * index_.d);
        if (index_.residual) list_terms(query, slot, work);
        scan(slot, constant, options, work);
        const Span<Scored> candidates = work.candidates.best();
        work.stats.candidates += static_cast<std::int64_t>(candidates.size);
        if (options.refine > 0) {
            RerankTask task{query, candidates, {}};
            dense_.rerank(kernels_, index_.metric, {&task, 1}, work.io);
            work.stats.dense_rows += task.counts.rows;
            work.stats.dense_bytes += task.counts.bytes;
        } else {
            rescore(slot, constant, candidates, work);
        }
        write_best(candidates, options.k, scores + slot * options.k, positions + slot * options.k);
    }
}

// Finds the nprobe best lists of each query, ties to the lowest list: <q, r>, or 2 <q, r> - |r|^2 for l2.
void IvfSearch::route(const float* queries, std::size_t q, std::size_t nprobe, Workspace& work) const {
    work.routes.resize(std::max(work.routes.size(), q));
    work.lists.resize(work.routes.size());
    work.routed.resize(std::max(work.routed.size(), q * std::min(kRouteChunk, index_.nlist)));
    for (std::size_t slot = 0; slot < q; ++slot) work.routes[slot].reset(nprobe);
    for (std::size_t first = 0; first < index_.nlist; first += kRouteChunk) {
        const std::size_t count = std::min(kRouteChunk, index_.nlist - first);
        kernels_.gemm_nt(queries, q, index_.router + first * index_.d, count, index_.d, work.routed.data());
        for (std::size_t slot = 0; slot < q; ++slot)
            for (std::size_t i = 0; i < count; ++i) {
                const float product = work.routed[slot * count + i];
                const float score = route_bias_.empty() ? product : 2.0f * product + route_bias_[first + i];
                work.routes[slot].push({score, 0, static_cast<std::int64_t>(first + i)});
            }
    }
    for (std::size_t slot = 0; slot < q; ++slot) {
        work.lists[slot] = work.routes[slot].best();
        std::sort(work.lists[slot].begin(), work.lists[slot].end(), better);
    }
}

// Replaces the routing scores of a query's lists by what each adds to the scores of its residual codes: <q, coarse[l]>.
void IvfSearch::list_terms(const float* query, std::size_t slot, Workspace& work) const {
    for (Scored& list : work.lists[slot]) {
        const float* centroid = index_.coarse + static_cast<std::size_t>(list.id) * index_.d;
        list.score = kernels_.dot_f32(query, reinterpret_cast<const std::uint8_t*>(centroid), index_.d);
    }
}

// projected = R q, or 2 R (q - mean) for l2, where the scores hold twice the inner product; the whole table of q for
// additive codes.
void IvfSearch::project(const float* queries, std::size_t q, Workspace& work) const {
    work.projected.resize(std::max(work.projected.size(), q * index_.projected()));
    work.lut.resize(index_.m * kSub);
    work.tables.resize(index_.m * kSub);
    const float* from = queries;
    if (index_.metric == Metric::l2) {
        work.centered.resize(std::max(work.centered.size(), q * index_.d));
        for (std::size_t slot = 0; slot < q; ++slot)
            for (std::size_t i = 0; i < index_.d; ++i)
                work.centered[slot * index_.d + i] = 2.0f * (queries[slot * index_.d + i] - index_.mean[i]);
        from = work.centered.data();
    }
    kernels_.gemm_nt(from, q, index_.projection(), index_.projected(), index_.d, work.projected.data());
}

// What all rows of a query have in common: <q, mean>, or -|q - mean|^2 for l2; residual codes have a term a list
// instead.
float IvfSearch::constant_term(const float* query, const float* centered) const {
    const auto bytes = [](const float* x) { return reinterpret_cast<const std::uint8_t*>(x); };
    if (index_.metric == Metric::l2) return -0.25f * kernels_.dot_f32(centered, bytes(centered), index_.d);
    return index_.residual ? 0.0f : kernels_.dot_f32(query, bytes(index_.mean), index_.d);
}

// lut (m, 16) of a query, before it is rounded to bytes.
void IvfSearch::build_tables(std::size_t slot, Workspace& work) const {
    const float* projected = work.projected.data() + slot * index_.projected();
    if (index_.additive())
        std::copy_n(projected, index_.m * kSub, work.lut.data());
    else
        kernels_.pq_tables(projected, words_t_.data(), table_init_.data(), index_.m, index_.dsub, work.lut.data());
}

void IvfSearch::scan(std::size_t slot, float constant, const SearchOptions& options, Workspace& work) const {
    build_tables(slot, work);
    const TableScale scale = kernels_.quantize_tables(work.lut.data(), index_.m, work.tables.data());
    work.step = scale.step;
    work.hits.resize(kHitPlaces);
    work.candidates.reset(candidate_count(options, index_.n()));
    if (scans_everything(options)) {
        work.stats.lists += static_cast<std::int64_t>(index_.nlist);
        scan_range(0, index_.n(), static_cast<float>(scale.bias + constant), 0, work);
        return;
    }
    const Span<Scored> lists = work.lists[slot];
    work.stats.lists += static_cast<std::int64_t>(lists.size);
    for (std::size_t i = 0; i < lists.size; ++i) {
        const std::int64_t* range = index_.list_offsets + lists[i].id;
        const float term = index_.residual ? lists[i].score : constant;
        scan_range(static_cast<std::size_t>(range[0]), static_cast<std::size_t>(range[1]),
                   static_cast<float>(scale.bias + term), static_cast<std::uint32_t>(i), work);
    }
}

// Scans positions begin..end, whose scores are base + step * sum, for candidates; stops when none can pass the bar.
void IvfSearch::scan_range(std::size_t begin, std::size_t end, float base, std::uint32_t tag, Workspace& work) const {
    if (begin == end) return;
    const std::size_t block_bytes = index_.m / 2 * kBlockRows, last = block_count(end);
    std::size_t block = begin / kBlockRows;
    while (block < last) {
        const int threshold = lowest_sum(base, work.step, static_cast<std::int64_t>(begin), work.candidates.bar());
        if (threshold > kMaxSum) break;
        const ScanResult done =
            kernels_.scan_pq4(index_.packed + block * block_bytes, std::min(last - block, kMaxScanBlocks), index_.m,
                              work.tables.data(), threshold, work.hits.data(), kHitPlaces);
        for (std::size_t i = 0; i < done.hits; ++i) {
            const ScanHit hit = work.hits[i];
            const std::size_t position = block * kBlockRows + hit.row;
            if (position < begin || position >= end) continue;
            const float score = code_score(base, work.step, static_cast<int>(hit.sum));
            work.candidates.push({score, tag, static_cast<std::int64_t>(position)});
        }
        block += done.blocks;
    }
    work.stats.codes += static_cast<std::int64_t>(std::max(begin, std::min(end, block * kBlockRows)) - begin);
}

// Replaces 8-bit scores by those of the float tables, summed in double: the reported scores of a codes-only search.
void IvfSearch::rescore(std::size_t slot, float constant, Span<Scored> candidates, const Workspace& work) const {
    for (Scored& item : candidates) {
        const double term = index_.residual ? work.lists[slot][item.tag].score : constant;
        double even = 0.0, odd = 0.0;  // two chains of additions, which run side by side
        const std::size_t row = static_cast<std::size_t>(item.id);
        for (std::size_t j = 0; j < index_.m; j += 2) {
            const std::uint8_t pair = pair_at(index_.packed, index_.m, row, j / 2);
            even += work.lut[j * kSub + (pair & 15)];
            odd += work.lut[(j + 1) * kSub + (pair >> 4)];
        }
        item.score = static_cast<float>(term + (even + odd));
    }
}

}  // namespace vqdistill
