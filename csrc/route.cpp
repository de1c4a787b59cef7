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

constexpr std::uint64_t kNoList = std::numeric_limits<std::uint64_t>::max();

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

// Rises as the score falls, then with the list: what `better` says of two lists, in one comparison.
std::uint64_t order_of(float score, std::size_t list) {
    const float positive_zero = score + 0.0f;
    std::uint32_t bits;
    std::memcpy(&bits, &positive_zero, sizeof bits);
    const std::uint32_t rising = bits >> 31 ? ~bits : bits | 0x80000000u;
    return static_cast<std::uint64_t>(~rising) << 32 | static_cast<std::uint32_t>(list);
}

}  // namespace

Router::Router(const IndexView& index, const Kernels& kernels)
    : index_(index), kernels_(kernels), log_share_(index.nlist, 0.0f) {
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
            chosen.clear();
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
    const float top = *std::max_element(scores, scores + index_.nlist), inverse = 1.0f / rule.temperature;
    std::vector<float>& odds = scratch.odds;
    odds.resize(index_.nlist);
    float* const odds_of = odds.data();
    for (std::size_t l = 0; l < index_.nlist; ++l) odds_of[l] = exp_of_negative((scores[l] - top) * inverse);
    float lanes[8] = {};
    std::size_t l = 0;
    for (; l + 8 <= index_.nlist; l += 8)
        for (std::size_t lane = 0; lane < 8; ++lane) lanes[lane] += odds_of[l + lane];
    for (; l < index_.nlist; ++l) lanes[0] += odds_of[l];
    float total = 0.0f;
    for (const float lane : lanes) total += lane;

    std::int64_t allowed = 0;
    for (l = 0; allow.per_list != nullptr && l < index_.nlist; ++l) allowed += allow.per_list[l];
    const double share = allow.per_list == nullptr ? 1.0 : static_cast<double>(allowed) / static_cast<double>(n_);
    const float needed = static_cast<float>(std::log(static_cast<double>(total) * rule.lift * share));
    std::vector<std::uint64_t>& orders = scratch.orders;
    orders.resize(index_.nlist);
    std::uint64_t best = kNoList;
    std::size_t count = 0;
    const std::int64_t* const rows = allow.per_list != nullptr ? allow.per_list : rows_.data();
    for (l = 0; l < index_.nlist; ++l) {
        const float lifted = (scores[l] - top) * inverse - log_share_[l];
        const std::uint64_t order = rows[l] > 0 ? order_of(lifted, l) : kNoList;
        best = std::min(best, order);
        orders[count] = order;  // without a branch that a third of the lists would mispredict
        count += (lifted >= needed) & (rows[l] > 0);
    }
    if (count == 0 && best != kNoList) orders[count++] = best;
    std::sort(orders.begin(), orders.begin() + static_cast<std::ptrdiff_t>(count));
    chosen.resize(std::min(count, rule.most));
    for (std::size_t i = 0; i < chosen.size(); ++i) chosen[i].id = static_cast<std::int64_t>(orders[i] & 0xFFFFFFFFu);
}

}  // namespace vqdistill
