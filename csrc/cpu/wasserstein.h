// The exact 1-D Wasserstein cost of batched rows on the CPU.
#pragma once

#include <cstdint>

#include "common/wasserstein.h"
#include "cpu/isa.h"

namespace fastgan {

// Workspace for each thread that works on rows of its own, in bytes for each sample of its row: 8, with gradients or
// weights 16 (twice that for float64), and 32 more where there are weights. For rows sorted together, R at a time (16,
// 8 or 4): 4 R, with gradients or weights 20 R, and R / 8 for each of (log2 n)^2 / 4 comparators that a sample passes.
FASTGAN_PER_ISA(void wasserstein(const WassersteinProblem& problem, int threads);)

// Samples' gradients [rows, n] of the given dtype: signs [rows, sign_words(n)] times a factor a row.
FASTGAN_PER_ISA(void scale_signs(const uint32_t* signs, const double* factors, int64_t rows, int64_t n, DType dtype,
                                 void* grad, int threads);)

}  // namespace fastgan
