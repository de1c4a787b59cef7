#include "dispatch.h"

#include <cstdlib>
#include <stdexcept>

namespace vqdistill {

extern const Kernels kScalarKernels;
#if defined(__x86_64__)
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;
#elif defined(__aarch64__)
extern const Kernels kNeonKernels;
#endif

namespace {

struct Level {
    const Kernels* kernels;
    bool (*runs_here)();
};

#if defined(__x86_64__)
bool runs_avx2() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

bool runs_avx512() {
    return runs_avx2() && __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("avx512f") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vbmi") &&
           __builtin_cpu_supports("avx512vnni");
}
#endif

// Slowest first: the last one that runs is the best.
const Level kLevels[] = {
    {&kScalarKernels, [] { return true; }},
#if defined(__x86_64__)
    {&kAvx2Kernels, runs_avx2},
    {&kAvx512Kernels, runs_avx512},
#elif defined(__aarch64__)
    {&kNeonKernels, [] { return true; }},  // part of the architecture
#endif
};

std::string joined(const std::vector<std::string>& names) {
    std::string text;
    for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
    return text;
}

const Kernels& choose() {
    const char* forced = std::getenv("VQDISTILL_CPU");
    if (forced == nullptr || *forced == '\0') return find_kernels(available_levels().back());
    try {
        return find_kernels(forced);
    } catch (const std::invalid_argument& error) {
        throw std::invalid_argument(std::string("environment variable VQDISTILL_CPU: ") + error.what());
    }
}

}  // namespace

std::vector<std::string> available_levels() {
    std::vector<std::string> names;
    for (const Level& level : kLevels)
        if (level.runs_here()) names.emplace_back(level.kernels->name);
    return names;
}

const Kernels& find_kernels(const std::string& level) {
    for (const Level& candidate : kLevels)
        if (candidate.kernels->name == level && candidate.runs_here()) return *candidate.kernels;
    throw std::invalid_argument("CPU level must be one that runs on this machine (" + joined(available_levels()) +
                                "), got '" + level + "'");
}

const Kernels& active_kernels() {
    static const Kernels& active = choose();
    return active;
}

}  // namespace vqdistill
