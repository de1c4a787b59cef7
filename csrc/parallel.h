// Runs numbered tasks on a few threads.
#pragma once

#include <atomic>
#include <cstddef>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace vqdistill {

// Calls worker(next) on up to `threads` threads, this one included; next() gives task numbers below `tasks`, each once,
// and `tasks` when none is left. Rethrows the first exception, after all threads have ended; the others get no new
// tasks.
template <class Worker>
void run_parallel(std::size_t tasks, std::size_t threads, Worker worker) {
    std::atomic<std::size_t> taken{0};
    std::mutex mutex;
    std::exception_ptr failure;
    const auto next = [&] {
        const std::size_t task = taken.fetch_add(1, std::memory_order_relaxed);
        return task < tasks ? task : tasks;
    };
    const auto guarded = [&] {
        try {
            worker(next);
        } catch (...) {
            const std::lock_guard<std::mutex> lock(mutex);
            if (!failure) failure = std::current_exception();
            taken.store(tasks, std::memory_order_relaxed);
        }
    };
    std::vector<std::thread> others;
    others.reserve(threads);
    try {
        while (others.size() + 1 < threads && others.size() + 1 < tasks) others.emplace_back(guarded);
    } catch (const std::system_error&) {
        // The system gives no more threads: those that run do the work.
    }
    guarded();
    for (std::thread& other : others) other.join();
    if (failure) std::rethrow_exception(failure);
}

}  // namespace vqdistill
