// Dense rows on disk: reads the rows of candidates, all at the same time, and scores them exactly.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "common.h"
#include "dispatch.h"
#include "io_queue.h"
#include "topk.h"

namespace vqdistill {

enum class Metric { ip, l2 };
enum class DenseDtype { none, f32, f16, bf16, i8 };

// How rows come from the file.
//   map: from the memory map, a row at a time; best where the page cache has them
//   pread: by a pool of threads
//   uring: by io_uring
//   automatic: from the map while the page cache has the rows; otherwise by io_uring where the system allows it, or by
//     the pool
enum class IoMode { automatic, map, pread, uring };

// Bytes of a row of d elements; 0 for none.
std::size_t dense_stride(DenseDtype dtype, std::size_t d);
// REQUIRES dtype is not none.
DenseScore dense_score(const Kernels& kernels, DenseDtype dtype, Metric metric);

// What a task cost. Pages are those of 4 KiB that hold its rows, each once, and bytes those between the first and the
// last row of a read; a page or byte that several tasks of a call want counts for the first of them alone, unless it
// came from the map. wait_ns: time without anything to score.
struct ReadCounts {
    std::int64_t rows = 0, pages = 0, bytes = 0, wait_ns = 0;
};

// A query and the rows to be scored for it.
struct RerankTask {
    const float* query;
    Span<Scored> candidates;
    ReadCounts counts;
};

// What a thread keeps between calls, so that they allocate nothing: it only grows.
class IoScratch {
public:
    // Reads under way at the same time, fewer of very long rows: what a fast disk needs to be busy.
    static constexpr std::size_t kDepth = 128;

    // With a depth of 1, IoMode::pread reads on the caller's thread.
    explicit IoScratch(std::size_t depth = kDepth) : depth_(depth) {}

private:
    friend class DiskTier;
    struct Wanted {
        std::int64_t row;
        std::uint32_t task, candidate;
    };
    // The rows wanted[first..last), where their bytes go, and what of them is still to come.
    struct Run {
        std::size_t first, last;
        const std::uint8_t* data;
        Read rest;
    };
    ReadQueue& queue(IoMode mode);
    void reserve(std::size_t read_bytes);
    void abandon() noexcept;

    std::size_t depth_;
    pid_t process_ = 0;  // that made the queues
    std::unique_ptr<ReadQueue> ring_, pooled_, serial_;
    std::vector<Wanted> wanted_;
    std::vector<Run> runs_;  // one a slot
    std::vector<std::uint32_t> free_slots_;
    std::unique_ptr<std::uint8_t[]> buffer_;
    std::size_t buffer_bytes_ = 0;
    std::size_t until_probe_ = 0;  // rows that go by until the next is looked up in the page cache
};

// Safe under concurrent calls, each with a scratch of its own.
class DiskTier {
public:
    // The only rows, but for those of add_file. Row p of d elements starts at offset + p * dense_stride(dtype, d) of a
    // file of file_bytes. REQUIRES: fd, unless dtype is none, is open for reading, and map, unless it is null, holds the
    // whole file, as long as rerank is called; the file does not become shorter (reading the map would end the
    // process). Throws std::invalid_argument if mode is map without a map, or uring where the system does not have it.
    DiskTier(int fd, const std::uint8_t* map, std::uint64_t file_bytes, std::uint64_t offset, DenseDtype dtype,
             std::size_t d, IoMode mode);

    // Adds the rows from position `first` on, above all others so far, in a file like that of the constructor, whose
    // position `first` is row 0.
    void add_file(int fd, const std::uint8_t* map, std::uint64_t file_bytes, std::int64_t first);

    // From now on positions count list by list, and within a list file by file: those of a file are the rows
    // offsets[l]..offsets[l+1] of it for each list l. REQUIRES: offsets (nlist + 1) rise from 0 to the rows of the file.
    void spread(std::vector<const std::int64_t*> offsets, std::size_t nlist);

    bool available() const { return dtype_ != DenseDtype::none; }
    // Where the rows end in the file, if there are n.
    std::uint64_t end_of(std::size_t n) const { return offset_ + n * stride_; }

    // Replaces the scores of every task's candidates, whose ids are positions, by exact ones; leaves them sorted by
    // position, and counts what it read. A row that several tasks want is read once. Throws std::system_error if the
    // disk refuses; then some scores are replaced.
    void rerank(const Kernels& kernels, Metric metric, Span<RerankTask> tasks, IoScratch& scratch) const;

private:
    class Reading;
    // A candidate of a call.
    struct Place {
        std::size_t task = 0, candidate = 0;
    };
    struct File {
        int fd;
        const std::uint8_t* map;
        std::uint64_t bytes;
        std::int64_t first;  // position of its row 0
        std::uint64_t base;  // of its bytes, if the files followed each other at whole pages
    };

    const File& file_of(std::int64_t row) const {
        std::size_t i = files_.size() - 1;
        while (files_[i].first > row) --i;
        return files_[i];
    }
    std::uint64_t offset_in(const File& file, std::int64_t row) const {
        return offset_ + static_cast<std::uint64_t>(row - file.first) * stride_;
    }
    void rerank_placed(DenseScore score, Span<RerankTask> tasks, IoScratch& scratch) const;
    std::int64_t place_of(std::int64_t position) const;
    std::int64_t position_of(std::int64_t place) const;
    bool mapped() const;
    bool looks_cached(Span<RerankTask> tasks, IoScratch& scratch) const;
    std::int64_t probe(std::int64_t row) const;
    bool has_cached(const Scored& row) const;
    Place score_mapped(DenseScore score, Span<RerankTask> tasks) const;
    void read_and_score(DenseScore score, Span<RerankTask> tasks, Place from, IoScratch& scratch) const;

    std::vector<File> files_;  // by rising position; of spread rows, by rising place: their number file after file
    std::vector<const std::int64_t*> offsets_;  // of each file, if rows are spread
    std::vector<std::int64_t> starts_;          // (nlist, files): position of the first row of a list in a file
    std::size_t nlist_ = 0;
    std::uint64_t offset_;
    DenseDtype dtype_;
    std::size_t d_, stride_;
    IoMode mode_;
};

}  // namespace vqdistill
