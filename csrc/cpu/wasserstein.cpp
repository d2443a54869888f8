#include "cpu/wasserstein.h"

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>

#include "common/quantile.h"
#include "cpu/row_sort.h"

namespace fastgan::FASTGAN_ISA {
namespace {

constexpr int64_t kChunk = 4096;             // atoms whose sums are formed at a time
constexpr int64_t kSamplesPerThread = 8192;  // fewer are not worth a thread

// c(d) = |d|^p, its first and second derivative, of differences d / D; curvature is 0 where it would be infinite.
enum class Order { one, two, general };

template <Order kOrder>
struct Power {
  double p, inverse;  // 1 / D
  template <typename T>
  FASTGAN_INLINE T cost(T d) const {
    if constexpr (kOrder == Order::one) return std::fabs(d);
    if constexpr (kOrder == Order::two) return d * d;
    return static_cast<T>(pow(std::fabs(d) * inverse, p));
  }
  template <typename T>
  FASTGAN_INLINE T slope(T d) const {
    if constexpr (kOrder == Order::one) return static_cast<T>((d > 0) - (d < 0));
    if constexpr (kOrder == Order::two) return 2 * d;
    return static_cast<T>(d == 0 ? 0.0 : std::copysign(p * pow(std::fabs(d) * inverse, p - 1), double(d)));
  }
  template <typename T>
  FASTGAN_INLINE double curvature(T d) const {  // for d, not for d / D
    if constexpr (kOrder == Order::one) return 0;
    if constexpr (kOrder == Order::two) return 2;
    return d == 0 ? 0.0 : p * (p - 1) * pow(std::fabs(d) * inverse, p - 2) * inverse * inverse;
  }
};

template <typename T>
FASTGAN_INLINE T difference(T x, T y) {  // two equal infinities cost nothing
  return x == y ? T(0) : x - y;
}

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

// Calls body(index) for every index < count, on as many threads.
template <typename Body>
FASTGAN_INLINE void for_each(int threads, int64_t count, const Body& body) {
  if (threads > count) threads = static_cast<int>(count);
  parallel(threads, [&](int thread, int of) {
    for (int64_t i = thread; i < count; i += of) body(i);
  });
}

template <typename S>
struct Side {
  using T = acc_t<S>;
  Sorted<T> sorted;
  int64_t n;
  const double* weights;  // of this row, or null
  double* cuts;           // [n], if either side is weighted
  double total, unit;     // the sum of the weights, scaled by the power of two `unit`
  S* grad;                // of this row, or null
  int8_t* signs;
  double* grad_weights;
  const S* cotangent;
};

template <typename S>
void fill(S* to, int64_t n, acc_t<S> value) {
  if (to != nullptr) {
    for (int64_t i = 0; i < n; ++i) store(to[i], value);
  }
}

template <typename S>
bool has_nan(const Side<S>& side) {  // they are sorted before or after the numbers
  return std::isnan(side.sorted[0]) || std::isnan(side.sorted[side.n - 1]);
}

// Cumulative weights in sorted order; false if they are no weights.
template <typename S>
bool cumulate(Side<S>& side) {
  side.unit = 1;
  if (side.weights == nullptr) {
    for (int64_t k = 0; k < side.n; ++k) side.cuts[k] = static_cast<double>(k + 1);
    side.total = static_cast<double>(side.n);
    return true;
  }
  double total = 0;
  bool good = true;
  for (int64_t i = 0; i < side.n; ++i) {
    good = good && side.weights[i] >= 0;
    total += side.weights[i];
  }
  if (!good || !(total > 0) || !(total < std::numeric_limits<double>::infinity())) return false;
  int exponent;
  frexp(total, &exponent);
  side.unit = exp2(static_cast<double>(-exponent > 1000 ? 1000 : -exponent));
  double sum = 0;
  for (int64_t k = 0; k < side.n; ++k) side.cuts[k] = sum += side.weights[side.sorted.from(k)] * side.unit;
  side.total = sum;
  return true;
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

// Sums over the cells of one side's atoms: cost, and gradient or second derivative of that side.
template <typename S, Order kOrder, typename Cuts>
void one_side(const Side<S>& a, const Side<S>& b, Cuts first, Cuts second, double mass, const Power<kOrder>& power,
              bool with_cost, const double* grad, int threads, double* cost) {
  if (!with_cost && a.grad == nullptr) return;
  const int64_t chunks = ceil_div(a.n, kChunk);
  Scratch<double> parts(chunks);
  for_each(threads, chunks, [&](int64_t chunk) {
    const int64_t begin = chunk * kChunk, end = begin + kChunk < a.n ? begin + kChunk : a.n;
    double sums[kChunk], part = 0;
    for (int64_t i = begin; i < end; ++i) sums[i - begin] = 0;
    const int64_t j = first_partner(begin, first, second, b.n);
    if (grad != nullptr) {
      walk(begin, end, first, second, b.n, j, [&](int64_t i, int64_t j, double overlap) {
        const double va = a.cotangent == nullptr ? 0.0 : double(load(a.cotangent[a.sorted.from(i)]));
        const double vb = b.cotangent == nullptr ? 0.0 : double(load(b.cotangent[b.sorted.from(j)]));
        sums[i - begin] += overlap * power.curvature(difference(a.sorted[i], b.sorted[j])) * (va - vb);
      });
    } else if (a.grad == nullptr) {
      walk(begin, end, first, second, b.n, j, [&](int64_t i, int64_t j, double overlap) {
        part += overlap * power.cost(difference(a.sorted[i], b.sorted[j]));
      });
    } else {
      walk(begin, end, first, second, b.n, j, [&](int64_t i, int64_t j, double overlap) {
        const auto d = difference(a.sorted[i], b.sorted[j]);
        if (with_cost) part += overlap * power.cost(d);
        sums[i - begin] += overlap * power.slope(d);
      });
    }
    parts[chunk] = part;
    if (a.grad != nullptr) {
      const double factor = grad != nullptr ? mass * *grad : mass * static_cast<double>(a.n);
      for (int64_t i = begin; i < end; ++i)
        store(a.grad[a.sorted.from(i)], static_cast<acc_t<S>>(sums[i - begin] * factor));
    }
  });
  if (with_cost) {
    double sum = 0;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) sum += parts[chunk];
    *cost = sum * mass;
  }
}

// The same sums, to the last bit, for both sides of a row of one chunk, in one walk.
template <typename S, Order kOrder, typename Cuts>
void both_sides(const Side<S>& x, const Side<S>& y, const Coupling<Cuts>& c, const Power<kOrder>& power, double* cost) {
  double x_sums[kChunk], y_sums[kChunk], part = 0;
  for (int64_t i = 0; i < x.n; ++i) x_sums[i] = 0;
  for (int64_t j = 0; j < y.n; ++j) y_sums[j] = 0;
  const Power<kOrder> at = power;
  const Sorted<acc_t<S>> xs = x.sorted, ys = y.sorted;
  walk(0, x.n, c.x, c.y, y.n, 0, [&](int64_t i, int64_t j, double overlap) {
    const auto d = difference(xs[i], ys[j]);
    part += overlap * at.cost(d);
    const double slope = at.slope(d);
    x_sums[i] += overlap * slope;
    y_sums[j] += overlap * -slope;
  });
  *cost = part * c.mass;
  const double x_factor = c.mass * static_cast<double>(x.n), y_factor = c.mass * static_cast<double>(y.n);
  for (int64_t i = 0; i < x.n; ++i) store(x.grad[xs.from(i)], static_cast<acc_t<S>>(x_sums[i] * x_factor));
  for (int64_t j = 0; j < y.n; ++j) store(y.grad[ys.from(j)], static_cast<acc_t<S>>(y_sums[j] * y_factor));
}

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
  const int64_t n = x.n, chunks = ceil_div(n, kChunk), stride = x.sorted.stride;
  Scratch<double> parts(chunks);
  for_each(threads, chunks, [&](int64_t chunk) {
    const int64_t last = (chunk + 1) * kChunk < n ? (chunk + 1) * kChunk : n;
    double sum = 0;
    for (int64_t begin = chunk * kChunk; begin < last; begin += 256) {
      const int64_t count = last - begin < 256 ? last - begin : 256;
      T d[256], slopes[256], part = 0;
      const T *xs = x.sorted.values + begin * stride, *ys = y.sorted.values + begin * stride;
      if (stride == 1) {
#pragma omp simd
        for (int64_t k = 0; k < count; ++k) d[k] = difference(xs[k], ys[k]);
      } else {
        for (int64_t k = 0; k < count; ++k) d[k] = difference(xs[k * stride], ys[k * stride]);
      }
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
}

// The gradient for one side's weights: the dual potential, centred, where both sides step together the average of the
// two neighbouring slopes.
template <typename S, Order kOrder>
void weight_gradient(const Side<S>& a, const Side<S>& b, double total, const Power<kOrder>& power) {
  if (a.grad_weights == nullptr) return;
  const double inverse = 1 / total;
  double f = 0, mean = 0, before = 0;
  int64_t below = 0, above = 0;
  for (int64_t i = 0; i < a.n; ++i) {
    const double level = a.cuts[i];
    a.grad_weights[a.sorted.from(i)] = f;
    mean += (level - before) * inverse * f;
    before = level;
    if (i + 1 == a.n) break;
    while (below + 1 < b.n && b.cuts[below] < level) ++below;
    while (above + 1 < b.n && b.cuts[above] <= level) ++above;
    const double lower = a.sorted[i], upper = a.sorted[i + 1];
    const double y0 = b.sorted[below], y1 = b.sorted[above];
    const double step = power.cost(difference(upper, y0)) - power.cost(difference(lower, y0)) +
                        power.cost(difference(upper, y1)) - power.cost(difference(lower, y1));
    if (std::isfinite(step)) f += step / 2;
  }
  const double per_weight = a.unit / a.total;
  for (int64_t i = 0; i < a.n; ++i) a.grad_weights[i] = (a.grad_weights[i] - mean) * per_weight;
}

template <typename S, Order kOrder, typename Cuts>
void solve(const WassersteinProblem& problem, int64_t row, Side<S>& x, Side<S>& y, const Coupling<Cuts>& c,
           double scale, bool equal, int threads) {
  const Power<kOrder> power = {problem.p, 1 / scale};
  const double* grad = problem.grad == nullptr ? nullptr : problem.grad + row;
  double* cost = problem.cost + row;
  if (equal) {
    pairs(x, y, power, grad, threads, cost);
    return;
  }
  if (grad == nullptr && x.grad != nullptr && y.grad != nullptr && x.n <= kChunk && y.n <= kChunk) {
    both_sides(x, y, c, power, cost);
  } else {
    one_side(x, y, c.x, c.y, c.mass, power, grad == nullptr, grad, threads, cost);
    one_side(y, x, c.y, c.x, c.mass, power, false, grad, threads, cost);
  }
  if constexpr (std::is_same_v<Cuts, WeightedCuts>) {
    for_each(threads, 2, [&](int64_t side) {
      if (side == 0) {
        weight_gradient(x, y, x.total * y.total, power);
      } else {
        weight_gradient(y, x, x.total * y.total, power);
      }
    });
  }
}

// One row whose sides are sorted.
template <typename S, typename Cuts>
void solve_coupled(const WassersteinProblem& problem, int64_t row, Side<S>& x, Side<S>& y, const Coupling<Cuts>& c,
                   bool equal, int threads) {
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
    for (int64_t i = 0; x.grad_weights != nullptr && i < x.n; ++i) x.grad_weights[i] = 0;
    for (int64_t i = 0; y.grad_weights != nullptr && i < y.n; ++i) y.grad_weights[i] = 0;
    return;
  }
  if (problem.grad != nullptr) {
    scale = problem.scale[row];
  } else {
    if (p != 1 && p != 2) {
      const double size = largest(x, y, c).size;
      if (size > 0 && std::isfinite(size)) scale = size;
    }
    problem.scale[row] = scale;
  }
  if (p == 1) {
    solve<S, Order::one>(problem, row, x, y, c, scale, equal, threads);
  } else if (p == 2) {
    solve<S, Order::two>(problem, row, x, y, c, scale, equal, threads);
  } else {
    solve<S, Order::general>(problem, row, x, y, c, scale, equal, threads);
  }
}

template <typename S>
void solve_row(const WassersteinProblem& problem, int64_t row, Side<S>& x, Side<S>& y, int threads) {
  using T = acc_t<S>;
  bool good = !has_nan(x) && !has_nan(y);
  const bool weighted = x.weights != nullptr || y.weights != nullptr;
  if (good && weighted) {
    bool fits[2];
    for_each(threads, 2, [&](int64_t side) { fits[side] = cumulate(side == 0 ? x : y); });
    good = fits[0] && fits[1];
  }
  if (!good) {
    constexpr double nan = std::numeric_limits<double>::quiet_NaN();
    if (problem.grad == nullptr) {
      problem.cost[row] = nan;
      problem.scale[row] = x.signs != nullptr || y.signs != nullptr ? nan : 1;
    }
    for (Side<S>* side : {&x, &y}) {
      fill(side->grad, side->n, static_cast<T>(nan));
      if (side->signs != nullptr) std::memset(side->signs, 0, side->n);
      for (int64_t i = 0; side->grad_weights != nullptr && i < side->n; ++i) side->grad_weights[i] = nan;
    }
  } else if (!weighted) {
    const double mass = 1 / (static_cast<double>(x.n) * static_cast<double>(y.n));
    solve_coupled(problem, row, x, y, Coupling<UniformCuts>{{y.n}, {x.n}, mass}, x.n == y.n, threads);
  } else {
    // Over one denominator, so that integer weights are compared exactly.
    for (int64_t k = 0; k < x.n; ++k) x.cuts[k] *= y.total;
    for (int64_t k = 0; k < y.n; ++k) y.cuts[k] *= x.total;
    const double mass = 1 / (x.total * y.total);
    solve_coupled(problem, row, x, y, Coupling<WeightedCuts>{{x.cuts}, {y.cuts}, mass}, false, threads);
  }
}

// --- rows ----------------------------------------------------------------------------------------------------------

bool needs_order(const WassersteinProblem& problem, const WassersteinSide& side) {
  return side.grad != nullptr || side.signs != nullptr || side.grad_weights != nullptr || side.weights != nullptr ||
         problem.grad != nullptr;
}

template <typename S>
Side<S> side_of_row(const WassersteinSide& side, int64_t row, Sorted<acc_t<S>> sorted, double* cuts) {
  Side<S> s;
  s.sorted = sorted;
  s.n = side.n;
  s.weights = side.weights == nullptr ? nullptr : side.weights + row * side.weights_stride;
  s.cuts = cuts;
  s.total = s.unit = 1;
  s.grad = side.grad == nullptr ? nullptr : static_cast<S*>(side.grad) + row * side.n;
  s.signs = side.signs == nullptr ? nullptr : side.signs + row * side.n;
  s.grad_weights = side.grad_weights == nullptr ? nullptr : side.grad_weights + row * side.n;
  s.cotangent = side.cotangent == nullptr ? nullptr : static_cast<const S*>(side.cotangent) + row * side.n;
  return s;
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
  Sorted<acc_t<S>> sorted() const { return sorted_; }

 private:
  const WassersteinSide& side_;
  const bool indexed_;
  Scratch<char> items_;
  Sorted<acc_t<S>> sorted_;
};

template <typename S>
void run_rows(const WassersteinProblem& problem, int outer, int inner) {
  const bool weighted = problem.x.weights != nullptr || problem.y.weights != nullptr;
  parallel(outer, [&](int thread, int of) {
    RowSorter<S> x(problem, problem.x), y(problem, problem.y);
    Scratch<double> cuts(weighted ? problem.x.n + problem.y.n : 0);
    const Range rows = part(problem.rows, thread, of);
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      for_each(inner, 2, [&](int64_t side) { (side == 0 ? x : y).sort(row); });
      Side<S> a = side_of_row<S>(problem.x, row, x.sorted(), cuts);
      Side<S> b = side_of_row<S>(problem.y, row, y.sorted(), cuts + problem.x.n);
      solve_row(problem, row, a, b, inner);
    }
  });
}

// --- groups of short rows: one row a lane -------------------------------------------------------------------------

using Lanes = Vec<float>;
constexpr int kWide = kGroup / 2;

// Adds the float lanes to doubles.
FASTGAN_INLINE void add_lanes(double* sums, Lanes part) {
  for (int l = 0; l < kGroup; ++l) sums[l] += static_cast<double>(part[l]);
}

template <Order kOrder>
FASTGAN_INLINE Lanes lane_cost(Lanes d) {
  if constexpr (kOrder == Order::one) return (Lanes)((Vec<int32_t>)d & 0x7fffffff);
  return d * d;
}
template <Order kOrder>
FASTGAN_INLINE Lanes lane_slope(Lanes d) {
  if constexpr (kOrder == Order::one) {
    const Lanes one = broadcast(1.0f);
    return d > 0 ? one : d < 0 ? -one : Lanes{};
  }
  return d + d;
}
struct Group {
  const network::Keys *x, *y;  // of the sorted values [n], [m]
  Lanes *x_slopes, *y_slopes;  // [n], [m]: unit gradients in sorted order; null where not wanted
  int64_t n, m;
  FASTGAN_INLINE Lanes difference(int64_t i, int64_t j) const {
    const Lanes a = network::signed_values(x[i]), b = network::signed_values(y[j]);
    return a == b ? Lanes{} : a - b;
  }
};

// Cost of every lane, and slopes; uniform weights.
template <Order kOrder>
void solve_lanes(const Group& g, double* costs) {
  for (int l = 0; l < kGroup; ++l) costs[l] = 0;
  if (g.n == g.m) {
    for (int64_t begin = 0; begin < g.n; begin += 16) {
      const int64_t end = begin + 16 < g.n ? begin + 16 : g.n;
      Lanes part = {};
      for (int64_t k = begin; k < end; ++k) {
        const Lanes d = g.difference(k, k);
        part += lane_cost<kOrder>(d);
        const Lanes slope = lane_slope<kOrder>(d);
        if (g.x_slopes != nullptr) g.x_slopes[k] = slope;
        if (g.y_slopes != nullptr) g.y_slopes[k] = -slope;
      }
      add_lanes(costs, part);
    }
    for (int l = 0; l < kGroup; ++l) costs[l] /= static_cast<double>(g.n);
    return;
  }
  for (int64_t i = 0; g.x_slopes != nullptr && i < g.n; ++i) g.x_slopes[i] = Lanes{};
  for (int64_t j = 0; g.y_slopes != nullptr && j < g.m; ++j) g.y_slopes[j] = Lanes{};
  const float x_unit = 1 / static_cast<float>(g.m), y_unit = 1 / static_cast<float>(g.n);
  int64_t cells = 0;
  Lanes part = {};
  walk(0, g.n, UniformCuts{g.m}, UniformCuts{g.n}, g.m, 0, [&](int64_t i, int64_t j, double overlap) {
    const Lanes d = g.difference(i, j);
    const float mass = static_cast<float>(overlap);
    part += lane_cost<kOrder>(d) * mass;
    if (++cells % 16 == 0) {
      add_lanes(costs, part);
      part = Lanes{};
    }
    const Lanes slope = lane_slope<kOrder>(d);
    if (g.x_slopes != nullptr) g.x_slopes[i] += slope * (mass * x_unit);
    if (g.y_slopes != nullptr) g.y_slopes[j] -= slope * (mass * y_unit);
  });
  add_lanes(costs, part);
  const double mass = 1 / (static_cast<double>(g.n) * static_cast<double>(g.m));
  for (int l = 0; l < kGroup; ++l) costs[l] *= mass;
}

template <typename G>
void scatter(const Lanes* slopes, const uint32_t* order, int64_t rows, int64_t n, G* grad) {
  const float* from = reinterpret_cast<const float*>(slopes);
  for (int64_t k = 0; k < n; ++k) {
    for (int64_t l = 0; l < rows; ++l) store(grad[l * n + order[k * kGroup + l]], from[k * kGroup + l]);
  }
}

// Whether equal values have different slopes, so that it matters which of them comes first.
FASTGAN_INLINE bool order_matters(const network::Keys* keys, const Lanes* slopes, int64_t n) {
  network::Keys found = {};
  for (int64_t k = 1; k < n; ++k) found |= (keys[k] == keys[k - 1]) & (slopes[k] != slopes[k - 1]);
  int32_t any = 0;
  for (int l = 0; l < kGroup; ++l) any |= found[l];
  return any != 0;
}

// Sorts a group of rows. Its slopes go back through the network; only where that, which is not stable, would not give
// equal values their gradients in index order, is the group sorted again with indices.
template <typename S>
class GroupSorter {
 public:
  GroupSorter(const WassersteinProblem& problem, const WassersteinSide& side, bool in_lanes)
      : side_(side),
        indexed_(!in_lanes && needs_order(problem, side)),
        with_slopes_(in_lanes && (side.grad != nullptr || side.signs != nullptr)),
        keys_(padded_size(side.n)),
        slopes_(with_slopes_ ? padded_size(side.n) : 0),
        decisions_(with_slopes_ ? network::comparators(side.n) : 0),
        order_(indexed_ || with_slopes_ ? padded_size(side.n) * kGroup : 0),
        pairs_(indexed_ || with_slopes_ ? padded_size(side.n) * kWide : 0) {}
  void sort(int64_t row, int64_t rows) {
    if (indexed_ || ties_) {
      sort_indexed(row, rows);
    } else {
      decisions_end_ = sort_group<S>(values_of(row), side_.values_stride, rows, side_.n, keys_,
                                     with_slopes_ ? static_cast<network::Decision*>(decisions_) : nullptr);
    }
  }
  const network::Keys* keys() const { return keys_; }
  Lanes* slopes() const { return with_slopes_ ? static_cast<Lanes*>(slopes_) : nullptr; }
  // The slopes become the rows' gradients.
  void finish(int64_t row, int64_t rows, const double* costs) {
    if (side_.signs != nullptr) {
      take_back(row, rows, side_.signs + row * side_.n);
    } else if (side_.grad != nullptr) {
      S* const grad = static_cast<S*>(side_.grad) + row * side_.n;
      take_back(row, rows, grad);
      for (int64_t l = 0; l < rows; ++l) {
        if (std::isnan(costs[l])) fill(grad + l * side_.n, side_.n, std::numeric_limits<float>::quiet_NaN());
      }
    }
  }
  // Turns the keys into values.
  void to_values() const {
    for (int64_t k = 0; k < side_.n; ++k) keys_[k] = (network::Keys)network::signed_values(keys_[k]);
  }
  Sorted<float> sorted(int64_t lane) const {
    const float* values = reinterpret_cast<const float*>(static_cast<network::Keys*>(keys_));
    return {values + lane, order_ + lane, kGroup};
  }

 private:
  const S* values_of(int64_t row) const { return static_cast<const S*>(side_.values) + row * side_.values_stride; }
  template <typename G>
  void take_back(int64_t row, int64_t rows, G* grad) {
    const bool matters = order_matters(keys_, slopes_, side_.n);
    if (matters && !ties_) sort_indexed(row, rows);
    if (matters || ties_) {
      scatter(slopes_, order_, rows, side_.n, grad);
    } else {
      network::Undo step = {decisions_end_};
      sort_columns(step, network::RowValues<G>{grad, rows, side_.n}, static_cast<Lanes*>(slopes_), 0,
                   padded_size(side_.n));
    }
    ties_ = matters;  // a good guess of the next group's
  }
  void sort_indexed(int64_t row, int64_t rows) {
    sort_group_indexed<S>(values_of(row), side_.values_stride, rows, side_.n, keys_, order_, pairs_);
  }

  const WassersteinSide& side_;
  const bool indexed_, with_slopes_;
  bool ties_ = false;
  Scratch<network::Keys> keys_;
  Scratch<Lanes> slopes_;
  Scratch<network::Decision> decisions_;
  network::Decision* decisions_end_ = nullptr;
  Scratch<uint32_t> order_;
  Scratch<double> pairs_;
};

template <typename S>
void run_groups(const WassersteinProblem& problem, int threads) {
  const int64_t groups = ceil_div(problem.rows, kGroup);
  const bool weighted = problem.x.weights != nullptr || problem.y.weights != nullptr;
  // An atom's float sum in a lane has few terms; others are summed in double.
  const bool alike = problem.x.n <= 32 * problem.y.n && problem.y.n <= 32 * problem.x.n;
  const bool in_lanes = !weighted && alike && problem.grad == nullptr && (problem.p == 1 || problem.p == 2);
  const bool signs = problem.x.signs != nullptr || problem.y.signs != nullptr;
  parallel(threads, [&](int thread, int of) {
    GroupSorter<S> x(problem, problem.x, in_lanes), y(problem, problem.y, in_lanes);
    Scratch<double> cuts(weighted ? problem.x.n + problem.y.n : 0);
    const Range range = part(groups, thread, of);
    for (int64_t group = range.begin; group < range.end; ++group) {
      const int64_t row = group * kGroup;
      const int64_t rows = problem.rows - row < kGroup ? problem.rows - row : kGroup;
      x.sort(row, rows);
      y.sort(row, rows);
      if (!in_lanes) {
        x.to_values();
        y.to_values();
        for (int64_t l = 0; l < rows; ++l) {
          Side<S> a = side_of_row<S>(problem.x, row + l, x.sorted(l), cuts);
          Side<S> b = side_of_row<S>(problem.y, row + l, y.sorted(l), cuts + problem.x.n);
          solve_row(problem, row + l, a, b, 1);
        }
        continue;
      }
      const Group g = {x.keys(), y.keys(), x.slopes(), y.slopes(), problem.x.n, problem.y.n};
      double costs[kGroup];
      if (problem.p == 1) {
        solve_lanes<Order::one>(g, costs);
      } else {
        solve_lanes<Order::two>(g, costs);
      }
      for (int64_t l = 0; l < rows; ++l) {
        problem.cost[row + l] = costs[l];
        problem.scale[row + l] = signs && std::isnan(costs[l]) ? costs[l] : 1;
      }
      x.finish(row, rows, costs);
      y.finish(row, rows, costs);
    }
  });
}

int useful_threads(int64_t samples, int most) {
  const int64_t threads = samples / kSamplesPerThread < most ? samples / kSamplesPerThread : most;
  return threads < 1 ? 1 : static_cast<int>(threads);
}

template <typename S>
void scale_rows(const int8_t* signs, const double* factors, int64_t rows, int64_t n, S* grad, int threads) {
  parallel(useful_threads(rows * n, threads), [&](int thread, int of) {
    const Range range = part(rows * n, thread, of);
    for (int64_t row = range.begin / n; row * n < range.end; ++row) {
      const int64_t begin = row * n > range.begin ? row * n : range.begin;
      const int64_t end = (row + 1) * n < range.end ? (row + 1) * n : range.end;
      const acc_t<S> factor = static_cast<acc_t<S>>(factors[row]);
#pragma omp simd
      for (int64_t k = begin; k < end; ++k) store(grad[k], static_cast<acc_t<S>>(signs[k]) * factor);
    }
  });
}

template <typename S>
void run(const WassersteinProblem& problem, int most) {
  const int64_t longest = problem.x.n > problem.y.n ? problem.x.n : problem.y.n;
  const int64_t samples = problem.rows * (problem.x.n + problem.y.n);
  const int threads = useful_threads(samples, most);
  if constexpr (!std::is_same_v<S, double>) {
    // Measured: where a network that sorts kGroup rows at once beats a radix sort of each.
    const bool indexed = needs_order(problem, problem.x) || needs_order(problem, problem.y);
    if (longest <= 64 || (longest <= (indexed ? 8192 : 32768) && problem.rows >= kGroup / 2)) {
      const int64_t groups = ceil_div(problem.rows, kGroup);
      run_groups<S>(problem, threads < groups ? threads : static_cast<int>(groups));
      return;
    }
  }
  if (problem.rows >= threads) {
    run_rows<S>(problem, threads, 1);
  } else {
    run_rows<S>(problem, 1, threads);
  }
}

}  // namespace

void wasserstein(const WassersteinProblem& problem, int threads) {
  switch (problem.dtype) {
    case DType::f32: return run<float>(problem, threads);
    case DType::f64: return run<double>(problem, threads);
    case DType::f16: return run<f16_t>(problem, threads);
    case DType::bf16: return run<bf16_t>(problem, threads);
  }
}

void scale_signs(const int8_t* signs, const double* factors, int64_t rows, int64_t n, DType dtype, void* grad,
                 int threads) {
  switch (dtype) {
    case DType::f32: return scale_rows(signs, factors, rows, n, static_cast<float*>(grad), threads);
    case DType::f64: return scale_rows(signs, factors, rows, n, static_cast<double*>(grad), threads);
    case DType::f16: return scale_rows(signs, factors, rows, n, static_cast<f16_t*>(grad), threads);
    case DType::bf16: return scale_rows(signs, factors, rows, n, static_cast<bf16_t*>(grad), threads);
  }
}

}  // namespace fastgan::FASTGAN_ISA
