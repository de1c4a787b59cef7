// Which lists a query visits, and in which order.
#pragma once

#include <vector>

#include "index_view.h"
#include "topk.h"

namespace vqdistill {

// How many lists a query visits: those whose routing score is within `gap` of its best one, at least 1 and at most
// `most`.
struct ProbeRule {
    std::size_t most;
    float gap;  // infinity = exactly `most`
};

// Safe under concurrent calls, each with a scratch of its own.
class Router {
public:
    // REQUIRES the view's arrays to outlive it.
    Router(const IndexView& index, const Kernels& kernels);

    struct Scratch {
        std::vector<float> products;
        std::vector<TopR> best;
        std::vector<Span<Scored>> lists;  // of each query, best first: id = list, score = its term in the code scores
    };

    // Fills scratch.lists for queries (q, d): the best lists by <q, router[l]>, or 2 <q, r> - |r|^2 for l2, ties to the
    // lowest list. Lists without an allowed row are not visited. The scores are replaced by what each list adds to the
    // scores of its rows: <q, coarse[l]> for residual codes, otherwise 0.
    void route(const float* queries, std::size_t q, const ProbeRule& rule, const AllowView& allow,
               Scratch& scratch) const;

private:
    void rank(const float* queries, std::size_t q, const AllowView& allow, Scratch& scratch) const;

    IndexView index_;
    const Kernels& kernels_;
    std::vector<float> bias_;  // (nlist): -|router|^2 for l2; empty for ip
};

}  // namespace vqdistill
