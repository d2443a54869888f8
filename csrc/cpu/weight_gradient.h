// The gradient of a convolution's weights, of float32 images [samples, rows, columns, channels] in memory.
#pragma once

#include <cstdint>

#include "cpu/isa.h"

namespace fastgan {

// Of a convolution of x [samples, x_rows, x_columns, channels], with zeros around it, that gives images of rows x
// columns x filters.
struct ConvolutionSizes {
  int64_t samples, rows, columns, filters, x_rows, x_columns, channels;
  int64_t window_rows, window_columns, stride_rows, stride_columns, pad_rows, pad_columns;
};

// clang-format off
FASTGAN_PER_ISA(
  // grad_w [filters, window_rows, window_columns, channels] from the gradient of the result.
  void convolution_backward_w(const float* grad, const float* x, float* grad_w, const ConvolutionSizes& of,
                              int threads);
)
// clang-format on

}  // namespace fastgan
