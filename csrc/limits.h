// When a call must end before its work is done.
#pragma once

#include <atomic>
#include <chrono>
#include <exception>
#include <functional>
#include <limits>
#include <thread>
#include <utility>

namespace vqdistill {

// The caller's poll asked for the end of the call.
struct Interrupted : std::exception {
    const char* what() const noexcept override { return "interrupted"; }
};

// The time that the caller allowed has passed.
struct TimedOut : std::exception {
    const char* what() const noexcept override { return "timed out"; }
};

// Shared by the threads of one call, which look at it every millisecond or more often.
class CallLimits {
public:
    using Clock = std::chrono::steady_clock;

    // When the time of a call is over that begins now. Beyond a year there is no limit: it might not fit the clock.
    static Clock::time_point deadline_in(double timeout_s) {
        if (!(timeout_s < 3e7)) return Clock::time_point::max();
        return Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(timeout_s));
    }

    // No time limit if timeout_s is infinity. `poll` is called by the constructing thread alone, while it works, every
    // kPollEvery; true ends the call.
    explicit CallLimits(double timeout_s = std::numeric_limits<double>::infinity(), std::function<bool()> poll = {})
        : CallLimits(deadline_in(timeout_s), std::move(poll)) {}
    explicit CallLimits(Clock::time_point deadline, std::function<bool()> poll = {})
        : owner_(std::this_thread::get_id()),
          poll_(std::move(poll)),
          next_poll_(Clock::now() + kPollEvery),
          deadline_(deadline) {}

    // Throws Interrupted or TimedOut, in every thread that calls it once one has.
    void check() {
        if (interrupted_.load(std::memory_order_relaxed)) throw Interrupted();
        const Clock::time_point now = Clock::now();
        if (now >= deadline_) throw TimedOut();
        if (!poll_ || std::this_thread::get_id() != owner_ || now < next_poll_) return;
        next_poll_ = now + kPollEvery;
        if (!poll_()) return;
        interrupted_.store(true, std::memory_order_relaxed);
        throw Interrupted();
    }

private:
    static constexpr std::chrono::milliseconds kPollEvery{20};

    const std::thread::id owner_;
    const std::function<bool()> poll_;
    Clock::time_point next_poll_;  // of the owner
    const Clock::time_point deadline_;
    std::atomic<bool> interrupted_{false};
};

}  // namespace vqdistill
