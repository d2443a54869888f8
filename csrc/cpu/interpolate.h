// alpha * real + (1 - alpha) * fake, one alpha per sample. The formulas: fastgan/reference/interpolate.py.
#pragma once

#include <cstdint>

#include "cpu/isa.h"

namespace fastgan {

// clang-format off
FASTGAN_PER_ISA(
  // real, fake, out: [samples, size]. alpha [samples], float (double for double), is written if drawing from `seed`.
  void interpolate_forward(int dtype, const void* real, const void* fake, void* alpha, bool draw, uint64_t seed,
                           void* out, int64_t samples, int64_t size, int threads);
  // Writes those of grad_real, grad_fake [samples, size] and grad_alpha [samples] that are not null; real and fake are
  // read for grad_alpha only.
  void interpolate_backward(int dtype, const void* grad, const void* real, const void* fake, const void* alpha,
                            void* grad_real, void* grad_fake, void* grad_alpha, int64_t samples, int64_t size,
                            int threads);
)
// clang-format on

}  // namespace fastgan
