#include "io_uring.h"

#include <linux/io_uring.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <system_error>

namespace vqdistill {
namespace {

// One mapping for both rings (5.4), no completion lost (5.5), and, for its date, IORING_OP_READ (5.6).
constexpr unsigned kFeatures = IORING_FEAT_SINGLE_MMAP | IORING_FEAT_NODROP | IORING_FEAT_RW_CUR_POS;
// Reads handed to the kernel together: enough to make the call cheap, few enough for the disk to start early.
constexpr unsigned kSubmitTogether = 16;

int setup(unsigned entries, io_uring_params& params) noexcept {
    params = {};
    return static_cast<int>(::syscall(SYS_io_uring_setup, entries, &params));
}

[[noreturn]] void fail(int error) {
    throw std::system_error(error, std::generic_category(), "cannot use io_uring for dense rows");
}

template <class T>
T* at(std::uint8_t* base, unsigned offset) {
    return reinterpret_cast<T*>(base + offset);
}

}  // namespace

bool io_uring_available() noexcept {
    static const bool available = [] {
        io_uring_params params;
        const int fd = setup(1, params);
        if (fd < 0) return false;
        ::close(fd);
        return (params.features & kFeatures) == kFeatures;
    }();
    return available;
}

RingReads::RingReads(std::size_t depth) {
    io_uring_params params;
    fd_ = setup(static_cast<unsigned>(depth), params);
    if (fd_ < 0) fail(errno);
    try {
        if ((params.features & kFeatures) != kFeatures) fail(ENOSYS);
        map_rings(params);
    } catch (...) {
        release();
        throw;
    }
}

RingReads::~RingReads() { release(); }

void RingReads::map_rings(const io_uring_params& params) {
    const auto map = [&](std::size_t bytes, off_t which) {
        void* const found = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd_, which);
        if (found == MAP_FAILED) fail(errno);
        return static_cast<std::uint8_t*>(found);
    };
    const std::size_t submit_bytes = params.sq_off.array + params.sq_entries * sizeof(unsigned);
    const std::size_t complete_bytes = params.cq_off.cqes + params.cq_entries * sizeof(io_uring_cqe);
    rings_bytes_ = submit_bytes > complete_bytes ? submit_bytes : complete_bytes;
    entries_bytes_ = params.sq_entries * sizeof(io_uring_sqe);
    rings_ = map(rings_bytes_, IORING_OFF_SQ_RING);
    entries_ = at<io_uring_sqe>(map(entries_bytes_, IORING_OFF_SQES), 0);
    submit_tail_ = at<unsigned>(rings_, params.sq_off.tail);
    submit_array_ = at<unsigned>(rings_, params.sq_off.array);
    submit_mask_ = *at<unsigned>(rings_, params.sq_off.ring_mask);
    complete_head_ = at<unsigned>(rings_, params.cq_off.head);
    complete_tail_ = at<unsigned>(rings_, params.cq_off.tail);
    complete_mask_ = *at<unsigned>(rings_, params.cq_off.ring_mask);
    completed_ = at<io_uring_cqe>(rings_, params.cq_off.cqes);
}

void RingReads::release() noexcept {
    if (entries_ != nullptr) ::munmap(entries_, entries_bytes_);
    if (rings_ != nullptr) ::munmap(rings_, rings_bytes_);
    ::close(fd_);
}

void RingReads::start(std::uint32_t slot, const Read& read) {
    const unsigned tail = *submit_tail_, place = tail & submit_mask_;
    io_uring_sqe& entry = entries_[place];
    std::memset(&entry, 0, sizeof entry);
    entry.opcode = IORING_OP_READ;
    entry.fd = read.fd;
    entry.off = read.offset;
    entry.addr = reinterpret_cast<std::uintptr_t>(read.out);
    entry.len = static_cast<unsigned>(read.bytes);
    entry.user_data = slot;
    submit_array_[place] = place;
    __atomic_store_n(submit_tail_, tail + 1, __ATOMIC_RELEASE);
    if (++unsubmitted_ >= kSubmitTogether) enter(0);
}

ReadResult RingReads::wait() {
    const unsigned head = *complete_head_;
    while (head == __atomic_load_n(complete_tail_, __ATOMIC_ACQUIRE)) enter(1);
    const io_uring_cqe& done = completed_[head & complete_mask_];
    const ReadResult result{static_cast<std::uint32_t>(done.user_data), done.res};
    __atomic_store_n(complete_head_, head + 1, __ATOMIC_RELEASE);
    return result;
}

// Hands over what is unsubmitted and waits until `wanted` completions are there. May do less: call it again.
void RingReads::enter(unsigned wanted) {
    const long taken = ::syscall(SYS_io_uring_enter, fd_, unsubmitted_, wanted, IORING_ENTER_GETEVENTS, nullptr, 0);
    if (taken >= 0)
        unsubmitted_ -= static_cast<unsigned>(taken);
    else if (errno != EINTR && errno != EAGAIN && errno != EBUSY)  // the kernel is short of memory, for a moment
        fail(errno);
}

}  // namespace vqdistill
