// One side of one row: its sorted samples, its weights, and where its results go.
#pragma once

#include <cmath>
#include <cstdint>

#include "cpu/radix_sort.h"
#include "cpu/wasserstein.h"

namespace fastgan::FASTGAN_ISA {
namespace {

template <typename S>
struct Side {
  using T = acc_t<S>;
  Sorted<T> sorted;
  int64_t n;
  const double* weights;  // of this row, or null
  const float* float_weights;
  double* cuts;        // [n + 1], if either side is weighted
  double total, unit;  // the sum of the weights, scaled by the power of two `unit`
  S* grad;             // of this row, or null
  int8_t* signs;       // scratch, where `sign_words` are wanted
  uint32_t* sign_words;
  T* waiting;  // scratch for sorted results that deliver() sends on, or null: they are sent at once
  double* grad_weights;
  float* grad_float_weights;
  const S* cotangent;
};

FASTGAN_INLINE bool has_weights(const WassersteinSide& side) {
  return side.weights != nullptr || side.float_weights != nullptr;
}
FASTGAN_INLINE bool has_weights(const WassersteinProblem& problem) {
  return has_weights(problem.x) || has_weights(problem.y);
}

bool needs_order(const WassersteinProblem& problem, const WassersteinSide& side) {
  return side.grad != nullptr || side.signs != nullptr || has_weights(side) || problem.grad != nullptr;
}

template <typename S>
Side<S> side_of_row(const WassersteinSide& side, int64_t row, Sorted<acc_t<S>> sorted, double* cuts,
                    int8_t* signs = nullptr, acc_t<S>* waiting = nullptr) {
  Side<S> s;
  s.sorted = sorted;
  s.n = side.n;
  s.weights = side.weights == nullptr ? nullptr : side.weights + row * side.weights_stride;
  s.float_weights = side.float_weights == nullptr ? nullptr : side.float_weights + row * side.weights_stride;
  s.cuts = cuts;
  s.total = s.unit = 1;
  s.grad = side.grad == nullptr ? nullptr : static_cast<S*>(side.grad) + row * side.n;
  s.signs = signs;
  s.sign_words = side.signs == nullptr ? nullptr : side.signs + row * sign_words(side.n);
  s.waiting = waiting;
  s.grad_weights = side.grad_weights == nullptr ? nullptr : side.grad_weights + row * side.n;
  s.grad_float_weights = side.grad_float_weights == nullptr ? nullptr : side.grad_float_weights + row * side.n;
  s.cotangent = side.cotangent == nullptr ? nullptr : static_cast<const S*>(side.cotangent) + row * side.n;
  return s;
}

// The gradient of sorted sample k.
template <typename S>
FASTGAN_INLINE void put(const Side<S>& side, int64_t k, acc_t<S> value) {
  if (side.waiting != nullptr) {
    side.waiting[k] = value;
  } else {
    store(side.grad[side.sorted.from(k)], value);
  }
}

// Calls put(to[i], k) for the sorted samples k of [begin, end), which came from i; a long row's lines are fetched
// ahead.
template <typename S, typename G, typename Put>
FASTGAN_INLINE void send(const Side<S>& side, int64_t begin, int64_t end, G* to, const Put& put) {
  constexpr int64_t kAhead = 32, kLong = 8192;
  const Sorted<acc_t<S>> sorted = side.sorted;  // not to be loaded anew after each store
  const int64_t fetched = side.n < kLong ? begin : end < side.n - kAhead ? end : side.n - kAhead;
  int64_t k = begin;
  for (; k < fetched; ++k) {
    __builtin_prefetch(to + sorted.from(k + kAhead), 1);
    put(to[sorted.from(k)], k);
  }
  for (; k < end; ++k) put(to[sorted.from(k)], k);
}

template <typename S>
void fill(S* to, int64_t n, acc_t<S> value) {
  if (to != nullptr) {
    for (int64_t i = 0; i < n; ++i) store(to[i], value);
  }
}

template <typename S>
void fill_weights_gradient(const Side<S>& side, double value) {
  for (int64_t i = 0; side.grad_weights != nullptr && i < side.n; ++i) side.grad_weights[i] = value;
  for (int64_t i = 0; side.grad_float_weights != nullptr && i < side.n; ++i)
    side.grad_float_weights[i] = static_cast<float>(value);
}

template <typename S>
bool has_nan(const Side<S>& side) {  // they are sorted before or after the numbers
  return std::isnan(side.sorted[0]) || std::isnan(side.sorted[side.n - 1]);
}

}  // namespace
}  // namespace fastgan::FASTGAN_ISA
