// The Python module _native; the only file that knows pybind11. Functions check, allocate outputs, release the GIL,
// call.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <string>
#include <system_error>
#include <tuple>
#include <utility>

#include "additive.h"
#include "disk_tier.h"
#include "dispatch.h"
#include "io_uring.h"
#include "ivf_search.h"
#include "pack.h"

namespace py = pybind11;

namespace vqdistill {
namespace {

using Shape = std::vector<py::ssize_t>;
constexpr py::ssize_t kAny = -1;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::string type_name(const py::handle& value) { return py::str(py::type::of(value).attr("__name__")); }

std::string describe(const py::array& array) {
    const std::string text = py::str("{} {}").format(array.attr("shape"), array.dtype());
    return array.flags() & py::array::c_style ? text : text + " not C-contiguous";
}

bool shape_fits(const py::array& array, const Shape& shape) {
    if (array.ndim() != static_cast<py::ssize_t>(shape.size())) return false;
    for (std::size_t i = 0; i < shape.size(); ++i)
        if (shape[i] != kAny && shape[i] != array.shape(static_cast<py::ssize_t>(i))) return false;
    return true;
}

// A C-contiguous, aligned array of T; anything else is an error and not a silent copy. `wanted` is for the message.
template <class T>
class Array {
public:
    Array(const py::object& value, const char* name, const std::string& wanted, const Shape& shape) {
        const std::string start = std::string(name) + " must be " + wanted + ", got ";
        if (!py::isinstance<py::array>(value)) throw py::type_error(start + type_name(value));
        array_ = py::reinterpret_borrow<py::array>(value);
        if (!py::isinstance<py::array_t<T>>(value)) throw py::type_error(start + describe(array_));
        const int needed = py::array::c_style | py::detail::npy_api::NPY_ARRAY_ALIGNED_;
        if ((array_.flags() & needed) != needed)
            throw py::type_error(start + "an array that is not contiguous and aligned");
        if (!shape_fits(array_, shape)) throw py::value_error(start + describe(array_));
    }
    const T* data() const { return static_cast<const T*>(array_.data()); }
    std::size_t size(int axis) const { return static_cast<std::size_t>(array_.shape(axis)); }
    const py::array& array() const { return array_; }

private:
    py::array array_;
};

// The same for a matrix of float32 or float16.
class Matrix {
public:
    Matrix(const py::object& value, const char* name, const std::string& wanted, const Shape& shape)
        : half_(py::isinstance<py::array>(value) && py::reinterpret_borrow<py::array>(value).dtype().char_() == 'e'),
          bits_(half_ ? value.attr("view")("uint16") : value) {
        if (half_)
            Array<std::uint16_t>(bits_, name, wanted, shape);
        else
            Array<float>(bits_, name, wanted, shape);
    }
    MatrixView view() const {
        if (half_) return {nullptr, static_cast<const std::uint16_t*>(array().data())};
        return {static_cast<const float*>(array().data()), nullptr};
    }
    py::array array() const { return py::reinterpret_borrow<py::array>(bits_); }
    py::ssize_t size(int axis) const { return array().shape(axis); }
    bool half() const { return half_; }

private:
    bool half_;
    py::object bits_;
};

template <class T>
py::array_t<T> empty(std::initializer_list<std::size_t> shape) {
    return py::array_t<T>(std::vector<py::ssize_t>(shape.begin(), shape.end()));
}

std::string number(std::size_t value) { return std::to_string(value); }

[[noreturn]] void refuse(const std::string& name, const std::string& wanted, const std::string& got) {
    throw py::value_error(name + " must be " + wanted + ", got " + got);
}

std::size_t in_range(const char* name, py::ssize_t value, py::ssize_t low, py::ssize_t high) {
    if (value < low || value > high)
        refuse(name, "in " + std::to_string(low) + ".." + std::to_string(high), std::to_string(value));
    return static_cast<std::size_t>(value);
}

Metric parse_metric(const std::string& text) {
    if (text == "ip") return Metric::ip;
    if (text == "l2") return Metric::l2;
    refuse("metric", "ip or l2", text);
}

DenseDtype parse_dense_dtype(const std::string& text) {
    if (text == "f32") return DenseDtype::f32;
    if (text == "f16") return DenseDtype::f16;
    if (text == "bf16") return DenseDtype::bf16;
    if (text == "i8") return DenseDtype::i8;
    if (text == "none") return DenseDtype::none;
    refuse("dense_dtype", "one of f32, f16, bf16, i8, none", text);
}

IoMode parse_io(const std::string& text) {
    if (text == "auto") return IoMode::automatic;
    if (text == "map") return IoMode::map;
    if (text == "pread") return IoMode::pread;
    if (text == "uring") return IoMode::uring;
    refuse("io", "one of auto, map, pread, uring", text);
}

// The bytes of an object with a buffer, which stay where they are as long as this lives; none of None.
class Bytes {
public:
    Bytes(const py::object& value, const char* name) {
        if (value.is_none()) return;
        if (!PyObject_CheckBuffer(value.ptr()))
            throw py::type_error(std::string(name) + " must be a buffer or None, got " + type_name(value));
        info_ = py::reinterpret_borrow<py::buffer>(value).request();
    }
    const std::uint8_t* data() const { return static_cast<const std::uint8_t*>(info_.ptr); }
    std::uint64_t size() const { return static_cast<std::uint64_t>(info_.size * info_.itemsize); }

private:
    py::buffer_info info_;
};

DiskTier make_tier(int fd, const Bytes& map, std::int64_t offset, const std::string& dtype_text, std::size_t d,
                   const std::string& io) {
    const DenseDtype dtype = parse_dense_dtype(dtype_text);
    if (dtype != DenseDtype::none && fd < 0) refuse("dense_fd", "an open file descriptor", std::to_string(fd));
    if (offset < 0) refuse("dense_offset", "at least 0", std::to_string(offset));
    return DiskTier(fd, map.data(), map.size(), static_cast<std::uint64_t>(offset), dtype, d, parse_io(io));
}

std::size_t require_m(std::size_t m) {
    if (m == 0 || m % 2 != 0 || m > kMaxM) refuse("m", "even and in 2..256", number(m));
    return m;
}

// An index is checked before it comes here; this only keeps a mistake in Python from reading foreign memory.
void require_offsets(const Array<std::int64_t>& offsets) {
    const std::int64_t* begin = offsets.data();
    const std::int64_t* end = begin + offsets.size(0);
    if (*begin != 0 || !std::is_sorted(begin, end)) refuse("list_offsets", "(nlist + 1,) rising from 0", "others");
}

// Rows that a search may find: bits by block of positions, and the number of such rows in each list.
class Allow {
public:
    Allow(const py::object& value, const IndexView& index)
        : pair_(value.is_none() ? py::tuple(0) : py::reinterpret_borrow<py::tuple>(value)) {
        if (value.is_none()) return;
        if (!py::isinstance<py::tuple>(value) || pair_.size() != 2) refuse("allow", "(blocks, per_list)", type_name(value));
        view_.blocks = Array<std::uint32_t>(pair_[0], "allow blocks", "(nblocks,) uint32",
                                            {static_cast<py::ssize_t>(block_count(index.n()))})
                           .data();
        view_.per_list = Array<std::int64_t>(pair_[1], "allow per_list", "(nlist,) int64",
                                             {static_cast<py::ssize_t>(index.nlist)})
                             .data();
    }
    const AllowView& view() const { return view_; }

private:
    py::tuple pair_;
    AllowView view_;
};

// A residual network for queries: (down, bias, up, rank, unit) or None.
class AdapterArrays {
public:
    AdapterArrays(const py::object& value, const std::string& name, py::ssize_t d) {
        if (value.is_none()) return;
        const std::string wanted = "(down, bias, up, rank, unit) or None";
        if (!py::isinstance<py::tuple>(value) || py::len(value) != 5) refuse(name, wanted, type_name(value));
        parts_ = py::reinterpret_borrow<py::tuple>(value);
        const Matrix down(parts_[0], (name + " down").c_str(), "(units, d) float32 or float16", {kAny, d});
        const py::ssize_t units = down.size(0);
        const Array<float> bias(parts_[1], (name + " bias").c_str(), "(units,) float32", {units});
        const Matrix up(parts_[2], (name + " up").c_str(), "(d, units) float32 or float16", {d, units});
        if (units == 0) refuse(name + " units", "positive", "0");
        if (!py::isinstance<py::int_>(parts_[3]) || !py::isinstance<py::bool_>(parts_[4]))
            throw py::type_error(name + " must end in an integer rank and a bool, got others");
        const std::size_t rank = in_range((name + " rank").c_str(), parts_[3].cast<py::ssize_t>(), 0, units);
        view_ = {static_cast<std::size_t>(units), rank, down.view(), bias.data(), up.view(), parts_[4].cast<bool>()};
    }
    const AdapterView& view() const { return view_; }

private:
    py::tuple parts_;  // keeps alive what view_ points at
    AdapterView view_;
};

// Ctrl-C and other signals, as Python's handlers answer them; called without the GIL.
bool python_interrupts() {
    const py::gil_scoped_acquire acquire;
    return PyErr_CheckSignals() != 0;
}

// Runs a search without the GIL, under the limits of the call. What interrupted it is the Python error that is raised.
template <class Search>
void run_limited(double timeout_s, Search search) {
    if (!(timeout_s > 0)) refuse("timeout_s", "positive", std::to_string(timeout_s));
    try {
        const py::gil_scoped_release release;
        CallLimits limits(timeout_s, python_interrupts);
        search(limits);
    } catch (const Interrupted&) {
        throw py::error_already_set();
    } catch (const TimedOut&) {
        PyErr_SetString(PyExc_TimeoutError, "timed out");
        throw py::error_already_set();
    }
}

constexpr std::size_t kStats = sizeof(QueryStats) / sizeof(std::int64_t);
static_assert(sizeof(QueryStats) == kStats * sizeof(std::int64_t), "stats are seen as rows of int64");

class Engine {
public:
    Engine(const std::string& metric, bool residual, const py::object& list_offsets, const py::object& router,
           const py::object& coarse, const py::object& mean, const py::object& rotation, const py::object& codewords,
           const py::object& packed, int dense_fd, std::int64_t dense_offset, const std::string& dense_dtype,
           const py::object& dense_map, const std::string& io, const py::object& query_adapter,
           const py::object& verify_adapter)
        : mean_(mean, "mean", "(d,) float32", {kAny}),
          codewords_(codewords, "codewords", "(m, 16, dsub) float32 or float16", {kAny, kSub, kAny}),
          offsets_(list_offsets, "list_offsets", "(nlist + 1,) int64", {kAny}),
          router_(router, "router", "(nlist, d) float32 or float16", {rows(offsets_) - 1, rows(mean_)}),
          coarse_(coarse, "coarse", "(nlist, d) float32 or float16", {router_.size(0), rows(mean_)}),
          rotation_(rotation, "rotation", "(m * dsub, d), or (0, d) for additive codes, float32", {kAny, rows(mean_)}),
          packed_(packed, "packed", "(nblocks, m / 2, 32) uint8", {kAny, codewords_.size(0) / 2, kBlockRows}),
          map_(dense_map, "dense_map"),
          query_adapter_(query_adapter, "query_adapter", rows(mean_)),
          verify_adapter_(verify_adapter, "verify_adapter", rows(mean_)),
          search_(view(parse_metric(metric), residual),
                  make_tier(dense_fd, map_, dense_offset, dense_dtype, mean_.size(0), io)) {
        const std::uint64_t end = search_.dense().end_of(search_.index().n());
        if (map_.data() != nullptr && end > map_.size())
            refuse("dense_map", "the whole file, of " + std::to_string(end) + " bytes at least",
                   std::to_string(map_.size()));
    }

    py::tuple search(const py::object& queries, py::ssize_t k, py::ssize_t nprobe, float lift, float temperature, py::ssize_t refine,
                     float misses, float error, float deviations, const py::object& allow, py::ssize_t threads,
                     double timeout_s) const {
        const Array<float> x = checked_queries(queries);
        const Allow allowed(allow, search_.index());
        const SearchOptions options{in_range("k", k, 1, PY_SSIZE_T_MAX),
                                    probe_rule(nprobe, lift, temperature),
                                    in_range("refine", refine, 0, PY_SSIZE_T_MAX),
                                    {misses, error},
                                    deviations,
                                    allowed.view(),
                                    in_range("threads", threads, 1, 1024)};
        if (options.refine > 0) require_dense("refine", number(options.refine));
        if (misses > 0 && !(error > 0)) refuse("error", "positive", std::to_string(error));
        py::array_t<float> scores = empty<float>({x.size(0), options.k});
        py::array_t<std::int64_t> positions = empty<std::int64_t>({x.size(0), options.k});
        float* const scores_out = scores.mutable_data();
        std::int64_t* const positions_out = positions.mutable_data();
        std::vector<QueryStats> stats(x.size(0));
        run_limited(timeout_s, [&](CallLimits& limits) {
            search_.search(x.data(), x.size(0), options, limits, scores_out, positions_out, stats.data());
        });
        return py::make_tuple(scores, positions, stats_array(stats));
    }

    py::tuple range_search(const py::object& queries, float threshold, float margin, bool verify, py::ssize_t nprobe,
                           float lift, float temperature, const py::object& allow, py::ssize_t threads, double timeout_s) const {
        const Array<float> x = checked_queries(queries);
        const Allow allowed(allow, search_.index());
        if (!(margin >= 0)) refuse("margin", "at least 0", std::to_string(margin));
        if (verify) require_dense("verify", "True");
        const RangeOptions options{threshold,      margin, verify, probe_rule(nprobe, lift, temperature), allowed.view(),
                                   in_range("threads", threads, 1, 1024)};
        std::vector<QueryStats> stats(x.size(0));
        RangeHits hits;
        run_limited(timeout_s, [&](CallLimits& limits) {
            hits = search_.range_search(x.data(), x.size(0), options, limits, stats.data());
        });
        return py::make_tuple(array_of(hits.counts), array_of(hits.scores), array_of(hits.positions),
                              stats_array(stats));
    }

private:
    template <class T>
    static py::ssize_t rows(const Array<T>& array) {
        return array.array().shape(0);
    }

    template <class T>
    static py::array_t<T> array_of(const std::vector<T>& values) {
        return py::array_t<T>(static_cast<py::ssize_t>(values.size()), values.data());
    }

    static py::array_t<std::int64_t> stats_array(const std::vector<QueryStats>& stats) {
        py::array_t<std::int64_t> out = empty<std::int64_t>({stats.size(), kStats});
        std::memcpy(out.mutable_data(), stats.data(), stats.size() * sizeof(QueryStats));
        return out;
    }

    Array<float> checked_queries(const py::object& queries) const {
        const std::string d = number(search_.index().d);
        return Array<float>(queries, "queries", "(q, " + d + ") float32", {kAny, rows(mean_)});
    }

    ProbeRule probe_rule(py::ssize_t nprobe, float lift, float temperature) const {
        if (!(lift >= 0)) refuse("lift", "at least 0", std::to_string(lift));
        if (!(temperature > 0)) refuse("temperature", "positive", std::to_string(temperature));
        return {in_range("nprobe", nprobe, 1, router_.size(0)), lift, temperature};
    }

    void require_dense(const char* name, const std::string& got) const {
        if (!search_.dense().available()) refuse(name, "0 without dense rows", got);
    }

    IndexView view(Metric metric, bool residual) const {
        if (offsets_.size(0) < 2) refuse("list_offsets", "(nlist + 1,) with nlist >= 1", describe(offsets_.array()));
        if (mean_.size(0) == 0 || codewords_.size(2) == 0) refuse("d and dsub", "positive", "0");
        if (residual && metric == Metric::l2) refuse("residual", "False for metric l2", "True");
        require_offsets(offsets_);
        require_rotation(metric);
        IndexView view{metric,
                       residual,
                       static_cast<std::size_t>(router_.size(0)),
                       mean_.size(0),
                       require_m(static_cast<std::size_t>(codewords_.size(0))),
                       static_cast<std::size_t>(codewords_.size(2)),
                       offsets_.data(),
                       router_.view(),
                       coarse_.view(),
                       mean_.data(),
                       additive() ? nullptr : rotation_.data(),
                       codewords_.view(),
                       packed_.data(),
                       query_adapter_.view(),
                       verify_adapter_.view()};
        if (packed_.size(0) != block_count(view.n()))
            refuse("packed", "the blocks of " + number(view.n()) + " rows", describe(packed_.array()));
        return view;
    }

    bool additive() const { return rotation_.size(0) == 0; }

    void require_rotation(Metric metric) const {
        if (additive() && (codewords_.size(2) != rows(mean_) || metric == Metric::l2))
            refuse("additive codewords", "(m, 16, d) for metric ip", describe(codewords_.array()));
        if (!additive() && rows(rotation_) != codewords_.size(0) * codewords_.size(2))
            refuse("rotation", "(m * dsub, d), or (0, d) for additive codes", describe(rotation_.array()));
        if (!additive() && codewords_.half()) refuse("codewords of product codes", "float32", "float16");
        if (metric == Metric::l2 && router_.half()) refuse("router for metric l2", "float32", "float16");
    }

    // The arrays keep alive what search_ points at.
    Array<float> mean_;
    Matrix codewords_;
    Array<std::int64_t> offsets_;
    Matrix router_, coarse_;
    Array<float> rotation_;
    Array<std::uint8_t> packed_;
    Bytes map_;
    AdapterArrays query_adapter_, verify_adapter_;
    IvfSearch search_;
};

py::array_t<std::uint8_t> py_pack_codes(const py::object& codes) {
    const Array<std::uint8_t> in(codes, "codes", "(n, m) uint8", {kAny, kAny});
    const std::size_t n = in.size(0), m = require_m(in.size(1));
    py::array_t<std::uint8_t> packed = empty<std::uint8_t>({block_count(n), m / 2, kBlockRows});
    std::uint8_t* const out = packed.mutable_data();
    bool ok = false;
    {
        const py::gil_scoped_release release;
        ok = pack_codes(in.data(), n, m, out);
    }
    if (!ok) throw py::value_error("codes must be below 16, got larger ones");
    return packed;
}

py::array_t<std::uint8_t> py_unpack_codes(const py::object& packed, py::ssize_t n) {
    const Array<std::uint8_t> in(packed, "packed", "(nblocks, m / 2, 32) uint8", {kAny, kAny, kBlockRows});
    const std::size_t rows = in_range("n", n, 0, static_cast<py::ssize_t>(in.size(0) * kBlockRows));
    const std::size_t m = require_m(2 * in.size(1));
    py::array_t<std::uint8_t> codes = empty<std::uint8_t>({rows, m});
    std::uint8_t* const out = codes.mutable_data();
    const py::gil_scoped_release release;
    unpack_codes(in.data(), rows, m, out);
    return codes;
}

// The functions below expose single slots of the table to the tests.

py::list py_scan_pq4(const std::string& level, const py::object& packed, const py::object& tables,
                     const std::vector<int>& thresholds, const std::vector<std::size_t>& pairs,
                     const std::vector<std::vector<int>>& cuts, const py::object& allow, py::ssize_t places) {
    const Array<std::uint8_t> blocks(packed, "packed", "(nblocks, m / 2, 32) uint8", {kAny, kAny, kBlockRows});
    const std::size_t m = require_m(2 * blocks.size(1)), nq = in_range("thresholds", thresholds.size(), 1, kScanQueries);
    const Array<std::uint8_t> lut(tables, "tables", "(nq, m, 16) uint8",
                                  {static_cast<py::ssize_t>(nq), static_cast<py::ssize_t>(m), kSub});
    in_range("pairs", pairs.size(), 0, kMaxCuts);
    if (cuts.size() != nq) refuse("cuts", "one list a query", number(cuts.size()));
    const bool all_rows = allow.is_none();
    const Array<std::uint32_t> mask(all_rows ? py::object(py::array_t<std::uint32_t>(0)) : allow, "allow",
                                    "(nblocks,) uint32", {all_rows ? 0 : blocks.array().shape(0)});
    ScanCodes codes{blocks.data(), blocks.size(0), m, pairs.size(), {}, all_rows ? nullptr : mask.data()};
    for (std::size_t s = 0, low = 1; s < pairs.size(); low = pairs[s++] + 1)
        codes.pairs[s] = in_range("pairs", pairs[s], low, m / 2 - 1);
    std::vector<std::vector<ScanHit>> hits(nq, std::vector<ScanHit>(in_range("places", places, 32, PY_SSIZE_T_MAX)));
    std::vector<ScanQuery> queries;
    for (std::size_t i = 0; i < nq; ++i) {
        in_range("thresholds", thresholds[i], 0, kMaxSum + 1);
        queries.push_back({lut.data() + i * m * kSub, thresholds[i], {}, hits[i].data(), hits[i].size(), 0});
        if (cuts[i].size() != pairs.size()) refuse("cuts", "one for each of pairs", number(cuts[i].size()));
        for (std::size_t s = 0; s < pairs.size(); ++s)
            queries[i].cuts[s] = static_cast<int>(in_range("cuts", cuts[i][s], 0, kMaxSum + 1));
    }
    const std::size_t scanned = find_kernels(level).scan_pq4(codes, queries.data(), nq);
    py::list results;
    for (const ScanQuery& query : queries) {
        py::array_t<std::int64_t> rows = empty<std::int64_t>({query.found}), sums = empty<std::int64_t>({query.found});
        for (std::size_t i = 0; i < query.found; ++i) {
            rows.mutable_data()[i] = query.hits[i].row;
            sums.mutable_data()[i] = query.hits[i].sum;
        }
        results.append(py::make_tuple(rows, sums));
    }
    results.append(scanned);
    return results;
}

py::tuple py_quantize_tables(const std::string& level, const py::object& lut) {
    const Array<float> in(lut, "lut", "(m, 16) float32", {kAny, kSub});
    py::array_t<std::uint8_t> tables = empty<std::uint8_t>({require_m(in.size(0)), kSub});
    const TableScale scale = find_kernels(level).quantize_tables(in.data(), in.size(0), tables.mutable_data());
    return py::make_tuple(tables, scale.bias, scale.step);
}

py::array_t<float> py_pq_tables(const std::string& level, const py::object& rotated, const py::object& words_t,
                                const py::object& init) {
    const Array<float> words(words_t, "words_t", "(m, dsub, 16) float32", {kAny, kAny, kSub});
    const py::ssize_t m = words.array().shape(0), dsub = words.array().shape(1);
    const Array<float> x(rotated, "rotated", "(m * dsub,) float32", {m * dsub});
    const Array<float> start(init, "init", "(m, 16) float32", {m, kSub});
    py::array_t<float> lut = empty<float>({words.size(0), kSub});
    find_kernels(level).pq_tables(x.data(), words.data(), start.data(), words.size(0), words.size(1),
                                  lut.mutable_data());
    return lut;
}

void require_queries(const Array<std::int32_t>& lists, std::size_t nqueries) {
    const auto end = static_cast<std::int32_t>(nqueries);
    for (std::size_t i = 0; i < lists.size(0) * lists.size(1); ++i)
        if (lists.data()[i] < -1 || lists.data()[i] >= end)
            refuse("lists", "-1 or a number below " + number(nqueries), std::to_string(lists.data()[i]));
}

py::array_t<std::uint8_t> py_encode_additive(const std::string& level, const py::object& y, const py::object& x,
                                             float eta, const py::object& lists, const py::object& weights,
                                             const py::object& queries, const py::object& codewords,
                                             const py::object& codes, py::ssize_t sweeps, py::ssize_t rounds,
                                             py::ssize_t threads) {
    const Array<float> rows(y, "y", "(n, d) float32", {kAny, kAny});
    const py::ssize_t n = rows.array().shape(0), d = rows.array().shape(1);
    const Array<float> own(x, "x", "(n, d) float32", {n, d});
    const Array<std::int32_t> of_rows(lists, "lists", "(n, r) int32", {n, kAny});
    const Array<float> weight(weights, "weights", "(n, r) float32", {n, of_rows.array().shape(1)});
    const Array<float> query(queries, "queries", "(q, d) float32", {kAny, d});
    const Array<float> words(codewords, "codewords", "(m, 16, d) float32", {kAny, kSub, d});
    require_queries(of_rows, query.size(0));
    if (!(eta >= 0)) refuse("eta", "at least 0", std::to_string(eta));
    const std::size_t m = in_range("m", words.array().shape(0), 1, kMaxM);
    py::array_t<std::uint8_t> out = empty<std::uint8_t>({rows.size(0), m});
    if (!codes.is_none()) {
        const Array<std::uint8_t> start(codes, "codes", "(n, m) uint8", {n, static_cast<py::ssize_t>(m)});
        const std::uint8_t* const end = start.data() + start.size(0) * m;
        if (std::any_of(start.data(), end, [](std::uint8_t code) { return code >= kSub; }))
            throw py::value_error("codes must be below 16, got larger ones");
        std::copy(start.data(), end, out.mutable_data());
    }
    const AdditiveRows in{rows.data(),   rows.size(0),      rows.size(1), own.data(),   eta, of_rows.data(),
                          weight.data(), of_rows.size(1), query.data(), query.size(0)};
    const AdditiveEffort effort{codes.is_none(), in_range("sweeps", sweeps, 0, 1 << 20),
                                in_range("rounds", rounds, 0, 1 << 20)};
    const Kernels& kernels = find_kernels(level);
    const std::size_t workers = in_range("threads", threads, 1, 1024);
    std::uint8_t* const found = out.mutable_data();
    {
        const py::gil_scoped_release release;
        encode_additive(kernels, in, words.data(), m, effort, workers, found);
    }
    return out;
}

py::array_t<float> py_gemm_nt(const std::string& level, const py::object& a, const py::object& b) {
    const Array<float> x(a, "a", "(na, d) float32", {kAny, kAny});
    const Array<float> y(b, "b", "(nb, d) float32", {kAny, x.array().shape(1)});
    py::array_t<float> c = empty<float>({x.size(0), y.size(0)});
    find_kernels(level).gemm_nt(x.data(), x.size(0), y.data(), y.size(0), x.size(1), c.mutable_data());
    return c;
}

py::array_t<float> py_gemm_nt_f16(const std::string& level, const py::object& a, const py::object& b) {
    const Array<float> x(a, "a", "(na, d) float32", {kAny, kAny});
    const Array<std::uint16_t> y(b, "b", "(nb, d) uint16, the bits of float16", {kAny, x.array().shape(1)});
    py::array_t<float> c = empty<float>({x.size(0), y.size(0)});
    find_kernels(level).gemm_nt_f16(x.data(), x.size(0), y.data(), y.size(0), x.size(1), c.mutable_data());
    return c;
}

py::array_t<float> py_dense_scores(const std::string& level, const std::string& metric, const std::string& dtype,
                                   const py::object& query, const py::object& rows) {
    const Array<float> q(query, "query", "(d,) float32", {kAny});
    const DenseDtype type = parse_dense_dtype(dtype);
    const std::size_t stride = dense_stride(type, q.size(0));
    const Array<std::uint8_t> bytes(rows, "rows", "(b, " + number(stride) + ") uint8",
                                    {kAny, static_cast<py::ssize_t>(stride)});
    const DenseScore score = dense_score(find_kernels(level), type, parse_metric(metric));
    py::array_t<float> scores = empty<float>({bytes.size(0)});
    for (std::size_t i = 0; i < bytes.size(0); ++i)
        scores.mutable_data()[i] = score(q.data(), bytes.data() + i * stride, q.size(0));
    return scores;
}

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

void set_os_error(std::exception_ptr failure) {
    try {
        if (failure) std::rethrow_exception(failure);
    } catch (const std::system_error& error) {
        const py::object value =
            py::reinterpret_steal<py::object>(Py_BuildValue("(is)", error.code().value(), error.what()));
        PyErr_SetObject(PyExc_OSError, value.ptr());
    }
}

}  // namespace
}  // namespace vqdistill

PYBIND11_MODULE(_native, module) {
    using namespace vqdistill;
    using py::arg;
    module.doc() = "Search engine and kernels in C++; _native.pyi is its contract.";
    active_kernels();  // a wrong VQDISTILL_CPU is an error of the import
    py::register_local_exception_translator(set_os_error);

    module.def("cpu_level", [] { return active_kernels().name; });
    module.def("available_levels", available_levels);
    module.def("io_uring_available", io_uring_available);
    module.def("pack_codes", py_pack_codes, arg("codes"));
    module.def("unpack_codes", py_unpack_codes, arg("packed"), arg("n"));
    module.def("scan_pq4", py_scan_pq4, arg("level"), arg("packed"), arg("tables"), arg("thresholds"), py::kw_only(),
               arg("pairs"), arg("cuts"), arg("allow") = py::none(), arg("places"));
    module.def("quantize_tables", py_quantize_tables, arg("level"), arg("lut"));
    module.def("pq_tables", py_pq_tables, arg("level"), arg("rotated"), arg("words_t"), arg("init"));
    module.def("encode_additive", py_encode_additive, arg("level"), arg("y"), arg("x"), arg("eta"), arg("lists"),
               arg("weights"), arg("queries"), arg("codewords"), arg("codes") = py::none(), py::kw_only(),
               arg("sweeps"), arg("rounds"), arg("threads"));
    module.def("gemm_nt", py_gemm_nt, arg("level"), arg("a"), arg("b"));
    module.def("gemm_nt_f16", py_gemm_nt_f16, arg("level"), arg("a"), arg("b"));
    module.def("dense_scores", py_dense_scores, arg("level"), arg("metric"), arg("dtype"), arg("query"), arg("rows"));

    py::class_<Engine>(module, "Engine")
        .def(py::init<const std::string&, bool, const py::object&, const py::object&, const py::object&,
                      const py::object&, const py::object&, const py::object&, const py::object&, int, std::int64_t,
                      const std::string&, const py::object&, const std::string&, const py::object&,
                      const py::object&>(),
             py::kw_only(), arg("metric"), arg("residual"), arg("list_offsets"), arg("router"), arg("coarse"),
             arg("mean"), arg("rotation"), arg("codewords"), arg("packed"), arg("dense_fd") = -1,
             arg("dense_offset") = 0, arg("dense_dtype") = "none", arg("dense_map") = py::none(), arg("io") = "auto",
             arg("query_adapter") = py::none(), arg("verify_adapter") = py::none())
        .def("search", &Engine::search, arg("queries"), py::kw_only(), arg("k"), arg("nprobe"), arg("lift") = 0.0f, arg("temperature") = 1.0f,
             arg("refine"), arg("misses") = 0.0f, arg("error") = 0.0f, arg("deviations") = kInfinity,
             arg("allow") = py::none(), arg("threads"), arg("timeout_s") = kInfinity)
        .def("range_search", &Engine::range_search, arg("queries"), py::kw_only(), arg("threshold"), arg("margin"),
             arg("verify"), arg("nprobe"), arg("lift") = 0.0f, arg("temperature") = 1.0f, arg("allow") = py::none(), arg("threads"),
             arg("timeout_s") = kInfinity);

    py::class_<RowReader>(module, "RowReader")
        .def(py::init<int, const py::object&, std::int64_t, const std::string&, py::ssize_t, const std::string&,
                      py::ssize_t>(),
             py::kw_only(), arg("fd"), arg("map"), arg("offset"), arg("dtype"), arg("d"), arg("io"),
             arg("depth") = IoScratch::kDepth)
        .def("rerank", &RowReader::rerank, arg("metric"), arg("queries"), arg("positions"));
}
