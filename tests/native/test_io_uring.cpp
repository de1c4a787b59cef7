// DiskTier and RingReads on real files, cold and warm; where the system denies io_uring, that it says so.
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <random>
#include <stdexcept>
#include <system_error>
#include <thread>

#include "checks.h"
#include "disk_tier.h"
#include "io_uring.h"

using namespace vqdistill;

namespace {

constexpr std::size_t kD = 96, kRows = 20'000, kStride = kD * sizeof(float), kOffset = 4096;
constexpr std::size_t kFileBytes = kOffset + kRows * kStride;

// A file without a name, whose row p holds p in its first element.
int make_file() {
    char name[] = "/tmp/vqdistill-XXXXXX";
    const int fd = ::mkstemp(name);
    CHECK(fd >= 0 && ::unlink(name) == 0);
    std::vector<std::uint8_t> bytes(kFileBytes);
    for (std::size_t p = 0; p < kRows; ++p) {
        const float value = static_cast<float>(p);
        std::memcpy(bytes.data() + kOffset + p * kStride, &value, sizeof value);
    }
    CHECK(::write(fd, bytes.data(), bytes.size()) == static_cast<ssize_t>(bytes.size()));
    CHECK(::fsync(fd) == 0 && ::posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM) == 0);
    return fd;
}

void evict(int fd) { CHECK(::posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED) == 0); }

std::vector<Scored> random_rows(std::size_t count, std::mt19937& random) {
    std::vector<Scored> rows(count);
    for (Scored& row : rows) row = {-1.0f, 0, static_cast<std::int64_t>(random() % kRows)};
    return rows;
}

// 0, or the errno of what was thrown.
int rerank(const DiskTier& tier, std::vector<Scored>& rows, IoScratch& scratch) {
    std::vector<float> query(kD, 0.0f);
    query[0] = 1.0f;
    RerankTask task{query.data(), {rows.data(), rows.size()}, {}};
    try {
        tier.rerank(active_kernels(), Metric::ip, {&task, 1}, scratch);
    } catch (const std::system_error& error) {
        return error.code().value();
    }
    for (const Scored& row : rows) CHECK(row.score == static_cast<float>(row.id));
    CHECK(task.counts.rows == static_cast<std::int64_t>(rows.size()));
    return 0;
}

void check_cold_and_warm(int fd, IoMode mode, const std::uint8_t* map) {
    std::mt19937 random(1);
    const DiskTier tier(fd, map, kFileBytes, kOffset, DenseDtype::f32, kD, mode);
    for (const std::size_t depth : {1, 3, 64}) {
        IoScratch scratch(depth);
        for (const std::size_t count : {1, 17, 200, 3000})
            for (const bool cold : {true, false, true}) {
                if (cold) evict(fd);
                std::vector<Scored> rows = random_rows(count, random);
                CHECK(rerank(tier, rows, scratch) == 0);
            }
    }
}

int error_of(int fd, std::int64_t row, IoScratch& scratch) {
    std::mt19937 random(2);
    const DiskTier tier(fd, nullptr, 0, kOffset, DenseDtype::f32, kD, IoMode::uring);
    std::vector<Scored> rows = random_rows(300, random);
    rows[40].id = row;
    return rerank(tier, rows, scratch);
}

void check_errors(int fd) {
    IoScratch scratch;
    CHECK(error_of(fd, kRows - 1, scratch) == 0);
    CHECK(error_of(fd, kRows, scratch) == EIO);
    CHECK(error_of(fd, kRows - 1, scratch) == 0);  // the scratch is as good as new
    const int folder = ::open("/", O_RDONLY);
    int ends[2];
    CHECK(folder >= 0 && ::pipe(ends) == 0);
    CHECK(error_of(folder, 1, scratch) == EISDIR);
    CHECK(error_of(ends[0], 1, scratch) == ESPIPE);  // and does not wait for what nobody writes
    for (const int opened : {folder, ends[0], ends[1]}) ::close(opened);
    CHECK(error_of(folder, 1, scratch) == EBADF);
}

// What RingReads reports of single reads: pieces at the end of the file, nothing behind it, errors.
void check_results(int fd) {
    RingReads ring(4);
    std::uint8_t out[4][64];
    ring.start(0, {fd, kFileBytes - 10, 64, out[0]});
    ring.start(1, {fd, kFileBytes, 64, out[1]});
    ring.start(2, {-1, 0, 64, out[2]});
    ring.start(3, {fd, kOffset + 7 * kStride, 64, out[3]});
    std::int64_t results[4];
    for (int i = 0; i < 4; ++i) {
        const ReadResult result = ring.wait();
        results[result.slot] = result.bytes;
    }
    CHECK(results[0] == 10 && results[1] == 0 && results[2] == -EBADF && results[3] == 64);
    float value;
    std::memcpy(&value, out[3], sizeof value);
    CHECK(value == 7.0f);
}

// Signals interrupt waiting, but not the search.
void check_signals(int fd) {
    struct sigaction action = {};
    action.sa_handler = [](int) {};
    const itimerval every_100_us{{0, 100}, {0, 100}}, never{};
    CHECK(::sigaction(SIGALRM, &action, nullptr) == 0 && ::setitimer(ITIMER_REAL, &every_100_us, nullptr) == 0);
    check_cold_and_warm(fd, IoMode::uring, nullptr);
    CHECK(::setitimer(ITIMER_REAL, &never, nullptr) == 0);
}

void check_concurrent_calls(int fd, const std::uint8_t* map) {
    const DiskTier uring(fd, nullptr, 0, kOffset, DenseDtype::f32, kD, IoMode::uring);
    const DiskTier automatic(fd, map, kFileBytes, kOffset, DenseDtype::f32, kD, IoMode::automatic);
    std::vector<std::thread> callers;
    for (unsigned caller = 0; caller < 4; ++caller)
        callers.emplace_back([&, caller] {
            std::mt19937 random(caller);
            IoScratch scratch;
            for (int repeat = 0; repeat < 20; ++repeat) {
                if (caller == 0) evict(fd);
                std::vector<Scored> rows = random_rows(100, random);
                CHECK(rerank(caller % 2 == 0 ? uring : automatic, rows, scratch) == 0);
            }
        });
    for (std::thread& caller : callers) caller.join();
}

void check_denied(int fd) {
    bool ring_denied = false, tier_denied = false;
    try {
        const RingReads ring(4);
    } catch (const std::system_error&) {
        ring_denied = true;
    }
    try {
        const DiskTier tier(fd, nullptr, 0, kOffset, DenseDtype::f32, kD, IoMode::uring);
    } catch (const std::invalid_argument&) {
        tier_denied = true;
    }
    CHECK(ring_denied && tier_denied);
}

}  // namespace

int main() {
    const int fd = make_file();
    void* const mapped = ::mmap(nullptr, kFileBytes, PROT_READ, MAP_SHARED, fd, 0);
    CHECK(mapped != MAP_FAILED);
    const auto* const map = static_cast<const std::uint8_t*>(mapped);
    for (const IoMode mode : {IoMode::automatic, IoMode::pread}) check_cold_and_warm(fd, mode, nullptr);
    for (const IoMode mode : {IoMode::automatic, IoMode::map}) check_cold_and_warm(fd, mode, map);
    if (!io_uring_available()) {
        check_denied(fd);
        return 0;
    }
    check_cold_and_warm(fd, IoMode::uring, nullptr);
    check_errors(fd);
    check_results(fd);
    check_signals(fd);
    check_concurrent_calls(fd, map);
}
