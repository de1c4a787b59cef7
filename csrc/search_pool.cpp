#include "search_pool.h"

#include <algorithm>
#include <system_error>
#include <utility>

namespace vqdistill {
namespace {

using Clock = CallLimits::Clock;

bool alike(const SearchCall& a, const SearchCall& b) { return a.index == b.index && a.options == b.options; }

// Of all calls together: the first whose time is over ends the search.
Clock::time_point first_end(Span<SearchCall*> calls) {
    Clock::time_point end = Clock::time_point::max();
    for (const SearchCall* call : calls) end = std::min(end, call->end);
    return end;
}

}  // namespace

// Queries and results of calls that are searched together.
struct SearchPool::Scratch {
    std::vector<float> queries, scores;
    std::vector<std::int64_t> positions;
    std::vector<QueryStats> stats;
};

SearchPool::SearchPool(std::size_t threads, std::function<void()> ready)
    : shares_(threads), ready_(std::move(ready)) {
    threads_.reserve(threads);
    try {
        while (threads_.size() < threads) threads_.emplace_back([this] { work(); });
    } catch (const std::system_error&) {
        if (threads_.empty()) throw;  // the system gives no more: those that run do the work
    }
}

SearchPool::~SearchPool() { join(); }

void SearchPool::join() {
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        stopping_ = true;
    }
    some_wait_.notify_all();
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
}

std::vector<SearchCall*> SearchPool::stop() {
    join();
    const std::lock_guard<std::mutex> lock(mutex_);
    std::vector<SearchCall*> left(waiting_.begin(), waiting_.end());
    waiting_.clear();
    held_ -= left.size();
    return left;
}

void SearchPool::submit(SearchCall* call) {
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (ended_.capacity() <= held_) ended_.reserve(2 * held_ + 8);
        waiting_.push_back(call);
        ++held_;
    }
    some_wait_.notify_one();
}

std::vector<SearchCall*> SearchPool::collect() {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::vector<SearchCall*> ended(ended_);
    held_ -= ended_.size();
    ended_.clear();
    return ended;
}

void SearchPool::work() {
    Scratch scratch;
    std::vector<SearchCall*> calls;
    calls.reserve(kMostCalls);
    while (take(calls)) {
        answer({calls.data(), calls.size()}, scratch);
        hand_back(calls);
    }
}

// Waits for calls, and takes a share of them: the first, and what may be searched with it. False: it is time to stop.
bool SearchPool::take(std::vector<SearchCall*>& calls) {
    calls.clear();
    std::unique_lock<std::mutex> lock(mutex_);
    some_wait_.wait(lock, [this] { return stopping_ || !waiting_.empty(); });
    if (stopping_) return false;
    const std::size_t share = std::min(kMostCalls, (waiting_.size() + shares_ - 1) / shares_);
    calls.push_back(waiting_.front());
    waiting_.pop_front();
    std::size_t queries = calls.front()->q;
    for (auto next = waiting_.begin(); next != waiting_.end() && calls.size() < share;) {
        const bool fits = queries + (*next)->q <= kMostQueries && alike(*calls.front(), **next);
        if (fits) {
            queries += (*next)->q;
            calls.push_back(*next);
        }
        next = fits ? waiting_.erase(next) : std::next(next);
    }
    return true;
}

void SearchPool::answer(Span<SearchCall*> calls, Scratch& scratch) {
    try {
        if (calls.size > 1) {
            search_together(calls, scratch);
        } else {
            SearchCall& call = *calls[0];
            CallLimits limits(call.end);
            limits.check();
            call.index->search(call.queries, call.q, call.options, limits, call.scores, call.positions, call.stats);
        }
    } catch (...) {
        if (calls.size == 1) {
            calls[0]->failure = std::current_exception();
            return;
        }
        // Each is told its own failure when it is alone.
        for (SearchCall*& call : calls) answer({&call, 1}, scratch);
    }
}

void SearchPool::search_together(Span<SearchCall*> calls, Scratch& scratch) {
    const SearchCall& first = *calls[0];
    const std::size_t d = first.index->index().d, k = first.options.k;
    CallLimits limits(first_end(calls));
    limits.check();
    scratch.queries.clear();
    for (const SearchCall* call : calls)
        scratch.queries.insert(scratch.queries.end(), call->queries, call->queries + call->q * d);
    const std::size_t q = scratch.queries.size() / d;
    scratch.scores.resize(q * k);
    scratch.positions.resize(q * k);
    scratch.stats.assign(q, {});
    first.index->search(scratch.queries.data(), q, first.options, limits, scratch.scores.data(),
                        scratch.positions.data(), scratch.stats.data());
    std::size_t at = 0;
    for (const SearchCall* call : calls) {
        std::copy_n(scratch.scores.data() + at * k, call->q * k, call->scores);
        std::copy_n(scratch.positions.data() + at * k, call->q * k, call->positions);
        std::copy_n(scratch.stats.data() + at, call->q, call->stats);
        at += call->q;
    }
}

// Tells each time: a thread that was to tell for others might be kept from it, while their callers wait.
void SearchPool::hand_back(const std::vector<SearchCall*>& calls) {
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        ended_.insert(ended_.end(), calls.begin(), calls.end());
    }
    ready_();
}

}  // namespace vqdistill
