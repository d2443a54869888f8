// The coupling as a staircase of cells, walked one cell at a time: at most n + m - 1 steps with two branches each.
// Serves what is rare: the largest difference (p = inf, and the scale of other p) and second derivatives.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/quantile.h"
#include "cpu/wasserstein/cost.h"
#include "cpu/wasserstein/side.h"
#include "cpu/wasserstein/work.h"

namespace fastgan::FASTGAN_ISA {
namespace {

// Where atoms end: i m + m of n m for uniform weights, else cumulative weights.
struct UniformCuts {
  int64_t step;
  FASTGAN_INLINE int64_t operator()(int64_t i) const { return (i + 1) * step; }
};
struct WeightedCuts {
  const double* ends;
  FASTGAN_INLINE double operator()(int64_t i) const { return i < 0 ? 0.0 : ends[i]; }
};

// Calls visit(i, j, mass) for the cells of the staircase with atoms begin <= i < end of the first side.
template <typename Cuts, typename Visit>
FASTGAN_INLINE void walk(int64_t begin, int64_t end, Cuts first, Cuts second, int64_t m, int64_t j,
                         const Visit& visit) {
  auto at = first(begin - 1);
  for (int64_t i = begin; i < end;) {
    const auto mine = first(i), theirs = second(j);
    const auto next = mine < theirs ? mine : theirs;
    if (next > at) visit(i, j, static_cast<double>(next - at));
    at = next;
    i += mine == next;
    j += theirs == next && j + 1 < m;
  }
}

FASTGAN_INLINE int64_t first_partner(int64_t i, UniformCuts first, UniformCuts second, int64_t) {
  return i * first.step / second.step;
}
FASTGAN_INLINE int64_t first_partner(int64_t i, WeightedCuts first, WeightedCuts second, int64_t m) {
  const int64_t j = first_above(second.ends, m, first(i - 1));
  return j < m ? j : m - 1;
}

template <typename Cuts>
struct Coupling {
  Cuts x, y;
  double mass;  // what turns masses into parts of 1
};

// The largest |d| of the coupling: the first cell that has it.
struct Largest {
  double size;
  int64_t i, j;
};
template <typename S, typename Cuts>
Largest largest(const Side<S>& x, const Side<S>& y, const Coupling<Cuts>& c) {
  Largest found = {-1, 0, 0};
  walk(0, x.n, c.x, c.y, y.n, 0, [&](int64_t i, int64_t j, double) {
    const double size = std::fabs(difference(x.sorted[i], y.sorted[j]));
    if (size > found.size) found = {size, i, j};
  });
  return found;
}

// The second derivative of one side: sums over the cells of its atoms.
template <typename S, Order kOrder, typename Cuts>
void second_of_side(const Side<S>& a, const Side<S>& b, Cuts first, Cuts second, double factor,
                    const Power<kOrder>& power, int threads) {
  if (a.grad == nullptr) return;
  for_each(threads, ceil_div(a.n, kChunk), [&](int64_t chunk) {
    const int64_t begin = chunk * kChunk, end = begin + kChunk < a.n ? begin + kChunk : a.n;
    double sums[kChunk];
    for (int64_t i = begin; i < end; ++i) sums[i - begin] = 0;
    walk(begin, end, first, second, b.n, first_partner(begin, first, second, b.n),
         [&](int64_t i, int64_t j, double overlap) {
           const double va = a.cotangent == nullptr ? 0.0 : double(load(a.cotangent[a.sorted.from(i)]));
           const double vb = b.cotangent == nullptr ? 0.0 : double(load(b.cotangent[b.sorted.from(j)]));
           sums[i - begin] += overlap * power.curvature(difference(a.sorted[i], b.sorted[j])) * (va - vb);
         });
    for (int64_t i = begin; i < end; ++i) put(a, i, static_cast<acc_t<S>>(sums[i - begin] * factor));
  });
}

}  // namespace
}  // namespace fastgan::FASTGAN_ISA
