#include "search_pool.h"

#ifdef __linux__
#include <sched.h>
#endif

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

// Where the calling thread may run: on the cores that it was given, or on those but one.
class Cores {
public:
#ifdef __linux__
    explicit Cores(int avoided) {
        if (avoided < 0 || avoided >= CPU_SETSIZE || sched_getaffinity(0, sizeof given_, &given_) != 0) return;
        others_ = given_;
        CPU_CLR(avoided, &others_);
        differ_ = CPU_COUNT(&others_) > 0 && !CPU_EQUAL(&others_, &given_);
    }
    void keep_off(bool off) {
        if (differ_ && off != off_ && sched_setaffinity(0, sizeof given_, off ? &others_ : &given_) == 0) off_ = off;
    }

private:
    cpu_set_t given_, others_;
    bool differ_ = false, off_ = false;
#else
    explicit Cores(int) {}
    void keep_off(bool) {}
#endif
};

}  // namespace

// Queries and results of calls that are searched together.
struct SearchPool::Scratch {
    std::vector<float> queries, scores;
    std::vector<std::int64_t> positions;
    std::vector<QueryStats> stats;
};

SearchPool::SearchPool(std::size_t threads, std::function<void()> ready, int avoided_core)
    : for_large_(threads),
      for_small_(avoided_core >= 0 && threads > 1 ? threads - 1 : threads),
      ready_(std::move(ready)),
      avoided_core_(avoided_core) {
    threads_.reserve(threads);
    try {
        while (threads_.size() < threads) {
            const Calls kind = threads_.size() < for_small_ ? Calls::any : Calls::large;
            threads_.emplace_back([this, kind] { work(kind); });
        }
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
    large_wait_.notify_all();
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
    const bool large = call->q >= kLarge;  // when it is out of our hands it may be gone
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (ended_.capacity() <= held_) ended_.reserve(2 * held_ + 8);
        waiting_.push_back(call);
        ++held_;
    }
    some_wait_.notify_one();
    if (large) large_wait_.notify_one();
}

std::vector<SearchCall*> SearchPool::collect() {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::vector<SearchCall*> ended(ended_);
    held_ -= ended_.size();
    ended_.clear();
    return ended;
}

void SearchPool::work(Calls kind) {
    Scratch scratch;
    std::vector<SearchCall*> calls;
    calls.reserve(kMostCalls);
    Cores cores(avoided_core_);
    while (take(kind, calls)) {
        cores.keep_off(calls.front()->q < kLarge);
        answer({calls.data(), calls.size()}, scratch);
        hand_back(calls);
    }
}

// Waits for calls, and takes a share of them: the first, and what may be searched with it. False: it is time to stop.
bool SearchPool::take(Calls kind, std::vector<SearchCall*>& calls) {
    calls.clear();
    std::unique_lock<std::mutex> lock(mutex_);
    std::condition_variable& theirs = kind == Calls::any ? some_wait_ : large_wait_;
    theirs.wait(lock, [&] { return stopping_ || first_of(kind) != waiting_.end(); });
    if (stopping_) return false;
    const auto first = first_of(kind);
    const std::size_t threads = (*first)->q < kLarge ? for_small_ : for_large_;
    const std::size_t share = std::min(kMostCalls, (waiting_.size() + threads - 1) / threads);
    calls.push_back(*first);
    waiting_.erase(first);
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

std::deque<SearchCall*>::iterator SearchPool::first_of(Calls kind) {
    if (kind == Calls::any) return waiting_.begin();
    return std::find_if(waiting_.begin(), waiting_.end(), [](const SearchCall* call) { return call->q >= kLarge; });
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
