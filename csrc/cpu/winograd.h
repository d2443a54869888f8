// 3x3 convolutions of float32 images by Winograd's minimal filtering F(2x2, 3x3), whole: transforms and the products
// between them. Images are [samples, rows, columns, channels] in memory, weights [filters, 3, 3, channels]. The
// formulas: fastgan/reference/winograd.py.
#pragma once

#include <cstdint>

#include "cpu/isa.h"

namespace fastgan {

// clang-format off
FASTGAN_PER_ISA(
  // y [samples, rows, columns, filters] = the convolution of x [samples, rows + 2 - 2 pad, columns + 2 - 2 pad, channels],
  // with `pad` zeros around it, 0 or 1, with w, + bias [filters] or null. Rows and columns are even.
  void winograd_forward(const float* x, const float* w, const float* bias, float* y, int64_t samples, int64_t rows,
                        int64_t columns, int64_t channels, int64_t filters, int64_t pad, int threads);
  // Its gradients, of y's gradient: x's and w's.
  void winograd_backward_x(const float* grad, const float* w, float* grad_x, int64_t samples, int64_t rows,
                           int64_t columns, int64_t channels, int64_t filters, int64_t pad, int threads);
  void winograd_backward_w(const float* grad, const float* x, float* grad_w, int64_t samples, int64_t rows,
                           int64_t columns, int64_t channels, int64_t filters, int64_t pad, int threads);
)
// clang-format on

}  // namespace fastgan
