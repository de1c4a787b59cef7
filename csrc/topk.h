// The best r of a stream of scored ids.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <vector>

#include "common.h"

namespace vqdistill {

struct Scored {
    float score;
    std::uint32_t tag;  // of the caller; takes no part in the order
    std::int64_t id;
};

// The order of all results: higher score first, then lower id. Total, so the best r are one set whatever the order of
// arrival. NaN is better than nothing, and must not be sorted.
struct Better {
    bool operator()(const Scored& a, const Scored& b) const {
        return (a.score > b.score) | ((a.score == b.score) & (a.id < b.id));
    }
};
constexpr Better better{};  // an object and not a function, so that sorting inlines it

// Counts scores by their height, and so knows a height that enough of them reach, without sorting any.
class ScoreBins {
public:
    // Forgets what was counted. Until a range is set, no height is known.
    void clear() {
        lowest_ = counted_ = 0;
        low_ = per_score_ = 0.0f;
        counts_.fill(0);
    }

    // Sets the range by what is best so far, and for as much again above it: later scores are higher.
    void set_range(float low, float high) {
        clear();
        low_ = low;
        const float per_score = kBins / (2.0f * (high - low));
        per_score_ = std::isfinite(per_score) ? per_score : 0.0f;
    }

    // Counts a score if it `counts`; returns what count() must be told, with others of its kind together.
    std::size_t add(float score, bool counts) {
        const std::size_t bin = bin_of(score);
        counts_[bin] += counts;
        return counts & (bin >= lowest_);
    }
    void count(std::size_t added) { counted_ += added; }

    // A height that at least r of the counted scores reach, and as high as bins can tell; -inf if none is known.
    float reached_by(std::size_t r) {
        while (lowest_ + 1 < kBins && counted_ - counts_[lowest_] >= r) counted_ -= counts_[lowest_++];
        if (lowest_ == 0) return -std::numeric_limits<float>::infinity();
        // A little below the bin, for what rounding takes: bins do not fall where scores rise.
        return low_ + (static_cast<float>(lowest_) - 0x1p-10f) / per_score_;
    }

private:
    static constexpr std::size_t kBins = 128;
    std::size_t bin_of(float score) const {
        const float at = (score - low_) * per_score_;
        return at > 0.0f ? static_cast<std::size_t>(std::min(at, kBins - 1.0f)) : 0;  // NaN compares false
    }
    float low_ = 0.0f, per_score_ = 0.0f;
    std::size_t lowest_ = 0, counted_ = 0;  // counted in bins from the lowest on
    std::array<std::uint32_t, kBins> counts_{};
};

// Collects up to 2r items, then drops those that cannot be among the best r, which raises the bar for the next ones:
// few pass it, and a push costs O(1) amortized, against O(log r) of a heap. In between, bins raise it for what is pushed
// together. No allocation once it has been as large.
class TopR {
public:
    // Empties it; r >= 1.
    void reset(std::size_t r) {
        r_ = r;
        capacity_ = 2 * r + kSlack;
        if (items_.size() < capacity_) items_.resize(capacity_);
        size_ = 0;
        bar_ = {-std::numeric_limits<float>::infinity(), 0, -1};
        bins_.clear();
    }

    // Empties it, to keep everything that scores at least `lowest`; it grows as it must.
    void reset_above(float lowest) {
        r_ = std::numeric_limits<std::size_t>::max();
        if (items_.size() < kSlack) items_.resize(kSlack);
        capacity_ = items_.size();
        size_ = 0;
        bar_ = {lowest, 0, std::numeric_limits<std::int64_t>::max()};
        bins_.clear();
    }

    // What an item must be better than to be kept: in the beginning, anything that is a score.
    const Scored& bar() const { return bar_; }

    void push(const Scored& item) {
        items_[size_] = item;  // without a branch that half of the scan's late hits would mispredict
        size_ += better(item, bar_);
        if (size_ == capacity_) make_room();
    }

    // Pushes item(0) .. item(count - 1). The bar then is no higher than the worst of the best r, but may be close to it.
    template <class Item>
    void push_all(std::size_t count, Item item) {
        for (std::size_t i = 0; i < count;) {
            Scored* const items = items_.data();
            const Scored bar = bar_;
            std::size_t size = size_, added = 0;
            for (const std::size_t end = i + std::min(count - i, capacity_ - size); i < end; ++i) {
                const Scored next = item(i);
                items[size] = next;
                const bool passes = better(next, bar);
                added += bins_.add(next.score, passes);
                size += passes;
            }
            size_ = size;
            bins_.count(added);
            const float reached = bins_.reached_by(r_);
            if (reached > bar_.score) bar_ = passed_by_ties(reached);
            if (size_ == capacity_) make_room();
        }
    }

    // The best r or fewer, in no order. Valid until the next reset.
    Span<Scored> best() {
        if (size_ > r_) select();
        return {items_.data(), size_};
    }

private:
    static constexpr std::size_t kSlack = 32;
    // Scores that are left to std::nth_element, and rounds after which it takes over.
    static constexpr std::size_t kFew = 16, kRounds = 64;

    void make_room() {
        if (r_ == std::numeric_limits<std::size_t>::max()) {
            items_.resize(2 * items_.size());
            capacity_ = items_.size();
            return;
        }
        const std::size_t few = capacity_ - capacity_ / 4;
        if (bar_.score > -std::numeric_limits<float>::infinity()) keep_from(bar_.score);  // that bins have raised
        if (size_ <= few) return;
        keep_from(score_of_best(r_));
        if (size_ > few) select();  // many ties
        restart_bins();
    }

    void restart_bins() {
        float high = bar_.score;
        for (std::size_t at = 0; at < size_; ++at) high = std::max(high, items_[at].score);
        bins_.set_range(bar_.score, high);
        std::size_t added = 0;
        for (std::size_t at = 0; at < size_; ++at) added += bins_.add(items_[at].score, true);
        bins_.count(added);
    }

    // The bar at a score with which an item may still be among the best, by a lower id.
    static Scored passed_by_ties(float score) { return {score, 0, std::numeric_limits<std::int64_t>::max()}; }

    // Keeps exactly the best r.
    void select() {
        keep_from(score_of_best(r_));
        if (size_ > r_) keep_lowest_ties();
        const float least = bar_.score;
        std::int64_t last = -1;
        for (std::size_t at = 0; at < size_; ++at) last = std::max(last, items_[at].score == least ? items_[at].id : -1);
        bar_.id = last;
    }

    void keep_from(float score) {
        std::size_t kept = 0;
        for (std::size_t at = 0; at < size_; ++at) {
            const Scored item = items_[at];
            items_[kept] = item;
            kept += item.score >= score;
        }
        size_ = kept;
        bar_ = passed_by_ties(score);
    }

    // Of the items that tie with the bar keeps those of the lowest ids, so that r are left.
    void keep_lowest_ties() {
        ties_.clear();
        for (std::size_t at = 0; at < size_; ++at)
            if (items_[at].score == bar_.score) ties_.push_back(items_[at].id);
        const auto last = ties_.end() - static_cast<std::ptrdiff_t>(size_ - r_) - 1;
        std::nth_element(ties_.begin(), last, ties_.end());
        const Scored worst{bar_.score, 0, *last};
        const auto too_many = [&](const Scored& item) { return better(worst, item); };
        std::remove_if(items_.begin(), items_.begin() + static_cast<std::ptrdiff_t>(size_), too_many);
        size_ = r_;
    }

    // The score of the r-th best, by quickselect (Hoare 1961). It parts scores without branches that nobody can predict:
    // with std::nth_element, which has them, 288 items took 3.4 us to keep 128 of, and not 2.1.
    float score_of_best(std::size_t r) {
        if (scores_.size() < 2 * size_) scores_.resize(2 * size_);
        float *const scores = scores_.data(), *const lower = scores + size_;
        for (std::size_t at = 0; at < size_; ++at) scores[at] = items_[at].score;
        std::size_t n = size_;
        for (std::size_t round = 0; n > kFew && round < kRounds; ++round) {
            const float pivot = middle(scores[0], scores[n / 2], scores[n - 1]);
            std::size_t above = 0, below = 0;
            for (std::size_t at = 0; at < n; ++at) {
                const float score = scores[at];
                scores[above] = score;
                lower[below] = score;
                above += score > pivot;
                below += score < pivot;
            }
            if (r <= above) {
                n = above;
            } else if (r <= n - below) {
                return pivot;
            } else {
                r -= n - below;
                std::copy_n(lower, below, scores);
                n = below;
            }
        }
        std::nth_element(scores, scores + (r - 1), scores + n, std::greater<float>());
        return scores[r - 1];
    }

    static float middle(float a, float b, float c) { return std::max(std::min(a, b), std::min(std::max(a, b), c)); }

    ScoreBins bins_;
    std::vector<float> scores_;        // of score_of_best
    std::vector<std::int64_t> ties_;  // ids of what has the worst score of the best r
    std::vector<Scored> items_;
    std::size_t r_ = 0, capacity_ = 0, size_ = 0;
    Scored bar_{};
};

// Sorts the best k first and returns how many there are; what is not a score is dropped.
inline std::size_t sort_best(Span<Scored> found, std::size_t k) {
    Scored* const end = std::partition(found.begin(), found.end(), [](const Scored& x) { return x.score > -std::numeric_limits<float>::infinity(); });
    const auto kept = std::min<std::size_t>(k, static_cast<std::size_t>(end - found.begin()));
    if (found.begin() + kept < end) std::nth_element(found.begin(), found.begin() + kept, end, better);
    std::sort(found.begin(), found.begin() + kept, better);
    return kept;
}

// Merges one query's candidates of several parts, each best first with `count` places and -inf behind the last one:
// origins[i] = part * count + place of the i-th best, -1 behind the last; reads[part] = how many of a part are among them.
inline void merge_best(const std::vector<const float*>& scores, const std::vector<const std::int64_t*>& ids,
                       std::size_t count, std::int64_t* origins, std::int64_t* reads) {
    const std::size_t parts = scores.size();
    std::fill(reads, reads + parts, 0);
    for (std::size_t i = 0; i < count; ++i) {
        Scored best{-std::numeric_limits<float>::infinity(), 0, -1};
        for (std::size_t part = 0; part < parts; ++part) {
            const auto at = static_cast<std::size_t>(reads[part]);
            if (at == count) continue;
            const Scored next{scores[part][at], static_cast<std::uint32_t>(part), ids[part][at]};
            if (next.score > -std::numeric_limits<float>::infinity() && (best.id < 0 || better(next, best))) best = next;
        }
        origins[i] = best.id < 0 ? -1 : static_cast<std::int64_t>(best.tag * count) + reads[best.tag]++;
    }
}

}  // namespace vqdistill
