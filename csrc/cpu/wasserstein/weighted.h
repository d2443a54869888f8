// Weights: both sides' atoms merged by where they end, one atom a step and without a branch that depends on the data.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "common/quantile.h"
#include "cpu/wasserstein/cost.h"
#include "cpu/wasserstein/side.h"
#include "cpu/wasserstein/work.h"

namespace fastgan::FASTGAN_ISA {
namespace {

// Cumulative weights in sorted order; false if they are no weights.
template <typename S, typename W>
bool cumulate_weights(Side<S>& side, const W* weights) {
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
  double sum = 0;
  for (int64_t k = 0; k < side.n; ++k) side.cuts[k] = sum += weights[side.sorted.from(k)] * side.unit;
  side.total = sum;
  return true;
}

// Values and cumulative weights, [n + 1] as Merged has them.
template <typename S>
bool cumulate(Side<S>& side, double* values) {
  for (int64_t k = 0; k < side.n; ++k) values[k] = side.sorted[k];
  values[side.n] = values[side.n - 1];
  side.cuts[side.n] = std::numeric_limits<double>::infinity();
  side.unit = 1;
  if (side.weights != nullptr) return cumulate_weights(side, side.weights);
  if (side.float_weights != nullptr) return cumulate_weights(side, side.float_weights);
  for (int64_t k = 0; k < side.n; ++k) side.cuts[k] = static_cast<double>(k + 1);
  side.total = static_cast<double>(side.n);
  return true;
}

typedef double Two __attribute__((vector_size(16)));
typedef int64_t TwoBits __attribute__((vector_size(16)));
FASTGAN_INLINE Two where(TwoBits mask, Two value) { return (Two)((TwoBits)value & mask); }

// Arrays of n + 1 and m + 1 have the last value once more, and infinity as its end: neither side is ever at its end.
struct Merged {
  double *x, *y;            // sorted values
  double *x_ends, *y_ends;  // cumulative weights, over one denominator
  int64_t n, m;
  double* sums;       // [n + m], x's atoms first: the sum of the slopes of an atom's cells
  uint32_t* partner;  // [n + m]: how many of the other side's atoms end before an atom (or with it, for y's)
};

// Memory for it, if there are weights: 28 bytes a sample.
class MergedScratch {
 public:
  explicit MergedScratch(const WassersteinProblem& problem)
      : weighted_(has_weights(problem)),
        doubles_(weighted_ ? 3 * (problem.x.n + problem.y.n) + 4 : 0),
        partners_(weighted_ ? problem.x.n + problem.y.n : 0) {
    const int64_t n = problem.x.n, m = problem.y.n;
    double* const from = doubles_;
    merged_ = {from, from + n + 1, from + n + m + 2, from + 2 * n + m + 3, n, m, from + 2 * (n + m + 2), partners_};
  }
  const Merged* get() const { return weighted_ ? &merged_ : nullptr; }

 private:
  const bool weighted_;
  Scratch<double> doubles_;
  Scratch<uint32_t> partners_;
  Merged merged_;
};

// Costs of masses that are not negative, of differences d and -d: 0 for no mass, though the difference be infinite.
template <Order kOrder>
FASTGAN_INLINE Two slopes_of(Two mass, Two d, const Power<kOrder>& power) {
  if constexpr (kOrder == Order::one) return where(d > 0, mass) - where(d < 0, mass);
  if constexpr (kOrder == Order::two) return where(mass > 0, mass * (d + d));
  const double slope = mass[0] > 0 ? mass[0] * power.slope(d[0]) : 0;
  return Two{slope, -slope};
}

struct ChunkEnd {
  double cost;
  int64_t i, j;         // the atoms that a chunk did not end,
  double x_sum, y_sum;  // and what it has for them
};

// Steps [begin, end) of n + m: each ends one atom, of x where both end together. No step waits for a guessed branch.
template <Order kOrder>
ChunkEnd merge_chunk(const Merged& g, const Power<kOrder>& power, int64_t begin, int64_t end) {
  int64_t i = merge_path(
      begin, g.n + 1, g.m + 1, [&](int64_t i) { return g.x_ends[i]; }, [&](int64_t j) { return g.y_ends[j]; });
  int64_t j = begin - i;
  const double x_before = i > 0 ? g.x_ends[i - 1] : 0, y_before = j > 0 ? g.y_ends[j - 1] : 0;
  double at = x_before > y_before ? x_before : y_before, cost = 0;
  const Power<kOrder> c = power;
  const Merged s = g;
  const TwoBits others[2] = {{-1, 0}, {0, -1}};
  Two sums = {};
  for (int64_t k = begin; k < end; ++k) {
    int64_t x_end, y_end;  // as integers, which compare alike
    std::memcpy(&x_end, s.x_ends + i, sizeof x_end);
    std::memcpy(&y_end, s.y_ends + j, sizeof y_end);
    const int64_t ends_x = x_end <= y_end, mask = -ends_x;
    const int64_t next_bits = y_end ^ ((x_end ^ y_end) & mask);
    double next;
    std::memcpy(&next, &next_bits, sizeof next);
    const Two mass = Two{} + (next - at);
    at = next;
    double d = s.x[i] - s.y[j];
    d = d == d ? d : 0;  // two equal infinities
    cost += mass[0] > 0 ? mass[0] * c.cost(d) : 0;
    sums += slopes_of<kOrder>(mass, Two{d, -d}, c);
    const TwoBits other = others[ends_x];
    const Two ended = where(~other, sums);
    const int64_t atom = (i & mask) | ((s.n + j) & ~mask);
    s.sums[atom] = ended[0] + ended[1];
    s.partner[atom] = static_cast<uint32_t>((j & mask) | (i & ~mask));
    sums = where(other, sums);
    i += ends_x;
    j += 1 - ends_x;
  }
  return {cost, i, j, sums[0], sums[1]};
}

// The cost times the denominator, and every atom's sum and partner.
template <Order kOrder>
double merge_all(const Merged& g, const Power<kOrder>& power, int threads) {
  const int64_t steps = g.n + g.m, chunks = ceil_div(steps, kChunk);
  Scratch<ChunkEnd> ends(chunks);
  for_each(threads, chunks, [&](int64_t chunk) {
    ends[chunk] = merge_chunk(g, power, chunk * kChunk, (chunk + 1) * kChunk < steps ? (chunk + 1) * kChunk : steps);
  });
  double cost = 0;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const ChunkEnd& end = ends[chunk];
    cost += end.cost;
    if (end.i < g.n) g.sums[end.i] += end.x_sum;
    if (end.j < g.m) g.sums[g.n + end.j] += end.y_sum;
  }
  return cost;
}

// The gradient for one side's weights: the dual potential, centred, where both sides step together the average of the
// two neighbouring slopes. below(i) and above(i): the first of the other side's atoms that ends with atom i or later,
// and later.
template <typename S, typename W, Order kOrder, typename Below, typename Above>
FASTGAN_INLINE void weight_gradient(const Side<S>& side, W* to, double* potential, const double* own,
                                    const double* ends, const double* other, double denominator,
                                    const Power<kOrder>& power, const Below& below, const Above& above) {
  const auto cost = [&](double a, double b) {
    const double d = a - b;
    return static_cast<double>(power.cost(d == d ? d : 0));
  };
  double f = 0, mean = 0, before = 0;
  for (int64_t i = 0; i < side.n; ++i) {
    potential[i] = f;
    mean += (ends[i] - before) * f;
    before = ends[i];
    const int64_t b = below(i), a = above(i);
    const double lower = own[i], upper = own[i + 1], at = other[b];
    double step = cost(upper, at) - cost(lower, at);
    if (a != b) step = (step + cost(upper, other[a]) - cost(lower, other[a])) / 2;
    f += std::fabs(step) < std::numeric_limits<double>::infinity() ? step : 0;
  }
  mean /= denominator;
  const double per_weight = side.unit / side.total;
  for (int64_t i = 0; i < side.n; ++i) {
    store(to[side.sorted.from(i)], static_cast<W>((potential[i] - mean) * per_weight));
  }
}

template <typename S>
void store_sums(const Side<S>& side, const double* sums, double factor) {
  if (side.grad == nullptr) return;
  for (int64_t i = 0; i < side.n; ++i) store(side.grad[side.sorted.from(i)], static_cast<acc_t<S>>(sums[i] * factor));
}

// One weighted row.
template <typename S, Order kOrder>
void solve_merged(const WassersteinProblem& problem, int64_t row, const Side<S>& x, const Side<S>& y, const Merged& g,
                  double mass, const Power<kOrder>& power, int threads) {
  problem.cost[row] = merge_all(g, power, threads) * mass;
  const uint32_t *x_partner = g.partner, *y_partner = g.partner + g.n;
  const auto gradient_of_x = [&](auto* to) {
    weight_gradient(
        x, to, g.sums, g.x, g.x_ends, g.y, 1 / mass, power, [&](int64_t i) { return int64_t{x_partner[i]}; },
        [&](int64_t i) {
          int64_t j = x_partner[i];
          while (g.y_ends[j] <= g.x_ends[i]) ++j;
          return j;
        });
  };
  const auto gradient_of_y = [&](auto* to) {
    weight_gradient(
        y, to, g.sums + g.n, g.y, g.y_ends, g.x, 1 / mass, power,
        [&](int64_t j) {
          int64_t i = y_partner[j];
          while (i > 0 && g.x_ends[i - 1] >= g.y_ends[j]) --i;
          return i;
        },
        [&](int64_t j) { return int64_t{y_partner[j]}; });
  };
  // The sums are stored first: potentials take their place.
  for_each(threads, 2, [&](int64_t side) {
    if (side == 0) {
      store_sums(x, g.sums, mass * static_cast<double>(g.n));
      if (x.grad_weights != nullptr) gradient_of_x(x.grad_weights);
      if (x.grad_float_weights != nullptr) gradient_of_x(x.grad_float_weights);
    } else {
      store_sums(y, g.sums + g.n, mass * static_cast<double>(g.m));
      if (y.grad_weights != nullptr) gradient_of_y(y.grad_weights);
      if (y.grad_float_weights != nullptr) gradient_of_y(y.grad_float_weights);
    }
  });
}

}  // namespace
}  // namespace fastgan::FASTGAN_ISA
