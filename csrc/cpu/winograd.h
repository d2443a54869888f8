// 3x3 convolutions by Winograd's minimal filtering, whole: transforms and the products between them. Images are float32
// or bfloat16, [samples, rows, columns, channels] in memory; weights are float32, [filters, 3, 3, channels]. The
// formulas: fastgan/reference/winograd.py.
#pragma once

#include <cstdint>

#include "cpu/isa.h"

namespace fastgan {

// Of a convolution of images, with `pad` zeros around them, 0 or 1, that gives images of rows x columns x filters.
struct WinogradSizes {
  int dtype;  // of the images, a DType code
  int64_t samples, rows, columns, channels, filters, pad;
};

// clang-format off
FASTGAN_PER_ISA(
  // y = the convolution of x with w, + bias [filters] or null.
  void winograd_forward(const void* x, const float* w, const float* bias, void* y, const WinogradSizes& of, int threads);
  // Its gradients, of y's gradient: x's and w's.
  void winograd_backward_x(const void* grad, const float* w, void* grad_x, const WinogradSizes& of, int threads);
  void winograd_backward_w(const void* grad, const void* x, float* grad_w, const WinogradSizes& of, int threads);
)
// clang-format on

}  // namespace fastgan
