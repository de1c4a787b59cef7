// The best r of a stream of scored ids.
#pragma once

#include <algorithm>
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

// Collects up to 2r items, then drops those that cannot be among the best r, which raises the bar for the next ones:
// few pass it, and a push costs O(1) amortized, against O(log r) of a heap. No allocation once it has been as large.
class TopR {
public:
    // Empties it; r >= 1.
    void reset(std::size_t r) {
        r_ = r;
        capacity_ = 2 * r + kSlack;
        if (items_.size() < capacity_) items_.resize(capacity_);
        size_ = 0;
        bar_ = {-std::numeric_limits<float>::infinity(), 0, -1};
    }

    // Empties it, to keep everything that scores at least `lowest`; it grows as it must.
    void reset_above(float lowest) {
        r_ = std::numeric_limits<std::size_t>::max();
        if (items_.size() < kSlack) items_.resize(kSlack);
        capacity_ = items_.size();
        size_ = 0;
        bar_ = {lowest, 0, std::numeric_limits<std::int64_t>::max()};
    }

    // What an item must be better than to be kept: in the beginning, anything that is a score.
    const Scored& bar() const { return bar_; }

    // Raises the bar to the worst of the best r, if there are so many: it then depends on what was pushed alone, not on
    // the order.
    const Scored& settle() {
        if (size_ >= r_) select();
        return bar_;
    }

    void push(const Scored& item) {
        items_[size_] = item;  // without a branch that half of the scan's late hits would mispredict
        size_ += better(item, bar_);
        if (size_ == capacity_) make_room();
    }

    // The best r or fewer, in no order. Valid until the next reset.
    Span<Scored> best() {
        if (size_ > r_) select();
        return {items_.data(), size_};
    }

private:
    static constexpr std::size_t kSlack = 32;
    static constexpr std::size_t kSample = 9;

    void make_room() {
        if (r_ == std::numeric_limits<std::size_t>::max()) {
            items_.resize(2 * items_.size());
            capacity_ = items_.size();
        } else if (!cut()) {
            select();
        }
    }

    // Makes room at a score from a sorted sample, the first that leaves r items or more: the bar need not be exact. It
    // has no branches that nobody can predict, as std::nth_element has, which made a search of 200,000 rows take 290 us
    // instead of 275 at r = 141, and 675 instead of 525 at r = 1,266. Returns false, with nothing changed, if no
    // sampled score parts the items well: many ties.
    bool cut() {
        float sample[kSample];
        for (std::size_t i = 0; i < kSample; ++i) sample[i] = items_[i * size_ / kSample].score;
        std::sort(sample, sample + kSample, std::greater<float>());
        for (std::size_t i = kSample / 2; i < kSample; ++i) {
            std::size_t kept = 0;
            for (std::size_t at = 0; at < size_; ++at) kept += items_[at].score >= sample[i];
            if (kept < r_) continue;
            if (kept > size_ - size_ / 8) return false;
            keep_from(sample[i]);
            return true;
        }
        return false;
    }

    void keep_from(float score) {
        std::size_t kept = 0;
        for (std::size_t at = 0; at < size_; ++at) {
            items_[kept] = items_[at];
            kept += items_[at].score >= score;
        }
        size_ = kept;
        bar_ = {score, 0, std::numeric_limits<std::int64_t>::max()};  // what ties with it may still have a lower id
    }

    // Keeps exactly the best r.
    void select() {
        const auto first = items_.begin();
        std::nth_element(first, first + (r_ - 1), first + size_, better);
        size_ = r_;
        bar_ = items_[r_ - 1];
    }

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
