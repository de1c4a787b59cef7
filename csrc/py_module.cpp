// The Python module _native. Functions check, allocate outputs, release the GIL, call.
#include <system_error>

#include "io_uring.h"
#include "py_arrays.h"

namespace vqdistill {
namespace {

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
    module.doc() = "Search engine and kernels in C++; _native.pyi is its contract.";
    active_kernels();  // a wrong VQDISTILL_CPU is an error of the import
    py::register_local_exception_translator(set_os_error);

    module.def("cpu_level", [] { return active_kernels().name; });
    module.def("available_levels", available_levels);
    module.def("io_uring_available", io_uring_available);
    bind_kernels(module);
    bind_engine(module);
    bind_parts(module);
    bind_pool(module);
    bind_rows(module);
    bind_values(module);
}
