// Searches in threads of their own, for a caller who is told by a file descriptor that some have ended.
#include <unistd.h>

#include <cstdint>
#include <unordered_map>

#include "py_search.h"

namespace vqdistill {
namespace {

class PyPool {
public:
    PyPool(py::ssize_t threads, int ready_fd, int avoided_core)
        : pool_(
              in_range("threads", threads, 1, 1024),
              [ready_fd] {
                  const std::uint64_t once = 1;  // as an eventfd takes it
                  // A pipe that is full has told enough, and there is nobody to tell of another failure.
                  [[maybe_unused]] const ssize_t written = write(ready_fd, &once, sizeof once);
              },
              avoided_core) {}

    void submit(const py::object& search, const py::object& ticket) {
        if (closed_) throw py::value_error("the pool must be open, but it is closed");
        PySearch& asked = search.cast<PySearch&>();
        asked.begin();
        asked.call.end = CallLimits::deadline_in(asked.timeout_s);
        held_.emplace(&asked.call, Held{search, ticket});
        pool_.submit(&asked.call);
    }

    // Tickets of the searches that have ended since the last time.
    py::list collect() {
        py::list tickets;
        for (const SearchCall* call : pool_.collect()) {
            held_.at(call).search.cast<PySearch&>().end();
            tickets.append(give_back(call));
        }
        return tickets;
    }

    // Tickets of the searches that are not begun any more.
    py::list close() {
        py::list tickets;
        if (closed_) return tickets;
        closed_ = true;
        std::vector<SearchCall*> left;
        {
            const py::gil_scoped_release release;
            left = pool_.stop();
        }
        for (const SearchCall* call : left) tickets.append(give_back(call));
        return tickets;
    }

private:
    struct Held {
        py::object search, ticket;
    };

    // Lets go of a search, and returns its ticket.
    py::object give_back(const SearchCall* call) {
        const auto held = held_.find(call);
        const py::object ticket = held->second.ticket;
        held_.erase(held);
        return ticket;
    }

    std::unordered_map<const SearchCall*, Held> held_;
    SearchPool pool_;  // ends before what it works on
    bool closed_ = false;
};

}  // namespace

void bind_pool(py::module_& module) {
    using py::arg;
    py::class_<PyPool>(module, "SearchPool")
        .def(py::init<py::ssize_t, int, int>(), arg("threads"), arg("ready_fd"), arg("avoided_core") = -1)
        .def("submit", &PyPool::submit, arg("search"), arg("ticket"))
        .def("collect", &PyPool::collect)
        .def("close", &PyPool::close);
}

}  // namespace vqdistill
