// Reads under way at the same time, whoever carries them out.
#pragma once

#include <cstddef>
#include <cstdint>

namespace vqdistill {

// Bytes of a file, and where they go.
struct Read {
    int fd = -1;
    std::uint64_t offset = 0;
    std::size_t bytes = 0;
    std::uint8_t* out = nullptr;
};

// How a read ended: the bytes that came, maybe fewer than wanted, 0 at the end of the file, or -errno.
struct ReadResult {
    std::uint32_t slot;
    std::int64_t bytes;
};

// A thread's reads, each known by a slot below the depth that the queue was made for.
class ReadQueue {
public:
    virtual ~ReadQueue() = default;

    // REQUIRES: no read of this slot is under way; read.out stays valid until wait has returned the slot.
    virtual void start(std::uint32_t slot, const Read& read) = 0;

    // The next read that ends, in any order. REQUIRES: one is under way. Throws std::system_error if the system does
    // not let us wait; then reads may still be under way.
    virtual ReadResult wait() = 0;
};

}  // namespace vqdistill
