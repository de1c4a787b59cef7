// DiskTier on a disk that interrupts, answers in pieces, ends early and fails.
#include <sys/types.h>

#include <cerrno>
#include <cstring>
#include <random>
#include <system_error>

#include "checks.h"
#include "disk_tier.h"

using namespace vqdistill;

namespace {

// The file, and how reading it behaves.
struct Disk {
    std::vector<std::uint8_t> bytes;
    std::size_t piece = SIZE_MAX;  // longest answer
    int interrupt_every = 0;
    int fail_with = 0;
    int calls = 0;
    std::vector<std::size_t> asked;
} disk;

constexpr std::uint64_t kOffset = 4096;

}  // namespace

// Takes the place of the system's pread in this program.
extern "C" ssize_t pread(int, void* out, std::size_t bytes, off_t offset) {
    ++disk.calls;
    if (disk.interrupt_every != 0 && disk.calls % disk.interrupt_every == 0) {
        errno = EINTR;
        return -1;
    }
    if (disk.fail_with != 0) {
        errno = disk.fail_with;
        return -1;
    }
    disk.asked.push_back(bytes);
    const auto from = static_cast<std::size_t>(offset);
    if (from >= disk.bytes.size()) return 0;
    const std::size_t given = std::min({bytes, disk.piece, disk.bytes.size() - from});
    std::memcpy(out, disk.bytes.data() + from, given);
    return static_cast<ssize_t>(given);
}

namespace {

// Row p holds p in its first element; the query picks it, so that a score tells which row was scored.
void fill(std::size_t rows, std::size_t d) {
    disk = Disk{};
    disk.bytes.resize(kOffset + rows * d * sizeof(float));
    for (std::size_t p = 0; p < rows; ++p) {
        const float value = static_cast<float>(p);
        std::memcpy(disk.bytes.data() + kOffset + p * d * sizeof(float), &value, sizeof value);
    }
}

ReadCounts rerank(std::vector<Scored>& candidates, std::size_t d) {
    static std::vector<std::uint8_t> buffer;
    std::vector<float> query(d, 0.0f);
    query[0] = 1.0f;
    const DiskTier tier(3, kOffset, DenseDtype::f32, d);
    return tier.rerank(active_kernels(), Metric::ip, query.data(), {candidates.data(), candidates.size()}, buffer);
}

std::vector<Scored> at(std::initializer_list<std::int64_t> positions) {
    std::vector<Scored> candidates;
    for (const std::int64_t position : positions) candidates.push_back({-1.0f, 0, position});
    return candidates;
}

void check_scores(const std::vector<Scored>& candidates) {
    for (std::size_t i = 0; i < candidates.size(); ++i) {
        CHECK(candidates[i].score == static_cast<float>(candidates[i].id));
        CHECK(i == 0 || candidates[i - 1].id < candidates[i].id);
    }
}

void check_runs(std::initializer_list<std::int64_t> positions, std::size_t d,
                const std::vector<std::size_t>& rows_asked) {
    fill(4000, d);
    std::vector<Scored> candidates = at(positions);
    const ReadCounts counts = rerank(candidates, d);
    check_scores(candidates);
    std::vector<std::size_t> bytes_asked;
    std::int64_t total = 0;
    for (const std::size_t rows : rows_asked) {
        bytes_asked.push_back(rows * d * sizeof(float));
        total += static_cast<std::int64_t>(bytes_asked.back());
    }
    CHECK(disk.asked == bytes_asked);
    CHECK(counts.rows == static_cast<std::int64_t>(positions.size()) && counts.bytes == total);
}

int error_of(std::initializer_list<std::int64_t> positions, std::size_t d) {
    std::vector<Scored> candidates = at(positions);
    try {
        rerank(candidates, d);
    } catch (const std::system_error& error) {
        return error.code().value();
    }
    return 0;
}

void check_unreliable_disk() {
    for (const std::size_t piece : {1, 3, 100, 5000})
        for (const int interrupt_every : {0, 2, 3}) {
            fill(1000, 16);
            disk.piece = piece;
            disk.interrupt_every = interrupt_every;
            std::vector<Scored> candidates = at({999, 0, 500, 501, 502, 20, 700});
            rerank(candidates, 16);
            check_scores(candidates);
        }
}

}  // namespace

int main() {
    const std::size_t kilobyte = 256;  // elements of a row of 1 KiB
    check_runs({}, kilobyte, {});
    check_runs({7}, kilobyte, {1});
    check_runs({9, 8, 7}, kilobyte, {3});         // neighbours, whatever the order
    check_runs({0, 5, 10}, kilobyte, {11});       // gaps of 4 KiB
    check_runs({0, 6, 12}, kilobyte, {1, 1, 1});  // gaps of 5 KiB
    check_runs({0, 5, 11, 3999}, kilobyte, {6, 1, 1});
    check_runs({0, 5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 55, 60, 63, 64}, kilobyte, {64, 1});  // at most 64 KiB
    check_runs({0, 1}, 20'000, {1, 1});  // a row longer than that is read alone
    check_unreliable_disk();

    fill(100, 16);
    CHECK(error_of({100}, 16) == EIO);
    CHECK(error_of({99}, 16) == 0);
    disk.bytes.pop_back();
    CHECK(error_of({99}, 16) == EIO);
    disk.fail_with = EBADF;
    CHECK(error_of({5}, 16) == EBADF);
}
