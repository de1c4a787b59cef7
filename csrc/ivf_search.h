// The search: route -> tables -> scan -> candidates -> rerank.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "common.h"
#include "disk_tier.h"
#include "dispatch.h"

namespace vqdistill {

// The resident arrays of an index; all row-major. REQUIRES: they outlive the IvfSearch and agree with each other:
// list_offsets starts at 0, never falls, and ends at n with packed holding block_count(n) blocks; m is even, <= kMaxM.
struct IndexView {
    Metric metric;
    bool residual;
    std::size_t nlist, d, m, dsub;
    const std::int64_t* list_offsets;  // (nlist + 1): list l = positions list_offsets[l] .. list_offsets[l+1]
    const float* router;               // (nlist, d): order in which a query visits the lists
    const float* coarse;               // (nlist, d): what the codes of a list are residuals of
    const float* mean;                 // (d)
    const float* rotation;             // (m * dsub, d); null for additive codes
    const float* codewords;            // (m, 16, dsub); dsub = d for additive codes
    const std::uint8_t* packed;        // (block_count(n), m/2, 32)

    bool additive() const { return rotation == nullptr; }
    // What the queries of a block are multiplied with: the rotation, or at once all additive codewords.
    const float* projection() const { return additive() ? codewords : rotation; }
    std::size_t projected() const { return additive() ? m * kSub : m * dsub; }
    std::size_t n() const { return static_cast<std::size_t>(list_offsets[nlist]); }
};

struct SearchOptions {
    std::size_t k;        // results a query, >= 1
    std::size_t nprobe;   // lists a query, 1..nlist
    std::size_t refine;   // candidates whose dense rows are scored; 0 = codes only
    std::size_t threads;  // >= 1
};

struct SearchStats {
    std::int64_t lists = 0, codes = 0, candidates = 0, dense_rows = 0, dense_bytes = 0;
    SearchStats& operator+=(const SearchStats& other);
};

struct Workspace;

// Safe under concurrent calls. Results for a query depend on nothing but the query and the options k, nprobe, refine.
class IvfSearch {
public:
    IvfSearch(const IndexView& index, const DiskTier& dense);
    ~IvfSearch();

    const IndexView& index() const { return index_; }
    const DiskTier& dense() const { return dense_; }

    // queries (q, d) -> scores (q, k), positions (q, k), best first; -inf and -1 where nothing was found. A row whose
    // score is NaN or -inf is not found. Throws std::system_error if the disk refuses, std::bad_alloc.
    SearchStats search(const float* queries, std::size_t q, const SearchOptions& options, float* scores,
                       std::int64_t* positions) const;

private:
    struct Lease;

    void search_block(const float* queries, std::size_t q, const SearchOptions& options, float* scores,
                      std::int64_t* positions, Workspace& work) const;
    void route(const float* queries, std::size_t q, std::size_t nprobe, Workspace& work) const;
    void list_terms(const float* query, std::size_t slot, Workspace& work) const;
    void project(const float* queries, std::size_t q, Workspace& work) const;
    void build_tables(std::size_t slot, Workspace& work) const;
    float constant_term(const float* query, const float* centered) const;
    void scan(std::size_t slot, float constant, const SearchOptions& options, Workspace& work) const;
    void scan_range(std::size_t begin, std::size_t end, float base, std::uint32_t tag, Workspace& work) const;
    void rescore(std::size_t slot, float constant, Span<Scored> candidates, const Workspace& work) const;
    bool scans_everything(const SearchOptions& options) const;
    std::size_t queries_per_block(std::size_t q, const SearchOptions& options) const;

    IndexView index_;
    DiskTier dense_;
    const Kernels& kernels_;
    std::vector<float> words_t_;  // (m, dsub, 16): codewords as the table kernel reads them; empty for additive codes
    std::vector<float> table_init_;  // (m, 16): 0, or -|codeword|^2 for l2
    std::vector<float> route_bias_;  // (nlist): -|router|^2 for l2; empty for ip

    mutable std::mutex mutex_;
    mutable std::vector<std::unique_ptr<Workspace>> idle_;
    mutable std::size_t workspaces_ = 0;  // made so far: as many as threads were searching at the same time
};

}  // namespace vqdistill
