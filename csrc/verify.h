// Verification of candidates: their dense rows are read, best code first, until the rest cannot matter.
#pragma once

#include <algorithm>
#include <vector>

#include "disk_tier.h"
#include "limits.h"
#include "list_scan.h"

namespace vqdistill {

// When to stop reading: as soon as the rows that are not read are expected to hold no more than `misses` of the k
// results. A row's exact score is taken to be normal around its code score plus the mean error of the query's rows read
// so far, with a variance between theirs and that of held-out queries.
struct StopRule {
    float misses;  // 0 or less = read every candidate
    float error;   // standard deviation on held-out queries
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

    // The same for candidates whose exact scores are known: exact(job, tag) has that of a candidate.
    template <class Exact>
    void settle(std::size_t k, const StopRule& rule, Span<Job> jobs, Exact exact) {
        run_rounds(k, rule, jobs, [&](Span<RerankTask> tasks, const std::vector<Progress>& open) {
            for (std::size_t i = 0; i < tasks.size; ++i) {
                const Span<Scored> rows = tasks[i].candidates;
                for (Scored& row : rows) row.score = exact(open[i].job, row.tag);
            }
        });
    }

private:
    struct Progress {
        std::size_t job = 0;
        std::vector<float> codes;  // code scores of the rows of the round, in the order in which they are read
        double error_sum = 0.0, error_squares = 0.0;  // of exact - code score, over the rows read
        std::vector<float> best;   // min-heap of the k best exact scores

        void keep_codes(Span<Scored> rows) {
            std::sort(rows.begin(), rows.end(), [](const Scored& a, const Scored& b) { return a.id < b.id; });
            codes.clear();
            for (const Scored& row : rows) codes.push_back(row.score);
        }
    };

    // read(tasks, open) replaces the scores of all candidates of the tasks, task i being of job open[i].job, and leaves
    // these sorted by id, as they are.
    template <class Read>
    void run_rounds(std::size_t k, const StopRule& rule, Span<Job> jobs, Read read) {
        begin(jobs, rule.misses > 0.0f);
        std::size_t open = jobs.size;
        while (open > 0) {
            plan_round(k, rule, jobs, open);
            read(Span<RerankTask>{tasks_.data(), tasks_.size()}, open_);
            open = end_round(k, rule, jobs, open);
        }
    }
    void begin(Span<Job> jobs, bool in_order);
    void plan_round(std::size_t k, const StopRule& rule, Span<Job> jobs, std::size_t open);
    std::size_t end_round(std::size_t k, const StopRule& rule, Span<Job> jobs, std::size_t open);
    bool settled(const Progress& progress, const Job& job, std::size_t k, const StopRule& rule) const;

    std::vector<Progress> open_;
    std::vector<RerankTask> tasks_;
    IoScratch io_;
};

// The k results of each of q queries out of candidates (q, count) of all parts of an index, sorted by falling code score,
// ties by rising id, as far as code > -inf; exact are their scores by dense rows, of which the rule may stop using some.
// `read` (q): how many it uses.
void choose_results(std::size_t q, std::size_t count, const float* code, const float* exact, const std::int64_t* ids,
                    std::size_t k, const StopRule& rule, float* scores, std::int64_t* results, std::int64_t* read);

}  // namespace vqdistill
