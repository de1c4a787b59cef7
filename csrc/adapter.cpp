#include "adapter.h"

#include <algorithm>
#include <cmath>

namespace vqdistill {

const float* Adapter::apply(const float* queries, std::size_t q, Scratch& scratch) const {
    const std::size_t units = view_.units;
    if (units == 0) return queries;
    scratch.units.resize(std::max(scratch.units.size(), q * units));
    scratch.adapted.resize(std::max(scratch.adapted.size(), q * d_));
    float* const z = scratch.units.data();
    float* const out = scratch.adapted.data();
    view_.down.products(kernels_, queries, q, units, d_, z);
    for (std::size_t i = 0; i < q; ++i)
        for (std::size_t u = 0; u < units; ++u) {
            const float sum = z[i * units + u] + view_.bias[u];
            z[i * units + u] = u < view_.rank ? sum : std::max(sum, 0.0f);
        }
    view_.up.products(kernels_, z, q, d_, units, out);
    for (std::size_t i = 0; i < q * d_; ++i) out[i] += queries[i];
    if (view_.unit)
        for (std::size_t i = 0; i < q; ++i) scale(queries + i * d_, out + i * d_);
    return out;
}

void Adapter::scale(const float* query, float* adapted) const {
    const float squares = kernels_.dot_f32(adapted, reinterpret_cast<const std::uint8_t*>(adapted), d_);
    if (!(squares > 0.0f) || !std::isfinite(squares)) {
        std::copy(query, query + d_, adapted);
        return;
    }
    const float norm = std::sqrt(squares);
    for (std::size_t t = 0; t < d_; ++t) adapted[t] /= norm;
}

}  // namespace vqdistill
