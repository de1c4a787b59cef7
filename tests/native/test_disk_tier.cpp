// DiskTier on a disk that interrupts, answers in pieces, ends early and fails; on a system without io_uring.
#include <sys/types.h>
#include <sys/uio.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <mutex>
#include <new>
#include <random>
#include <set>
#include <stdexcept>
#include <system_error>
#include <thread>

#include "checks.h"
#include "disk_tier.h"

using namespace vqdistill;

namespace {

struct Asked {
    std::uint64_t offset;
    std::size_t bytes;
};

// The file, and how reading it behaves.
struct Disk {
    std::vector<std::uint8_t> bytes;
    std::size_t piece = SIZE_MAX;  // longest answer
    int interrupt_every = 0;
    int fail_with = 0;
    int calls = 0;
    std::uint64_t cached_bytes = 0;  // of the file, from its beginning, that the page cache holds
    bool tells_cached = true;
    std::vector<Asked> asked;
    std::mutex mutex;
} disk;

constexpr std::uint64_t kOffset = 4096, kPage = 4096;

std::atomic<std::int64_t> clock_ns{0}, clock_step_ns{0};
std::atomic<int> allocations{0};

ssize_t give(void* out, std::size_t bytes, std::uint64_t from, std::size_t limit) {
    if (from >= disk.bytes.size()) return 0;
    const std::size_t given = std::min({bytes, limit, disk.bytes.size() - static_cast<std::size_t>(from)});
    std::memcpy(out, disk.bytes.data() + from, given);
    return static_cast<ssize_t>(given);
}

}  // namespace

// These take the place of the system's in this program.
extern "C" ssize_t pread(int, void* out, std::size_t bytes, off_t offset) {
    const std::lock_guard<std::mutex> lock(disk.mutex);
    ++disk.calls;
    if (disk.interrupt_every != 0 && disk.calls % disk.interrupt_every == 0) {
        errno = EINTR;
        return -1;
    }
    if (disk.fail_with != 0) {
        errno = disk.fail_with;
        return -1;
    }
    disk.asked.push_back({static_cast<std::uint64_t>(offset), bytes});
    return give(out, bytes, static_cast<std::uint64_t>(offset), disk.piece);
}

extern "C" ssize_t preadv2(int, const iovec* parts, int, off_t offset, int flags) {
    CHECK(flags == RWF_NOWAIT);
    const auto from = static_cast<std::uint64_t>(offset);
    if (!disk.tells_cached || from >= disk.cached_bytes) {
        errno = disk.tells_cached ? EAGAIN : EOPNOTSUPP;
        return -1;
    }
    return give(parts->iov_base, parts->iov_len, from, static_cast<std::size_t>(disk.cached_bytes - from));
}

extern "C" long syscall(long, ...) noexcept {
    errno = ENOSYS;
    return -1;
}

extern "C" int clock_gettime(clockid_t, timespec* now) noexcept {
    const std::int64_t ns = clock_ns += clock_step_ns;
    *now = {ns / 1'000'000'000, ns % 1'000'000'000};
    return 0;
}

// Not inlined: the compiler would warn of free for what it sees only operator new return.
__attribute__((noinline)) void* operator new(std::size_t bytes) {
    ++allocations;
    void* const found = std::malloc(bytes);
    if (found == nullptr) throw std::bad_alloc();
    return found;
}
__attribute__((noinline)) void operator delete(void* memory) noexcept { std::free(memory); }
__attribute__((noinline)) void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

namespace {

// Row p holds p in its first element; the first of the query is a factor, so that a score tells what was scored.
void fill(std::size_t rows, std::size_t d) {
    disk.bytes.assign(kOffset + rows * d * sizeof(float), 0);
    disk.piece = SIZE_MAX;
    disk.interrupt_every = disk.fail_with = disk.calls = 0;
    disk.cached_bytes = 0;
    disk.tells_cached = true;
    disk.asked.clear();
    clock_step_ns = 0;
    for (std::size_t p = 0; p < rows; ++p) {
        const float value = static_cast<float>(p);
        std::memcpy(disk.bytes.data() + kOffset + p * d * sizeof(float), &value, sizeof value);
    }
}

using Positions = std::vector<std::int64_t>;

// A call: the query of task t picks t + 1 times the first element.
struct Call {
    Call(const std::vector<Positions>& wanted, std::size_t d) : d(d), candidates(wanted.size()) {
        for (std::size_t t = 0; t < wanted.size(); ++t) {
            queries.emplace_back(d, 0.0f);
            queries[t][0] = static_cast<float>(t + 1);
            for (const std::int64_t position : wanted[t]) candidates[t].push_back({-1.0f, 0, position});
        }
        for (std::size_t t = 0; t < wanted.size(); ++t)
            tasks.push_back({queries[t].data(), {candidates[t].data(), candidates[t].size()}, {}});
    }

    DiskTier tier(IoMode mode, bool mapped) const {
        const std::uint8_t* const map = mapped ? disk.bytes.data() : nullptr;
        return DiskTier(3, map, disk.bytes.size(), kOffset, DenseDtype::f32, d, mode);
    }

    void run(const DiskTier& tier, IoScratch& scratch) {
        tier.rerank(active_kernels(), Metric::ip, {tasks.data(), tasks.size()}, scratch);
    }

    void run(IoMode mode, IoScratch& scratch, bool mapped = false) { run(tier(mode, mapped), scratch); }

    void check_scores() const {
        for (std::size_t t = 0; t < tasks.size(); ++t)
            for (std::size_t i = 0; i < candidates[t].size(); ++i) {
                CHECK(candidates[t][i].score == static_cast<float>(t + 1) * static_cast<float>(candidates[t][i].id));
                CHECK(i == 0 || candidates[t][i - 1].id <= candidates[t][i].id);
            }
    }

    ReadCounts total() const {
        ReadCounts sum;
        for (const RerankTask& task : tasks) {
            sum.rows += task.counts.rows;
            sum.pages += task.counts.pages;
            sum.bytes += task.counts.bytes;
        }
        return sum;
    }

    std::size_t d;
    std::vector<std::vector<float>> queries;
    std::vector<std::vector<Scored>> candidates;
    std::vector<RerankTask> tasks;
};

Positions random_positions(std::size_t count, std::size_t rows, std::mt19937& random) {
    Positions positions;
    for (std::size_t i = 0; i < count; ++i) positions.push_back(static_cast<std::int64_t>(random() % rows));
    return positions;
}

Positions neighbours(std::size_t count) {
    Positions positions;
    for (std::size_t i = 0; i < count; ++i) positions.push_back(static_cast<std::int64_t>(i));
    return positions;
}

std::set<std::uint64_t> pages_of(std::uint64_t offset, std::size_t bytes) {
    std::set<std::uint64_t> pages;
    for (std::uint64_t page = offset / kPage; page <= (offset + bytes - 1) / kPage; ++page) pages.insert(page);
    return pages;
}

// One query, one read after another: how many rows each read takes, rows between those wanted included.
void check_runs(const Positions& positions, std::size_t d, const std::vector<std::size_t>& rows_asked,
                std::int64_t pages) {
    fill(4000, d);
    IoScratch scratch(1);
    Call call({positions}, d);
    call.run(IoMode::pread, scratch);
    call.check_scores();
    CHECK(disk.asked.size() == rows_asked.size());
    std::size_t bytes = 0;
    for (std::size_t i = 0; i < rows_asked.size(); ++i) {
        CHECK(disk.asked[i].bytes == rows_asked[i] * d * sizeof(float));
        bytes += disk.asked[i].bytes;
    }
    const ReadCounts counts = call.total();
    CHECK(counts.rows == static_cast<std::int64_t>(positions.size()));
    CHECK(counts.bytes == static_cast<std::int64_t>(bytes) && counts.pages == pages);
}

void check_merging() {
    const std::size_t kilobyte = 256;  // elements of a row of 1 KiB, 4 a page
    check_runs({}, kilobyte, {}, 0);
    check_runs({7}, kilobyte, {1}, 1);
    check_runs({6, 5, 4}, kilobyte, {3}, 1);  // one page, whatever the order
    check_runs({4, 7}, kilobyte, {4}, 1);     // one page
    check_runs({0, 7}, kilobyte, {8}, 2);     // pages side by side
    check_runs({3, 8}, kilobyte, {1, 1}, 2);  // a page between them
    check_runs({0, 5, 11, 3999}, kilobyte, {12, 1}, 4);
    check_runs({5, 5, 5}, kilobyte, {1}, 1);                         // one row, three times
    check_runs({0, 3, 4, 8, 12, 15, 16, 17}, kilobyte, {16, 2}, 5);  // at most 16 KiB
    check_runs({0, 1}, 20'000, {1, 1}, 40);  // a row longer than that comes alone; they share a page
}

// Many queries, all reads under way together: no page comes that holds no wanted row, and each byte at most once.
void check_that_nothing_else_is_read() {
    std::mt19937 random(4);
    for (const std::size_t d : {1, 7, 96, 300, 1024, 1500, 5000})
        for (const IoMode mode : {IoMode::pread, IoMode::automatic}) {
            fill(3000, d);
            std::vector<Positions> wanted;
            std::set<std::uint64_t> pages_wanted;
            for (const std::size_t count : {100, 1, 0, 37, 250}) {
                wanted.push_back(random_positions(count, 3000, random));
                for (const std::int64_t row : wanted.back())
                    pages_wanted.merge(pages_of(kOffset + static_cast<std::uint64_t>(row) * d * 4, d * 4));
            }
            Call call(wanted, d);
            IoScratch scratch(8);
            call.run(mode, scratch);
            call.check_scores();
            std::set<std::uint64_t> pages_asked;
            std::sort(disk.asked.begin(), disk.asked.end(),
                      [](const Asked& a, const Asked& b) { return a.offset < b.offset; });
            std::uint64_t end = 0;
            std::int64_t bytes = 0;
            for (const Asked& read : disk.asked) {
                CHECK(read.offset >= end);
                end = read.offset + read.bytes;
                bytes += static_cast<std::int64_t>(read.bytes);
                pages_asked.merge(pages_of(read.offset, read.bytes));
            }
            CHECK(pages_asked == pages_wanted);
            const ReadCounts counts = call.total();
            CHECK(counts.rows == 388 && counts.bytes == bytes);
            CHECK(counts.pages == static_cast<std::int64_t>(pages_wanted.size()));
        }
}

void check_shared_rows_count_for_the_first_task() {
    fill(100, 256);
    Call call({{5, 40}, {6, 41}, {5, 60}}, 256);
    IoScratch scratch;
    call.run(IoMode::pread, scratch);
    call.check_scores();
    const std::int64_t pages[] = {2, 0, 1}, bytes[] = {2048, 2048, 1024};
    for (std::size_t t = 0; t < 3; ++t) {
        const ReadCounts& counts = call.tasks[t].counts;
        CHECK(counts.rows == 2 && counts.pages == pages[t] && counts.bytes == bytes[t]);
    }
    CHECK(disk.asked.size() == 3);
}

void check_unreliable_disk() {
    for (const std::size_t depth : {1, 5, 64})
        for (const std::size_t piece : {1, 3, 100, 5000})
            for (const int interrupt_every : {0, 2, 3}) {
                fill(1000, 16);
                disk.piece = piece;
                disk.interrupt_every = interrupt_every;
                Call call({{999, 0, 500, 501, 502, 20, 700}, {21, 998}}, 16);
                IoScratch scratch(depth);
                call.run(IoMode::pread, scratch);
                call.check_scores();
            }
}

int error_of(const Positions& positions, IoMode mode, IoScratch& scratch, bool mapped = false) {
    Call call({positions}, 16);
    try {
        call.run(mode, scratch, mapped);
    } catch (const std::system_error& error) {
        const bool ended = std::strstr(error.what(), "dense rows end early") != nullptr;
        CHECK(ended == (error.code().value() == EIO));
        return error.code().value();
    }
    call.check_scores();
    return 0;
}

void check_errors() {
    std::mt19937 random(5);
    for (const std::size_t depth : {1, 7, 64}) {
        IoScratch scratch(depth);
        fill(1000, 16);
        Positions many = random_positions(300, 1000, random);
        CHECK(error_of({1000}, IoMode::pread, scratch) == EIO);
        many[100] = 999;
        CHECK(error_of(many, IoMode::pread, scratch) == 0);
        disk.bytes.pop_back();
        CHECK(error_of(many, IoMode::pread, scratch) == EIO);
        disk.fail_with = EBADF;
        CHECK(error_of(many, IoMode::pread, scratch) == EBADF);
        fill(1000, 16);
        CHECK(error_of(many, IoMode::pread, scratch) == 0);  // the scratch is as good as new
    }
    fill(1000, 16);
    disk.cached_bytes = disk.bytes.size();
    IoScratch scratch;
    CHECK(error_of({3, 999}, IoMode::map, scratch, true) == 0);
    CHECK(error_of({3, 1000}, IoMode::map, scratch, true) == EIO);
    CHECK(error_of({3, 1000}, IoMode::automatic, scratch, true) == EIO);
}

void check_refused_modes() {
    for (const IoMode mode : {IoMode::map, IoMode::uring}) {
        bool refused = false;
        try {
            const DiskTier tier(3, nullptr, 0, 0, DenseDtype::f32, 16, mode);
        } catch (const std::invalid_argument&) {
            refused = true;
        }
        CHECK(refused);
    }
}

// How many of 200 neighbouring rows come by reads, of 1 KiB each.
std::size_t rows_read(IoMode mode, bool mapped, std::size_t cached_rows, IoScratch& scratch) {
    fill(4000, 256);
    disk.cached_bytes = kOffset + cached_rows * 1024;
    Call call({neighbours(200)}, 256);
    call.run(mode, scratch, mapped);
    call.check_scores();
    CHECK(call.total().rows == 200 && call.total().pages == 50 && call.total().bytes == 200 * 1024);
    std::size_t bytes = 0;
    for (const Asked& read : disk.asked) bytes += read.bytes;
    return bytes / 1024;
}

void check_choice() {
    IoScratch scratch;
    CHECK(rows_read(IoMode::automatic, true, 200, scratch) == 0);
    CHECK(rows_read(IoMode::automatic, true, 0, scratch) <= 200);
    CHECK(rows_read(IoMode::automatic, true, 0, scratch) == 200);  // it was cold: the first row is looked up now
    CHECK(rows_read(IoMode::automatic, true, 200, scratch) == 0);
    CHECK(rows_read(IoMode::map, true, 0, scratch) == 0);
    CHECK(rows_read(IoMode::automatic, false, 200, scratch) == 0);
    CHECK(rows_read(IoMode::automatic, false, 100, scratch) >= 100);
    CHECK(rows_read(IoMode::pread, true, 100, scratch) >= 100);
    CHECK(rows_read(IoMode::pread, false, 200, scratch) == 0);
    IoScratch serial(1);
    CHECK(rows_read(IoMode::pread, false, 200, serial) == 200);
}

// A map that always makes the caller wait: after 16 rows the next ones are looked up, and read if they are not there.
void check_pauses() {
    for (const std::size_t cached : {1, 100, 150, 180}) {
        fill(4000, 256);
        disk.cached_bytes = kOffset + cached * 1024;
        clock_step_ns = 1'000'000;
        Call call({neighbours(180)}, 256);
        IoScratch scratch;
        call.run(IoMode::automatic, scratch, true);
        call.check_scores();
        std::size_t from_map = 180;
        for (const Asked& read : disk.asked) from_map = std::min<std::size_t>(from_map, (read.offset - kOffset) / 1024);
        CHECK(from_map == (cached == 180 ? 180 : std::max<std::size_t>(16, cached / 16 * 16)));
        CHECK(call.total().rows == 180 && call.total().pages == 45);
    }
    disk.tells_cached = false;  // then the map must do
    disk.asked.clear();
    Call call({{1, 2, 3}}, 256);
    IoScratch scratch;
    call.run(IoMode::automatic, scratch, true);
    call.check_scores();
    CHECK(disk.asked.empty());
}

void check_that_no_call_allocates_twice() {
    std::mt19937 random(6);
    fill(3000, 96);
    disk.asked.reserve(100'000);
    for (const std::size_t depth : {1, 64})
        for (const bool mapped : {false, true}) {
            IoScratch scratch(depth);
            Call call({random_positions(300, 3000, random), random_positions(100, 3000, random)}, 96);
            const DiskTier tier = call.tier(mapped ? IoMode::map : IoMode::pread, mapped);
            call.run(tier, scratch);
            int calls_that_allocate = 0;
            for (int repeat = 0; repeat < 40; ++repeat) {
                const int before = allocations;
                call.run(tier, scratch);
                calls_that_allocate += allocations != before;
            }
            CHECK(calls_that_allocate <= 16);  // the pool may still grow, to so many threads
        }
}

void check_concurrent_calls() {
    fill(3000, 96);
    disk.cached_bytes = disk.bytes.size() / 2;
    std::vector<std::thread> callers;
    for (unsigned caller = 0; caller < 4; ++caller)
        callers.emplace_back([caller] {
            std::mt19937 random(caller);
            IoScratch scratch(caller == 0 ? 1 : 16);
            for (int repeat = 0; repeat < 20; ++repeat) {
                Call call({random_positions(80, 3000, random), random_positions(20, 3000, random)}, 96);
                call.run(repeat % 2 == 0 ? IoMode::pread : IoMode::automatic, scratch, caller > 1);
                call.check_scores();
            }
        });
    for (std::thread& caller : callers) caller.join();
}

}  // namespace

int main() {
    check_merging();
    check_that_nothing_else_is_read();
    check_shared_rows_count_for_the_first_task();
    check_unreliable_disk();
    check_errors();
    check_refused_modes();
    check_choice();
    check_pauses();
    check_that_no_call_allocates_twice();
    check_concurrent_calls();
}
