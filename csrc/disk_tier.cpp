#include "disk_tier.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <stdexcept>
#include <system_error>

#include "io_uring.h"
#include "read_pool.h"

namespace vqdistill {
namespace {

constexpr std::uint64_t kPage = 4096;
constexpr std::size_t kCacheLine = 64;
// Longest read of several rows, and with it the buffer of a read.
constexpr std::size_t kRunBytes = 16 << 10;
// What a thread's reads under way may take together: fewer of very long rows keep a disk as busy.
constexpr std::size_t kBufferBytes = 4 << 20;
// Rows whose cache lines are on their way while one is scored.
constexpr std::size_t kRowsAhead = 4;
// One row in so many is looked up in the page cache: a look takes the time of five rows.
constexpr std::size_t kProbeEvery = 192;
// Rows from the map between two looks at the clock, and the time that they hardly ever take without a disk: bytes at
// 2 GB/s and some page faults.
constexpr std::size_t kRowsTimed = 16;
constexpr std::int64_t kPauseNs = 20'000;

constexpr char kEndEarly[] = "dense rows end early", kCannotRead[] = "cannot read dense rows";

using Clock = std::chrono::steady_clock;

std::int64_t ns_since(Clock::time_point start) {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - start).count();
}

[[noreturn]] void fail(int error, const char* what) { throw std::system_error(error, std::generic_category(), what); }

// Counts the pages of rows that come in the order of the file, each page once.
class PageCounter {
public:
    // How many pages the bytes begin..end add.
    std::int64_t add(std::uint64_t begin, std::uint64_t end) {
        const std::uint64_t first = std::max(begin / kPage, uncounted_), last = (end - 1) / kPage + 1;
        if (last <= first) return 0;
        uncounted_ = last;
        return static_cast<std::int64_t>(last - first);
    }

private:
    std::uint64_t uncounted_ = 0;
};

}  // namespace

std::size_t dense_stride(DenseDtype dtype, std::size_t d) {
    switch (dtype) {
        case DenseDtype::f32:
            return d * sizeof(float);
        case DenseDtype::f16:
        case DenseDtype::bf16:
            return d * sizeof(std::uint16_t);
        case DenseDtype::i8:
            return sizeof(float) + d;
        case DenseDtype::none:
            break;
    }
    return 0;
}

DenseScore dense_score(const Kernels& kernels, DenseDtype dtype, Metric metric) {
    const bool l2 = metric == Metric::l2;
    if (dtype == DenseDtype::f32) return l2 ? kernels.l2_f32 : kernels.dot_f32;
    if (dtype == DenseDtype::f16) return l2 ? kernels.l2_f16 : kernels.dot_f16;
    if (dtype == DenseDtype::bf16) return l2 ? kernels.l2_bf16 : kernels.dot_bf16;
    return l2 ? kernels.l2_i8 : kernels.dot_i8;
}

ReadQueue& IoScratch::queue(IoMode mode) {
    if (process_ != ::getpid()) {  // a forked child: its parent's threads and ring are not its own
        ring_.reset();
        pooled_.reset();
        process_ = ::getpid();
    }
    if (mode == IoMode::pread && depth_ == 1) {
        if (!serial_) serial_ = std::make_unique<SerialReads>();
        return *serial_;
    }
    if (mode != IoMode::pread && io_uring_available()) {
        try {
            if (!ring_) ring_ = std::make_unique<RingReads>(depth_);
            return *ring_;
        } catch (const std::system_error&) {
            if (mode == IoMode::uring) throw;
        }
    }
    if (!pooled_) pooled_ = std::make_unique<PooledReads>(depth_);
    return *pooled_;
}

// Makes a place in memory for each read that may be under way; untouched parts of it cost nothing.
void IoScratch::reserve(std::size_t read_bytes) {
    const std::size_t slots = std::clamp<std::size_t>(kBufferBytes / read_bytes, 1, depth_);
    if (slots * read_bytes > buffer_bytes_) {
        buffer_bytes_ = slots * read_bytes;
        buffer_.reset(new std::uint8_t[buffer_bytes_]);
    }
    runs_.resize(slots);
    free_slots_.clear();
    for (std::size_t slot = slots; slot > 0; --slot) free_slots_.push_back(static_cast<std::uint32_t>(slot - 1));
}

// After a queue has failed: the system may still write into the buffer, so nobody else may ever have it.
void IoScratch::abandon() noexcept {
    static_cast<void>(buffer_.release());
    buffer_bytes_ = 0;
    ring_.reset();
}

// The rows of one call that come by reads.
class DiskTier::Reading {
public:
    Reading(const DiskTier& tier, DenseScore score, Span<RerankTask> tasks, IoScratch& scratch)
        : tier_(tier),
          score_(score),
          tasks_(tasks),
          scratch_(scratch),
          queue_(scratch.queue(tier.mode_)),
          read_bytes_(std::max(kRunBytes, tier.stride_)),
          try_cached_(tier.mode_ == IoMode::pread ? scratch.depth_ > 1
                                                  : tier.mode_ == IoMode::automatic && !tier.mapped()) {
        scratch.reserve(read_bytes_);
    }

    void run() {
        const std::vector<IoScratch::Wanted>& wanted = scratch_.wanted_;
        while ((next_ < wanted.size() && error_ == 0) || under_way() > 0) {
            if (next_ < wanted.size() && error_ == 0 && !scratch_.free_slots_.empty())
                start_run();
            else
                finish_read();
        }
        if (error_ != 0) fail(error_, ended_ ? kEndEarly : kCannotRead);
    }

    std::size_t under_way() const { return scratch_.runs_.size() - scratch_.free_slots_.size(); }

private:
    const File& file_of(std::size_t i) const { return tier_.file_of(scratch_.wanted_[i].row); }
    // Among the bytes of all files.
    std::uint64_t begin_of(std::size_t i) const {
        const File& file = file_of(i);
        return file.base + tier_.offset_in(file, scratch_.wanted_[i].row);
    }
    std::uint64_t end_of(std::size_t i) const { return begin_of(i) + tier_.stride_; }

    // Behind the rows that one read takes from `first` on: as long as no page comes that holds none of them.
    std::size_t run_end(std::size_t first) const {
        std::size_t last = first + 1;
        const File* const file = &file_of(first);
        while (last < scratch_.wanted_.size() && &file_of(last) == file &&
               begin_of(last) / kPage <= (end_of(last - 1) - 1) / kPage + 1 &&
               end_of(last) - begin_of(first) <= read_bytes_)
            ++last;
        return last;
    }

    void start_run() {
        const std::uint32_t slot = scratch_.free_slots_.back();
        const std::size_t first = next_, last = next_ = run_end(first);
        const File& file = file_of(first);
        const std::uint64_t begin = begin_of(first);
        std::uint8_t* const out = scratch_.buffer_.get() + slot * read_bytes_;
        const Read read{file.fd, begin - file.base, static_cast<std::size_t>(end_of(last - 1) - begin), out};
        count(first, last);
        scratch_.runs_[slot] = {first, last, out, read};
        if (try_cached_ && read_cached(read) == static_cast<std::int64_t>(read.bytes)) {
            score_run(scratch_.runs_[slot]);
            return;
        }
        scratch_.free_slots_.pop_back();
        queue_.start(slot, read);
    }

    void count(std::size_t first, std::size_t last) {
        std::uint64_t counted = begin_of(first);
        for (std::size_t i = first; i < last; ++i) {
            ReadCounts& counts = tasks_[scratch_.wanted_[i].task].counts;
            counts.rows += 1;
            counts.pages += pages_.add(begin_of(i), end_of(i));
            counts.bytes += static_cast<std::int64_t>(end_of(i) - counted);
            counted = end_of(i);
        }
    }

    void finish_read() {
        const Clock::time_point start = Clock::now();
        const ReadResult result = queue_.wait();
        IoScratch::Run& run = scratch_.runs_[result.slot];
        tasks_[scratch_.wanted_[run.first].task].counts.wait_ns += ns_since(start);
        if (take(run.rest, result.bytes)) {
            queue_.start(result.slot, run.rest);
            return;
        }
        scratch_.free_slots_.push_back(result.slot);
        if (error_ == 0) score_run(run);
    }

    // Whether a read must go on, for the bytes that did not come.
    bool take(Read& rest, std::int64_t bytes) {
        if (bytes == -EAGAIN) bytes = read_some(rest);  // io_uring need not wait for a disk; this does
        if (bytes == -EINTR) return error_ == 0;
        if (bytes <= 0) {
            if (error_ == 0) ended_ = bytes == 0;
            if (error_ == 0) error_ = ended_ ? EIO : static_cast<int>(-bytes);
            return false;
        }
        rest.offset += static_cast<std::uint64_t>(bytes);
        rest.bytes -= static_cast<std::size_t>(bytes);
        rest.out += bytes;
        return rest.bytes > 0 && error_ == 0;
    }

    void score_run(const IoScratch::Run& run) {
        const std::uint64_t begin = begin_of(run.first);
        for (std::size_t i = run.first; i < run.last; ++i) {
            const IoScratch::Wanted& wanted = scratch_.wanted_[i];
            const RerankTask& task = tasks_[wanted.task];
            task.candidates[wanted.candidate].score = score_(task.query, run.data + (begin_of(i) - begin), tier_.d_);
        }
    }

    const DiskTier& tier_;
    const DenseScore score_;
    const Span<RerankTask> tasks_;
    IoScratch& scratch_;
    ReadQueue& queue_;
    const std::size_t read_bytes_;
    const bool try_cached_;
    PageCounter pages_;
    std::size_t next_ = 0;  // of scratch_.wanted_: the first that no read was started for
    int error_ = 0;         // of the first read that failed
    bool ended_ = false;    // because the file did
};

DiskTier::DiskTier(int fd, const std::uint8_t* map, std::uint64_t file_bytes, std::uint64_t offset, DenseDtype dtype,
                   std::size_t d, IoMode mode)
    : files_{{fd, map, file_bytes, 0, 0}},
      offset_(offset),
      dtype_(dtype),
      d_(d),
      stride_(dense_stride(dtype, d)),
      mode_(mode) {
    if (mode == IoMode::map && map == nullptr && available())
        throw std::invalid_argument("io must be one of auto, pread, uring where the file cannot be mapped, got map");
    if (mode == IoMode::uring && !io_uring_available())
        throw std::invalid_argument("io must be one of auto, map, pread where the system denies io_uring, got uring");
}

void DiskTier::add_file(int fd, const std::uint8_t* map, std::uint64_t file_bytes, std::int64_t first) {
    const File& last = files_.back();
    const std::uint64_t end = last.base + offset_in(last, first);
    files_.push_back({fd, map, file_bytes, first, (end + kPage - 1) / kPage * kPage});
}

bool DiskTier::mapped() const {
    return std::all_of(files_.begin(), files_.end(), [](const File& file) { return file.map != nullptr; });
}

void DiskTier::spread(std::vector<const std::int64_t*> offsets, std::size_t nlist) {
    offsets_ = std::move(offsets);
    nlist_ = nlist;
    std::int64_t position = 0;
    for (std::size_t l = 0; l < nlist; ++l)
        for (const std::int64_t* const of : offsets_) {
            starts_.push_back(position);
            position += of[l + 1] - of[l];
        }
}

std::int64_t DiskTier::place_of(std::int64_t position) const {
    // The last start that is not behind: of files that have no row of a list, the start is that of the next one.
    const auto at = static_cast<std::size_t>(std::upper_bound(starts_.begin(), starts_.end(), position) - starts_.begin()) - 1;
    const std::size_t list = at / files_.size(), file = at % files_.size();
    return files_[file].first + offsets_[file][list] + (position - starts_[at]);
}

std::int64_t DiskTier::position_of(std::int64_t place) const {
    const auto file = static_cast<std::size_t>(&file_of(place) - files_.data());
    const std::int64_t row = place - files_[file].first, *const begin = offsets_[file];
    const auto list = static_cast<std::size_t>(std::upper_bound(begin, begin + nlist_ + 1, row) - begin) - 1;
    return starts_[list * files_.size() + file] + (row - begin[list]);
}

void DiskTier::rerank(const Kernels& kernels, Metric metric, Span<RerankTask> tasks, IoScratch& scratch) const {
    const DenseScore score = dense_score(kernels, dtype_, metric);
    const auto by_id = [](const Scored& a, const Scored& b) { return a.id < b.id; };
    const auto sort_each = [&] {
        for (const RerankTask& task : tasks) std::sort(task.candidates.begin(), task.candidates.end(), by_id);
    };
    if (starts_.empty()) {
        sort_each();
        rerank_placed(score, tasks, scratch);
        return;
    }
    for (const RerankTask& task : tasks)
        for (Scored& row : task.candidates) row.id = place_of(row.id);
    sort_each();
    rerank_placed(score, tasks, scratch);
    for (const RerankTask& task : tasks)
        for (Scored& row : task.candidates) row.id = position_of(row.id);
    sort_each();
}

// Of candidates sorted by place.
void DiskTier::rerank_placed(DenseScore score, Span<RerankTask> tasks, IoScratch& scratch) const {
    Place from;
    if (mode_ == IoMode::map || (mode_ == IoMode::automatic && mapped() && looks_cached(tasks, scratch)))
        from = score_mapped(score, tasks);
    if (from.task == tasks.size) return;
    scratch.until_probe_ = 0;
    read_and_score(score, tasks, from, scratch);
}

// Looks at one row in kProbeEvery of all calls with this scratch, and at the first one after a row was not there.
bool DiskTier::looks_cached(Span<RerankTask> tasks, IoScratch& scratch) const {
    for (const RerankTask& task : tasks) {
        for (; scratch.until_probe_ < task.candidates.size; scratch.until_probe_ += kProbeEvery)
            if (!has_cached(task.candidates[scratch.until_probe_])) return false;
        scratch.until_probe_ -= task.candidates.size;
    }
    return true;
}

// The first byte of a row, if the page cache has it; as read_cached.
std::int64_t DiskTier::probe(std::int64_t row) const {
    std::uint8_t byte;
    const File& file = file_of(row);
    return read_cached({file.fd, offset_in(file, row), 1, &byte});
}

// For all the system tells.
bool DiskTier::has_cached(const Scored& row) const { return probe(row.id) != -EAGAIN; }

// Scores from the map: all rows or, in IoMode::automatic, up to where the disk made it wait and has more to come.
// Returns the first row that is not scored.
DiskTier::Place DiskTier::score_mapped(DenseScore score, Span<RerankTask> tasks) const {
    const auto fetch = [&](const Scored& row) {
        const File& file = file_of(row.id);
        const std::uint8_t* const begin = file.map + offset_in(file, row.id);
        for (std::size_t at = 0; at < stride_; at += kCacheLine) __builtin_prefetch(begin + at);
    };
    const std::int64_t pause_ns = kPauseNs + static_cast<std::int64_t>(kRowsTimed * stride_ / 2);
    for (std::size_t t = 0; t < tasks.size; ++t) {
        RerankTask& task = tasks[t];
        const Span<Scored> rows = task.candidates;
        PageCounter pages;
        for (std::size_t i = 0; i < std::min(kRowsAhead, rows.size); ++i) fetch(rows[i]);
        Clock::time_point start = Clock::now();
        for (std::size_t i = 0; i < rows.size; ++i) {
            if (i + kRowsAhead < rows.size) fetch(rows[i + kRowsAhead]);
            const File& file = file_of(rows[i].id);
            const std::uint64_t begin = offset_in(file, rows[i].id);
            if (begin + stride_ > file.bytes) fail(EIO, kEndEarly);
            rows[i].score = score(task.query, file.map + begin, d_);
            task.counts.rows += 1;
            task.counts.pages += pages.add(file.base + begin, file.base + begin + stride_);
            task.counts.bytes += static_cast<std::int64_t>(stride_);
            if (mode_ != IoMode::automatic || (i + 1) % kRowsTimed != 0) continue;
            const Span<Scored> next{rows.begin() + i + 1, std::min(kRowsTimed, rows.size - i - 1)};
            const auto cached = [&](const Scored& row) { return has_cached(row); };
            if (ns_since(start) > pause_ns && !std::all_of(next.begin(), next.end(), cached)) return {t, i + 1};
            start = Clock::now();
        }
    }
    return {tasks.size, 0};
}

void DiskTier::read_and_score(DenseScore score, Span<RerankTask> tasks, Place from, IoScratch& scratch) const {
    std::vector<IoScratch::Wanted>& wanted = scratch.wanted_;
    wanted.clear();
    for (std::size_t t = from.task; t < tasks.size; ++t)
        for (std::size_t i = t == from.task ? from.candidate : 0; i < tasks[t].candidates.size; ++i)
            wanted.push_back({tasks[t].candidates[i].id, static_cast<std::uint32_t>(t), static_cast<std::uint32_t>(i)});
    std::sort(wanted.begin(), wanted.end(), [](const IoScratch::Wanted& a, const IoScratch::Wanted& b) {
        return a.row != b.row ? a.row < b.row : a.task < b.task;
    });
    if (wanted.empty()) return;
    // What is no file, io_uring may wait for without end: a pipe, or its own ring, in the place of one that was closed.
    const std::int64_t first = probe(wanted.front().row);
    if (first < 0 && first != -EAGAIN && first != -EOPNOTSUPP && first != -ENOSYS && first != -EINTR)
        fail(static_cast<int>(-first), kCannotRead);
    Reading reading(*this, score, tasks, scratch);
    try {
        reading.run();
    } catch (...) {
        if (reading.under_way() > 0) scratch.abandon();
        throw;
    }
}

}  // namespace vqdistill
