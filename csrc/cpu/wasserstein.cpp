#include "cpu/wasserstein.h"

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>

#include "common/quantile.h"
#include "cpu/radix_sort.h"
#include "cpu/sorting_network.h"

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
  const float* float_weights;
  double* cuts;        // [n + 1], if either side is weighted
  double total, unit;  // the sum of the weights, scaled by the power of two `unit`
  S* grad;             // of this row, or null
  int8_t* signs;       // scratch, where `sign_words` are wanted
  uint32_t* sign_words;
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
    for (int64_t i = begin; i < end; ++i)
      store(a.grad[a.sorted.from(i)], static_cast<acc_t<S>>(sums[i - begin] * factor));
  });
}

// --- unequal counts, uniform weights -------------------------------------------------------------------------------
//
// In units of 1 / (n m), atom i of the longer side, of n, covers [i m, (i + 1) m), and each of the shorter side's n: an
// atom of the longer side meets one or two of the shorter side's, and which ones is counted on, without a branch.

// What a chunk of the longer side's atoms has for the shorter side's atoms that it does not have alone: its first, if
// it is not its last as well, and its last.
struct UnevenChunk {
  double cost;
  int64_t first, last;
  double first_sum, last_sum;
};

template <typename S, Order kOrder>
UnevenChunk uneven_chunk(const Side<S>& a, const Side<S>& b, const Power<kOrder>& power, double mass, int64_t begin,
                         int64_t end) {
  using T = acc_t<S>;
  constexpr int64_t kBatch = 256;
  const int64_t n = a.n, m = b.n;
  const T *as = a.sorted.values, *bs = b.sorted.values;
  const double a_factor = mass * static_cast<double>(n), b_factor = mass * static_cast<double>(m);
  const Power<kOrder> c = power;
  int64_t j = begin * m / n, covered = begin * m - j * n;
  UnevenChunk result = {0, j, j, 0, 0};
  double open = 0, sums[kChunk];  // of atom j, and of those before
  for (int64_t i = begin; i < end; i += kBatch) {
    const int64_t count = end - i < kBatch ? end - i : kBatch;
    int32_t partner[kBatch + 1];  // less the chunk's first
    double shared[kBatch], slope[kBatch], next_slope[kBatch], part = 0;
    for (int64_t k = 0; k < count; ++k) {
      partner[k] = static_cast<int32_t>(j - result.first);
      shared[k] = static_cast<double>(n - covered < m ? n - covered : m);
      covered += m;
      const int64_t past = covered >= n;
      covered -= past ? n : 0;
      j += past;
    }
    partner[count] = static_cast<int32_t>(j - result.first);
    const T* const from = bs + result.first;
    const int32_t last = static_cast<int32_t>(m - 1 - result.first);
#pragma omp simd reduction(+ : part)
    for (int64_t k = 0; k < count; ++k) {
      const int32_t next = partner[k + 1] < last ? partner[k + 1] : last;
      const T d = difference(as[i + k], from[partner[k]]), next_d = difference(as[i + k], from[next]);
      const double rest = static_cast<double>(m) - shared[k];  // 0: no mass, though the difference be infinite
      part += shared[k] * c.cost(d) + (rest > 0 ? rest * c.cost(next_d) : 0);
      slope[k] = shared[k] * c.slope(d);
      next_slope[k] = rest > 0 ? rest * c.slope(next_d) : 0;
    }
    result.cost += part;
    if (a.grad != nullptr) {
      for (int64_t k = 0; k < count; ++k)
        store(a.grad[a.sorted.from(i + k)], static_cast<T>((slope[k] + next_slope[k]) * a_factor));
    }
    if (b.grad == nullptr) continue;
    for (int64_t k = 0; k < count; ++k) {
      const double sum = open + slope[k];
      sums[partner[k]] = sum;
      open = partner[k + 1] > partner[k] ? next_slope[k] : sum;
    }
  }
  result.last = j;
  result.first_sum = sums[0];
  result.last_sum = open;
  if (b.grad != nullptr) {
    for (int64_t k = result.first + 1; k < j; ++k)
      store(b.grad[b.sorted.from(k)], static_cast<T>(-sums[k - result.first] * b_factor));
  }
  return result;
}

template <typename S, Order kOrder>
void uneven(const Side<S>& x, const Side<S>& y, const Power<kOrder>& power, double mass, int threads, double* cost) {
  const Side<S>&a = x.n > y.n ? x : y, &b = x.n > y.n ? y : x;
  const int64_t chunks = ceil_div(a.n, kChunk);
  Scratch<UnevenChunk> parts(chunks);
  for_each(threads, chunks, [&](int64_t chunk) {
    const int64_t begin = chunk * kChunk;
    parts[chunk] = uneven_chunk(a, b, power, mass, begin, begin + kChunk < a.n ? begin + kChunk : a.n);
  });
  double sum = 0, open = 0;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const UnevenChunk& part = parts[chunk];
    sum += part.cost;
    if (b.grad == nullptr) continue;
    if (part.last > part.first) {
      const double all = open + part.first_sum;
      store(b.grad[b.sorted.from(part.first)], static_cast<acc_t<S>>(-all * (mass * static_cast<double>(b.n))));
      open = 0;
    }
    open += part.last_sum;
  }
  *cost = sum * mass;
}

// Sends sorted slopes to where their atoms came from.
template <typename T, typename G>
FASTGAN_INLINE void spread(const Sorted<T>& sorted, int64_t begin, int64_t count, const T* slopes, T sign, G* to) {
  if (to == nullptr) return;
  for (int64_t k = 0; k < count; ++k) store(to[sorted.from(begin + k)], sign * slopes[k]);
}

// Signs [n], a byte each, as words of 16.
void pack_signs(const int8_t* signs, int64_t n, uint32_t* words) {
  for (int64_t i = 0; i < n; i += 16) {
    uint32_t positive = 0, negative = 0;
#if defined(FASTGAN_ISA_avx512) || defined(FASTGAN_ISA_avx2)
    if (n - i >= 16) {
      const __m128i sixteen = _mm_loadu_si128(reinterpret_cast<const __m128i*>(signs + i));
      positive = _mm_movemask_epi8(_mm_cmpgt_epi8(sixteen, _mm_setzero_si128()));
      negative = _mm_movemask_epi8(sixteen);
      words[i / 16] = positive | negative << 16;
      continue;
    }
#endif
    for (int64_t k = 0; k < 16 && i + k < n; ++k) {
      positive |= static_cast<uint32_t>(signs[i + k] > 0) << k;
      negative |= static_cast<uint32_t>(signs[i + k] < 0) << k;
    }
    words[i / 16] = positive | negative << 16;
  }
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

// --- weights: both sides' atoms merged by where they end -----------------------------------------------------------

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

template <typename S, Order kOrder, typename Cuts>
void solve(const WassersteinProblem& problem, int64_t row, Side<S>& x, Side<S>& y, const Coupling<Cuts>& c,
           const Merged* merged, double scale, int threads) {
  const Power<kOrder> power = {problem.p, 1 / scale};
  const double* grad = problem.grad == nullptr ? nullptr : problem.grad + row;
  double* cost = problem.cost + row;
  if (grad == nullptr && merged != nullptr) {
    solve_merged(problem, row, x, y, *merged, c.mass, power, threads);
  } else if (merged == nullptr && x.n == y.n) {
    pairs(x, y, power, grad, threads, cost);
  } else if (grad == nullptr) {
    uneven(x, y, power, c.mass, threads, cost);
  } else {
    second_of_side(x, y, c.x, c.y, c.mass * *grad, power, threads);
    second_of_side(y, x, c.y, c.x, c.mass * *grad, power, threads);
  }
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
    if (p != 1 && p != 2) {
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
  bool good = !has_nan(x) && !has_nan(y);
  if (good && merged != nullptr) {
    bool fits[2];
    for_each(threads, 2,
             [&](int64_t side) { fits[side] = side == 0 ? cumulate(x, merged->x) : cumulate(y, merged->y); });
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
    for (int64_t k = 0; k < x.n; ++k) x.cuts[k] *= y.total;
    for (int64_t k = 0; k < y.n; ++k) y.cuts[k] *= x.total;
    const double mass = 1 / (x.total * y.total);
    solve_coupled(problem, row, x, y, Coupling<WeightedCuts>{{x.cuts}, {y.cuts}, mass}, merged, threads);
  }
}

// --- rows ----------------------------------------------------------------------------------------------------------

bool needs_order(const WassersteinProblem& problem, const WassersteinSide& side) {
  return side.grad != nullptr || side.signs != nullptr || has_weights(side) || problem.grad != nullptr;
}

template <typename S>
Side<S> side_of_row(const WassersteinSide& side, int64_t row, Sorted<acc_t<S>> sorted, double* cuts,
                    int8_t* signs = nullptr) {
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
  s.grad_weights = side.grad_weights == nullptr ? nullptr : side.grad_weights + row * side.n;
  s.grad_float_weights = side.grad_float_weights == nullptr ? nullptr : side.grad_float_weights + row * side.n;
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
  Side<S> side(int64_t row, double* cuts) const {
    // The sort leaves half of its memory free.
    char *const items = items_, *const half = items + sort_row_scratch<S>(side_.n, indexed_) / 2;
    char* const free = reinterpret_cast<const char*>(sorted_.values) == items ? half : items;
    return side_of_row<S>(side_, row, sorted_, cuts,
                          side_.signs == nullptr ? nullptr : reinterpret_cast<int8_t*>(free));
  }

 private:
  const WassersteinSide& side_;
  const bool indexed_;
  Scratch<char> items_;
  Sorted<acc_t<S>> sorted_;
};

template <typename S>
void run_rows(const WassersteinProblem& problem, int outer, int inner) {
  parallel(outer, [&](int thread, int of) {
    RowSorter<S> x(problem, problem.x), y(problem, problem.y);
    const MergedScratch scratch(problem);
    const Merged* const merged = scratch.get();
    const Range rows = part(problem.rows, thread, of);
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      for_each(inner, 2, [&](int64_t side) { (side == 0 ? x : y).sort(row); });
      Side<S> a = x.side(row, merged == nullptr ? nullptr : merged->x_ends);
      Side<S> b = y.side(row, merged == nullptr ? nullptr : merged->y_ends);
      solve_row(problem, row, a, b, merged, inner);
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
  const network::Keys *x, *y;         // of the sorted values [n], [m]
  Lanes *x_slopes, *y_slopes;         // [n], [m]: unit gradients in sorted order; null where not wanted
  network::Signs *x_signs, *y_signs;  // the same, where those are signs
  int64_t n, m;
  FASTGAN_INLINE Lanes difference(int64_t i, int64_t j) const {
    const Lanes a = network::signed_values(x[i]), b = network::signed_values(y[j]);
    return a == b ? Lanes{} : a - b;
  }
};

// The costs of every lane for n = m and p = 1, and the signs of both sides' slopes.
void solve_signs(const Group& g, double* costs) {
  using network::Decision;
  constexpr int kBlock = network::kBlock;
  for (int l = 0; l < kGroup; ++l) costs[l] = 0;
  for (int64_t begin = 0; begin < g.n; begin += kBlock) {
    const int64_t count = begin + kBlock < g.n ? kBlock : g.n - begin;
    Decision positive[kBlock] = {}, negative[kBlock] = {};
    Lanes part = {};
    for (int64_t k = 0; k < count; ++k) {
      const network::Keys a = g.x[begin + k], b = g.y[begin + k];
      const Lanes d = g.difference(begin + k, begin + k);
      part += lane_cost<Order::one>(d);
      positive[k] = network::larger(a, b);
      negative[k] = network::larger(b, a);
    }
    add_lanes(costs, part);
    const auto put = [&](network::Signs* to, const Decision* first, const Decision* second) {
      if (to == nullptr) return;
      std::memcpy(to + begin / kBlock, first, sizeof positive);
      std::memcpy(reinterpret_cast<char*>(to + begin / kBlock) + sizeof positive, second, sizeof positive);
    };
    put(g.x_signs, positive, negative);
    put(g.y_signs, negative, positive);
  }
  for (int l = 0; l < kGroup; ++l) costs[l] /= static_cast<double>(g.n);
}

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

FASTGAN_INLINE bool order_matters(const network::Keys* keys, const network::Signs* signs, int64_t n) {
  using network::Decision;
  constexpr int kBlock = network::kBlock;
  Decision before[2] = {}, found = 0;
  for (int64_t k = 0; k < n; ++k) {
    const Decision* const block = reinterpret_cast<const Decision*>(signs + k / kBlock) + k % kBlock;
    const Decision changed = (block[0] ^ before[0]) | (block[kBlock] ^ before[1]);
    if (k > 0) found |= changed & network::equal(keys[k], keys[k - 1]);
    before[0] = block[0];
    before[1] = block[kBlock];
  }
  return found != 0;
}

// Puts signs where their samples came from.
void scatter(const network::Signs* signs, const uint32_t* order, int64_t rows, int64_t n, uint32_t* words) {
  constexpr int kBlock = network::kBlock;
  std::memset(words, 0, rows * sign_words(n) * sizeof(uint32_t));
  for (int64_t k = 0; k < n; ++k) {
    const network::Decision* const block = reinterpret_cast<const network::Decision*>(signs + k / kBlock) + k % kBlock;
    for (int64_t l = 0; l < rows; ++l) {
      const uint32_t i = order[k * kGroup + l], positive = block[0] >> l & 1, negative = block[kBlock] >> l & 1;
      words[l * sign_words(n) + i / 16] |= (positive | negative << 16) << i % 16;
    }
  }
}

// Sorts a group of rows. Its slopes go back through the network; only where that, which is not stable, would not give
// equal values their gradients in index order, is the group sorted again with indices.
template <typename S>
class GroupSorter {
 public:
  GroupSorter(const WassersteinProblem& problem, const WassersteinSide& side, bool in_lanes)
      : side_(side),
        indexed_(!in_lanes && needs_order(problem, side)),
        with_slopes_(in_lanes && side.grad != nullptr),
        with_signs_(in_lanes && side.signs != nullptr),
        keys_(padded_size(side.n)),
        values_(in_lanes ? 0 : side.n * kGroup),
        slopes_(with_slopes_ ? padded_size(side.n) : 0),
        signs_(with_signs_ ? padded_size(side.n) / network::kBlock : 0),
        decisions_(with_slopes_ || with_signs_ ? network::comparators(side.n) : 0),
        order_(indexed_ || with_slopes_ || with_signs_ ? padded_size(side.n) * kGroup : 0),
        pairs_(indexed_ || with_slopes_ || with_signs_ ? padded_size(side.n) * kWide : 0) {}
  void sort(int64_t row, int64_t rows) {
    if (indexed_ || ties_) {
      sort_indexed(row, rows);
    } else {
      decisions_end_ =
          sort_group<S>(values_of(row), side_.values_stride, rows, side_.n, keys_,
                        with_slopes_ || with_signs_ ? static_cast<network::Decision*>(decisions_) : nullptr);
    }
  }
  const network::Keys* keys() const { return keys_; }
  Lanes* slopes() const { return with_slopes_ ? static_cast<Lanes*>(slopes_) : nullptr; }
  network::Signs* signs() const { return with_signs_ ? static_cast<network::Signs*>(signs_) : nullptr; }
  // The slopes become the rows' gradients.
  void finish(int64_t row, int64_t rows, const double* costs) {
    const int64_t n = side_.n, words = sign_words(n);
    if (side_.signs != nullptr) {
      uint32_t* const to = side_.signs + row * words;
      const network::SignWords ends = {to, rows, words, padded_size(n) / network::kBlock};
      take_back<network::UndoSigns>(row, rows, static_cast<network::Signs*>(signs_), ends, to);
    } else if (side_.grad != nullptr) {
      S* const grad = static_cast<S*>(side_.grad) + row * n;
      const network::RowValues<S> ends = {grad, rows, n};
      take_back<network::Undo>(row, rows, static_cast<Lanes*>(slopes_), ends, grad);
      for (int64_t l = 0; l < rows; ++l) {
        if (std::isnan(costs[l])) fill(grad + l * side_.n, side_.n, std::numeric_limits<float>::quiet_NaN());
      }
    }
  }
  // Brings the sorted values, and indices, from lanes back into rows.
  void to_rows() const {
    using namespace network;
    const int64_t n = side_.n;
    Keys* const keys = keys_;
    for (int64_t k = 0; k < n; ++k) keys[k] = (Keys)signed_values(keys[k]);
    lanes_to_rows(keys, n, static_cast<int32_t*>(values_));
    if (indexed_) {
      lanes_to_rows(reinterpret_cast<const Keys*>(static_cast<uint32_t*>(order_)), n,
                    reinterpret_cast<int32_t*>(static_cast<double*>(pairs_)));
    }
  }
  Sorted<float> sorted(int64_t lane) const {
    const float* values = reinterpret_cast<const float*>(static_cast<int32_t*>(values_));
    const uint32_t* order = reinterpret_cast<const uint32_t*>(static_cast<double*>(pairs_));
    return {values + lane * side_.n, order + lane * side_.n};
  }

 private:
  const S* values_of(int64_t row) const { return static_cast<const S*>(side_.values) + row * side_.values_stride; }
  template <typename Step, typename V, typename Ends, typename G>
  void take_back(int64_t row, int64_t rows, V* slopes, const Ends& ends, G* grad) {
    const bool matters = order_matters(keys_, slopes, side_.n);
    if (matters && !ties_) sort_indexed(row, rows);
    if (matters || ties_) {
      scatter(slopes, order_, rows, side_.n, grad);
    } else {
      Step step = {decisions_end_};
      sort_columns(step, ends, slopes, 0, padded_size(side_.n));
    }
    ties_ = matters;  // a good guess of the next group's
  }
  void sort_indexed(int64_t row, int64_t rows) {
    sort_group_indexed<S>(values_of(row), side_.values_stride, rows, side_.n, keys_, order_, pairs_);
  }

  const WassersteinSide& side_;
  const bool indexed_, with_slopes_, with_signs_;
  bool ties_ = false;
  Scratch<network::Keys> keys_;
  Scratch<int32_t> values_;
  Scratch<Lanes> slopes_;
  Scratch<network::Signs> signs_;
  Scratch<network::Decision> decisions_;
  network::Decision* decisions_end_ = nullptr;
  Scratch<uint32_t> order_;
  Scratch<double> pairs_;
};

template <typename S>
void run_groups(const WassersteinProblem& problem, int threads) {
  const int64_t groups = ceil_div(problem.rows, kGroup);
  const bool weighted = has_weights(problem);
  // An atom's float sum in a lane has few terms; others are summed in double.
  const bool alike = problem.x.n <= 32 * problem.y.n && problem.y.n <= 32 * problem.x.n;
  const bool in_lanes = !weighted && alike && problem.grad == nullptr && (problem.p == 1 || problem.p == 2);
  const bool signs = problem.x.signs != nullptr || problem.y.signs != nullptr;
  parallel(threads, [&](int thread, int of) {
    GroupSorter<S> x(problem, problem.x, in_lanes), y(problem, problem.y, in_lanes);
    const MergedScratch scratch(problem);
    const Merged* const merged = scratch.get();
    const Range range = part(groups, thread, of);
    for (int64_t group = range.begin; group < range.end; ++group) {
      const int64_t row = group * kGroup;
      const int64_t rows = problem.rows - row < kGroup ? problem.rows - row : kGroup;
      x.sort(row, rows);
      y.sort(row, rows);
      if (!in_lanes) {
        x.to_rows();
        y.to_rows();
        for (int64_t l = 0; l < rows; ++l) {
          Side<S> a = side_of_row<S>(problem.x, row + l, x.sorted(l), merged == nullptr ? nullptr : merged->x_ends);
          Side<S> b = side_of_row<S>(problem.y, row + l, y.sorted(l), merged == nullptr ? nullptr : merged->y_ends);
          solve_row(problem, row + l, a, b, merged, 1);
        }
        continue;
      }
      const Group g = {x.keys(), y.keys(), x.slopes(), y.slopes(), x.signs(), y.signs(), problem.x.n, problem.y.n};
      double costs[kGroup];
      if (signs) {
        solve_signs(g, costs);
      } else if (problem.p == 1) {
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

// 16 signs times a factor, also one that is not finite.
FASTGAN_INLINE void scale_word(uint32_t word, float factor, float* to) {
  using network::Decision;
  const Lanes zero = broadcast(0 * factor), plus = broadcast(factor), minus = broadcast(-factor);
  for (int k = 0; k < 16; k += kGroup) {
    constexpr uint32_t kMask = (1u << kGroup) - 1;
    const Decision positive = static_cast<Decision>(word >> k & kMask);
    const Decision negative = static_cast<Decision>(word >> (16 + k) & kMask);
    store_vector(to + k, network::choose(positive, network::choose(negative, zero, minus), plus));
  }
}
FASTGAN_INLINE void scale_word(uint32_t word, double factor, double* to) {
  for (int k = 0; k < 16; ++k)
    to[k] = factor * (static_cast<int>(word >> k & 1) - static_cast<int>(word >> (16 + k) & 1));
}

template <typename S>
void scale_rows(const uint32_t* signs, const double* factors, int64_t rows, int64_t n, S* grad, int threads) {
  const int64_t words = sign_words(n);
  parallel(useful_threads(rows * n, threads), [&](int thread, int of) {
    const Range range = part(rows * words, thread, of);
    for (int64_t row = range.begin / words; row * words < range.end; ++row) {
      const int64_t begin = row * words > range.begin ? row * words : range.begin;
      const int64_t end = (row + 1) * words < range.end ? (row + 1) * words : range.end;
      const acc_t<S> factor = static_cast<acc_t<S>>(factors[row]);
      for (int64_t w = begin; w < end; ++w) {
        const int64_t k = (w - row * words) * 16;
        S* const to = grad + row * n + k;
        acc_t<S> values[16];
        if constexpr (std::is_same_v<S, float>) {
          if (n - k >= 16) {
            scale_word(signs[w], factor, to);
            continue;
          }
        }
        scale_word(signs[w], factor, values);
        for (int64_t i = 0; i < 16 && k + i < n; ++i) store(to[i], values[i]);
      }
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
    const bool signs = problem.x.signs != nullptr || problem.y.signs != nullptr;
    const bool indexed = needs_order(problem, problem.x) || needs_order(problem, problem.y);
    if (longest <= 64 || (longest <= (indexed && !signs ? 8192 : 32768) && problem.rows >= kGroup / 2)) {
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

void scale_signs(const uint32_t* signs, const double* factors, int64_t rows, int64_t n, DType dtype, void* grad,
                 int threads) {
  switch (dtype) {
    case DType::f32: return scale_rows(signs, factors, rows, n, static_cast<float*>(grad), threads);
    case DType::f64: return scale_rows(signs, factors, rows, n, static_cast<double*>(grad), threads);
    case DType::f16: return scale_rows(signs, factors, rows, n, static_cast<f16_t*>(grad), threads);
    case DType::bf16: return scale_rows(signs, factors, rows, n, static_cast<bf16_t*>(grad), threads);
  }
}

}  // namespace fastgan::FASTGAN_ISA
