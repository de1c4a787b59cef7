// Verification of candidates: their dense rows are read, best code first, until the rest cannot matter.
#pragma once

#include <vector>

#include "disk_tier.h"
#include "limits.h"
#include "list_scan.h"

namespace vqdistill {

// When to stop reading: as soon as the rows that are not read are expected to hold no more than `misses` of the k
// results. A row's exact score is taken to be normal around its code score plus the mean error of the query's rows read
// so far, with the standard deviation `error`, which is measured on held-out queries.
struct StopRule {
    float misses;  // 0 or less = read every candidate
    float error;
};

struct QueryStats {
    std::int64_t lists = 0, codes = 0, candidates = 0, dense_rows = 0, dense_pages = 0, dense_bytes = 0, wait_ns = 0;
};

// Keeps its memory between calls of one thread.
class Verifier {
public:
    struct Job {
        const float* query;
        Span<Scored> candidates;  // in; reordered, their scores replaced as far as they are read
        std::size_t read = 0;     // out: candidates read, the first ones; only these have exact scores
        QueryStats* stats;
    };

    // Reads what the jobs need together, in rounds. Throws std::system_error if the disk refuses, and what
    // limits.check() throws.
    void run(const DiskTier& dense, const Kernels& kernels, Metric metric, std::size_t k, const StopRule& rule,
             Span<Job> jobs, CallLimits& limits);

private:
    struct Progress {
        std::size_t job = 0;
        double error_sum = 0.0;    // exact - code score of the rows read
        std::vector<float> best;   // min-heap of the k best exact scores
    };

    void begin(Span<Job> jobs, bool in_order);
    bool settled(const Progress& progress, const Job& job, std::size_t k, const StopRule& rule) const;

    std::vector<Progress> open_;
    std::vector<RerankTask> tasks_;
    IoScratch io_;
};

}  // namespace vqdistill
