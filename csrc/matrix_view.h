// Matrices of the index, in the element types that it may hold them in.
#pragma once

#include <cstddef>
#include <cstdint>

#include "dispatch.h"

namespace vqdistill {

// A matrix of float32, of halves, or of rows of signed bytes with a scale in front, row-major; exactly one pointer is
// set.
struct MatrixView {
    const float* f32 = nullptr;
    const std::uint16_t* f16 = nullptr;
    const std::uint8_t* i8 = nullptr;

    // out[i][j] = <x_i, row j>, for x (nx, d), out (nx, rows). With rows of bytes, x is rounded to such rows first: an
    // error of at most max |x_i| / 254 an element. Allocates when a thread first needs so much room.
    void products(const Kernels& kernels, const float* x, std::size_t nx, std::size_t rows, std::size_t d,
                  float* out) const;

    // <x, row>; x is not rounded.
    float product(const Kernels& kernels, const float* x, std::size_t row, std::size_t d) const;
};

}  // namespace vqdistill
