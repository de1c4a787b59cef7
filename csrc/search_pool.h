// Threads that search for callers who do not wait.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "common.h"
#include "ivf_search.h"

namespace vqdistill {

// A call of IvfSearch::search and what comes of it. What it points at stays as long as the pool has it.
struct SearchCall {
    const IvfSearch* index;
    const float* queries;  // (q, d)
    std::size_t q;
    SearchOptions options;
    CallLimits::Clock::time_point end;  // when its time is over
    float* scores;                      // (q, k)
    std::int64_t* positions;            // (q, k)
    QueryStats* stats;                  // (q)
    std::exception_ptr failure;         // null: it has its results
};

// Calls that wait while all threads are busy are shared out among them, and those of one share that differ in nothing
// but their queries are searched together: they share passes over router, codewords and lists.
class SearchPool {
public:
    // Most calls that are searched together, and most of their queries: each waits for all.
    static constexpr std::size_t kMostCalls = 16, kMostQueries = 64;
    // Queries of a call that may run on the avoided core as well: it has work for all cores, and its caller waits anyway.
    static constexpr std::size_t kLarge = 16;

    // `ready` is called by a thread when there may be something to collect; it must not throw. Calls of less than kLarge
    // queries keep off the `avoided_core`, where somebody else must not wait, and leave one thread to larger ones; -1:
    // there is none. Linux only.
    SearchPool(std::size_t threads, std::function<void()> ready, int avoided_core = -1);
    ~SearchPool();

    // From now on the pool has the call, until collect() or stop() returns it.
    void submit(SearchCall* call);

    // Calls that ended since the last time, in the order of their ends.
    std::vector<SearchCall*> collect();

    // Waits for the calls that threads have taken, to be collected, and returns the others. No more may be submitted.
    std::vector<SearchCall*> stop();

private:
    struct Scratch;

    void join();
    // What a thread takes.
    enum class Calls { any, large };

    void work(Calls kind);
    bool take(Calls kind, std::vector<SearchCall*>& calls);
    std::deque<SearchCall*>::iterator first_of(Calls kind);
    static void answer(Span<SearchCall*> calls, Scratch& scratch);
    static void search_together(Span<SearchCall*> calls, Scratch& scratch);
    void hand_back(const std::vector<SearchCall*>& calls);

    const std::size_t for_large_, for_small_;  // threads that were asked for, which take calls of these sizes
    const std::function<void()> ready_;
    const int avoided_core_;
    std::mutex mutex_;
    std::condition_variable some_wait_, large_wait_;
    std::deque<SearchCall*> waiting_;
    std::vector<SearchCall*> ended_;  // has room for all that the pool has, so that no thread needs more
    std::size_t held_ = 0;
    bool stopping_ = false;
    std::vector<std::thread> threads_;
};

}  // namespace vqdistill
