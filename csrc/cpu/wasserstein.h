// The exact 1-D Wasserstein cost of batched rows on the CPU; fastgan/reference/wasserstein.py says what it is, and
// fastgan/functional/wasserstein.py what unit gradients are.
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "cpu/isa.h"

namespace fastgan {

struct WassersteinSide {
  const void* values;     // [rows, n] with the given row stride
  int64_t values_stride;  // in elements
  const double* weights;  // [rows, n] with the given row stride, or null: uniform
  int64_t weights_stride;
  int64_t n;
  // Results, null where not wanted.
  void* grad;            // [rows, n], as values: n D times the gradient of the cost
  double* grad_weights;  // [rows, n]: the gradient of the cost
  // For the second derivative: the cotangent of the values' gradient, [rows, n], as values; null: zero.
  const void* cotangent;
};

struct WassersteinProblem {
  WassersteinSide x, y;
  int64_t rows;
  DType dtype;
  double p;       // 1 ... inf
  double* cost;   // [rows]: the cost of d / D (max |d| for p = inf); NaN for a row with a NaN or without valid weights
  double* scale;  // [rows]: D
  // Not null: the second derivative instead. Then `grad` [rows] is the cotangent of the cost, `scale` is read, and
  // each side's grad receives the gradient, for its values, of the backward pass contracted with the cotangents.
  const double* grad;
  int threads;
};

// Workspace for each thread that works on rows of its own, in bytes for each sample of its row: 16 (32 for float64), 8
// more where there are weights; for rows sorted together, of at most 16384 samples, 12 times the rows of a group.
FASTGAN_PER_ISA(void wasserstein(const WassersteinProblem& problem);)

}  // namespace fastgan
