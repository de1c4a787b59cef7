// What a query goes through before a stage of a search sees it.
#pragma once

#include <vector>

#include "index_view.h"

namespace vqdistill {

// q' = q + up z, where z = down q + bias and all units of z but the first `rank` are cut off below 0; under cosine q' is
// scaled to unit norm. A query whose q' would have a norm of 0, or none, stays as it is. Without units it is q.
class Adapter {
public:
    // REQUIRES the view's arrays to outlive it.
    Adapter(const AdapterView& view, std::size_t d, const Kernels& kernels) : view_(view), d_(d), kernels_(kernels) {}

    // Keeps its memory between calls of one thread.
    struct Scratch {
        std::vector<float> units, adapted;
    };

    // Returns adapted queries (q, d): `queries` itself, or scratch that lasts until the next call. A result depends on
    // the query alone, whatever else is in the call.
    const float* apply(const float* queries, std::size_t q, Scratch& scratch) const;

private:
    void scale(const float* query, float* adapted) const;

    AdapterView view_;
    std::size_t d_;
    const Kernels& kernels_;
};

}  // namespace vqdistill
