// The monotone coupling of two sorted samples: which atoms share mass, and how much.
//
// Sorted, the optimal plan on the line pairs equal quantiles. Atom i of x covers the quantiles between two
// consecutive values of x's cumulative weights, atom j of y likewise; they exchange the mass of their overlap.
// The non-zero cells (i, j) form a staircase of at most n + m - 1 cells.
#pragma once

#include <cstdint>

#include "common/dtype.h"

namespace fastgan {

// The atoms first <= j < last of the other side.
struct Partners {
  int64_t first, last;
};

// Uniform weights 1/n and 1/m need no cumulative sums: in units of 1/(n m), atom i of n covers [i m, (i + 1) m).
// Exact while n m < 2^63.
FASTGAN_HOST_DEVICE Partners uniform_partners(int64_t i, int64_t n, int64_t m) {
  return {i * m / n, ((i + 1) * m + n - 1) / n};
}

// Mass that atoms i of n and j of m share, in units of 1/(n m).
FASTGAN_HOST_DEVICE int64_t uniform_overlap(int64_t i, int64_t n, int64_t j, int64_t m) {
  const int64_t low = i * m > j * n ? i * m : j * n;
  const int64_t high = (i + 1) * m < (j + 1) * n ? (i + 1) * m : (j + 1) * n;
  return high - low;
}

// The first of n non-decreasing values that is above t; n if none is.
FASTGAN_HOST_DEVICE int64_t first_above(const double* values, int64_t n, double t) {
  int64_t low = 0, high = n;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (values[middle] > t) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

// The first of n non-decreasing values that is t or above; n if none is.
FASTGAN_HOST_DEVICE int64_t first_at_least(const double* values, int64_t n, double t) {
  int64_t low = 0, high = n;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (values[middle] >= t) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

// Cuts of both sides that are closer than this part of the total are one cut, where p is neither 1 nor 2: what lies
// between them is rounding, and its mass is small but its p-th root is not. Other masses of weights that are integers
// are larger up to totals whose product is 2^47.
constexpr double kTie = 1.0 / (int64_t{1} << 47);

// The first of n cuts that is one with `cut`, or `cut` itself; the last cut, the total, stays.
FASTGAN_HOST_DEVICE double tied(double cut, const double* cuts, int64_t n, double total) {
  const double tolerance = kTie * total;
  if (!(cut < total)) return cut;
  const double other = cuts[first_at_least(cuts, n - 1, cut - tolerance)];
  return other - cut <= tolerance ? other : cut;
}

// The atoms whose quantiles meet (low, high], for cumulative weights cdf[m]; none if low == high.
FASTGAN_HOST_DEVICE Partners weighted_partners(double low, double high, const double* cdf, int64_t m) {
  if (!(low < high)) return {0, 0};
  const int64_t first = first_above(cdf, m, low), last = first_at_least(cdf, m, high) + 1;
  return {first, last < m ? last : m};
}

// Mass that quantiles (low, high] share with atom j of cumulative weights cdf.
FASTGAN_HOST_DEVICE double weighted_overlap(double low, double high, const double* cdf, int64_t j) {
  const double before = j > 0 ? cdf[j - 1] : 0.0;
  const double from = low > before ? low : before, to = high < cdf[j] ? high : cdf[j];
  return to > from ? to - from : 0.0;
}

// Merge path: cell k of the n + m - 1 of the staircase is (i, k - i), with i returned. `x_end(i)` and `y_end(j)` are
// the quantiles at which atoms end; where both end together x steps first, which leaves a cell without mass.
template <typename XEnd, typename YEnd>
FASTGAN_HOST_DEVICE int64_t merge_path(int64_t k, int64_t n, int64_t m, const XEnd& x_end, const YEnd& y_end) {
  int64_t low = k - (m - 1) > 0 ? k - (m - 1) : 0, high = k < n - 1 ? k : n - 1;
  while (low < high) {
    const int64_t i = low + (high - low) / 2;
    if (x_end(i) <= y_end(k - 1 - i)) {
      low = i + 1;
    } else {
      high = i;
    }
  }
  return low;
}

}  // namespace fastgan
