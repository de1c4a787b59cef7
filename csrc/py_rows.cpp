// RowReader of the Python module: the reads of a search apart from it.
#include <algorithm>

#include "py_arrays.h"

namespace vqdistill {
namespace {

// The reads of a search apart from it, for tests and benches; one thread at a time.
class RowReader {
public:
    RowReader(int fd, const py::object& map, std::int64_t offset, const std::string& dtype, py::ssize_t d,
              const std::string& io, py::ssize_t depth)
        : map_(map, "map"),
          d_(in_range("d", d, 1, PY_SSIZE_T_MAX)),
          tier_(make_tier(fd, map_, offset, dtype, d_, io)),
          scratch_(in_range("depth", depth, 1, 4096)) {
        if (!tier_.available()) refuse("dtype", "one of f32, f16, bf16, i8", dtype);
    }

    py::tuple rerank(const std::string& metric, const py::object& queries, const py::object& positions) {
        const Array<float> x(queries, "queries", "(q, d) float32", {kAny, static_cast<py::ssize_t>(d_)});
        const Array<std::int64_t> rows(positions, "positions", "(q, r) int64", {x.array().shape(0), kAny});
        const std::size_t q = rows.size(0), r = rows.size(1);
        std::vector<Scored> candidates(q * r);
        for (std::size_t i = 0; i < q * r; ++i)
            candidates[i] = {0.0f, static_cast<std::uint32_t>(i % r), rows.data()[i]};
        std::vector<RerankTask> tasks;
        for (std::size_t i = 0; i < q; ++i) tasks.push_back({x.data() + i * d_, {candidates.data() + i * r, r}, {}});
        {
            const py::gil_scoped_release release;
            tier_.rerank(active_kernels(), parse_metric(metric), {tasks.data(), q}, scratch_);
        }
        py::array_t<float> scores = empty<float>({q, r});
        py::array_t<std::int64_t> counts = empty<std::int64_t>({q, 4});
        for (std::size_t i = 0; i < q; ++i) {
            for (const Scored& row : tasks[i].candidates) scores.mutable_at(i, row.tag) = row.score;
            const std::int64_t of_task[] = {tasks[i].counts.rows, tasks[i].counts.pages, tasks[i].counts.bytes,
                                            tasks[i].counts.wait_ns};
            std::copy_n(of_task, 4, counts.mutable_data(i, 0));
        }
        return py::make_tuple(scores, counts);
    }

private:
    Bytes map_;
    std::size_t d_;
    DiskTier tier_;
    IoScratch scratch_;
};

}  // namespace

void bind_rows(py::module_& module) {
    using py::arg;
    py::class_<RowReader>(module, "RowReader")
        .def(py::init<int, const py::object&, std::int64_t, const std::string&, py::ssize_t, const std::string&,
                      py::ssize_t>(),
             py::kw_only(), arg("fd"), arg("map"), arg("offset"), arg("dtype"), arg("d"), arg("io"),
             arg("depth") = IoScratch::kDepth)
        .def("rerank", &RowReader::rerank, arg("metric"), arg("queries"), arg("positions"));
}

}  // namespace vqdistill
