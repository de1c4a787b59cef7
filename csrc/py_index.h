// The arrays of an index as Python hands them over: checked, and kept alive for as long as they are searched.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "py_arrays.h"

namespace vqdistill {

// What an index is made of, by the names that Python has for it.
struct IndexArguments {
    std::string metric;
    bool residual;
    py::object list_offsets, router, coarse, mean, rotation, codewords, packed;
    int dense_fd;
    std::int64_t dense_offset;
    std::string dense_dtype;
    py::object dense_map;
    std::string io;
    py::object query_adapter, verify_adapter, added, alive, spread, whole;
};

// Rows that a search may find: bits by block of positions, and the number of such rows in each list; all rows of None.
class Allow {
public:
    Allow(const py::object& value, const std::string& name, const IndexView& index);
    const AllowView& view() const { return view_; }

private:
    py::tuple pair_;  // keeps alive what view_ points at
    AllowView view_;
};

// A residual network for queries: (down, bias, up, rank, unit) or None.
class AdapterArrays {
public:
    AdapterArrays(const py::object& value, const std::string& name, py::ssize_t d);
    const AdapterView& view() const { return view_; }

private:
    py::tuple parts_;  // keeps alive what view_ points at
    AdapterView view_;
};

// A further set of rows: (list_offsets, packed, dense_fd, dense_map).
struct AddedSet {
    AddedSet(const py::handle& value, py::ssize_t nlist, std::size_t m);

    py::tuple parts;  // keeps alive what the rest points at
    std::optional<Array<std::int64_t>> offsets;
    std::optional<PackedArray> packed;
    std::optional<Bytes> map;
};

// A file of dense rows among several whose rows the lists hold: (list_offsets, dense_fd, dense_map).
struct SpreadFile {
    SpreadFile(const py::handle& value, py::ssize_t nlist);

    py::tuple parts;  // keeps alive what the rest points at
    std::optional<Array<std::int64_t>> offsets;
    std::optional<Bytes> map;
};

class IndexArrays {
public:
    explicit IndexArrays(const IndexArguments& from);

    py::ssize_t d() const { return mean_.array().shape(0); }
    py::ssize_t nlist() const { return router_.size(0); }
    // Of rows that were not deleted, see Allow.
    const py::object& alive() const { return alive_; }

    // These point into the arrays.
    IndexView view(const std::string& metric_name, bool residual) const;
    DiskTier tier(const IndexArguments& from) const;

    // Refuses maps that do not hold all dense rows.
    void require_mapped(const IndexView& index, const DiskTier& tier) const;

private:
    std::vector<AddedSet> added_sets(const py::object& added) const;
    std::vector<SpreadFile> spread_files(const py::object& spread) const;
    std::int64_t rows_in(const SpreadFile& file) const { return file.offsets->data()[nlist()]; }
    DiskTier tier_of_sets(DiskTier tier) const;
    DiskTier tier_of_files(const IndexArguments& from) const;
    std::vector<RowSet> row_sets() const;
    const std::int64_t* whole() const;
    bool additive() const { return rotation_.size(0) == 0; }
    void require_rotation(Metric metric) const;

    Array<float> mean_;
    Matrix codewords_;
    Array<std::int64_t> offsets_;
    Matrix router_, coarse_;
    Array<float> rotation_;
    PackedArray packed_;
    Bytes map_;
    AdapterArrays query_adapter_, verify_adapter_;
    std::vector<AddedSet> added_;
    std::vector<SpreadFile> spread_;
    py::object alive_, whole_;
};

}  // namespace vqdistill
