// n = m without weights: atom k meets atom k. One pass by vectors, and a store of each slope to where its sample was.
#pragma once

#include <cstdint>

#include "cpu/wasserstein/cost.h"
#include "cpu/wasserstein/side.h"
#include "cpu/wasserstein/signs.h"
#include "cpu/wasserstein/work.h"

namespace fastgan::FASTGAN_ISA {
namespace {

// Sends sorted slopes to where their atoms came from.
template <typename T, typename G>
FASTGAN_INLINE void spread(const Sorted<T>& sorted, int64_t begin, int64_t count, const T* slopes, T sign, G* to) {
  if (to == nullptr) return;
  for (int64_t k = 0; k < count; ++k) store(to[sorted.from(begin + k)], sign * slopes[k]);
}

// The same for n = m with uniform weights, where atom k meets atom k: both sides at once.
template <typename S, Order kOrder>
void pairs(const Side<S>& x, const Side<S>& y, const Power<kOrder>& power, const double* grad, int threads,
           double* cost) {
  using T = acc_t<S>;
  const int64_t n = x.n, chunks = ceil_div(n, kChunk);
  Scratch<double> parts(chunks);
  for_each(threads, chunks, [&](int64_t chunk) {
    const int64_t last = (chunk + 1) * kChunk < n ? (chunk + 1) * kChunk : n;
    double sum = 0;
    for (int64_t begin = chunk * kChunk; begin < last; begin += 256) {
      const int64_t count = last - begin < 256 ? last - begin : 256;
      T d[256], slopes[256], part = 0;
      const T *xs = x.sorted.values + begin, *ys = y.sorted.values + begin;
#pragma omp simd
      for (int64_t k = 0; k < count; ++k) d[k] = difference(xs[k], ys[k]);
      if (grad != nullptr) {
        for (int64_t k = 0; k < count; ++k) {
          const uint32_t i = x.sorted.from(begin + k), j = y.sorted.from(begin + k);
          const double vx = x.cotangent == nullptr ? 0.0 : double(load(x.cotangent[i]));
          const double vy = y.cotangent == nullptr ? 0.0 : double(load(y.cotangent[j]));
          const double h = *grad / static_cast<double>(n) * power.curvature(d[k]) * (vx - vy);
          if (x.grad != nullptr) store(x.grad[i], static_cast<T>(h));
          if (y.grad != nullptr) store(y.grad[j], static_cast<T>(-h));
        }
        continue;
      }
#pragma omp simd reduction(+ : part)
      for (int64_t k = 0; k < count; ++k) {
        part += power.cost(d[k]);
        slopes[k] = power.slope(d[k]);
      }
      sum += part;
      spread(x.sorted, begin, count, slopes, T(1), x.grad);
      spread(y.sorted, begin, count, slopes, T(-1), y.grad);
      spread(x.sorted, begin, count, slopes, T(1), x.signs);
      spread(y.sorted, begin, count, slopes, T(-1), y.signs);
    }
    parts[chunk] = sum;
  });
  if (grad == nullptr) {
    double sum = 0;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) sum += parts[chunk];
    *cost = sum / static_cast<double>(n);
  }
  for_each(threads, 2, [&](int64_t side) {
    const Side<S>& s = side == 0 ? x : y;
    if (s.sign_words != nullptr) pack_signs(s.signs, n, s.sign_words);
  });
}

}  // namespace
}  // namespace fastgan::FASTGAN_ISA
