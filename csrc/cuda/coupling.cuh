// Which atoms of sorted rows share mass (csrc/common/quantile.h), and an atom's sum over its partners.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/quantile.h"
#include "cuda/group.cuh"

namespace fastgan::cuda {

// Uniform weights on n and m atoms: integers, and no memory read. Masses are in units of inverse_total(row).
struct UniformCoupling {
  int64_t n, m;
  double total_inverse;  // 1 / (n m)

  __device__ Partners partners(int64_t, int64_t i) const { return uniform_partners(i, n, m); }
  __device__ double mass(int64_t, int64_t i, int64_t j) const {
    return static_cast<double>(uniform_overlap(i, n, j, m));
  }
  __device__ double inverse_total(int64_t) const { return total_inverse; }
  __host__ UniformCoupling transposed() const { return {m, n, total_inverse}; }
};

// Cuts of both sides over the common denominator cuts[row, n - 1]; a row without valid weights has NaN there. Where an
// atom's own weight is zero rounding may still leave a step between the cuts: it carries no mass.
struct WeightedCoupling {
  int64_t n, m;
  const double *x_cuts, *y_cuts;        // [rows, n], [rows, m]
  const double *x_weights, *y_weights;  // sorted as the cuts are; null: uniform
  const double* inverse_totals;         // [rows], 1 / cuts[row, n - 1]

  __device__ Partners partners(int64_t row, int64_t i) const {
    if (x_weights != nullptr && x_weights[row * n + i] == 0) return {0, 0};
    const double* cuts = x_cuts + row * n;
    return weighted_partners(i > 0 ? cuts[i - 1] : 0, cuts[i], y_cuts + row * m, m);
  }
  __device__ double mass(int64_t row, int64_t i, int64_t j) const {
    if (y_weights != nullptr && y_weights[row * m + j] == 0) return 0;
    const double* cuts = x_cuts + row * n;
    return weighted_overlap(i > 0 ? cuts[i - 1] : 0, cuts[i], y_cuts + row * m, j);
  }
  __device__ double inverse_total(int64_t row) const { return inverse_totals[row]; }
  __host__ WeightedCoupling transposed() const { return {m, n, y_cuts, x_cuts, y_weights, x_weights, inverse_totals}; }
};

struct CostAndSlope {
  double cost, slope;
  __device__ CostAndSlope& operator+=(CostAndSlope other) {
    cost += other.cost;
    slope += other.slope;
    return *this;
  }
};

__device__ __forceinline__ CostAndSlope warp_reduce(CostAndSlope value) {
  return {warp_sum(value.cost), warp_sum(value.slope)};
}
__device__ __forceinline__ double warp_reduce(double value) { return warp_sum(value); }
__device__ __forceinline__ Largest warp_reduce(Largest value) { return warp_largest(value); }
__device__ __forceinline__ Largest& operator+=(Largest& a, Largest b) { return a = larger(a, b); }

// For each lane the reduction of term(atom, j) over its own atom's partners j. A lane with many partners is served by
// the whole warp, so that a heavy atom does not hold up the rest. All lanes of the warp call this together.
template <typename T, typename Term>
__device__ T reduce_partners(Partners own, int64_t atom, T neutral, const Term& term) {
  constexpr int64_t kMany = 64;
  const int lane = threadIdx.x % 32;
  T result = neutral;
  const bool many = own.last - own.first > kMany;
  if (!many) {
    for (int64_t j = own.first; j < own.last; ++j) result += term(atom, j);
  }
  for (unsigned waiting = __ballot_sync(~0u, many); waiting != 0; waiting &= waiting - 1) {
    const int served = __ffs(static_cast<int>(waiting)) - 1;
    const int64_t first = __shfl_sync(~0u, own.first, served), last = __shfl_sync(~0u, own.last, served);
    const int64_t its_atom = __shfl_sync(~0u, atom, served);
    T part = neutral;
    for (int64_t j = first + lane; j < last; j += 32) part += term(its_atom, j);
    part = warp_reduce(part);
    if (lane == served) result = part;
  }
  return result;
}

}  // namespace fastgan::cuda
