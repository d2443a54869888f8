// The exact 1-D Wasserstein cost of batched rows on the CPU.
#pragma once

#include <cstdint>

#include "common/wasserstein.h"
#include "cpu/isa.h"

namespace fastgan {

// Workspace for each thread that works on rows of its own, in bytes for each sample of its row: 16 (32 for float64), 8
// more where there are weights; for rows sorted together, of at most 16384 samples, 12 times the rows of a group.
FASTGAN_PER_ISA(void wasserstein(const WassersteinProblem& problem, int threads);)

// Samples' gradients [rows, n] of the given dtype: signs [rows, n] times a factor a row.
FASTGAN_PER_ISA(void scale_signs(const int8_t* signs, const double* factors, int64_t rows, int64_t n, DType dtype,
                                 void* grad, int threads);)

}  // namespace fastgan
