// The penalty on per-sample gradient norms. The formulas: fastgan/reference/gradient_penalty.py.
#pragma once

#include <cstdint>

#include "cpu/isa.h"

namespace fastgan {

// target: at least 0. norms [samples] and the scalar grad are float (double for double).
// clang-format off
FASTGAN_PER_ISA(
  // Returns the penalty and writes the norms of grads [samples, size] and, if out [samples, size] is not null, `grad`
  // times the penalty's gradient for grads to it.
  double gradient_penalty_forward(int dtype, const void* grads, void* norms, double grad, void* out, double target, bool one_sided,
                                  int64_t samples, int64_t size, int threads);
  // Writes the gradient for grads, times `grad`, to out [samples, size].
  void gradient_penalty_backward(int dtype, double grad, const void* grads, const void* norms, void* out,
                                 double target, bool one_sided, int64_t samples, int64_t size, int threads);
  // Returns the backward pass's gradient for its scalar and writes that for grads to out, given the cotangent u.
  double gradient_penalty_double_backward(int dtype, double grad, const void* u, const void* grads, const void* norms,
                                          void* out, double target, bool one_sided, int64_t samples, int64_t size,
                                          int threads);
)
// clang-format on

}  // namespace fastgan
