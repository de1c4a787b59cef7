#include "route.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace vqdistill {
namespace {

// Queries that share one pass over the router, fewer if their scores would not stay in cache.
constexpr std::size_t kQueries = 32;
constexpr std::size_t kScoreBytes = 1 << 20;

constexpr float kInf = std::numeric_limits<float>::infinity();
// Heights by which lists are put in order, about: a scan gains by the best ones first, whichever of these is the best.
constexpr std::size_t kHeights = 64;

// e^x for x <= 0 within 1e-4 of it; e^-80 below -80. Without branches or calls.
float exp_of_negative(float x) {
    const float scaled = std::max(x, -80.0f) * 1.44269504f;  // 2^scaled
    const auto whole = static_cast<std::int32_t>(scaled);    // towards zero: the fraction is in (-1, 0]
    const float part = scaled - static_cast<float>(whole);
    const float fraction =
        1.0f + part * (0.69314718f + part * (0.24022651f + part * (0.05550411f + part * (0.00961813f + part * 0.00133f))));
    const std::int32_t bits = (whole + 127) << 23;
    float power;
    std::memcpy(&power, &bits, sizeof power);
    return power * fraction;
}

// Eight lanes, which the compiler keeps in a register, of a value folded over n others.
template <class Fold>
float fold(const float* values, std::size_t n, float value, Fold with) {
    float lanes[8];
    std::fill(lanes, lanes + 8, value);
    std::size_t i = 0;
    for (; i + 8 <= n; i += 8)
        for (std::size_t lane = 0; lane < 8; ++lane) lanes[lane] = with(lanes[lane], values[i + lane]);
    for (; i < n; ++i) lanes[0] = with(lanes[0], values[i]);
    for (const float lane : lanes) value = with(value, lane);
    return value;
}

}  // namespace

Router::Router(const IndexView& index, const Kernels& kernels)
    : index_(index), kernels_(kernels), log_share_(index.nlist, kInf) {
    for (std::size_t l = 0; l < index.nlist; ++l) {
        rows_.push_back(index.list_rows(l));
        n_ += rows_.back();
    }
    for (std::size_t l = 0; l < index.nlist; ++l)
        if (rows_[l] > 0)
            log_share_[l] = static_cast<float>(std::log(static_cast<double>(rows_[l]) / static_cast<double>(n_)));
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
                   CallLimits& limits, Scratch& scratch) const {
    if (scratch.lists.size() < q) scratch.lists.resize(q);
    const std::size_t fitting = std::clamp<std::size_t>(kScoreBytes / (index_.nlist * sizeof(float)), 1, kQueries);
    scratch.scores.resize(std::min(fitting, q) * index_.nlist);
    for (std::size_t first = 0; first < q; first += fitting) {
        const std::size_t count = std::min(fitting, q - first);
        limits.check();
        score_lists(queries + first * index_.d, count, scratch.scores.data());
        for (std::size_t i = 0; i < count; ++i) {
            const float* const scores = scratch.scores.data() + i * index_.nlist;
            std::vector<Scored>& chosen = scratch.lists[first + i];
            if (rule.lift > 0.0f)
                choose_lifted(scores, rule, allow, scratch, chosen);
            else
                choose_best(scores, rule.most, allow, scratch, chosen);
            for (Scored& list : chosen)
                list.score = index_.residual ? index_.coarse.product(kernels_, queries + (first + i) * index_.d,
                                                                     static_cast<std::size_t>(list.id), index_.d)
                                             : 0.0f;
        }
    }
}

void Router::score_lists(const float* queries, std::size_t q, float* scores) const {
    index_.router.products(kernels_, queries, q, index_.nlist, index_.d, scores);
    if (bias_.empty()) return;
    for (std::size_t i = 0; i < q; ++i)
        for (std::size_t l = 0; l < index_.nlist; ++l)
            scores[i * index_.nlist + l] = 2.0f * scores[i * index_.nlist + l] + bias_[l];
}

void Router::choose_best(const float* scores, std::size_t most, const AllowView& allow, Scratch& scratch,
                         std::vector<Scored>& chosen) const {
    scratch.best.reset(most);
    for (std::size_t l = 0; l < index_.nlist; ++l)
        if (allow.per_list == nullptr || allow.per_list[l] > 0)
            scratch.best.push({scores[l], 0, static_cast<std::int64_t>(l)});
    const Span<Scored> best = scratch.best.best();
    chosen.assign(best.begin(), best.end());
    std::sort(chosen.begin(), chosen.end(), better);
}

// lift(l) = e^((s_l - top) / T) / Z / share_l, where Z = sum_l e^((s_l - top) / T): compared as logarithms.
void Router::choose_lifted(const float* scores, const ProbeRule& rule, const AllowView& allow, Scratch& scratch,
                           std::vector<Scored>& chosen) const {
    const std::size_t nlist = index_.nlist;
    const float top = fold(scores, nlist, -kInf, [](float a, float b) { return a > b ? a : b; });
    const float inverse = 1.0f / rule.temperature;
    scratch.lifts.resize(nlist);
    float* const lifts = scratch.lifts.data();
    for (std::size_t l = 0; l < nlist; ++l) lifts[l] = exp_of_negative((scores[l] - top) * inverse);
    const float total = fold(lifts, nlist, 0.0f, [](float a, float b) { return a + b; });
    for (std::size_t l = 0; l < nlist; ++l) lifts[l] = (scores[l] - top) * inverse - log_share_[l];  // -inf without rows

    double share = 1.0;  // of the rows that may be found
    if (allow.per_list != nullptr) {
        std::int64_t allowed = 0;
        for (std::size_t l = 0; l < nlist; ++l) {
            allowed += allow.per_list[l];
            if (allow.per_list[l] <= 0) lifts[l] = -kInf;
        }
        share = static_cast<double>(allowed) / static_cast<double>(n_);
    }
    const auto needed = static_cast<float>(std::log(static_cast<double>(total) * rule.lift * share));
    chosen.resize(nlist);
    std::size_t count = 0;
    for (std::size_t l = 0; l < nlist; ++l) {
        chosen[count] = {lifts[l], 0, static_cast<std::int64_t>(l)};  // without a branch that a third would mispredict
        count += lifts[l] >= needed && lifts[l] > -kInf;
    }
    if (count == 0) {
        const float* const best = std::max_element(lifts, lifts + nlist);
        if (*best > -kInf) chosen[count++] = {*best, 0, best - lifts};
    }
    chosen.resize(count);
    if (count > rule.most) {
        std::sort(chosen.begin(), chosen.end(), better);
        chosen.resize(rule.most);
    } else {
        order_by_height(chosen, scratch.ordered);
    }
}

// Puts lists in an order in which they fall from height to height, and within one are what they were.
void Router::order_by_height(std::vector<Scored>& lists, std::vector<Scored>& ordered) {
    float low = kInf, high = -kInf;
    for (const Scored& list : lists) {
        low = std::min(low, list.score);
        high = std::max(high, list.score);
    }
    const float per_score = (kHeights - 1) / (high - low);
    if (!(per_score < kInf)) return;  // one list, or all alike
    const auto depth_of = [&](const Scored& list) { return static_cast<std::size_t>((high - list.score) * per_score); };
    std::uint32_t next[kHeights + 2] = {};
    for (const Scored& list : lists) ++next[depth_of(list) + 1];
    for (std::size_t depth = 0; depth < kHeights; ++depth) next[depth + 1] += next[depth];
    ordered.resize(lists.size());
    for (const Scored& list : lists) ordered[next[depth_of(list)]++] = list;
    lists.swap(ordered);
}

}  // namespace vqdistill
