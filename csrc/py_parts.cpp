// The Python module's half of a search whose rows lie in parts: what the parts found is merged, and results are chosen.
#include "ivf_search.h"
#include "py_arrays.h"

namespace vqdistill {
namespace {

py::tuple choose(const py::object& code, const py::object& exact, const py::object& ids, py::ssize_t k, float misses,
                 float error) {
    const Array<float> by_code(code, "code", "(q, count) float32", {kAny, kAny});
    const Shape shape{by_code.array().shape(0), by_code.array().shape(1)};
    const Array<float> by_row(exact, "exact", "(q, count) float32", shape);
    const Array<std::int64_t> of(ids, "ids", "(q, count) int64", shape);
    if (misses > 0 && !(error > 0)) refuse("error", "positive", std::to_string(error));
    const std::size_t q = by_code.size(0), results = in_range("k", k, 1, PY_SSIZE_T_MAX);
    py::array_t<float> scores = empty<float>({q, results});
    py::array_t<std::int64_t> found = empty<std::int64_t>({q, results}), read = empty<std::int64_t>({q});
    float* const scores_out = scores.mutable_data();
    std::int64_t* const found_out = found.mutable_data();
    std::int64_t* const read_out = read.mutable_data();
    {
        const py::gil_scoped_release release;
        choose_results(q, by_code.size(1), by_code.data(), by_row.data(), of.data(), results, {misses, error}, scores_out,
                       found_out, read_out);
    }
    return py::make_tuple(scores, found, read);
}

py::tuple merge(const py::object& scores, const py::object& ids) {
    std::vector<Array<float>> by_score;
    std::vector<Array<std::int64_t>> by_id;
    for (const py::handle part : scores) {
        const Shape like = by_score.empty() ? Shape{kAny, kAny}
                                            : Shape{by_score[0].array().shape(0), by_score[0].array().shape(1)};
        by_score.emplace_back(py::reinterpret_borrow<py::object>(part), "scores", "(q, count) float32 each", like);
    }
    if (by_score.empty()) refuse("scores", "of a part or more", "none");
    const Shape like{by_score[0].array().shape(0), by_score[0].array().shape(1)};
    for (const py::handle part : ids)
        by_id.emplace_back(py::reinterpret_borrow<py::object>(part), "ids", "(q, count) int64 each", like);
    const std::size_t parts = by_score.size(), q = by_score[0].size(0), count = by_score[0].size(1);
    if (by_id.size() != parts) refuse("ids", "of as many parts as scores", number(by_id.size()));
    py::array_t<std::int64_t> origins = empty<std::int64_t>({q, count}), reads = empty<std::int64_t>({q, parts});
    std::vector<const float*> score_rows(parts);
    std::vector<const std::int64_t*> id_rows(parts);
    for (std::size_t i = 0; i < q; ++i) {
        for (std::size_t part = 0; part < parts; ++part) {
            score_rows[part] = by_score[part].data() + i * count;
            id_rows[part] = by_id[part].data() + i * count;
        }
        merge_best(score_rows, id_rows, count, origins.mutable_data() + i * count, reads.mutable_data() + i * parts);
    }
    return py::make_tuple(origins, reads);
}

}  // namespace

void bind_parts(py::module_& module) {
    using py::arg;
    module.def("candidate_count", [](py::ssize_t k, py::ssize_t refine, py::ssize_t n) {
        return candidate_count(in_range("k", k, 1, PY_SSIZE_T_MAX), in_range("refine", refine, 0, PY_SSIZE_T_MAX),
                               in_range("n", n, 1, PY_SSIZE_T_MAX));
    }, arg("k"), arg("refine"), arg("n"));
    module.def("merge_candidates", merge, arg("scores"), arg("ids"));
    module.def("choose_results", choose, arg("code"), arg("exact"), arg("ids"), py::kw_only(), arg("k"),
               arg("misses") = 0.0f, arg("error") = 0.0f);
}

}  // namespace vqdistill
