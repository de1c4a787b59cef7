#include "verify.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

namespace vqdistill {
namespace {

// Rows read between two decisions to stop; the same for every way of reading, so that results are, too.
constexpr std::size_t kChunk = 16;

// P(Z > t) of a standard normal Z, within 1e-4, from a table.
class NormalTail {
public:
    NormalTail() {
        for (std::size_t i = 0; i <= kSteps; ++i)
            values_[i] = static_cast<float>(0.5 * std::erfc((static_cast<double>(i) / kScale - kRange) / std::sqrt(2.0)));
    }
    float operator()(float t) const {
        const float at = (t + kRange) * kScale;
        if (!(at > 0.0f)) return 1.0f;  // NaN counts as likely: read on
        if (at >= static_cast<float>(kSteps)) return 0.0f;
        const auto i = static_cast<std::size_t>(at);
        return values_[i] + (values_[i + 1] - values_[i]) * (at - static_cast<float>(i));
    }

private:
    static constexpr int kRange = 5, kScale = 32;
    static constexpr std::size_t kSteps = 2 * kRange * kScale;
    float values_[kSteps + 1];
};

const NormalTail kTail;

// Rows that the rule's error weighs as much as, beside those read. On learn queries of pypi200k that had not been trained
// on, at the recall of a fixed 100, 150 and 200 rows, 22, 33 and 36 % fewer are read with 20, and 17, 22 and 28 % if every
// query has the rule's error; from 5 to 50 little changes.
constexpr double kPriorRows = 20.0;

void keep_best(Span<Scored> rows, std::size_t k, std::vector<float>& heap) {
    for (const Scored& row : rows) {
        if (heap.size() == k) {
            if (!(row.score > heap.front())) continue;
            std::pop_heap(heap.begin(), heap.end(), std::greater<float>());
            heap.back() = row.score;
        } else {
            heap.push_back(row.score);
        }
        std::push_heap(heap.begin(), heap.end(), std::greater<float>());
    }
}

void add_counts(const ReadCounts& counts, QueryStats& stats) {
    stats.dense_rows += counts.rows;
    stats.dense_pages += counts.pages;
    stats.dense_bytes += counts.bytes;
    stats.wait_ns += counts.wait_ns;
}

}  // namespace

void Verifier::begin(Span<Job> jobs, bool in_order) {
    if (open_.size() < jobs.size) open_.resize(jobs.size);
    for (std::size_t i = 0; i < jobs.size; ++i) {
        open_[i].job = i;
        open_[i].error_sum = open_[i].error_squares = 0.0;
        open_[i].best.clear();
        if (in_order) std::sort(jobs[i].candidates.begin(), jobs[i].candidates.end(), better);
        jobs[i].read = 0;
    }
}

void Verifier::run(const DiskTier& dense, const Kernels& kernels, Metric metric, std::size_t k, const StopRule& rule,
                   Span<Job> jobs, CallLimits& limits) {
    run_rounds(k, rule, jobs, [&](Span<RerankTask> tasks, const std::vector<Progress>&) {
        limits.check();
        dense.rerank(kernels, metric, tasks, io_);
    });
}

// Makes the tasks of the next round, one for each of the first `open` in open_.
void Verifier::plan_round(std::size_t k, const StopRule& rule, Span<Job> jobs, std::size_t open) {
    tasks_.clear();
    for (std::size_t i = 0; i < open; ++i) {
        Job& job = jobs[open_[i].job];
        const std::size_t left = job.candidates.size - job.read;
        const std::size_t wanted = rule.misses > 0.0f ? std::max(kChunk, job.read == 0 ? k : 0) : left;
        const Span<Scored> rows{job.candidates.data + job.read, std::min(left, wanted)};
        if (rule.misses > 0.0f) open_[i].keep_codes(rows);
        tasks_.push_back({job.query, rows, {}});
    }
}

// Takes in what the tasks have read; leaves the jobs that need more in front of open_, and returns how many they are.
std::size_t Verifier::end_round(std::size_t k, const StopRule& rule, Span<Job> jobs, std::size_t open) {
    std::size_t still_open = 0;
    for (std::size_t i = 0; i < open; ++i) {
        Progress& progress = open_[i];
        Job& job = jobs[progress.job];
        const Span<Scored> rows = tasks_[i].candidates;
        job.read += rows.size;
        add_counts(tasks_[i].counts, *job.stats);
        if (job.read == job.candidates.size) continue;
        for (std::size_t row = 0; row < rows.size; ++row) {
            const double error = static_cast<double>(rows[row].score) - progress.codes[row];
            progress.error_sum += error;
            progress.error_squares += error * error;
        }
        keep_best(rows, k, progress.best);
        if (settled(progress, job, k, rule)) continue;
        std::swap(open_[still_open++], progress);
    }
    return still_open;
}

// Whether the candidates that are not read are expected to hold too few results to go on.
bool Verifier::settled(const Progress& progress, const Job& job, std::size_t k, const StopRule& rule) const {
    if (progress.best.size() < k) return false;
    const auto read = static_cast<double>(job.read);
    const double mean = progress.error_sum / read, prior = rule.error;
    const double squares = std::max(0.0, progress.error_squares - read * mean * mean);
    const double variance = (squares + kPriorRows * prior * prior) / (read + kPriorRows);
    const float needed = progress.best.front() - static_cast<float>(mean);
    const auto scale = static_cast<float>(1.0 / std::sqrt(variance));
    float expected = 0.0f;
    for (std::size_t i = job.read; i < job.candidates.size && expected <= rule.misses; ++i)
        expected += kTail((needed - job.candidates[i].score) * scale);
    return expected <= rule.misses;
}

void choose_results(std::size_t q, std::size_t count, const float* code, const float* exact, const std::int64_t* ids,
                    std::size_t k, const StopRule& rule, float* scores, std::int64_t* results, std::int64_t* read) {
    constexpr float kNone = -std::numeric_limits<float>::infinity();
    std::vector<Scored> candidates(q * count);
    std::vector<Verifier::Job> jobs;
    std::vector<QueryStats> stats(q);
    for (std::size_t i = 0; i < q; ++i) {
        std::size_t found = 0;
        for (; found < count && code[i * count + found] > kNone; ++found)
            candidates[i * count + found] = {code[i * count + found], static_cast<std::uint32_t>(found),
                                             ids[i * count + found]};
        jobs.push_back({nullptr, {candidates.data() + i * count, found}, 0, &stats[i]});
    }
    Verifier verifier;
    verifier.settle(k, rule, {jobs.data(), q},
                    [&](std::size_t job, std::uint32_t at) { return exact[job * count + at]; });
    for (std::size_t i = 0; i < q; ++i) {
        read[i] = static_cast<std::int64_t>(jobs[i].read);
        const Span<Scored> found{jobs[i].candidates.data, jobs[i].read};
        const std::size_t kept = sort_best(found, k);
        for (std::size_t j = 0; j < k; ++j) {
            scores[i * k + j] = j < kept ? found[j].score : kNone;
            results[i * k + j] = j < kept ? found[j].id : -1;
        }
    }
}

}  // namespace vqdistill
