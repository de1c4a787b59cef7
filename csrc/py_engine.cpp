// Engine of the Python module: checks, allocates outputs, releases the GIL, searches.
#include <algorithm>
#include <cstring>
#include <limits>
#include <optional>
#include <utility>

#include "ivf_search.h"
#include "py_arrays.h"

namespace vqdistill {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// An index is checked before it comes here; this only keeps a mistake in Python from reading foreign memory.
void require_offsets(const Array<std::int64_t>& offsets) {
    const std::int64_t* begin = offsets.data();
    const std::int64_t* end = begin + offsets.size(0);
    if (*begin != 0 || !std::is_sorted(begin, end)) refuse("list_offsets", "(nlist + 1,) rising from 0", "others");
}

// Rows that a search may find: bits by block of positions, and the number of such rows in each list.
class Allow {
public:
    Allow(const py::object& value, const std::string& name, const IndexView& index)
        : pair_(value.is_none() ? py::tuple(0) : py::reinterpret_borrow<py::tuple>(value)) {
        if (value.is_none()) return;
        if (!py::isinstance<py::tuple>(value) || pair_.size() != 2) refuse(name, "(blocks, per_list)", type_name(value));
        const RowSet& last = index.sets.back();
        view_.blocks = Array<std::uint32_t>(pair_[0], (name + " blocks").c_str(), "(nblocks,) uint32",
                                            {static_cast<py::ssize_t>(last.first_block + block_count(index.rows_in(last)))})
                           .data();
        view_.per_list = Array<std::int64_t>(pair_[1], (name + " per_list").c_str(), "(nlist,) int64",
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

// A further set of rows: (list_offsets, packed, dense_fd, dense_map).
struct AddedSet {
    AddedSet(const py::handle& value, py::ssize_t nlist, py::ssize_t pairs) : parts(checked(value)) {
        offsets.emplace(parts[0], "added list_offsets", "(nlist + 1,) int64", Shape{nlist + 1});
        packed.emplace(parts[1], "added packed", "(nblocks, m / 2, 32) uint8", Shape{kAny, pairs, kBlockRows});
        if (!py::isinstance<py::int_>(parts[2])) throw py::type_error("added dense_fd must be an integer, got another");
        map.emplace(parts[3], "added dense_map");
        require_offsets(*offsets);
        const auto n = static_cast<std::size_t>(offsets->data()[nlist]);
        if (packed->size(0) != block_count(n))
            refuse("added packed", "the blocks of " + number(n) + " rows", describe(packed->array()));
    }
    static py::tuple checked(const py::handle& value) {
        const std::string wanted = "(list_offsets, packed, dense_fd, dense_map)";
        if (!py::isinstance<py::tuple>(value) || py::len(value) != 4) refuse("added", wanted, type_name(value));
        return py::reinterpret_borrow<py::tuple>(value);
    }

    py::tuple parts;  // keeps alive what the rest points at
    std::optional<Array<std::int64_t>> offsets;
    std::optional<Array<std::uint8_t>> packed;
    std::optional<Bytes> map;
};

// A file of dense rows among several whose rows the lists hold: (list_offsets, dense_fd, dense_map).
struct SpreadFile {
    SpreadFile(const py::handle& value, py::ssize_t nlist) : parts(checked(value)) {
        offsets.emplace(parts[0], "spread list_offsets", "(nlist + 1,) int64", Shape{nlist + 1});
        if (!py::isinstance<py::int_>(parts[1])) throw py::type_error("spread dense_fd must be an integer, got another");
        map.emplace(parts[2], "spread dense_map");
        require_offsets(*offsets);
    }
    static py::tuple checked(const py::handle& value) {
        const std::string wanted = "(list_offsets, dense_fd, dense_map)";
        if (!py::isinstance<py::tuple>(value) || py::len(value) != 3) refuse("spread", wanted, type_name(value));
        return py::reinterpret_borrow<py::tuple>(value);
    }

    py::tuple parts;  // keeps alive what the rest points at
    std::optional<Array<std::int64_t>> offsets;
    std::optional<Bytes> map;
};

// Fits a map to the rows that must be in it.
void require_mapped(const char* name, const Bytes& map, std::uint64_t end) {
    if (map.data() != nullptr && end > map.size())
        refuse(name, "the whole file, of " + std::to_string(end) + " bytes at least", std::to_string(map.size()));
}

constexpr std::size_t kStats = sizeof(QueryStats) / sizeof(std::int64_t);
static_assert(sizeof(QueryStats) == kStats * sizeof(std::int64_t), "stats are seen as rows of int64");

class Engine {
public:
    Engine(const std::string& metric, bool residual, const py::object& list_offsets, const py::object& router,
           const py::object& coarse, const py::object& mean, const py::object& rotation, const py::object& codewords,
           const py::object& packed, int dense_fd, std::int64_t dense_offset, const std::string& dense_dtype,
           const py::object& dense_map, const std::string& io, const py::object& query_adapter,
           const py::object& verify_adapter, const py::object& added, const py::object& alive, const py::object& spread,
           const py::object& whole)
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
          added_(added_sets(added)),
          spread_(spread_files(spread)),
          alive_(alive),
          whole_(whole),
          search_(view(parse_metric(metric), residual),
                  spread_.empty() ? tier(make_tier(dense_fd, map_, dense_offset, dense_dtype, mean_.size(0), io))
                                  : spread_tier(dense_offset, dense_dtype, io)) {
        for (const SpreadFile& file : spread_)
            require_mapped("spread dense_map", *file.map, search_.dense().end_of(static_cast<std::size_t>(rows_in(file))));
        if (!spread_.empty()) return;
        for (std::size_t i = 0; i < search_.index().sets.size(); ++i) {
            const std::size_t n = search_.index().rows_in(search_.index().sets[i]);
            require_mapped("dense_map", i == 0 ? map_ : *added_[i - 1].map, search_.dense().end_of(n));
        }
    }

    py::tuple search(const py::object& queries, py::ssize_t k, py::ssize_t nprobe, float lift, float temperature, py::ssize_t refine,
                     float misses, float error, float deviations, const py::object& allow, py::ssize_t threads,
                     double timeout_s) const {
        const Array<float> x = checked_queries(queries);
        const Allow allowed(allow.is_none() ? alive_ : allow, "allow", search_.index());
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

    py::tuple candidates(const py::object& queries, py::ssize_t count, py::ssize_t nprobe, float lift, float temperature,
                         float deviations, bool rescore, const py::object& allow, py::ssize_t threads,
                         double timeout_s) const {
        const Array<float> x = checked_queries(queries);
        const Allow allowed(allow.is_none() ? alive_ : allow, "allow", search_.index());
        const CandidateOptions options{in_range("count", count, 1, PY_SSIZE_T_MAX), probe_rule(nprobe, lift, temperature),
                                       deviations, allowed.view(), in_range("threads", threads, 1, 1024)};
        py::array_t<float> scores = empty<float>({x.size(0), options.count});
        py::array_t<float> rescored = empty<float>({x.size(0), rescore ? options.count : 0});
        py::array_t<std::int64_t> positions = empty<std::int64_t>({x.size(0), options.count});
        py::array_t<std::int32_t> lists = empty<std::int32_t>({x.size(0), options.count});
        const CandidatesOut out{scores.mutable_data(), rescore ? rescored.mutable_data() : nullptr,
                                positions.mutable_data(), lists.mutable_data()};
        std::vector<QueryStats> stats(x.size(0));
        run_limited(timeout_s, [&](CallLimits& limits) {
            search_.candidates(x.data(), x.size(0), options, limits, out, stats.data());
        });
        return py::make_tuple(scores, rescored, positions, lists, stats_array(stats));
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
        const Allow allowed(allow.is_none() ? alive_ : allow, "allow", search_.index());
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

    std::vector<AddedSet> added_sets(const py::object& added) const {
        std::vector<AddedSet> sets;
        for (const py::handle set : added) sets.emplace_back(set, router_.size(0), codewords_.size(0) / 2);
        return sets;
    }

    std::vector<SpreadFile> spread_files(const py::object& spread) const {
        std::vector<SpreadFile> files;
        for (const py::handle file : spread) files.emplace_back(file, router_.size(0));
        std::vector<std::int64_t> sums(files.empty() ? 0 : offsets_.size(0));
        for (const SpreadFile& file : files)
            for (std::size_t l = 0; l < sums.size(); ++l) sums[l] += file.offsets->data()[l];
        if (!std::equal(sums.begin(), sums.end(), offsets_.data()) || (!files.empty() && !added_.empty()))
            refuse("spread", "files whose list_offsets add up to those of the only rows", "others");
        return files;
    }

    std::int64_t rows_in(const SpreadFile& file) const { return file.offsets->data()[router_.size(0)]; }

    DiskTier spread_tier(std::int64_t offset, const std::string& dtype, const std::string& io) const {
        std::optional<DiskTier> tier;
        std::int64_t first = 0;
        std::vector<const std::int64_t*> offsets;
        for (const SpreadFile& file : spread_) {
            const int fd = file.parts[1].cast<int>();
            if (!tier)
                tier = make_tier(fd, *file.map, offset, dtype, mean_.size(0), io);
            else if (tier->available() && fd < 0)
                refuse("spread dense_fd", "an open file descriptor", std::to_string(fd));
            else
                tier->add_file(fd, file.map->data(), file.map->size(), first);
            first += rows_in(file);
            offsets.push_back(file.offsets->data());
        }
        tier->spread(std::move(offsets), static_cast<std::size_t>(router_.size(0)));
        return *tier;
    }

    DiskTier tier(DiskTier tier) const {
        std::int64_t first = 0;
        const std::int64_t* offsets = offsets_.data();
        for (const AddedSet& set : added_) {
            first += offsets[router_.size(0)];
            offsets = set.offsets->data();
            const int fd = set.parts[2].cast<int>();
            if (tier.available() && fd < 0) refuse("added dense_fd", "an open file descriptor", std::to_string(fd));
            if (tier.available()) tier.add_file(fd, set.map->data(), set.map->size(), first);
        }
        return tier;
    }

    // The sets of rows, one behind the other.
    std::vector<RowSet> row_sets() const {
        const std::size_t nlist = static_cast<std::size_t>(router_.size(0));
        std::vector<RowSet> sets{{offsets_.data(), packed_.data()}};
        for (const AddedSet& set : added_) {
            const auto rows = static_cast<std::size_t>(sets.back().list_offsets[nlist]);
            sets.push_back({set.offsets->data(), set.packed->data(), sets.back().first + rows,
                            sets.back().first_block + block_count(rows)});
        }
        return sets;
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
                       row_sets(),
                       {},
                       whole_of(static_cast<std::size_t>(router_.size(0))),
                       router_.view(),
                       coarse_.view(),
                       mean_.data(),
                       additive() ? nullptr : rotation_.data(),
                       codewords_.view(),
                       query_adapter_.view(),
                       verify_adapter_.view()};
        const std::size_t n = view.rows_in(view.sets[0]);
        if (packed_.size(0) != block_count(n))
            refuse("packed", "the blocks of " + number(n) + " rows", describe(packed_.array()));
        view.alive = Allow(alive_, "alive", view).view();
        return view;
    }

    const std::int64_t* whole_of(std::size_t nlist) const {
        if (whole_.is_none()) return nullptr;
        return Array<std::int64_t>(whole_, "whole", "(nlist,) int64", {static_cast<py::ssize_t>(nlist)}).data();
    }

    bool additive() const { return rotation_.size(0) == 0; }

    void require_rotation(Metric metric) const {
        if (additive() && (codewords_.size(2) != rows(mean_) || metric == Metric::l2))
            refuse("additive codewords", "(m, 16, d) for metric ip", describe(codewords_.array()));
        if (!additive() && rows(rotation_) != codewords_.size(0) * codewords_.size(2))
            refuse("rotation", "(m * dsub, d), or (0, d) for additive codes", describe(rotation_.array()));
        if (!additive() && !codewords_.is_f32()) refuse("codewords of product codes", "float32", "others");
        if (metric == Metric::l2 && !router_.is_f32()) refuse("router for metric l2", "float32", "others");
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
    std::vector<AddedSet> added_;
    std::vector<SpreadFile> spread_;
    py::object alive_, whole_;
    IvfSearch search_;
};

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

void bind_engine(py::module_& module) {
    using py::arg;
    module.def("candidate_count", [](py::ssize_t k, py::ssize_t refine, py::ssize_t n) {
        return candidate_count(in_range("k", k, 1, PY_SSIZE_T_MAX), in_range("refine", refine, 0, PY_SSIZE_T_MAX),
                               in_range("n", n, 1, PY_SSIZE_T_MAX));
    }, arg("k"), arg("refine"), arg("n"));
    module.def("merge_candidates", merge, arg("scores"), arg("ids"));
    module.def("choose_results", choose, arg("code"), arg("exact"), arg("ids"), py::kw_only(), arg("k"),
               arg("misses") = 0.0f, arg("error") = 0.0f);
    py::class_<Engine>(module, "Engine")
        .def(py::init<const std::string&, bool, const py::object&, const py::object&, const py::object&,
                      const py::object&, const py::object&, const py::object&, const py::object&, int, std::int64_t,
                      const std::string&, const py::object&, const std::string&, const py::object&,
                      const py::object&, const py::object&, const py::object&, const py::object&, const py::object&>(),
             py::kw_only(), arg("metric"), arg("residual"), arg("list_offsets"), arg("router"), arg("coarse"),
             arg("mean"), arg("rotation"), arg("codewords"), arg("packed"), arg("dense_fd") = -1,
             arg("dense_offset") = 0, arg("dense_dtype") = "none", arg("dense_map") = py::none(), arg("io") = "auto",
             arg("query_adapter") = py::none(), arg("verify_adapter") = py::none(),
             arg("added") = py::tuple(), arg("alive") = py::none(), arg("spread") = py::tuple(),
             arg("whole") = py::none())
        .def("search", &Engine::search, arg("queries"), py::kw_only(), arg("k"), arg("nprobe"), arg("lift") = 0.0f, arg("temperature") = 1.0f,
             arg("refine"), arg("misses") = 0.0f, arg("error") = 0.0f, arg("deviations") = kInfinity,
             arg("allow") = py::none(), arg("threads"), arg("timeout_s") = kInfinity)
        .def("candidates", &Engine::candidates, arg("queries"), py::kw_only(), arg("count"), arg("nprobe"), arg("lift") = 0.0f,
             arg("temperature") = 1.0f, arg("deviations") = kInfinity, arg("rescore"), arg("allow") = py::none(),
             arg("threads"), arg("timeout_s") = kInfinity)
        .def("score", &Engine::score, arg("queries"), arg("positions"), arg("reads"), py::kw_only(), arg("threads"),
             arg("timeout_s") = kInfinity)
        .def("range_search", &Engine::range_search, arg("queries"), py::kw_only(), arg("threshold"), arg("margin"),
             arg("verify"), arg("nprobe"), arg("lift") = 0.0f, arg("temperature") = 1.0f, arg("allow") = py::none(), arg("threads"),
             arg("timeout_s") = kInfinity);
}

}  // namespace vqdistill
