// The Python module's work on what goes into a search and what comes out of it, where NumPy would take longer than the
// search of a query.
#include <cmath>
#include <optional>

#include "py_arrays.h"

namespace vqdistill {
namespace {

// Values from which on other Python threads may run meanwhile: for fewer, getting the GIL back takes longer.
constexpr std::size_t kLongWork = 1 << 16;

double norm_of(const float* row, std::size_t d) {
    constexpr std::size_t kLanes = 8;
    double lanes[kLanes] = {};
    std::size_t i = 0;
    for (; i + kLanes <= d; i += kLanes)
        for (std::size_t lane = 0; lane < kLanes; ++lane)
            lanes[lane] += static_cast<double>(row[i + lane]) * row[i + lane];
    for (std::size_t lane = 0; i < d; ++i, ++lane) lanes[lane] += static_cast<double>(row[i]) * row[i];
    double sum = 0.0;
    for (const double lane : lanes) sum += lane;
    return std::sqrt(sum);
}

py::tuple unit_rows(const py::object& rows) {
    const Array<float> in(rows, "rows", "(b, d) float32", {kAny, kAny});
    const std::size_t b = in.size(0), d = in.size(1);
    py::array_t<float> out = empty<float>({b, d});
    float* const units = out.mutable_data();
    std::optional<py::gil_scoped_release> release;
    if (b * d >= kLongWork) release.emplace();
    std::int64_t bad = -1;
    for (std::size_t i = 0; i < b && bad < 0; ++i) {
        const float* const row = in.data() + i * d;
        const double norm = norm_of(row, d);
        if (!(norm > 0.0 && std::isfinite(norm))) bad = static_cast<std::int64_t>(i);
        for (std::size_t t = 0; t < d; ++t) units[i * d + t] = static_cast<float>(row[t] / norm);
    }
    release.reset();
    return py::make_tuple(out, bad);
}

py::tuple take_integers(const py::object& numbers, const py::object& rows, std::int64_t low, std::int64_t high) {
    const Array<std::int64_t> from(numbers, "numbers", "(n,) int64", {kAny}), at(rows, "rows", "(b,) int64", {kAny});
    const auto n = static_cast<std::int64_t>(from.size(0));
    py::array_t<std::int64_t> out = empty<std::int64_t>({at.size(0)});
    std::int64_t* const taken = out.mutable_data();
    bool good = true;
    for (std::size_t i = 0; i < at.size(0); ++i) {
        const std::int64_t row = at.data()[i];
        if (row >= n) refuse("rows", "below " + std::to_string(n), std::to_string(row));
        taken[i] = row < 0 ? -1 : from.data()[row];
        good &= row < 0 || (taken[i] >= low && taken[i] <= high && taken[i] != -1);
    }
    return py::make_tuple(out, good);
}

}  // namespace

void bind_values(py::module_& module) {
    using py::arg;
    module.def("unit_rows", unit_rows, arg("rows"));
    module.def("take_integers", take_integers, arg("numbers"), arg("rows"), arg("low") = INT64_MIN,
               arg("high") = INT64_MAX);
}

}  // namespace vqdistill
