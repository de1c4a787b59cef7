// What a search makes of its queries before it looks at any row: once for all parts of an index, wherever they are.
#pragma once

#include <cstdint>
#include <vector>

namespace vqdistill {

// The plan of q queries.
struct PlanView {
    const std::int64_t* offsets = nullptr;  // (q + 1): query i visits lists[offsets[i]] .. lists[offsets[i + 1] - 1]; null =
                                            // all visit every list, and all rows share a base
    const std::int32_t* lists = nullptr;    // best first
    const float* terms = nullptr;           // what each of them adds to the scores of its rows
    const std::uint8_t* tables = nullptr;   // (q, m, 16)
    const double* scales = nullptr;         // (q, 3): bias, step and constant, see QueryTables
    const float* luts = nullptr;            // (q, m, 16): what tables were rounded from; null = nobody will ask
};

// The same with its memory.
struct SearchPlan {
    bool every_list = false;
    std::vector<std::int64_t> offsets{0};
    std::vector<std::int32_t> lists;
    std::vector<float> terms, luts;
    std::vector<std::uint8_t> tables;
    std::vector<double> scales;
};

}  // namespace vqdistill
