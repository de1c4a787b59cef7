#include "read_pool.h"

#include <sys/uio.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <memory>
#include <system_error>
#include <thread>

namespace vqdistill {
namespace {

// A disk that answers in 50 us gives 300,000 pages a second to so many, more than most disks have.
constexpr std::size_t kThreads = 16;

}  // namespace

std::int64_t read_some(const Read& read) noexcept {
    const ssize_t got = ::pread(read.fd, read.out, read.bytes, static_cast<off_t>(read.offset));
    return got < 0 ? -errno : got;
}

std::int64_t read_cached(const Read& read) noexcept {
    const iovec part{read.out, read.bytes};
    const ssize_t got = ::preadv2(read.fd, &part, 1, static_cast<off_t>(read.offset), RWF_NOWAIT);
    return got < 0 ? -errno : got;
}

// The threads of one process and the reads that wait for them, first come, first served.
class ReadPool {
public:
    // The pool of this process. It is never destroyed: its threads may run until the process has ended.
    static ReadPool& of_this_process() {
        static std::atomic<ReadPool*> current{nullptr};
        ReadPool* pool = current.load(std::memory_order_acquire);
        // A fork copies the pool but not its threads, and maybe a locked mutex: the child leaves it alone.
        if (pool != nullptr && pool->process_ == ::getpid()) return *pool;
        auto fresh = std::make_unique<ReadPool>();
        if (current.compare_exchange_strong(pool, fresh.get(), std::memory_order_acq_rel)) return *fresh.release();
        return *pool;
    }

    void add(PooledReads::Job& job) {
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            if (idle_ <= waiting_ && threads_ < kThreads) start_thread();
            job.next = nullptr;
            (last_ == nullptr ? first_ : last_->next) = &job;
            last_ = &job;
            ++waiting_;
        }
        added_.notify_one();
    }

private:
    // REQUIRES: mutex_ is held. Throws std::system_error if there is no thread at all.
    void start_thread() {
        try {
            std::thread([this] { run(); }).detach();
            ++threads_;
            ++idle_;
        } catch (const std::system_error&) {
            if (threads_ == 0) throw;
        }
    }

    void run() {
        std::unique_lock<std::mutex> lock(mutex_);
        for (;;) {
            added_.wait(lock, [this] { return first_ != nullptr; });
            PooledReads::Job& job = *first_;
            first_ = job.next;
            if (first_ == nullptr) last_ = nullptr;
            --waiting_;
            --idle_;
            lock.unlock();
            job.owner->finish(job, read_some(job.read));
            lock.lock();
            ++idle_;
        }
    }

    const pid_t process_ = ::getpid();
    std::mutex mutex_;
    std::condition_variable added_;
    PooledReads::Job* first_ = nullptr;
    PooledReads::Job* last_ = nullptr;
    std::size_t waiting_ = 0, threads_ = 0, idle_ = 0;  // idle: threads that are not reading
};

PooledReads::PooledReads(std::size_t depth) : jobs_(depth) { results_.reserve(depth); }

void PooledReads::start(std::uint32_t slot, const Read& read) {
    jobs_[slot] = {read, this, slot, nullptr};
    ReadPool::of_this_process().add(jobs_[slot]);
}

// Called by a thread of the pool, which must not touch this object after the lock is given back.
void PooledReads::finish(const Job& job, std::int64_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    results_.push_back({job.slot, bytes});
    ended_.notify_one();
}

ReadResult PooledReads::wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    ended_.wait(lock, [this] { return !results_.empty(); });
    const ReadResult result = results_.back();
    results_.pop_back();
    return result;
}

}  // namespace vqdistill
