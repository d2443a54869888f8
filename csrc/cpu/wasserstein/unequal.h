// n != m without weights: integer masses, exact to any size, in one pass by vectors over the longer side.
//
// In units of 1 / (n m), atom i of the longer side, of n, covers [i m, (i + 1) m), and each of the shorter side's n: an
// atom of the longer side meets one or two of the shorter side's, and which ones is counted on, without a branch.
#pragma once

#include <cstdint>

#include "cpu/wasserstein/cost.h"
#include "cpu/wasserstein/side.h"
#include "cpu/wasserstein/work.h"

namespace fastgan::FASTGAN_ISA {
namespace {

// What a chunk of the longer side's atoms has for the shorter side's atoms that it does not have alone: its first, if
// it is not its last as well, and its last.
struct UnevenChunk {
  double cost;
  int64_t first, last;
  double first_sum, last_sum;
};

template <typename S, Order kOrder>
UnevenChunk uneven_chunk(const Side<S>& a, const Side<S>& b, const Power<kOrder>& power, double mass, int64_t begin,
                         int64_t end) {
  using T = acc_t<S>;
  constexpr int64_t kBatch = 256;
  const int64_t n = a.n, m = b.n;
  const T *as = a.sorted.values, *bs = b.sorted.values;
  const double a_factor = mass * static_cast<double>(n), b_factor = mass * static_cast<double>(m);
  const Power<kOrder> c = power;
  int64_t j = begin * m / n, covered = begin * m - j * n;
  UnevenChunk result = {0, j, j, 0, 0};
  double open = 0, sums[kChunk];  // of atom j, and of those before
  for (int64_t i = begin; i < end; i += kBatch) {
    const int64_t count = end - i < kBatch ? end - i : kBatch;
    int32_t partner[kBatch + 1];  // less the chunk's first
    double shared[kBatch], slope[kBatch], next_slope[kBatch], part = 0;
    for (int64_t k = 0; k < count; ++k) {
      partner[k] = static_cast<int32_t>(j - result.first);
      shared[k] = static_cast<double>(n - covered < m ? n - covered : m);
      covered += m;
      const int64_t past = covered >= n;
      covered -= past ? n : 0;
      j += past;
    }
    partner[count] = static_cast<int32_t>(j - result.first);
    const T* const from = bs + result.first;
    const int32_t last = static_cast<int32_t>(m - 1 - result.first);
#pragma omp simd reduction(+ : part)
    for (int64_t k = 0; k < count; ++k) {
      const int32_t next = partner[k + 1] < last ? partner[k + 1] : last;
      const T d = difference(as[i + k], from[partner[k]]), next_d = difference(as[i + k], from[next]);
      const double rest = static_cast<double>(m) - shared[k];  // 0: no mass, though the difference be infinite
      part += shared[k] * c.cost(d) + (rest > 0 ? rest * c.cost(next_d) : 0);
      slope[k] = shared[k] * c.slope(d);
      next_slope[k] = rest > 0 ? rest * c.slope(next_d) : 0;
    }
    result.cost += part;
    if (a.grad != nullptr) {
      for (int64_t k = 0; k < count; ++k) put(a, i + k, static_cast<T>((slope[k] + next_slope[k]) * a_factor));
    }
    if (b.grad == nullptr) continue;
    for (int64_t k = 0; k < count; ++k) {
      const double sum = open + slope[k];
      sums[partner[k]] = sum;
      open = partner[k + 1] > partner[k] ? next_slope[k] : sum;
    }
  }
  result.last = j;
  result.first_sum = sums[0];
  result.last_sum = open;
  if (b.grad != nullptr) {
    for (int64_t k = result.first + 1; k < j; ++k) put(b, k, static_cast<T>(-sums[k - result.first] * b_factor));
  }
  return result;
}

template <typename S, Order kOrder>
void uneven(const Side<S>& x, const Side<S>& y, const Power<kOrder>& power, double mass, int threads, double* cost) {
  const Side<S>&a = x.n > y.n ? x : y, &b = x.n > y.n ? y : x;
  const int64_t chunks = ceil_div(a.n, kChunk);
  Scratch<UnevenChunk> parts(chunks);
  for_each(threads, chunks, [&](int64_t chunk) {
    const int64_t begin = chunk * kChunk;
    parts[chunk] = uneven_chunk(a, b, power, mass, begin, begin + kChunk < a.n ? begin + kChunk : a.n);
  });
  double sum = 0, open = 0;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const UnevenChunk& part = parts[chunk];
    sum += part.cost;
    if (b.grad == nullptr) continue;
    if (part.last > part.first) {
      const double all = open + part.first_sum;
      put(b, part.first, static_cast<acc_t<S>>(-all * (mass * static_cast<double>(b.n))));
      open = 0;
    }
    open += part.last_sum;
  }
  *cost = sum * mass;
}

}  // namespace
}  // namespace fastgan::FASTGAN_ISA
