// Weighted L1 distances of pairs of tensors: value, signs, gradients. The formulas: fastgan/reference/l1.py.
#pragma once

#include <cstdint>

#include "common/threads.h"
#include "cpu/isa.h"

namespace fastgan {

// Elements per unit of work, and of the partial sums: the result does not depend on the number of threads.
constexpr int64_t kL1Chunk = 4096;
// Signs of a chunk: for every 64 elements 64 bits "a > b", then 64 bits "a < b".
constexpr int64_t kL1SignBytes = kL1Chunk / 4;

struct L1Pair {
  const void* a;         // [n]
  const void* b;         // [n]
  void* grad_a;          // [n] or null
  void* grad_b;          // [n] or null
  uint8_t* signs;        // [ceil(n / kL1Chunk) * kL1SignBytes] or null
  int64_t n;             // at least 1
  double scale;          // weight / n
  int dtype_a, dtype_b;  // DType codes; equal, or float32 and a 16-bit type
};

FASTGAN_INLINE int64_t l1_chunks(const L1Pair& pair) { return ceil_div(pair.n, kL1Chunk); }

// clang-format off
FASTGAN_PER_ISA(
  // The weighted sum; writes the signs and the sum's gradients of pairs that want them (gradients need signs).
  // partials: one per chunk of all pairs.
  double l1_forward(const L1Pair* pairs, int64_t count, double* partials, int threads);
  // Writes grad * scale * sign to grad_a and its negative to grad_b, where they are not null; reads the signs alone.
  void l1_backward(double grad, const L1Pair* pairs, int64_t count, int threads);
  // The sum of scale * sign * (a - b), where a null side is zero: the derivative along (a, b).
  double l1_directional(const L1Pair* pairs, int64_t count, double* partials, int threads);
)
// clang-format on

}  // namespace fastgan
