// n = m without weights: atom k meets atom k. One pass by vectors, and a store of each slope to where its sample was.
#pragma once

#include <cstdint>

#include "cpu/wasserstein/cost.h"
#include "cpu/wasserstein/side.h"
#include "cpu/wasserstein/signs.h"
#include "cpu/wasserstein/work.h"

namespace fastgan::FASTGAN_ISA {
namespace {

// Slopes of up to 256 sorted samples from `begin` on.
template <typename S>
FASTGAN_INLINE void spread(const Side<S>& side, int64_t begin, int64_t count, const acc_t<S>* slopes, acc_t<S> sign) {
  if (side.waiting != nullptr) {
    for (int64_t k = 0; k < count; ++k) side.waiting[begin + k] = sign * slopes[k];
  } else if (side.grad != nullptr) {
    send(side, begin, begin + count, side.grad, [&](S& to, int64_t k) { store(to, sign * slopes[k - begin]); });
  } else if (side.signs != nullptr) {
    int8_t signs[256];
#pragma omp simd
    for (int64_t k = 0; k < count; ++k) signs[k] = static_cast<int8_t>(sign * slopes[k]);
    send(side, begin, begin + count, side.signs, [&](int8_t& to, int64_t k) { to = signs[k - begin]; });
  }
}

// What waits goes to where its samples came from: a thread for each side, for two that store into the same lines take
// longer than one.
template <typename S>
void deliver(const Side<S>& x, const Side<S>& y, int threads) {
  for_each(threads, 2, [&](int64_t side) {
    const Side<S>& s = side == 0 ? x : y;
    if (s.waiting != nullptr) send(s, 0, s.n, s.grad, [&](S& to, int64_t k) { store(to, s.waiting[k]); });
    if (s.sign_words != nullptr) pack_signs(s.signs, s.n, s.sign_words);
  });
}

// n = m with uniform weights, where atom k meets atom k: both sides at once, or a thread for each side where results
// would wait and are found faster than they are stored and loaded.
template <typename S, Order kOrder>
void pairs(Side<S>& x, Side<S>& y, const Power<kOrder>& power, const double* grad, int threads, double* cost) {
  using T = acc_t<S>;
  const int64_t n = x.n, chunks = ceil_div(n, kChunk);
  const double factor = grad == nullptr ? 0 : *grad / static_cast<double>(n);
  const bool by_side = kOrder != Order::general && grad == nullptr && (x.waiting != nullptr || y.waiting != nullptr);
  if (by_side) x.waiting = y.waiting = nullptr;
  Scratch<double> parts(chunks);
  const auto solve_chunk = [&](int64_t chunk, bool counted, bool of_x, bool of_y) {
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
          const double h = factor * power.curvature(d[k]) * (vx - vy);
          if (x.grad != nullptr) put(x, begin + k, static_cast<T>(h));
          if (y.grad != nullptr) put(y, begin + k, static_cast<T>(-h));
        }
        continue;
      }
#pragma omp simd reduction(+ : part)
      for (int64_t k = 0; k < count; ++k) {
        part += power.cost(d[k]);
        slopes[k] = power.slope(d[k]);
      }
      sum += part;
      if (of_x) spread(x, begin, count, slopes, T(1));
      if (of_y) spread(y, begin, count, slopes, T(-1));
    }
    if (counted) parts[chunk] = sum;
  };
  if (by_side) {
    for_each(threads, 2, [&](int64_t side) {
      for (int64_t chunk = 0; chunk < chunks; ++chunk) solve_chunk(chunk, chunk % 2 == side, side == 0, side == 1);
    });
  } else {
    for_each(threads, chunks, [&](int64_t chunk) { solve_chunk(chunk, true, true, true); });
  }
  if (grad == nullptr) {
    double sum = 0;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) sum += parts[chunk];
    *cost = sum / static_cast<double>(n);
  }
}

}  // namespace
}  // namespace fastgan::FASTGAN_ISA
