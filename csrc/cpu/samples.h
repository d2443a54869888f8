// Loops over [samples, size] that give a number per sample, whatever the number of threads. For kernel files.
#pragma once

#include <cstdint>

#include "common/simd.h"
#include "common/threads.h"
#include "cpu/isa.h"

namespace fastgan::FASTGAN_ISA {

// Elements per unit of work and of the partial sums. A sum of squares over a piece has 4096 / lanes terms per lane.
constexpr int64_t kPiece = 4096;
constexpr int64_t kGrain = 32 * 1024;  // elements worth a thread

// How many of `threads` threads so many elements are worth.
FASTGAN_INLINE int team_for(int64_t elements, int threads) {
  const int64_t worth = elements / kGrain + 1;
  return worth < threads ? static_cast<int>(worth) : threads;
}

FASTGAN_INLINE int64_t pieces_of(int64_t size) { return ceil_div(size, kPiece); }

// Calls body(sample, piece of the sample, first element, end) for every piece of every sample.
template <typename Body>
FASTGAN_INLINE void each_piece(int64_t samples, int64_t size, int threads, const Body& body) {
  const int64_t pieces = pieces_of(size);
  parallel(team_for(samples * size, threads), [&](int thread, int team) {
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

// Sums term(vector index, lanes) -> vector over each sample into partials [samples, pieces_of(size)], then calls
// write(sample, sum, first element, end) for the pieces of the samples, if kWrite. A sample that one thread has whole
// is written while it is still in that thread's cache; the others wait for their sums.
template <typename A, bool kWrite, typename Term, typename Write>
FASTGAN_INLINE void sum_then(int64_t samples, int64_t size, int threads, double* partials, const Term& term,
                             const Write& write) {
  const int64_t pieces = pieces_of(size);
  const auto sum_piece = [&](int64_t begin, int64_t end) {
    Vec<A> sum[4] = {};
    int64_t i = begin;
    for (; i + 4 * kLanes<A> <= end; i += 4 * kLanes<A>) {
      for (int k = 0; k < 4; ++k) sum[k] += term(i + k * kLanes<A>, Whole{});
    }
    each_vector<A>(i, end, [&](int64_t j, auto lanes) { sum[0] += term(j, lanes); });
    return static_cast<double>(sum_lanes((sum[0] + sum[1]) + (sum[2] + sum[3])));
  };
  parallel(team_for(samples * size, threads), [&](int thread, int team) {
    const Range range = part(samples * pieces, thread, team);
    // Calls body(sample, its first piece in the range, the end) for the samples that are in the range whole, or not.
    const auto each_sample = [&](auto&& body) {
      for (int64_t begin = range.begin, end; begin < range.end; begin = end) {
        const int64_t n = begin / pieces, next = (n + 1) * pieces;
        end = next < range.end ? next : range.end;
        body(n, begin, end);
      }
    };
    const auto elements = [&](int64_t n, int64_t i) {
      const int64_t begin = n * size + (i - n * pieces) * kPiece, end = (n + 1) * size;
      return Range{begin, begin + kPiece < end ? begin + kPiece : end};
    };
    const auto write_sample = [&](int64_t n, int64_t begin, int64_t end) {
      const double sum = sum_partials(partials + n * pieces, pieces);
      for (int64_t i = end; i-- > begin;) {  // backwards: what was read last is nearest
        const Range range = elements(n, i);
        write(n, sum, range.begin, range.end);
      }
    };
    each_sample([&](int64_t n, int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const Range range = elements(n, i);
        partials[i] = sum_piece(range.begin, range.end);
      }
      if (kWrite && end - begin == pieces) write_sample(n, begin, end);
    });
    if (!kWrite) return;
    barrier(team);
    each_sample([&](int64_t n, int64_t begin, int64_t end) {
      if (end - begin < pieces) write_sample(n, begin, end);
    });
  });
}

// Calls body(element of that type).
template <typename Body>
FASTGAN_INLINE void with_dtype(int dtype, const Body& body) {
  switch (static_cast<DType>(dtype)) {
    case DType::f32: body(float{}); break;
    case DType::f64: body(double{}); break;
    case DType::f16: body(f16_t{}); break;
    case DType::bf16:
#if defined(FASTGAN_ISA_avx512)
      if (cpu_isa() == Isa::avx512_bf16) return body(native_bf16_t{});
#endif
      return body(bf16_t{});
  }
}

}  // namespace fastgan::FASTGAN_ISA
