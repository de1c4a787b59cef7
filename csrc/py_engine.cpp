// Engine of the Python module: checks, allocates outputs, releases the GIL, searches.
#include <algorithm>
#include <cstring>
#include <limits>
#include <memory>
#include <optional>

#include "py_search.h"

namespace vqdistill {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Ctrl-C and other signals, as Python's handlers answer them; called without the GIL.
bool python_interrupts() {
    const py::gil_scoped_acquire acquire;
    return PyErr_CheckSignals() != 0;
}

[[noreturn]] void raise_timed_out() {
    PyErr_SetString(PyExc_TimeoutError, "timed out");
    throw py::error_already_set();
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
        raise_timed_out();
    }
}

constexpr std::size_t kStats = sizeof(QueryStats) / sizeof(std::int64_t);
static_assert(sizeof(QueryStats) == kStats * sizeof(std::int64_t), "stats are seen as rows of int64");

py::array_t<std::int64_t> stats_array(const std::vector<QueryStats>& stats) {
    py::array_t<std::int64_t> out = empty<std::int64_t>({stats.size(), kStats});
    std::memcpy(out.mutable_data(), stats.data(), stats.size() * sizeof(QueryStats));
    return out;
}

// The plan of q queries for an index.
class PlanArrays {
public:
    PlanArrays(const py::object& offsets, const py::object& lists, const py::object& terms, const py::object& tables,
               const py::object& scales, const py::object& luts, const IndexView& index)
        : tables_(tables, "tables", "(q, m * 16) uint8", {kAny, static_cast<py::ssize_t>(index.m * kSub)}),
          scales_(scales, "scales", "(q, 3) float64", {of_all(), 3}),
          lists_(lists, "lists", "(visits,) int32", {kAny}),
          terms_(terms, "terms", "(visits,) float32", {lists_.array().shape(0)}),
          luts_(luts, "luts", "(q, m * 16) float32, or none", {kAny, static_cast<py::ssize_t>(index.m * kSub)}) {
        view_ = {nullptr, lists_.data(), terms_.data(), tables_.data(), scales_.data(), has_luts() ? luts_.data() : nullptr};
        if (luts_.size(0) != 0 && !has_luts()) refuse("luts", "of each query, or none", describe(luts_.array()));
        if (offsets.is_none()) {
            if (index.residual) refuse("offsets", "(q + 1,) int64 for residual codes", "None");
            return;
        }
        offsets_.emplace(offsets, "offsets", "(q + 1,) int64", Shape{of_all() + 1});
        const std::int64_t* const ends = offsets_->data();
        const auto visits = static_cast<std::int64_t>(lists_.size(0));
        if (ends[0] != 0 || ends[q()] != visits || !std::is_sorted(ends, ends + q() + 1))
            refuse("offsets", "rising from 0 to " + std::to_string(visits), "others");
        for (std::int64_t at = 0; at < visits; ++at)
            in_range("lists", view_.lists[at], 0, static_cast<py::ssize_t>(index.nlist) - 1);
        view_.offsets = ends;
    }
    std::size_t q() const { return tables_.size(0); }
    bool has_luts() const { return q() > 0 && luts_.size(0) == q(); }
    const PlanView& view() const { return view_; }

private:
    py::ssize_t of_all() const { return tables_.array().shape(0); }
    Array<std::uint8_t> tables_;
    Array<double> scales_;
    Array<std::int32_t> lists_;
    Array<float> terms_, luts_;
    std::optional<Array<std::int64_t>> offsets_;
    PlanView view_;
};

class Engine {
public:
    explicit Engine(const IndexArguments& from)
        : arrays_(from), search_(arrays_.view(from.metric, from.residual), arrays_.tier(from)) {
        arrays_.require_mapped(search_.index(), search_.dense());
    }

    std::unique_ptr<PySearch> prepare_search(const py::object& queries, py::ssize_t k, py::ssize_t nprobe, float lift,
                                             float temperature, py::ssize_t refine, float misses, float error,
                                             const py::object& allow, py::ssize_t threads, double timeout_s) const {
        const Array<float> x = checked_queries(queries);
        const Allow allowed(allow.is_none() ? arrays_.alive() : allow, "allow", search_.index());
        const SearchOptions options{in_range("k", k, 1, PY_SSIZE_T_MAX),
                                    probe_rule(nprobe, lift, temperature),
                                    in_range("refine", refine, 0, PY_SSIZE_T_MAX),
                                    {misses, error},
                                    allowed.view(),
                                    in_range("threads", threads, 1, 1024)};
        if (options.refine > 0) require_dense("refine", number(options.refine));
        if (misses > 0 && !(error > 0)) refuse("error", "positive", std::to_string(error));
        return std::make_unique<PySearch>(search_, x, allowed, options, timeout_s);
    }

    py::tuple search(const py::object& queries, py::ssize_t k, py::ssize_t nprobe, float lift, float temperature, py::ssize_t refine,
                     float misses, float error, const py::object& allow, py::ssize_t threads, double timeout_s) const {
        const std::unique_ptr<PySearch> asked = prepare_search(queries, k, nprobe, lift, temperature, refine, misses,
                                                               error, allow, threads, timeout_s);
        const SearchCall& call = asked->call;
        asked->begin();
        run_limited(asked->timeout_s, [&](CallLimits& limits) {
            search_.search(call.queries, call.q, call.options, limits, call.scores, call.positions, call.stats);
        });
        asked->end();
        return asked->result();
    }

    py::tuple plan(const py::object& queries, py::ssize_t nprobe, float lift, float temperature, bool rescore,
                   const py::object& allow, double timeout_s) const {
        const Array<float> x = checked_queries(queries);
        const Allow allowed(allow.is_none() ? arrays_.alive() : allow, "allow", search_.index());
        const ProbeRule probe = probe_rule(nprobe, lift, temperature);
        SearchPlan plan;
        run_limited(timeout_s, [&](CallLimits& limits) {
            search_.plan(x.data(), x.size(0), probe, allowed.view(), rescore, limits, plan);
        });
        const std::size_t q = x.size(0), entries = search_.index().m * kSub;
        const py::object offsets = plan.every_list ? py::object(py::none()) : array_of(plan.offsets);
        return py::make_tuple(offsets, array_of(plan.lists), array_of(plan.terms),
                              array_of(plan.tables).reshape({q, entries}), array_of(plan.scales).reshape({q, std::size_t{3}}),
                              array_of(plan.luts).reshape({rescore ? q : 0, entries}));
    }

    py::tuple candidates(const py::object& offsets, const py::object& lists, const py::object& terms,
                         const py::object& tables, const py::object& scales, const py::object& luts, py::ssize_t count,
                         const py::object& allow, py::ssize_t threads, double timeout_s) const {
        const PlanArrays plan(offsets, lists, terms, tables, scales, luts, search_.index());
        const Allow allowed(allow.is_none() ? arrays_.alive() : allow, "allow", search_.index());
        const CandidateOptions options{in_range("count", count, 1, PY_SSIZE_T_MAX), plan.has_luts(), allowed.view(),
                                       in_range("threads", threads, 1, 1024)};
        const std::size_t q = plan.q();
        py::array_t<float> scores = empty<float>({q, options.count});
        py::array_t<float> rescored = empty<float>({q, options.rescore ? options.count : 0});
        py::array_t<std::int64_t> positions = empty<std::int64_t>({q, options.count});
        py::array_t<std::int32_t> of_lists = empty<std::int32_t>({q, options.count});
        const CandidatesOut out{scores.mutable_data(), rescored.mutable_data(), positions.mutable_data(),
                                of_lists.mutable_data()};
        std::vector<QueryStats> stats(q);
        run_limited(timeout_s, [&](CallLimits& limits) {
            search_.candidates(plan.view(), q, options, limits, out, stats.data());
        });
        return py::make_tuple(scores, rescored, positions, of_lists, stats_array(stats));
    }

    py::tuple score(const py::object& queries, const py::object& positions, const py::object& reads,
                    py::ssize_t threads, double timeout_s) const {
        const Array<float> x = checked_queries(queries);
        require_dense("score", "a call");
        const auto q = static_cast<py::ssize_t>(x.size(0));
        const Array<std::int64_t> at(positions, "positions", "(q, count) int64", {q, kAny});
        const Array<std::int64_t> many(reads, "reads", "(q,) int64", {q});
        const std::size_t count = at.size(1);
        for (std::size_t i = 0; i < x.size(0); ++i) {
            const std::size_t reading = in_range("reads", many.data()[i], 0, static_cast<py::ssize_t>(count));
            for (std::size_t j = 0; j < reading; ++j)
                in_range("positions", at.data()[i * count + j], 0, static_cast<py::ssize_t>(search_.index().n()) - 1);
        }
        const std::size_t workers = in_range("threads", threads, 1, 1024);
        py::array_t<float> scores = empty<float>({x.size(0), count});
        float* const out = scores.mutable_data();
        std::vector<QueryStats> stats(x.size(0));
        run_limited(timeout_s, [&](CallLimits& limits) {
            search_.score(x.data(), x.size(0), at.data(), count, many.data(), workers, limits, out, stats.data());
        });
        return py::make_tuple(scores, stats_array(stats));
    }

    py::tuple range_search(const py::object& queries, float threshold, float margin, bool verify, py::ssize_t nprobe,
                           float lift, float temperature, const py::object& allow, py::ssize_t threads, double timeout_s) const {
        const Array<float> x = checked_queries(queries);
        const Allow allowed(allow.is_none() ? arrays_.alive() : allow, "allow", search_.index());
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
    static py::array_t<T> array_of(const std::vector<T>& values) {
        return py::array_t<T>(static_cast<py::ssize_t>(values.size()), values.data());
    }

    Array<float> checked_queries(const py::object& queries) const {
        const std::string d = number(search_.index().d);
        return Array<float>(queries, "queries", "(q, " + d + ") float32", {kAny, arrays_.d()});
    }

    ProbeRule probe_rule(py::ssize_t nprobe, float lift, float temperature) const {
        if (!(lift >= 0)) refuse("lift", "at least 0", std::to_string(lift));
        if (!(temperature > 0)) refuse("temperature", "positive", std::to_string(temperature));
        return {in_range("nprobe", nprobe, 1, arrays_.nlist()), lift, temperature};
    }

    void require_dense(const char* name, const std::string& got) const {
        if (!search_.dense().available()) refuse(name, "0 without dense rows", got);
    }

    IndexArrays arrays_;  // keeps alive what search_ points at
    IvfSearch search_;
};

}  // namespace

PySearch::PySearch(const IvfSearch& search, const Array<float>& queries, const Allow& allowed, const SearchOptions& options,
                   double timeout_s)
    : timeout_s(timeout_s),
      queries_(queries),
      allowed_(allowed),
      scores_(empty<float>({queries.size(0), options.k})),
      positions_(empty<std::int64_t>({queries.size(0), options.k})),
      stats_(queries.size(0)) {
    if (!(timeout_s > 0)) refuse("timeout_s", "positive", std::to_string(timeout_s));
    call.index = &search;
    call.queries = queries_.data();
    call.q = queries_.size(0);
    call.options = options;
    call.scores = scores_.mutable_data();
    call.positions = positions_.mutable_data();
    call.stats = stats_.data();
}

void PySearch::begin() {
    if (state_ != State::prepared) throw py::value_error("search must be new, but it was begun before");
    state_ = State::running;
}

py::tuple PySearch::result() const {
    if (state_ != State::ended) throw py::value_error("search must have ended, but it has not");
    if (call.failure) {
        try {
            std::rethrow_exception(call.failure);
        } catch (const TimedOut&) {
            raise_timed_out();
        }
    }
    return py::make_tuple(scores_, positions_, stats_array(stats_));
}

void bind_engine(py::module_& module) {
    using py::arg;
    py::class_<PySearch>(module, "PreparedSearch").def("result", &PySearch::result);
    py::class_<Engine> engine(module, "Engine");
    const auto takes_search_options = [&](const char* name, auto method, auto... extra) {
        engine.def(name, method, arg("queries"), py::kw_only(), arg("k"), arg("nprobe"), arg("lift") = 0.0f,
                   arg("temperature") = 1.0f, arg("refine"), arg("misses") = 0.0f, arg("error") = 0.0f,
                   arg("allow") = py::none(), arg("threads"), arg("timeout_s") = kInfinity,
                   extra...);
    };
    takes_search_options("search", &Engine::search);
    takes_search_options("prepare_search", &Engine::prepare_search, py::keep_alive<0, 1>());
    engine
        .def(py::init([](std::string metric, bool residual, py::object list_offsets, py::object router, py::object coarse,
                         py::object mean, py::object rotation, py::object codewords, py::object packed, int dense_fd,
                         std::int64_t dense_offset, std::string dense_dtype, py::object dense_map, std::string io,
                         py::object query_adapter, py::object verify_adapter, py::object added, py::object alive,
                         py::object spread, py::object whole) {
                 return std::make_unique<Engine>(
                     IndexArguments{metric, residual, list_offsets, router, coarse, mean, rotation, codewords, packed,
                                    dense_fd, dense_offset, dense_dtype, dense_map, io, query_adapter, verify_adapter,
                                    added, alive, spread, whole});
             }),
             py::kw_only(), arg("metric"), arg("residual"), arg("list_offsets"), arg("router"), arg("coarse"),
             arg("mean"), arg("rotation"), arg("codewords"), arg("packed"), arg("dense_fd") = -1,
             arg("dense_offset") = 0, arg("dense_dtype") = "none", arg("dense_map") = py::none(), arg("io") = "auto",
             arg("query_adapter") = py::none(), arg("verify_adapter") = py::none(),
             arg("added") = py::tuple(), arg("alive") = py::none(), arg("spread") = py::tuple(),
             arg("whole") = py::none())
        .def("plan", &Engine::plan, arg("queries"), py::kw_only(), arg("nprobe"), arg("lift") = 0.0f,
             arg("temperature") = 1.0f, arg("rescore"), arg("allow") = py::none(), arg("timeout_s") = kInfinity)
        .def("candidates", &Engine::candidates, py::kw_only(), arg("offsets"), arg("lists"), arg("terms"), arg("tables"),
             arg("scales"), arg("luts"), arg("count"), arg("allow") = py::none(), arg("threads"), arg("timeout_s") = kInfinity)
        .def("score", &Engine::score, arg("queries"), arg("positions"), arg("reads"), py::kw_only(), arg("threads"),
             arg("timeout_s") = kInfinity)
        .def("range_search", &Engine::range_search, arg("queries"), py::kw_only(), arg("threshold"), arg("margin"),
             arg("verify"), arg("nprobe"), arg("lift") = 0.0f, arg("temperature") = 1.0f, arg("allow") = py::none(), arg("threads"),
             arg("timeout_s") = kInfinity);
}

}  // namespace vqdistill
