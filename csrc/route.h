// Which lists a query visits, and in which order.
#pragma once

#include <vector>

#include "index_view.h"
#include "limits.h"
#include "topk.h"

namespace vqdistill {

// How many lists a query visits. With a lift of 0: the `most` best ones. Otherwise those in which a wanted row is at
// least `lift` times as likely as among as many random rows, if softmax(score / temperature) is the probability of each
// list; at least 1 and at most `most`. Where only the share f of all rows may be found, f times the lift is enough: a
// filtered query looks deeper.
struct ProbeRule {
    std::size_t most;
    float lift = 0.0f;
    float temperature = 1.0f;
};

// Safe under concurrent calls, each with a scratch of its own.
class Router {
public:
    // REQUIRES the view's arrays to outlive it.
    Router(const IndexView& index, const Kernels& kernels);

    struct Scratch {
        std::vector<float> scores;
        TopR best;
        std::vector<float> lifts;
        std::vector<Scored> ordered;
        std::vector<std::vector<Scored>> lists;  // of each query, best first: id = list, score = its part of code scores
    };

    // Fills scratch.lists for queries (q, d). Lists score <q, router[l]>, or 2 <q, r> - |r|^2 for l2, and ties go to the
    // lowest list. Without a lift the order is that of the scores, with one about that of the lifts. Lists without an
    // allowed row are not visited. What each list adds to the scores of its rows is <q, coarse[l]> for residual codes, else 0.
    // Throws what limits.check() throws.
    void route(const float* queries, std::size_t q, const ProbeRule& rule, const AllowView& allow, CallLimits& limits,
               Scratch& scratch) const;

private:
    void score_lists(const float* queries, std::size_t q, float* scores) const;
    void choose_best(const float* scores, std::size_t most, const AllowView& allow, Scratch& scratch,
                     std::vector<Scored>& chosen) const;
    void choose_lifted(const float* scores, const ProbeRule& rule, const AllowView& allow, Scratch& scratch,
                       std::vector<Scored>& chosen) const;
    static void order_by_height(std::vector<Scored>& lists, std::vector<Scored>& ordered);

    IndexView index_;
    const Kernels& kernels_;
    std::vector<float> bias_;       // (nlist): -|router|^2 for l2; empty for ip
    std::vector<std::int64_t> rows_;  // (nlist): rows of each list that are alive
    std::int64_t n_ = 0;              // all of them
    std::vector<float> log_share_;    // (nlist): log of the share of all rows in each list; infinity for empty ones
};

}  // namespace vqdistill
