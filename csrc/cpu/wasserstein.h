// The exact 1-D Wasserstein cost of batched rows on the CPU.
#pragma once

#include <cstdint>

#include "common/wasserstein.h"
#include "cpu/isa.h"

namespace fastgan {

// Workspace for each thread that works on rows of its own, in bytes for each sample of its row: 8, with gradients or
// weights 16 (twice that for float64), and 32 more where there are weights. For rows sorted together, R at a time (16,
// 8 or 4): 4 R, with gradients or weights 20 R, and R / 8 for each of (log2 n)^2 / 4 comparators that a sample passes.
// For a row of 2^19 or more that is_long(): 4, with gradients 8, and at most 1 more for each thread that shares it.
FASTGAN_PER_ISA(void wasserstein(const WassersteinProblem& problem, int threads);)

// Gradients [rows, n] of one side's samples or of both's: signs [rows, sign_words(n)], null for a side that wants none,
// times a factor for each row.
struct SignGradients {
  const uint32_t* signs[2];
  void* grads[2];
  DType dtype;  // of the gradients
  int64_t rows, n;
  // The factor: factors[row * stride], divided by scale[row] and by n unless the scale is null.
  const void* factors;
  DType factors_dtype;
  int64_t stride;
  const double* scale;
};
FASTGAN_PER_ISA(void scale_signs(const SignGradients& problem, int threads);)

}  // namespace fastgan
