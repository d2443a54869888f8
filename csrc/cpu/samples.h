// Loops over [samples, size] that give a number per sample, whatever the number of threads. For kernel files.
#pragma once

#include <cstdint>

#include "common/simd.h"
#include "common/threads.h"

namespace fastgan::FASTGAN_ISA {

// Elements per unit of work and of the partial sums. A sum of squares over a piece has 4096 / lanes terms per lane.
constexpr int64_t kPiece = 4096;
constexpr int64_t kGrain = 32 * 1024;  // elements worth a thread

FASTGAN_INLINE int64_t pieces_of(int64_t size) { return ceil_div(size, kPiece); }

// Calls body(sample, piece of the sample, first element, end) for every piece of every sample.
template <typename Body>
FASTGAN_INLINE void each_piece(int64_t samples, int64_t size, int threads, const Body& body) {
  const int64_t pieces = pieces_of(size), worth = samples * size / kGrain + 1;
  parallel(worth < threads ? static_cast<int>(worth) : threads, [&](int thread, int team) {
    const Range range = part(samples * pieces, thread, team);
    int64_t n = pieces == 0 ? 0 : range.begin / pieces, piece = range.begin - n * pieces;
    for (int64_t i = range.begin; i < range.end; ++i) {
      const int64_t begin = piece * kPiece, end = begin + kPiece < size ? begin + kPiece : size;
      body(n, piece, n * size + begin, n * size + end);
      if (++piece == pieces) {
        piece = 0;
        ++n;
      }
    }
  });
}

// Calls body(index, lanes) for the vectors of [begin, end): lanes is Whole, or how many elements are left.
template <typename A, typename Body>
FASTGAN_INLINE void each_vector(int64_t begin, int64_t end, const Body& body) {
  int64_t i = begin;
  for (; i + kLanes<A> <= end; i += kLanes<A>) body(i, Whole{});
  if (i < end) body(i, end - i);
}

FASTGAN_INLINE double sum_partials(const double* partials, int64_t count) {
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += partials[i];
  return sum;
}

// Calls body(element of that type).
template <typename Body>
FASTGAN_INLINE void with_dtype(int dtype, const Body& body) {
  switch (static_cast<DType>(dtype)) {
    case DType::f32: body(float{}); break;
    case DType::f64: body(double{}); break;
    case DType::f16: body(f16_t{}); break;
    case DType::bf16: body(bf16_t{}); break;
  }
}

}  // namespace fastgan::FASTGAN_ISA
