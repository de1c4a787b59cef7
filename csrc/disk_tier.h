// Dense rows on disk: reads the rows of one query's candidates and scores them exactly.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "common.h"
#include "dispatch.h"
#include "topk.h"

namespace vqdistill {

enum class Metric { ip, l2 };
enum class DenseDtype { none, f32, f16, bf16, i8 };

// Bytes of a row of d elements; 0 for none.
std::size_t dense_stride(DenseDtype dtype, std::size_t d);
// REQUIRES dtype is not none.
DenseScore dense_score(const Kernels& kernels, DenseDtype dtype, Metric metric);

struct ReadCounts {
    std::int64_t rows = 0, pages = 0, bytes = 0, wait_ns = 0;
};

struct RerankTask {
    const float* query;
    Span<Scored> candidates;
    ReadCounts counts;
};

struct IoScratch {
    std::vector<std::uint8_t> buffer;
};

class DiskTier {
public:
    // Row p of d elements starts at offset + p * dense_stride(dtype, d). REQUIRES: fd, unless dtype is none, is open
    // for reading as long as rerank is called; it is read with pread only, so its file position does not matter.
    DiskTier(int fd, std::uint64_t offset, DenseDtype dtype, std::size_t d);

    bool available() const { return dtype_ != DenseDtype::none; }

    void rerank(const Kernels& kernels, Metric metric, Span<RerankTask> tasks, IoScratch& scratch) const;

private:
    std::uint64_t offset_of(const Scored& row) const { return offset_ + static_cast<std::uint64_t>(row.id) * stride_; }
    std::size_t run_length(const Scored* first, const Scored* last) const;

    int fd_;
    std::uint64_t offset_;
    DenseDtype dtype_;
    std::size_t d_, stride_;
};

}  // namespace vqdistill
