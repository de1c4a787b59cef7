#include "py_index.h"

#include <algorithm>
#include <utility>

namespace vqdistill {
namespace {

// An index is checked before it comes here; this only keeps a mistake in Python from reading foreign memory.
void require_offsets(const Array<std::int64_t>& offsets) {
    const std::int64_t* begin = offsets.data();
    const std::int64_t* end = begin + offsets.size(0);
    if (*begin != 0 || !std::is_sorted(begin, end)) refuse("list_offsets", "(nlist + 1,) rising from 0", "others");
}

py::tuple tuple_of(const py::handle& value, const char* name, const char* wanted, std::size_t size) {
    if (!py::isinstance<py::tuple>(value) || py::len(value) != size) refuse(name, wanted, type_name(value));
    return py::reinterpret_borrow<py::tuple>(value);
}

void require_packed(const char* name, const PackedArray& packed, std::size_t n, std::size_t m) {
    if (packed.m() != m || packed.nblocks() != block_count(n))
        refuse(name, "the blocks of " + number(n) + " rows of " + number(m) + " codes", describe(packed.array()));
    scan_of(active_kernels(), packed, name);
}

// Fits a map to the rows that must be in it.
void require_whole(const char* name, const Bytes& map, std::uint64_t end) {
    if (map.data() != nullptr && end > map.size())
        refuse(name, "the whole file, of " + std::to_string(end) + " bytes at least", std::to_string(map.size()));
}

}  // namespace

Allow::Allow(const py::object& value, const std::string& name, const IndexView& index)
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

AdapterArrays::AdapterArrays(const py::object& value, const std::string& name, py::ssize_t d) {
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

AddedSet::AddedSet(const py::handle& value, py::ssize_t nlist, std::size_t m)
    : parts(tuple_of(value, "added", "(list_offsets, packed, dense_fd, dense_map)", 4)) {
    offsets.emplace(parts[0], "added list_offsets", "(nlist + 1,) int64", Shape{nlist + 1});
    packed.emplace(parts[1], "added packed");
    if (!py::isinstance<py::int_>(parts[2])) throw py::type_error("added dense_fd must be an integer, got another");
    map.emplace(parts[3], "added dense_map");
    require_offsets(*offsets);
    require_packed("added packed", *packed, static_cast<std::size_t>(offsets->data()[nlist]), m);
}

SpreadFile::SpreadFile(const py::handle& value, py::ssize_t nlist)
    : parts(tuple_of(value, "spread", "(list_offsets, dense_fd, dense_map)", 3)) {
    offsets.emplace(parts[0], "spread list_offsets", "(nlist + 1,) int64", Shape{nlist + 1});
    if (!py::isinstance<py::int_>(parts[1])) throw py::type_error("spread dense_fd must be an integer, got another");
    map.emplace(parts[2], "spread dense_map");
    require_offsets(*offsets);
}

IndexArrays::IndexArrays(const IndexArguments& from)
    : mean_(from.mean, "mean", "(d,) float32", {kAny}),
      codewords_(from.codewords, "codewords", "(m, 16, dsub) float32 or float16", {kAny, kSub, kAny}),
      offsets_(from.list_offsets, "list_offsets", "(nlist + 1,) int64", {kAny}),
      router_(from.router, "router", "(nlist, d) float32 or float16", {offsets_.array().shape(0) - 1, d()}),
      coarse_(from.coarse, "coarse", "(nlist, d) float32 or float16", {nlist(), d()}),
      rotation_(from.rotation, "rotation", "(m * dsub, d), or (0, d) for additive codes, float32", {kAny, d()}),
      packed_(from.packed, "packed"),
      map_(from.dense_map, "dense_map"),
      query_adapter_(from.query_adapter, "query_adapter", d()),
      verify_adapter_(from.verify_adapter, "verify_adapter", d()),
      added_(added_sets(from.added)),
      spread_(spread_files(from.spread)),
      alive_(from.alive),
      whole_(from.whole) {}

IndexView IndexArrays::view(const std::string& metric_name, bool residual) const {
    const Metric metric = parse_metric(metric_name);
    if (offsets_.size(0) < 2) refuse("list_offsets", "(nlist + 1,) with nlist >= 1", describe(offsets_.array()));
    if (mean_.size(0) == 0 || codewords_.size(2) == 0) refuse("d and dsub", "positive", "0");
    if (residual && metric == Metric::l2) refuse("residual", "False for metric l2", "True");
    require_offsets(offsets_);
    require_rotation(metric);
    IndexView view{metric,
                   residual,
                   static_cast<std::size_t>(nlist()),
                   mean_.size(0),
                   require_m(static_cast<std::size_t>(codewords_.size(0))),
                   static_cast<std::size_t>(codewords_.size(2)),
                   packed_.quads(),
                   row_sets(),
                   {},
                   whole(),
                   router_.view(),
                   coarse_.view(),
                   mean_.data(),
                   additive() ? nullptr : rotation_.data(),
                   codewords_.view(),
                   query_adapter_.view(),
                   verify_adapter_.view()};
    require_packed("packed", packed_, view.rows_in(view.sets[0]), view.m);
    view.alive = Allow(alive_, "alive", view).view();
    return view;
}

const std::int64_t* IndexArrays::whole() const {
    if (whole_.is_none()) return nullptr;
    return Array<std::int64_t>(whole_, "whole", "(nlist,) int64", {nlist()}).data();
}

void IndexArrays::require_rotation(Metric metric) const {
    if (additive() && (codewords_.size(2) != d() || metric == Metric::l2))
        refuse("additive codewords", "(m, 16, d) for metric ip", describe(codewords_.array()));
    if (!additive() && static_cast<py::ssize_t>(rotation_.size(0)) != codewords_.size(0) * codewords_.size(2))
        refuse("rotation", "(m * dsub, d), or (0, d) for additive codes", describe(rotation_.array()));
    if (!additive() && !codewords_.is_f32()) refuse("codewords of product codes", "float32", "others");
    if (metric == Metric::l2 && !router_.is_f32()) refuse("router for metric l2", "float32", "others");
}

DiskTier IndexArrays::tier(const IndexArguments& from) const {
    if (!spread_.empty()) return tier_of_files(from);
    return tier_of_sets(make_tier(from.dense_fd, map_, from.dense_offset, from.dense_dtype, mean_.size(0), from.io));
}

DiskTier IndexArrays::tier_of_sets(DiskTier tier) const {
    std::int64_t first = 0;
    const std::int64_t* offsets = offsets_.data();
    for (const AddedSet& set : added_) {
        first += offsets[nlist()];
        offsets = set.offsets->data();
        const int fd = set.parts[2].cast<int>();
        if (tier.available() && fd < 0) refuse("added dense_fd", "an open file descriptor", std::to_string(fd));
        if (tier.available()) tier.add_file(fd, set.map->data(), set.map->size(), first);
    }
    return tier;
}

DiskTier IndexArrays::tier_of_files(const IndexArguments& from) const {
    std::optional<DiskTier> tier;
    std::int64_t first = 0;
    std::vector<const std::int64_t*> offsets;
    for (const SpreadFile& file : spread_) {
        const int fd = file.parts[1].cast<int>();
        if (!tier)
            tier = make_tier(fd, *file.map, from.dense_offset, from.dense_dtype, mean_.size(0), from.io);
        else if (tier->available() && fd < 0)
            refuse("spread dense_fd", "an open file descriptor", std::to_string(fd));
        else
            tier->add_file(fd, file.map->data(), file.map->size(), first);
        first += rows_in(file);
        offsets.push_back(file.offsets->data());
    }
    tier->spread(std::move(offsets), static_cast<std::size_t>(nlist()));
    return *tier;
}

void IndexArrays::require_mapped(const IndexView& index, const DiskTier& tier) const {
    for (const SpreadFile& file : spread_)
        require_whole("spread dense_map", *file.map, tier.end_of(static_cast<std::size_t>(rows_in(file))));
    if (!spread_.empty()) return;
    for (std::size_t i = 0; i < index.sets.size(); ++i)
        require_whole("dense_map", i == 0 ? map_ : *added_[i - 1].map, tier.end_of(index.rows_in(index.sets[i])));
}

std::vector<AddedSet> IndexArrays::added_sets(const py::object& added) const {
    std::vector<AddedSet> sets;
    for (const py::handle set : added) sets.emplace_back(set, nlist(), static_cast<std::size_t>(codewords_.size(0)));
    return sets;
}

std::vector<SpreadFile> IndexArrays::spread_files(const py::object& spread) const {
    std::vector<SpreadFile> files;
    for (const py::handle file : spread) files.emplace_back(file, nlist());
    std::vector<std::int64_t> sums(files.empty() ? 0 : offsets_.size(0));
    for (const SpreadFile& file : files)
        for (std::size_t l = 0; l < sums.size(); ++l) sums[l] += file.offsets->data()[l];
    if (!std::equal(sums.begin(), sums.end(), offsets_.data()) || (!files.empty() && !added_.empty()))
        refuse("spread", "files whose list_offsets add up to those of the only rows", "others");
    return files;
}

// The sets of rows, one behind the other.
std::vector<RowSet> IndexArrays::row_sets() const {
    std::vector<RowSet> sets{{offsets_.data(), packed_.data()}};
    for (const AddedSet& set : added_) {
        const auto rows = static_cast<std::size_t>(sets.back().list_offsets[nlist()]);
        if (set.packed->quads() != packed_.quads())
            refuse("added packed", "in the order of packed", describe(set.packed->array()));
        sets.push_back({set.offsets->data(), set.packed->data(), sets.back().first + rows,
                        sets.back().first_block + block_count(rows)});
    }
    return sets;
}

}  // namespace vqdistill
