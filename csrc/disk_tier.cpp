#include "disk_tier.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>

namespace vqdistill {
namespace {

// Rows whose gap is at most a page are read together: the page between costs less than a second system call.
constexpr std::uint64_t kGapBytes = 4096;
// Longest read of several rows: bounds the buffer of a thread.
constexpr std::uint64_t kRunBytes = 64 << 10;

void read_exactly(int fd, std::uint8_t* out, std::size_t bytes, std::uint64_t offset) {
    while (bytes > 0) {
        const ssize_t got = ::pread(fd, out, bytes, static_cast<off_t>(offset));
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) throw std::system_error(errno, std::generic_category(), "cannot read dense rows");
        if (got == 0) throw std::system_error(EIO, std::generic_category(), "dense rows end early");
        out += got;
        bytes -= static_cast<std::size_t>(got);
        offset += static_cast<std::uint64_t>(got);
    }
}

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

DiskTier::DiskTier(int fd, std::uint64_t offset, DenseDtype dtype, std::size_t d)
    : fd_(fd), offset_(offset), dtype_(dtype), d_(d), stride_(dense_stride(dtype, d)) {}

// How many of the rows first..last, sorted by position, one read takes: at least one.
std::size_t DiskTier::run_length(const Scored* first, const Scored* last) const {
    const Scored* next = first + 1;
    while (next != last && offset_of(*next) <= offset_of(next[-1]) + stride_ + kGapBytes &&
           offset_of(*next) + stride_ - offset_of(*first) <= kRunBytes)
        ++next;
    return static_cast<std::size_t>(next - first);
}

void DiskTier::rerank(const Kernels& kernels, Metric metric, Span<RerankTask> tasks, IoScratch& scratch) const {
    const DenseScore score = dense_score(kernels, dtype_, metric);
    std::vector<std::uint8_t>& buffer = scratch.buffer;
    for (RerankTask& task : tasks) {
    Span<Scored> candidates = task.candidates;
    std::sort(candidates.begin(), candidates.end(), [](const Scored& a, const Scored& b) { return a.id < b.id; });
    buffer.resize(std::max<std::size_t>(kRunBytes, stride_));
    ReadCounts& counts = task.counts;
    for (Scored* first = candidates.begin(); first != candidates.end();) {
        Scored* const last = first + run_length(first, candidates.end());
        const std::uint64_t begin = offset_of(*first);
        const std::size_t bytes = offset_of(last[-1]) + stride_ - begin;
        read_exactly(fd_, buffer.data(), bytes, begin);
        counts.rows += last - first;
        counts.bytes += static_cast<std::int64_t>(bytes);
        for (; first != last; ++first) first->score = score(task.query, buffer.data() + (offset_of(*first) - begin), d_);
    }
    }
}

}  // namespace vqdistill
