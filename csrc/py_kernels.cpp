// Codes of the Python module: packing, the search for additive codes, ranks of new rows, and single kernels for the tests.
#include <algorithm>
#include <limits>

#include "additive.h"
#include "pack.h"
#include "py_arrays.h"
#include "ranking.h"

namespace vqdistill {
namespace {

py::array_t<std::uint8_t> py_pack_codes(const py::object& codes) {
    const Array<std::uint8_t> in(codes, "codes", "(n, m) uint8", {kAny, kAny});
    const std::size_t n = in.size(0), m = require_m(in.size(1));
    py::array_t<std::uint8_t> packed = aligned_bytes({block_count(n), m / 2, kBlockRows});
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
    const PackedArray in(packed, "packed");
    const std::size_t rows = in_range("n", n, 0, static_cast<py::ssize_t>(in.nblocks() * kBlockRows));
    const std::size_t m = require_m(in.m());
    py::array_t<std::uint8_t> codes = empty<std::uint8_t>({rows, m});
    std::uint8_t* const out = codes.mutable_data();
    const py::gil_scoped_release release;
    unpack_codes(in.data(), in.quads(), rows, m, out);
    return codes;
}

py::array py_scan_order(py::array packed) {
    const PackedArray in(packed, "packed");
    const std::size_t m = require_m(in.m());
    if (in.quads() || m % (2 * kQuad) != 0 || active_kernels().scan_quads == nullptr) return packed;
    auto* const bytes = static_cast<std::uint8_t*>(packed.mutable_data());
    {
        const py::gil_scoped_release release;
        to_quads(bytes, in.nblocks(), m);
    }
    return packed.reshape({in.nblocks(), m / (2 * kQuad), kBlockRows, kQuad});
}

// The functions below expose single slots of the table to the tests.

py::list py_scan_pq4(const std::string& level, const py::object& packed, const py::object& tables,
                     const std::vector<int>& thresholds, const py::object& allow, py::ssize_t places) {
    const PackedArray blocks(packed, "packed");
    const std::size_t m = require_m(blocks.m()), nq = in_range("thresholds", thresholds.size(), 1, kScanQueries);
    const Array<std::uint8_t> given(tables, "tables", "(nq, m, 16) uint8",
                                    {static_cast<py::ssize_t>(nq), static_cast<py::ssize_t>(m), kSub});
    std::vector<std::uint8_t> lut(given.data(), given.data() + nq * m * kSub);
    if (blocks.quads()) tables_to_quads(lut.data(), nq * m);
    const bool all_rows = allow.is_none();
    const Array<std::uint32_t> mask(all_rows ? py::object(py::array_t<std::uint32_t>(0)) : allow, "allow",
                                    "(nblocks,) uint32", {all_rows ? 0 : blocks.array().shape(0)});
    const ScanCodes codes{blocks.data(), blocks.nblocks(), m, all_rows ? nullptr : mask.data()};
    std::vector<std::vector<ScanHit>> hits(nq, std::vector<ScanHit>(in_range("places", places, 32, PY_SSIZE_T_MAX)));
    std::vector<ScanQuery> queries;
    for (std::size_t i = 0; i < nq; ++i) {
        in_range("thresholds", thresholds[i], 0, kMaxSum + 1);
        queries.push_back({lut.data() + i * m * kSub, thresholds[i], hits[i].data(), hits[i].size(), 0});
    }
    const std::size_t scanned = scan_of(find_kernels(level), blocks, "packed")(codes, queries.data(), nq);
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

// Offsets (cells + 1,) that rise from 0 to `end`.
void require_rising(const char* name, const Array<std::int64_t>& offsets, std::size_t end) {
    const std::int64_t* const begin = offsets.data();
    const std::size_t count = offsets.size(0);
    if (count == 0 || begin[0] != 0 || begin[count - 1] != static_cast<std::int64_t>(end) ||
        !std::is_sorted(begin, begin + count))
        refuse(name, "rising from 0 to " + number(end), "others");
}

template <class Number>
void require_below(const char* name, const Array<Number>& numbers, std::size_t end) {
    const Number* const values = numbers.data();
    if (std::any_of(values, values + numbers.size(0),
                    [end](Number value) { return value < 0 || static_cast<std::size_t>(value) >= end; }))
        refuse(name, "numbers below " + number(end), "others");
}

py::tuple py_best_ranks(const std::string& level, const py::object& x, const py::object& order,
                        const py::object& starts, const py::object& offsets, const py::object& members,
                        const py::object& queries, const py::object& scores, py::ssize_t most, py::ssize_t threads) {
    const Array<float> rows(x, "x", "(n, d) float32", {kAny, kAny});
    const Array<std::int64_t> by_cell(order, "order", "(n,) int64", {rows.array().shape(0)});
    const Array<std::int64_t> of_members(offsets, "offsets", "(cells + 1,) int64", {kAny});
    const Array<std::int64_t> of_rows(starts, "starts", "(cells + 1,) int64", {of_members.array().shape(0)});
    const Array<std::int32_t> tried(members, "members", "(nnz,) int32", {kAny});
    const Array<float> query(queries, "queries", "(q, d) float32", {kAny, rows.array().shape(1)});
    const Array<float> ranked(scores, "scores", "(q, r) float32", {query.array().shape(0), kAny});
    require_rising("starts", of_rows, rows.size(0));
    require_rising("offsets", of_members, tried.size(0));
    require_below("order", by_cell, rows.size(0));
    require_below("members", tried, query.size(0));
    const std::size_t depth = in_range("r", ranked.array().shape(1), 1, PY_SSIZE_T_MAX);
    const std::size_t kept = in_range("most", most, 1, 1 << 20), workers = in_range("threads", threads, 1, 1024);
    py::array_t<std::int32_t> lists = empty<std::int32_t>({rows.size(0), kept});
    py::array_t<std::int32_t> ranks = empty<std::int32_t>({rows.size(0), kept});
    std::int32_t* const found = lists.mutable_data();
    std::int32_t* const places = ranks.mutable_data();
    const Kernels& kernels = find_kernels(level);
    {
        const py::gil_scoped_release release;
        std::fill_n(found, rows.size(0) * kept, -1);
        std::fill_n(places, rows.size(0) * kept, std::numeric_limits<std::int32_t>::max());
        best_ranks(kernels,
                   {query.data(), query.size(1), ranked.data(), depth, of_members.data(), tried.data(),
                    of_members.size(0) - 1},
                   {rows.data(), by_cell.data(), of_rows.data()}, kept, workers, found, places);
    }
    return py::make_tuple(lists, ranks);
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

py::array_t<float> py_gemm_nt_i8(const std::string& level, const py::object& a, const py::object& b) {
    const std::string wanted = "(rows, 4 + d) uint8, a scale before each row";
    const Array<std::uint8_t> x(a, "a", wanted, {kAny, kAny});
    const Array<std::uint8_t> y(b, "b", wanted, {kAny, x.array().shape(1)});
    const std::size_t d = in_range("d", x.array().shape(1) - 4, 1, kLongestBytes);
    py::array_t<float> c = empty<float>({x.size(0), y.size(0)});
    find_kernels(level).gemm_nt_i8(x.data(), x.size(0), y.data(), y.size(0), d, c.mutable_data());
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

}  // namespace

void bind_kernels(py::module_& module) {
    using py::arg;
    module.def("pack_codes", py_pack_codes, arg("codes"));
    module.def("unpack_codes", py_unpack_codes, arg("packed"), arg("n"));
    module.def("scan_order", py_scan_order, arg("packed"));
    module.def("scan_pq4", py_scan_pq4, arg("level"), arg("packed"), arg("tables"), arg("thresholds"), py::kw_only(),
               arg("allow") = py::none(), arg("places"));
    module.def("quantize_tables", py_quantize_tables, arg("level"), arg("lut"));
    module.def("pq_tables", py_pq_tables, arg("level"), arg("rotated"), arg("words_t"), arg("init"));
    module.def("encode_additive", py_encode_additive, arg("level"), arg("y"), arg("x"), arg("eta"), arg("lists"),
               arg("weights"), arg("queries"), arg("codewords"), arg("codes") = py::none(), py::kw_only(),
               arg("sweeps"), arg("rounds"), arg("threads"));
    module.def("best_ranks", py_best_ranks, arg("level"), arg("x"), arg("order"), arg("starts"), arg("offsets"),
               arg("members"), arg("queries"), arg("scores"), py::kw_only(), arg("most"), arg("threads"));
    module.def("gemm_nt", py_gemm_nt, arg("level"), arg("a"), arg("b"));
    module.def("gemm_nt_f16", py_gemm_nt_f16, arg("level"), arg("a"), arg("b"));
    module.def("gemm_nt_i8", py_gemm_nt_i8, arg("level"), arg("a"), arg("b"));
    module.def("dense_scores", py_dense_scores, arg("level"), arg("metric"), arg("dtype"), arg("query"), arg("rows"));
}

}  // namespace vqdistill
