// Reads by io_uring, through system calls: the kernel has all of a thread's reads at once.
#pragma once

#include "io_queue.h"

struct io_uring_cqe;
struct io_uring_params;
struct io_uring_sqe;

namespace vqdistill {

// Whether this system lets us use it: Linux 5.6 or later, and neither a container's filter nor
// /proc/sys/kernel/io_uring_disabled against it. Asked once.
bool io_uring_available() noexcept;

// One ring. REQUIRES: a forked child does not use the ring of its parent.
class RingReads : public ReadQueue {
public:
    // Throws std::system_error if the system denies a ring.
    explicit RingReads(std::size_t depth);
    // REQUIRES: no read is under way.
    ~RingReads() override;
    RingReads(const RingReads&) = delete;
    RingReads& operator=(const RingReads&) = delete;

    void start(std::uint32_t slot, const Read& read) override;
    ReadResult wait() override;

private:
    void map_rings(const io_uring_params& params);
    void enter(unsigned wanted);
    void release() noexcept;

    int fd_ = -1;
    // Memory shared with the kernel, which moves the submission head and the completion tail.
    std::uint8_t* rings_ = nullptr;
    std::size_t rings_bytes_ = 0, entries_bytes_ = 0;
    io_uring_sqe* entries_ = nullptr;
    const io_uring_cqe* completed_ = nullptr;
    unsigned *submit_tail_ = nullptr, *submit_array_ = nullptr;
    unsigned *complete_head_ = nullptr, *complete_tail_ = nullptr;
    unsigned submit_mask_ = 0, complete_mask_ = 0;
    unsigned unsubmitted_ = 0;  // in the ring, but not handed to the kernel yet
};

}  // namespace vqdistill
