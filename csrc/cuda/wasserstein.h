// The exact 1-D Wasserstein cost of batched rows on the GPU; fastgan/reference/wasserstein.py says what it is, and
// fastgan/functional/wasserstein.py what unit gradients are.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <string>

#include "common/dtype.h"

namespace fastgan::cuda {

struct WassersteinSide {
  const void* values;     // [rows, n]
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
};

// Why this build has no code for the current device; empty if it has.
std::string why_no_kernels();

// Bytes of workspace that the problem takes; bounded for any number of rows.
size_t wasserstein_workspace(const WassersteinProblem& problem);

// Enqueues everything on the stream; allocates nothing, so that a graph can capture it. The workspace is aligned to
// 256 bytes and in use until the stream has passed. Throws std::runtime_error if a CUDA call fails.
void wasserstein(const WassersteinProblem& problem, void* workspace, cudaStream_t stream);

}  // namespace fastgan::cuda
