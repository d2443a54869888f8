// Weights: both sides' atoms merged by where they end, one atom a step and without a branch that depends on the data.
//
// Along the staircase c(d) changes by Δ at each step, d being the difference of the cell's samples. The dual potential
// of the side that steps changes by that Δ, so that one merge gives the cost, every atom's sum of slopes and every
// weight's gradient. A step depends on the one before: load both ends, compare, advance, eight cycles or more. Two
// merges, of the halves of a chunk, run side by side in one loop and fill each other's waiting; what does not depend on
// the step before is left to a pass by vectors.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "common/quantile.h"
#include "cpu/wasserstein/cost.h"
#include "cpu/wasserstein/side.h"
#include "cpu/wasserstein/work.h"

namespace fastgan::FASTGAN_ISA {
namespace {

// Cumulative weights in sorted order; false if they are no weights. `closely`: rounded once, not at every step.
template <typename S, typename W>
bool cumulate_weights(Side<S>& side, const W* weights, bool closely) {
  double total = 0, least = 0;
#pragma omp simd reduction(+ : total) reduction(min : least)
  for (int64_t i = 0; i < side.n; ++i) {
    const double weight = weights[i];
    total += weight;
    least = weight < least ? weight : least;
  }
  // A NaN is in the total.
  if (!(least >= 0 && total > 0 && total < std::numeric_limits<double>::infinity())) return false;
  int exponent;
  frexp(total, &exponent);
  side.unit = exp2(static_cast<double>(-exponent > 1000 ? 1000 : -exponent));
  const double unit = side.unit;
  const Sorted<acc_t<S>> sorted = side.sorted;
  double* const cuts = side.cuts;
  double sum = 0;
  if (closely) {
    double error = 0, before = 0;
    for (int64_t k = 0; k < side.n; ++k) {
      const double weight = weights[sorted.from(k)], next = sum + weight, added = next - sum;
      error += (sum - (next - added)) + (weight - added);
      sum = next;
      const double cut = (sum + error) * unit;
      cuts[k] = before = cut > before ? cut : before;
    }
    side.total = before;
    return true;
  }
  // Each sum waits for the one before: its scaling, which is exact, does not make it wait longer.
  for (int64_t k = 0; k < side.n; ++k) cuts[k] = (sum += weights[sorted.from(k)]) * unit;
  side.total = sum * unit;
  return true;
}

// Values and cumulative weights, [n + 1] as Merged has them.
template <typename S>
bool cumulate(Side<S>& side, double* values, bool closely) {
  for (int64_t k = 0; k < side.n; ++k) values[k] = side.sorted[k];
  values[side.n] = values[side.n - 1];
  side.cuts[side.n] = std::numeric_limits<double>::infinity();
  side.unit = 1;
  if (side.weights != nullptr) return cumulate_weights(side, side.weights, closely);
  if (side.float_weights != nullptr) return cumulate_weights(side, side.float_weights, closely);
  for (int64_t k = 0; k < side.n; ++k) side.cuts[k] = static_cast<double>(k + 1);
  side.total = static_cast<double>(side.n);
  return true;
}

// Each of y's cuts that is one with a cut of x becomes it (common/quantile.h).
FASTGAN_INLINE void tie(const double* x_cuts, double* y_cuts, double total) {
  const double tolerance = kTie * total;
  for (int64_t i = 0, j = 0; y_cuts[j] < total;) {
    if (x_cuts[i] < y_cuts[j] - tolerance) {
      ++i;
    } else {
      if (x_cuts[i] - y_cuts[j] <= tolerance) y_cuts[j] = x_cuts[i];
      ++j;
    }
  }
}

typedef double Two __attribute__((vector_size(16)));  // of x and of y
typedef int64_t TwoBits __attribute__((vector_size(16)));
FASTGAN_INLINE Two where(TwoBits mask, Two value) { return (Two)((TwoBits)value & mask); }

// Arrays of n + 1 and m + 1 have the last value once more, and infinity as its end: neither side is ever at its end.
struct Merged {
  double *x, *y;            // sorted values
  double *x_ends, *y_ends;  // cumulative weights, over one denominator
  int64_t n, m;
  Two* ended;  // [n + m], x's atoms first: the sum of the slopes of an atom's cells, and its potential
};

// Memory for it, if there are weights: 32 bytes a sample.
class MergedScratch {
 public:
  explicit MergedScratch(const WassersteinProblem& problem)
      : weighted_(has_weights(problem)), doubles_(weighted_ ? 4 * (problem.x.n + problem.y.n + 1) : 0) {
    const int64_t n = problem.x.n, m = problem.y.n;
    double* const from = doubles_;
    merged_ = {from,
               from + n + 1,
               from + n + m + 2,
               from + 2 * n + m + 3,
               n,
               m,
               reinterpret_cast<Two*>(from + 2 * (n + m + 2))};
  }
  const Merged* get() const { return weighted_ ? &merged_ : nullptr; }

 private:
  const bool weighted_;
  Scratch<double> doubles_;
  Merged merged_;
};

constexpr int64_t kSteps = 128;  // of a merge, between its passes

// A merge on its way: the cell (i, j) where it is, and its last steps.
struct Path {
  int64_t i, j;
  int64_t ties;             // how often two atoms ended together
  double ends[kSteps + 1];  // the mass before each step, and after the last
  double d[kSteps + 1];     // the difference in each step's cell, and in the next one's
  int64_t ends_x[kSteps];   // -1 where x's atom ends, of both if they end together; 0 where y's does

  // Step `begin` of n + m: each ends one atom.
  FASTGAN_INLINE Path(const Merged& g, int64_t begin) : ties(0) {
    i = merge_path(
        begin, g.n + 1, g.m + 1, [&](int64_t i) { return g.x_ends[i]; }, [&](int64_t j) { return g.y_ends[j]; });
    j = begin - i;
    const double x_before = i > 0 ? g.x_ends[i - 1] : 0, y_before = j > 0 ? g.y_ends[j - 1] : 0;
    ends[0] = x_before > y_before ? x_before : y_before;
  }
  FASTGAN_INLINE void step(const Merged& g, int64_t k, int64_t& i, int64_t& j, int64_t& ties) {
    int64_t x_end, y_end;  // as integers, which compare alike
    std::memcpy(&x_end, g.x_ends + i, sizeof x_end);
    std::memcpy(&y_end, g.y_ends + j, sizeof y_end);
    const int64_t first = x_end <= y_end, mask = -first, next = y_end ^ ((x_end ^ y_end) & mask);
    ties += x_end == y_end;
    std::memcpy(ends + k + 1, &next, sizeof next);
    ends_x[k] = mask;
    d[k] = g.x[i] - g.y[j];
    i += first;
    j += 1 - first;
  }
};

// Steps of two merges, which fill each other's waiting.
FASTGAN_INLINE void walk_paths(const Merged& g, Path& a, int64_t a_count, Path& b, int64_t b_count) {
  int64_t ai = a.i, aj = a.j, bi = b.i, bj = b.j, a_ties = a.ties, b_ties = b.ties, k = 0;
  for (; k < a_count && k < b_count; ++k) {
    a.step(g, k, ai, aj, a_ties);
    b.step(g, k, bi, bj, b_ties);
  }
  for (int64_t l = k; l < a_count; ++l) a.step(g, l, ai, aj, a_ties);
  for (int64_t l = k; l < b_count; ++l) b.step(g, l, bi, bj, b_ties);
  a.d[a_count] = g.x[ai] - g.y[aj];
  b.d[b_count] = g.x[bi] - g.y[bj];
  a.i = ai;
  a.j = aj;
  a.ties = a_ties;
  b.i = bi;
  b.j = bj;
  b.ties = b_ties;
}

// What half a chunk of steps leaves behind: where it began and ended, and its sums.
struct MergePart {
  int64_t i, j, i_end, j_end, ties;
  double begin, end;  // of its mass
  double cost;
  Two sums, potential;  // of the atoms that have not ended
  Two moment;           // mass times potential
};

// What a path's last steps add to costs, slopes and potentials.
template <Order kOrder>
void add_steps(const Merged& g, const Power<kOrder>& order, const Path& path, int64_t count, MergePart& part) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  const Power<kOrder> power = order;
  double costs[kSteps + 1], mass[kSteps], slope[kSteps], change[kSteps], sum = 0;
#pragma omp simd
  for (int64_t k = 0; k <= count; ++k) costs[k] = power.cost(path.d[k] == path.d[k] ? path.d[k] : 0);  // inf - inf
#pragma omp simd reduction(+ : sum)
  for (int64_t k = 0; k < count; ++k) {
    mass[k] = path.ends[k + 1] - path.ends[k];
    const bool some = mass[k] > 0;  // no mass costs nothing, though the difference be infinite
    const double d = path.d[k] == path.d[k] ? path.d[k] : 0, step = costs[k + 1] - costs[k];
    sum += some ? mass[k] * costs[k] : 0;
    slope[k] = some ? mass[k] * power.slope(d) : 0;
    change[k] = std::fabs(step) < kInfinity ? step : 0;
  }
  part.cost += sum;
  // Every step stores what it has of both its atoms; the last to store is the one that ends an atom.
  Two x_ended[kSteps + 1], y_ended[kSteps + 1], sums = part.sums, potential = part.potential, moment = part.moment;
  int64_t i = 0, j = 0;
  for (int64_t k = 0; k < count; ++k) {
    sums += Two{slope[k], -slope[k]};
    x_ended[i] = shuffled<0, 2>(sums, potential);
    y_ended[j] = shuffled<1, 3>(sums, potential);
    moment += (Two{} + mass[k]) * potential;
    const TwoBits ended = (TwoBits{} + path.ends_x[k]) ^ TwoBits { 0, -1 };
    sums = where(~ended, sums);
    potential += where(ended, Two{} + change[k]);
    i -= path.ends_x[k];
    j += 1 + path.ends_x[k];
  }
  std::memcpy(g.ended + path.i - i, x_ended, i * sizeof(Two));
  std::memcpy(g.ended + g.n + path.j - j, y_ended, j * sizeof(Two));
  part.sums = sums;
  part.potential = potential;
  part.moment = moment;
}

// Steps [begin, end): two halves at a time.
template <Order kOrder>
void merge_chunk(const Merged& merged, const Power<kOrder>& power, int64_t begin, int64_t end, MergePart* parts) {
  const Merged g = merged;
  const int64_t middle = begin + (end - begin) / 2, counts[2] = {middle - begin, end - middle};
  Path paths[2] = {Path(g, begin), Path(g, middle)};
  for (int h = 0; h < 2; ++h) {
    MergePart part = {};
    part.i = paths[h].i;
    part.j = paths[h].j;
    part.begin = paths[h].ends[0];
    parts[h] = part;
  }
  for (int64_t done = 0; done < counts[1]; done += kSteps) {
    int64_t now[2];
    for (int h = 0; h < 2; ++h) now[h] = counts[h] - done < kSteps ? counts[h] - done : kSteps;
    walk_paths(g, paths[0], now[0], paths[1], now[1]);
    for (int h = 0; h < 2; ++h) {
      add_steps(g, power, paths[h], now[h], parts[h]);
      paths[h].ends[0] = paths[h].ends[now[h]];
    }
  }
  for (int h = 0; h < 2; ++h) {
    parts[h].i_end = paths[h].i;
    parts[h].j_end = paths[h].j;
    parts[h].ties = paths[h].ties;
    parts[h].end = paths[h].ends[0];
  }
}

typedef float Both __attribute__((vector_size(8)));  // gradients of a sample and of its weight

// Where a long row's gradients meet: two of an atom in one scattered store, which misses the caches once, not twice.
// Takes the place of the side's sorted values; null for what is not float32, or not long.
template <typename S>
Both* both_of(const Side<S>& side, double* values) {
  constexpr int64_t kLong = 1 << 16;
  const bool floats = std::is_same_v<S, float> && side.grad != nullptr && side.grad_float_weights != nullptr;
  return floats && side.n >= kLong ? reinterpret_cast<Both*>(values) : nullptr;
}

// Stores the gradients of atoms [begin, end) of a side.
template <typename S>
void store_gradients(const Side<S>& side, const Two* ended, int64_t begin, int64_t end, double factor, double shift,
                     Both* both) {
  const double per_weight = side.unit / side.total;
  if (both != nullptr) {
    return send(side, begin, end, both, [&](Both& to, int64_t i) {
      to = __builtin_convertvector((ended[i] + Two{0, shift}) * Two{factor, per_weight}, Both);
    });
  }
  if (side.grad != nullptr) {
    send(side, begin, end, side.grad,
         [&](S& to, int64_t i) { store(to, static_cast<acc_t<S>>(ended[i][0] * factor)); });
  }
  const auto of_weight = [&](auto& to, int64_t i) { store(to, (ended[i][1] + shift) * per_weight); };
  if (side.grad_weights != nullptr) send(side, begin, end, side.grad_weights, of_weight);
  if (side.grad_float_weights != nullptr) send(side, begin, end, side.grad_float_weights, of_weight);
}

template <typename S>
void part_both(const Side<S>& side, const Both* both, int threads) {
  if (both == nullptr) return;
  for_each(threads, ceil_div(side.n, kChunk), [&](int64_t chunk) {
    const int64_t begin = chunk * kChunk, end = begin + kChunk < side.n ? begin + kChunk : side.n;
    for (int64_t i = begin; i < end; ++i) {
      store(side.grad[i], both[i][0]);
      side.grad_float_weights[i] = both[i][1];
    }
  });
}

// The gradient for one side's weights where atoms of both sides end together: there the potential's step is the average
// of those along the other side's atoms before and after. Takes the place of what the merge found.
template <typename S, typename W, Order kOrder>
void tied_weight_gradient(const Side<S>& side, W* to, double* potential, const double* own, const double* ends,
                          const double* other, const double* other_ends, double mass, const Power<kOrder>& power) {
  const auto cost = [&](double a, double b) {
    const double d = a - b;
    return static_cast<double>(power.cost(d == d ? d : 0));
  };
  double f = 0, mean = 0, before = 0;
  int64_t below = 0, above = 0;  // the other side's first atom that ends with atom i or later, and later
  for (int64_t i = 0; i < side.n; ++i) {
    potential[i] = f;
    mean += (ends[i] - before) * f;
    before = ends[i];
    while (other_ends[below] < ends[i]) ++below;
    above = above > below ? above : below;
    while (other_ends[above] <= ends[i]) ++above;
    const double lower = own[i], upper = own[i + 1], at = other[below];
    double step = cost(upper, at) - cost(lower, at);
    if (above != below) step = (step + cost(upper, other[above]) - cost(lower, other[above])) / 2;
    f += std::fabs(step) < std::numeric_limits<double>::infinity() ? step : 0;
  }
  mean *= mass;
  const double per_weight = side.unit / side.total;
  for (int64_t i = 0; i < side.n; ++i) {
    store(to[side.sorted.from(i)], static_cast<W>((potential[i] - mean) * per_weight));
  }
}

template <typename S, Order kOrder>
void tied_gradients(const Side<S>& x, const Side<S>& y, const Merged& g, double mass, const Power<kOrder>& power,
                    int threads) {
  double* const potentials = reinterpret_cast<double*>(g.ended);
  for_each(threads, 2, [&](int64_t side) {
    const auto run = [&](auto* to) {
      if (to == nullptr) return;
      if (side == 0) {
        tied_weight_gradient(x, to, potentials, g.x, g.x_ends, g.y, g.y_ends, mass, power);
      } else {
        tied_weight_gradient(y, to, potentials + g.n, g.y, g.y_ends, g.x, g.x_ends, mass, power);
      }
    };
    run(side == 0 ? x.grad_weights : y.grad_weights);
    run(side == 0 ? x.grad_float_weights : y.grad_float_weights);
  });
}

// Fetches the lines that a row's gradients will be scattered over, to be written, while it is merged.
template <typename T>
FASTGAN_INLINE void expect_stores(const T* to, int64_t n) {
  constexpr int64_t kLine = 64 / sizeof(T), kMost = 8192 / sizeof(T);
  for (int64_t i = 0; to != nullptr && i < n && i < kMost; i += kLine) __builtin_prefetch(to + i, 1, 2);
}
template <typename S>
FASTGAN_INLINE void expect_stores(const Side<S>& side) {
  expect_stores(side.grad, side.n);
  expect_stores(side.grad_weights, side.n);
  expect_stores(side.grad_float_weights, side.n);
}

// One weighted row.
template <typename S, Order kOrder>
void solve_merged(const WassersteinProblem& problem, int64_t row, const Side<S>& x, const Side<S>& y, const Merged& g,
                  double mass, const Power<kOrder>& power, int threads) {
  const int64_t steps = g.n + g.m, chunks = ceil_div(steps, kChunk);
  Scratch<MergePart> parts(2 * chunks);
  expect_stores(x);
  expect_stores(y);
  for_each(threads, chunks, [&](int64_t chunk) {
    const int64_t begin = chunk * kChunk, end = begin + kChunk < steps ? begin + kChunk : steps;
    merge_chunk(g, power, begin, end, parts + 2 * chunk);
  });
  double cost = 0;
  int64_t ties = 0;
  Two mean = {}, base = {};
  for (int64_t k = 0; k < 2 * chunks; ++k) {
    MergePart& part = parts[k];
    cost += part.cost;
    ties += part.ties;
    if (part.i_end < g.n) g.ended[part.i_end][0] += part.sums[0];
    if (part.j_end < g.m) g.ended[g.n + part.j_end][0] += part.sums[1];
    mean += part.moment + (part.end - part.begin) * base;
    const Two next = base + part.potential;
    part.potential = base;
    base = next;
  }
  problem.cost[row] = cost * mass;
  mean *= mass;
  const bool tied = ties > 1;  // the last atoms always end together
  Both *const x_both = tied ? nullptr : both_of(x, g.x), *const y_both = tied ? nullptr : both_of(y, g.y);
  for_each(threads, 2, [&](int64_t side) {  // as in deliver()
    for (int64_t k = 0; k < 2 * chunks; ++k) {
      const MergePart& part = parts[k];
      const Two shift = part.potential - mean;
      if (side == 0) {
        store_gradients(x, g.ended, part.i, part.i_end, mass * static_cast<double>(g.n), shift[0], x_both);
      } else {
        store_gradients(y, g.ended + g.n, part.j, part.j_end, mass * static_cast<double>(g.m), shift[1], y_both);
      }
    }
  });
  part_both(x, x_both, threads);
  part_both(y, y_both, threads);
  if (tied) tied_gradients(x, y, g, mass, power, threads);
}

}  // namespace
}  // namespace fastgan::FASTGAN_ISA
