// A search as Python asks for it: checked, with room for its results, to be run here or by a pool.
#pragma once

#include <vector>

#include "py_index.h"
#include "search_pool.h"

namespace vqdistill {

class PySearch {
public:
    // What `search` points at must live as long as this.
    PySearch(const IvfSearch& search, const Array<float>& queries, const Allow& allowed, const SearchOptions& options,
             double timeout_s);

    // Refuses unless this is its first time: it runs once.
    void begin();
    void end() { state_ = State::ended; }
    // (scores, positions, stats); refuses before the end.
    py::tuple result() const;

    SearchCall call{};
    const double timeout_s;

private:
    enum class State { prepared, running, ended };

    State state_ = State::prepared;
    Array<float> queries_;
    Allow allowed_;
    py::array_t<float> scores_;
    py::array_t<std::int64_t> positions_;
    std::vector<QueryStats> stats_;
};

}  // namespace vqdistill
