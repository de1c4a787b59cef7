// Arguments of the Python module: NumPy arrays and options, checked on the way in. Only the py_*.cpp files know pybind11.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "disk_tier.h"
#include "dispatch.h"
#include "index_view.h"

namespace py = pybind11;

namespace vqdistill {

using Shape = std::vector<py::ssize_t>;
constexpr py::ssize_t kAny = -1;

inline std::string type_name(const py::handle& value) { return py::str(py::type::of(value).attr("__name__")); }

inline std::string describe(const py::array& array) {
    const std::string text = py::str("{} {}").format(array.attr("shape"), array.dtype());
    return array.flags() & py::array::c_style ? text : text + " not C-contiguous";
}

inline bool shape_fits(const py::array& array, const Shape& shape) {
    if (array.ndim() != static_cast<py::ssize_t>(shape.size())) return false;
    for (std::size_t i = 0; i < shape.size(); ++i)
        if (shape[i] != kAny && shape[i] != array.shape(static_cast<py::ssize_t>(i))) return false;
    return true;
}

inline std::string number(std::size_t value) { return std::to_string(value); }

[[noreturn]] inline void refuse(const std::string& name, const std::string& wanted, const std::string& got) {
    throw py::value_error(name + " must be " + wanted + ", got " + got);
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

// The same for a matrix of float32, of float16, or of rows of signed bytes with a float32 scale in front (uint8); shapes
// and sizes are those without the scale.
class Matrix {
public:
    Matrix(const py::object& value, const char* name, const std::string& wanted, Shape shape)
        : kind_(kind_of(value)), stored_(kind_ == 'e' ? value.attr("view")("uint16") : value) {
        if (kind_ == 'e') {
            Array<std::uint16_t>(stored_, name, wanted, shape);
        } else if (kind_ == 'B') {
            if (shape.back() != kAny) shape.back() += kScaleBytes;
            Array<std::uint8_t>(stored_, name, wanted + ", or uint8 with a scale before each row", shape);
            const py::ssize_t d = size(static_cast<int>(shape.size()) - 1);
            if (d < 0 || static_cast<std::size_t>(d) > kLongestBytes)
                refuse(name, "rows of a scale and at most " + number(kLongestBytes) + " bytes", describe(array()));
        } else {
            Array<float>(stored_, name, wanted, shape);
        }
    }
    MatrixView view() const {
        MatrixView view;
        const void* data = array().data();
        if (kind_ == 'e')
            view.f16 = static_cast<const std::uint16_t*>(data);
        else if (kind_ == 'B')
            view.i8 = static_cast<const std::uint8_t*>(data);
        else
            view.f32 = static_cast<const float*>(data);
        return view;
    }
    py::array array() const { return py::reinterpret_borrow<py::array>(stored_); }
    py::ssize_t size(int axis) const {
        const bool scaled = kind_ == 'B' && axis + 1 == array().ndim();
        return array().shape(axis) - (scaled ? kScaleBytes : 0);
    }
    bool is_f32() const { return kind_ != 'e' && kind_ != 'B'; }

private:
    static constexpr py::ssize_t kScaleBytes = sizeof(float);
    static char kind_of(const py::object& value) {
        return py::isinstance<py::array>(value) ? py::reinterpret_borrow<py::array>(value).dtype().char_() : ' ';
    }
    char kind_;  // NumPy's character of the dtype
    py::object stored_;
};

template <class T>
py::array_t<T> empty(std::initializer_list<std::size_t> shape) {
    return py::array_t<T>(std::vector<py::ssize_t>(shape.begin(), shape.end()));
}

// Bytes that begin at a cache line: a scan reads whole ones.
inline py::array_t<std::uint8_t> aligned_bytes(const std::vector<std::size_t>& shape) {
    std::size_t size = 1;
    for (const std::size_t s : shape) size *= s;
    py::array_t<std::uint8_t> memory = empty<std::uint8_t>({size + kLine});
    return py::array_t<std::uint8_t>(shape, line_from(memory.mutable_data()), memory);
}

inline std::size_t in_range(const char* name, py::ssize_t value, py::ssize_t low, py::ssize_t high) {
    if (value < low || value > high)
        refuse(name, "in " + std::to_string(low) + ".." + std::to_string(high), std::to_string(value));
    return static_cast<std::size_t>(value);
}

inline Metric parse_metric(const std::string& text) {
    if (text == "ip") return Metric::ip;
    if (text == "l2") return Metric::l2;
    refuse("metric", "ip or l2", text);
}

inline DenseDtype parse_dense_dtype(const std::string& text) {
    if (text == "f32") return DenseDtype::f32;
    if (text == "f16") return DenseDtype::f16;
    if (text == "bf16") return DenseDtype::bf16;
    if (text == "i8") return DenseDtype::i8;
    if (text == "none") return DenseDtype::none;
    refuse("dense_dtype", "one of f32, f16, bf16, i8, none", text);
}

inline IoMode parse_io(const std::string& text) {
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

inline DiskTier make_tier(int fd, const Bytes& map, std::int64_t offset, const std::string& dtype_text, std::size_t d,
                   const std::string& io) {
    const DenseDtype dtype = parse_dense_dtype(dtype_text);
    if (dtype != DenseDtype::none && fd < 0) refuse("dense_fd", "an open file descriptor", std::to_string(fd));
    if (offset < 0) refuse("dense_offset", "at least 0", std::to_string(offset));
    return DiskTier(fd, map.data(), map.size(), static_cast<std::uint64_t>(offset), dtype, d, parse_io(io));
}

inline std::size_t require_m(std::size_t m) {
    if (m == 0 || m % 2 != 0 || m > kMaxM) refuse("m", "even and in 2..256", number(m));
    return m;
}

// Packed codes: (nblocks, m / 2, 32) uint8, or (nblocks, m / 8, 32, 4) in quads, see ScanCodes.
class PackedArray {
public:
    PackedArray(const py::object& value, const char* name)
        : array_(has_quads(value)
                     ? Array<std::uint8_t>(value, name, "(nblocks, m / 8, 32, 4) uint8", {kAny, kAny, kBlockRows, kQuad})
                     : Array<std::uint8_t>(value, name, "(nblocks, m / 2, 32) uint8", {kAny, kAny, kBlockRows})) {}
    const std::uint8_t* data() const { return array_.data(); }
    const py::array& array() const { return array_.array(); }
    bool quads() const { return has_quads(array_.array()); }
    std::size_t nblocks() const { return array_.size(0); }
    std::size_t m() const { return 2 * array_.size(1) * (quads() ? kQuad : 1); }

private:
    static bool has_quads(const py::handle& value) {
        return py::isinstance<py::array>(value) && py::reinterpret_borrow<py::array>(value).ndim() == 4;
    }
    Array<std::uint8_t> array_;
};

// The scan of such codes; refuses an order that a level has none for.
inline auto scan_of(const Kernels& kernels, const PackedArray& packed, const char* name) {
    const auto scan = packed.quads() ? kernels.scan_quads : kernels.scan_pq4;
    if (scan == nullptr)
        refuse(name, "(nblocks, m / 2, 32) at CPU level " + std::string(kernels.name), describe(packed.array()));
    return scan;
}

// What each file adds to the module.
void bind_engine(py::module_& module);
void bind_kernels(py::module_& module);
void bind_parts(py::module_& module);
void bind_pool(py::module_& module);
void bind_rows(py::module_& module);
void bind_values(py::module_& module);

}  // namespace vqdistill
