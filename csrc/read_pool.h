// Reads by pread: on the threads of a pool, or one after another on the caller's.
#pragma once

#include <condition_variable>
#include <mutex>
#include <vector>

#include "io_queue.h"

namespace vqdistill {

// pread, or -errno; may return fewer bytes than wanted.
std::int64_t read_some(const Read& read) noexcept;

// As read_some, but what the page cache does not have is not waited for: -EAGAIN then, or -EOPNOTSUPP where the system
// cannot tell.
std::int64_t read_cached(const Read& read) noexcept;

// Reads through the threads of the process, which start with the first read: enough of them to keep a disk busy, and
// they mostly sleep. They live as long as the process, and a forked child starts its own, so that no exit waits for
// them.
class PooledReads : public ReadQueue {
public:
    explicit PooledReads(std::size_t depth);
    // REQUIRES: no read is under way.
    ~PooledReads() override = default;

    void start(std::uint32_t slot, const Read& read) override;
    ReadResult wait() override;

private:
    friend class ReadPool;
    struct Job {
        Read read;
        PooledReads* owner;
        std::uint32_t slot;
        Job* next;
    };
    void finish(const Job& job, std::int64_t bytes);

    std::vector<Job> jobs_;  // one a slot
    std::mutex mutex_;
    std::condition_variable ended_;
    std::vector<ReadResult> results_;
};

// One read at a time, by the thread that waits for it.
class SerialReads : public ReadQueue {
public:
    void start(std::uint32_t slot, const Read& read) override {
        slot_ = slot;
        read_ = read;
    }
    ReadResult wait() override { return {slot_, read_some(read_)}; }

private:
    std::uint32_t slot_ = 0;
    Read read_;
};

}  // namespace vqdistill
