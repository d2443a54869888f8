// Rows sorted one at a time, by radix, and what becomes of a row whose sides are sorted.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "cpu/radix_sort.h"
#include "cpu/wasserstein/equal.h"
#include "cpu/wasserstein/staircase.h"
#include "cpu/wasserstein/unequal.h"
#include "cpu/wasserstein/weighted.h"

namespace fastgan::FASTGAN_ISA {
namespace {

template <typename S, Order kOrder, typename Cuts>
void solve(const WassersteinProblem& problem, int64_t row, Side<S>& x, Side<S>& y, const Coupling<Cuts>& c,
           const Merged* merged, double scale, int threads) {
  const Power<kOrder> power = {problem.p, 1 / scale};
  const double* grad = problem.grad == nullptr ? nullptr : problem.grad + row;
  double* cost = problem.cost + row;
  if (grad == nullptr && merged != nullptr) return solve_merged(problem, row, x, y, *merged, c.mass, power, threads);
  if (merged == nullptr && x.n == y.n) {
    pairs(x, y, power, grad, threads, cost);
  } else if (grad == nullptr) {
    uneven(x, y, power, c.mass, threads, cost);
  } else {
    second_of_side(x, y, c.x, c.y, c.mass * *grad, power, threads);
    second_of_side(y, x, c.y, c.x, c.mass * *grad, power, threads);
  }
  deliver(x, y, threads);
}

// One row whose sides are sorted.
template <typename S, typename Cuts>
void solve_coupled(const WassersteinProblem& problem, int64_t row, Side<S>& x, Side<S>& y, const Coupling<Cuts>& c,
                   const Merged* merged, int threads) {
  using T = acc_t<S>;
  const double p = problem.p;
  double scale = 1;
  if (std::isinf(p)) {
    if (problem.grad != nullptr) return;
    const Largest found = largest(x, y, c);
    problem.cost[row] = found.size;
    problem.scale[row] = 1;
    const T d = difference(x.sorted[found.i], y.sorted[found.j]), sign = static_cast<T>((d > 0) - (d < 0));
    fill(x.grad, x.n, T(0));
    fill(y.grad, y.n, T(0));
    if (x.grad != nullptr) store(x.grad[x.sorted.from(found.i)], sign * static_cast<T>(x.n));
    if (y.grad != nullptr) store(y.grad[y.sorted.from(found.j)], -sign * static_cast<T>(y.n));
    fill_weights_gradient(x, 0);
    fill_weights_gradient(y, 0);
    return;
  }
  if (problem.grad != nullptr) {
    scale = problem.scale[row];
  } else {
    if (is_scaled(p)) {
      const double size = largest(x, y, c).size;
      if (size > 0 && std::isfinite(size)) scale = size;
    }
    problem.scale[row] = scale;
  }
  if (p == 1) {
    solve<S, Order::one>(problem, row, x, y, c, merged, scale, threads);
  } else if (p == 2) {
    solve<S, Order::two>(problem, row, x, y, c, merged, scale, threads);
  } else {
    solve<S, Order::general>(problem, row, x, y, c, merged, scale, threads);
  }
}

template <typename S>
void solve_row(const WassersteinProblem& problem, int64_t row, Side<S>& x, Side<S>& y, const Merged* merged,
               int threads) {
  using T = acc_t<S>;
  const bool closely = is_scaled(problem.p);
  bool good = !has_nan(x) && !has_nan(y);
  if (good && merged != nullptr) {
    bool fits[2];
    for_each(threads, 2, [&](int64_t side) {
      fits[side] = side == 0 ? cumulate(x, merged->x, closely) : cumulate(y, merged->y, closely);
    });
    good = fits[0] && fits[1];
  }
  if (!good) {
    constexpr double nan = std::numeric_limits<double>::quiet_NaN();
    if (problem.grad == nullptr) {
      problem.cost[row] = nan;
      problem.scale[row] = x.sign_words != nullptr || y.sign_words != nullptr ? nan : 1;
    }
    for (Side<S>* side : {&x, &y}) {
      fill(side->grad, side->n, static_cast<T>(nan));
      if (side->sign_words != nullptr) std::memset(side->sign_words, 0, sign_words(side->n) * sizeof(uint32_t));
      fill_weights_gradient(*side, nan);
    }
  } else if (merged == nullptr) {
    const double mass = 1 / (static_cast<double>(x.n) * static_cast<double>(y.n));
    solve_coupled(problem, row, x, y, Coupling<UniformCuts>{{y.n}, {x.n}, mass}, merged, threads);
  } else {
    // Over one denominator, so that integer weights are compared exactly.
    for_each(threads, 2, [&](int64_t side) {
      double* const cuts = side == 0 ? x.cuts : y.cuts;
      const int64_t n = side == 0 ? x.n : y.n;
      const double total = side == 0 ? y.total : x.total;
      for (int64_t k = 0; k < n; ++k) cuts[k] *= total;
    });
    if (closely) tie(x.cuts, y.cuts, x.total * y.total);
    const double mass = 1 / (x.total * y.total);
    solve_coupled(problem, row, x, y, Coupling<WeightedCuts>{{x.cuts}, {y.cuts}, mass}, merged, threads);
  }
}

// Sorts a row at a time.
template <typename S>
class RowSorter {
 public:
  RowSorter(const WassersteinProblem& problem, const WassersteinSide& side)
      : side_(side), indexed_(needs_order(problem, side)), items_(sort_row_scratch<S>(side.n, indexed_)) {}
  void sort(int64_t row) {
    const S* from = static_cast<const S*>(side_.values) + row * side_.values_stride;
    sorted_ = indexed_ ? sort_row<S, true>(from, side_.n, items_) : sort_row<S, false>(from, side_.n, items_);
  }
  Side<S> side(int64_t row, double* cuts, int threads) const {
    // The sort leaves half of its memory free, with indices twice as much as the values take.
    char *const items = items_, *const half = items + sort_row_scratch<S>(side_.n, indexed_) / 2;
    char* const free = reinterpret_cast<const char*>(sorted_.values) == items ? half : items;
    const bool wanted = side_.grad != nullptr || side_.signs != nullptr;
    return side_of_row<S>(side_, row, sorted_, cuts, side_.signs == nullptr ? nullptr : reinterpret_cast<int8_t*>(free),
                          threads == 1 || !wanted ? nullptr : reinterpret_cast<acc_t<S>*>(free) + side_.n);
  }

 private:
  const WassersteinSide& side_;
  const bool indexed_;
  Scratch<char> items_;
  Sorted<acc_t<S>> sorted_;
};

template <typename S>
void run_rows(const WassersteinProblem& problem, int outer, int inner) {
  Shares shares(problem.rows, outer);
  parallel(outer, [&](int, int) {
    RowSorter<S> x(problem, problem.x), y(problem, problem.y);
    const MergedScratch scratch(problem);
    const Merged* const merged = scratch.get();
    for (Range rows = shares.next(); rows.begin < rows.end; rows = shares.next()) {
      for (int64_t row = rows.begin; row < rows.end; ++row) {
        for_each(inner, 2, [&](int64_t side) { (side == 0 ? x : y).sort(row); });
        Side<S> a = x.side(row, merged == nullptr ? nullptr : merged->x_ends, inner);
        Side<S> b = y.side(row, merged == nullptr ? nullptr : merged->y_ends, inner);
        solve_row(problem, row, a, b, merged, inner);
      }
    }
  });
}

}  // namespace
}  // namespace fastgan::FASTGAN_ISA
