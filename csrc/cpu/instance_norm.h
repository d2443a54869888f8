// Instance norm + affine + residual + activation + reflection padding on the CPU; see instance_norm.cpp.
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "cpu/isa.h"

namespace fastgan {

// A tensor [N, C, D, H, W]: the address of its first element (null: absent) and its strides in elements.
// Channels first: stride w is 1; channels last: stride c is 1.
struct Strided {
  void* data = nullptr;
  int64_t n = 0, c = 0, d = 0, h = 0, w = 0;
};

// What the three passes share. The element type is `dtype`; the arithmetic is float, and double for double; weight,
// bias and all that is per channel or per plane is of the arithmetic's type, [C] or [N, C] dense.
struct InstanceNorm {
  DType dtype = DType::f32;
  bool channels_last = false;
  int threads = 1;
  int64_t N = 0, C = 0, D = 1, H = 1, W = 1;  // of x
  int64_t pad_d = 0, pad_h = 0, pad_w = 0;    // reflection padding on both sides
  double slope = 0;                           // what a negative z is multiplied by: 1, negative_slope, or 0 for ReLU
  const void* weight = nullptr;               // [C] or null
  const void* bias = nullptr;                 // [C] or null
};

struct InstanceNormForward {
  Strided x, residual;
  Strided y;  // [N, C, D + 2 pad_d, H + 2 pad_h, W + 2 pad_w]
  double eps = 0;
  void *mean = nullptr, *rstd = nullptr;  // [N, C], written; both are optional
};

struct InstanceNormBackward {
  Strided grad;  // of y
  Strided x, residual;
  const void *mean = nullptr, *rstd = nullptr;
  Strided grad_x, grad_z;             // written; grad_z is optional
  void *m1 = nullptr, *m2 = nullptr;  // [N, C], written; both are optional
};

struct InstanceNormDoubleBackward {
  Strided u, v_residual;                              // cotangents of grad_x and of grad_z (optional)
  const void *v_weight = nullptr, *v_bias = nullptr;  // [C] or null
  Strided grad, x, residual;
  const void *mean = nullptr, *rstd = nullptr, *m1 = nullptr, *m2 = nullptr;
  Strided grad_grad;            // of y's shape, written
  Strided grad_x;               // written
  void* grad_weight = nullptr;  // [N, C], written
};

// clang-format off
FASTGAN_PER_ISA(
  void instance_norm(const InstanceNorm& problem, const InstanceNormForward& tensors);
  void instance_norm(const InstanceNorm& problem, const InstanceNormBackward& tensors);
  void instance_norm(const InstanceNorm& problem, const InstanceNormDoubleBackward& tensors);
  // total[c] = elements * the sum of mean[n, c] over n: a parameter's gradient, of a mean over planes
  void sum_over_samples(DType dtype, int64_t N, int64_t C, const void* mean, double elements, void* total);
)
// clang-format on

}  // namespace fastgan
