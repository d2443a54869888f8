// What the kernels of the exact 1-D Wasserstein cost are given, on the CPU and on CUDA;
// fastgan/reference/wasserstein.py says what they compute, and
// fastgan/functional/_wasserstein_autograd.py what unit gradients are.
#pragma once

#include <cstdint>

#include "common/dtype.h"

namespace fastgan {

// Signs, two bits each: a word has the positive ones of 16 samples in its lower half, the negative ones in its upper.
constexpr int64_t sign_words(int64_t n) { return (n + 15) / 16; }

// Whether a row's cost is that of d / D, D being about its largest |d|: powers other than 1 and 2 might overflow.
FASTGAN_HOST_DEVICE bool is_scaled(double p) { return p != 1 && p != 2; }

struct WassersteinSide {
  const void* values;     // [rows, n] with the given row stride
  int64_t values_stride;  // in elements; n on CUDA
  const double* weights;  // [rows, n] with the given row stride, or null: uniform
  int64_t weights_stride;
  int64_t n;
  // Results, null where not wanted.
  void* grad;  // [rows, n], as values: n D times the gradient of the cost
  // [rows, sign_words(n)], instead of grad, where that is -1, 0 or 1 (p = 1, n = m, no weights); CPU only.
  uint32_t* signs;
  double* grad_weights;  // [rows, n]: the gradient of the cost
  // Instead of weights and grad_weights; CPU only.
  const float* float_weights;
  float* grad_float_weights;
  // For the second derivative: the cotangent of the values' gradient, [rows, n], as values; null: zero.
  const void* cotangent;
};

struct WassersteinProblem {
  WassersteinSide x, y;
  int64_t rows;
  DType dtype;
  double p;       // 1 ... inf
  double* cost;   // [rows]: the cost of d / D (max |d| for p = inf); NaN for a row with a NaN or without valid weights
  double* scale;  // [rows]: D; NaN where the cost is and signs are wanted
  // Not null: the second derivative instead. Then `grad` [rows] is the cotangent of the cost, `scale` is read, and
  // each side's grad receives the gradient, for its values, of the backward pass contracted with the cotangents.
  const double* grad;
};

}  // namespace fastgan
