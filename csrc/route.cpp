#include "route.h"

#include <algorithm>
#include <cmath>

namespace vqdistill {
namespace {

// Lists whose scores are computed together: keeps temporaries small for any nlist.
constexpr std::size_t kChunk = 1024;
// Queries that share one pass over the router.
constexpr std::size_t kQueries = 32;

// Drops what the rule does not visit, and sorts the rest.
Span<Scored> chosen(Span<Scored> lists, const ProbeRule& rule) {
    if (lists.size == 0) return lists;
    const float best = std::min_element(lists.begin(), lists.end(), better)->score;
    Scored* const end = std::partition(lists.begin(), lists.end(),
                                       [&](const Scored& list) { return !(list.score < best - rule.gap); });
    std::sort(lists.begin(), end, better);
    return {lists.data, static_cast<std::size_t>(end - lists.begin())};
}

}  // namespace

Router::Router(const IndexView& index, const Kernels& kernels) : index_(index), kernels_(kernels) {
    if (index.metric != Metric::l2) return;
    for (std::size_t l = 0; l < index.nlist; ++l) {
        double norm = 0.0;
        for (std::size_t i = 0; i < index.d; ++i) {
            const double x = index.router.f32[l * index.d + i];
            norm += x * x;
        }
        bias_.push_back(static_cast<float>(-norm));
    }
}

void Router::route(const float* queries, std::size_t q, const ProbeRule& rule, const AllowView& allow,
                   Scratch& scratch) const {
    scratch.best.resize(std::max(scratch.best.size(), q));
    scratch.lists.resize(scratch.best.size());
    for (std::size_t i = 0; i < q; ++i) scratch.best[i].reset(rule.most);
    rank(queries, q, allow, scratch);
    for (std::size_t i = 0; i < q; ++i) {
        scratch.lists[i] = chosen(scratch.best[i].best(), rule);
        for (Scored& list : scratch.lists[i]) {
            const auto row = static_cast<std::size_t>(list.id);
            list.score =
                index_.residual ? index_.coarse.product(kernels_, queries + i * index_.d, row, index_.d) : 0.0f;
        }
    }
}

void Router::rank(const float* queries, std::size_t q, const AllowView& allow, Scratch& scratch) const {
    scratch.products.resize(std::min(q, kQueries) * std::min(kChunk, index_.nlist));
    for (std::size_t start = 0; start < q; start += kQueries)
        for (std::size_t first = 0; first < index_.nlist; first += kChunk) {
            const std::size_t nq = std::min(kQueries, q - start), count = std::min(kChunk, index_.nlist - first);
            float* const products = scratch.products.data();
            index_.router.products(kernels_, queries + start * index_.d, nq, first, count, index_.d, products);
            for (std::size_t i = 0; i < nq; ++i)
                for (std::size_t j = 0; j < count; ++j) {
                    const std::size_t list = first + j;
                    if (allow.per_list != nullptr && allow.per_list[list] == 0) continue;
                    const float product = products[i * count + j];
                    const float score = bias_.empty() ? product : 2.0f * product + bias_[list];
                    scratch.best[start + i].push({score, 0, static_cast<std::int64_t>(list)});
                }
        }
}

}  // namespace vqdistill
