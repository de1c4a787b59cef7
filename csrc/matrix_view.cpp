#include "matrix_view.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

namespace vqdistill {
namespace {

// x (d) as a row of bytes: scale = max |x| / 127. A scale too small to be inverted counts as 0.
void round_row(const float* x, std::size_t d, std::uint8_t* row) {
    float most = 0.0f;
    for (std::size_t t = 0; t < d; ++t) most = std::max(most, std::fabs(x[t]));
    const float inverse = 127.0f / most;
    const bool zero = !std::isfinite(inverse);
    const float scale = zero ? 0.0f : most / 127.0f, factor = zero ? 0.0f : inverse;
    std::memcpy(row, &scale, sizeof scale);
    for (std::size_t t = 0; t < d; ++t)
        row[sizeof scale + t] = static_cast<std::uint8_t>(static_cast<std::int8_t>(std::lrint(x[t] * factor)));
}

}  // namespace

void MatrixView::products(const Kernels& kernels, const float* x, std::size_t nx, std::size_t rows, std::size_t d,
                          float* out) const {
    if (f32 != nullptr) return kernels.gemm_nt(x, nx, f32, rows, d, out);
    if (f16 != nullptr) return kernels.gemm_nt_f16(x, nx, f16, rows, d, out);
    thread_local std::vector<std::uint8_t> rounded;
    rounded.resize(std::max(rounded.size(), nx * byte_stride(d)));
    for (std::size_t i = 0; i < nx; ++i) round_row(x + i * d, d, rounded.data() + i * byte_stride(d));
    kernels.gemm_nt_i8(rounded.data(), nx, i8, rows, d, out);
}

float MatrixView::product(const Kernels& kernels, const float* x, std::size_t row, std::size_t d) const {
    const auto at = [&](const auto* matrix, std::size_t stride) {
        return reinterpret_cast<const std::uint8_t*>(matrix) + row * stride;
    };
    if (f32 != nullptr) return kernels.dot_f32(x, at(f32, d * sizeof(float)), d);
    if (f16 != nullptr) return kernels.dot_f16(x, at(f16, d * sizeof(std::uint16_t)), d);
    return kernels.dot_i8(x, at(i8, byte_stride(d)), d);
}

}  // namespace vqdistill
