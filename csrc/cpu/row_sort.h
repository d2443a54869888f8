// Sorting rows of floating-point values by order-preserving integer keys, with or without each value's index.
//
// Short rows go "row in lane": as many rows as a vector has lanes are transposed, and one sorting network, of vertical
// minima and maxima, sorts them all. Long rows are radix sorted one by one. Sorts with indices are stable.
// Included by kernel files, once per instruction set.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>

#include "common/simd.h"
#include "common/sort_keys.h"

namespace fastgan::FASTGAN_ISA {

// Sorted values, and where each was before (null unless asked for).
template <typename T>
struct Sorted {
  const T* values;
  const uint32_t* order;
  FASTGAN_INLINE T operator[](int64_t k) const { return values[k]; }
  FASTGAN_INLINE uint32_t from(int64_t k) const { return order[k]; }
};

// --- sorting networks --------------------------------------------------------------------------------------------

namespace network {

using Keys = Vec<int32_t>;
using Pairs = Vec<double>;
constexpr int kRows = kLanes<int32_t>;
constexpr int kHalf = kRows / 2;
// Vectors that are sorted and merged in registers.
#if defined(FASTGAN_ISA_avx512)
constexpr int kBlock = 16;
#else
constexpr int kBlock = 8;
#endif

FASTGAN_INLINE Keys low(Keys a, Keys b) { return a < b ? a : b; }
FASTGAN_INLINE Keys high(Keys a, Keys b) { return a < b ? b : a; }
FASTGAN_INLINE Pairs low(Pairs a, Pairs b) {
#if defined(FASTGAN_ISA_avx512)
  return (Pairs)_mm512_min_pd((__m512d)a, (__m512d)b);
#elif defined(FASTGAN_ISA_avx2)
  return (Pairs)_mm256_min_pd((__m256d)a, (__m256d)b);
#else
  return a < b ? a : b;
#endif
}
FASTGAN_INLINE Pairs high(Pairs a, Pairs b) {
#if defined(FASTGAN_ISA_avx512)
  return (Pairs)_mm512_max_pd((__m512d)a, (__m512d)b);
#elif defined(FASTGAN_ISA_avx2)
  return (Pairs)_mm256_max_pd((__m256d)a, (__m256d)b);
#else
  return a < b ? b : a;
#endif
}

// --- what a comparator does: `kReverse` steps are run through the network backwards ---

// The comparators that exchanged, a bit a lane.
#if defined(FASTGAN_ISA_avx512)
using Decision = uint16_t;
FASTGAN_INLINE Decision larger(Keys a, Keys b) { return _mm512_cmpgt_epi32_mask((__m512i)a, (__m512i)b); }
FASTGAN_INLINE Vec<float> choose(Decision second, Vec<float> a, Vec<float> b) {
  return (Vec<float>)_mm512_mask_blend_ps(second, (__m512)a, (__m512)b);
}
#else
using Decision = uint8_t;
FASTGAN_INLINE Keys lane_bits() {
  Keys bits;
  for (int l = 0; l < kRows; ++l) bits[l] = 1 << l;
  return bits;
}
FASTGAN_INLINE Decision larger(Keys a, Keys b) {
#if defined(FASTGAN_ISA_avx2)
  return static_cast<Decision>(_mm256_movemask_ps((__m256)(a > b)));
#else
  const Keys bits = (a > b) & lane_bits();
  return static_cast<Decision>(bits[0] | bits[1] | bits[2] | bits[3]);
#endif
}
FASTGAN_INLINE Vec<float> choose(Decision second, Vec<float> a, Vec<float> b) {
  return (broadcast<int32_t>(second) & lane_bits()) != 0 ? b : a;
}
#endif

struct Exchange {
  static constexpr bool kReverse = false;
  template <typename V>
  FASTGAN_INLINE void operator()(V& a, V& b, int) const {
    const V smaller = low(a, b);
    b = high(a, b);
    a = smaller;
  }
  FASTGAN_INLINE void advance(int) {}
};

// Exchanges, and notes what it did.
struct Record {
  static constexpr bool kReverse = false;
  Decision* next;
  FASTGAN_INLINE void operator()(Keys& a, Keys& b, int at) const {
    // volatile: GCC would collect the decisions of many comparators into one vector.
    *const_cast<volatile Decision*>(next + at) = larger(a, b);
    Exchange()(a, b, at);
  }
  FASTGAN_INLINE void advance(int count) { next += count; }
};

// Takes the recorded exchanges back: what stands at the places of sorted keys returns to where the keys came from.
struct Undo {
  static constexpr bool kReverse = true;
  const Decision* end;
  FASTGAN_INLINE void operator()(Vec<float>& a, Vec<float>& b, int at) const {
    const Vec<float> first = choose(end[at], a, b);
    b = choose(end[at], b, a);
    a = first;
  }
  FASTGAN_INLINE void advance(int count) { end -= count; }
};

struct Comparator {
  int low, high;
};

// Batcher's odd-even merge sort of N wires: 63 comparators for 16.
template <int N>
struct OddEven {
  Comparator at[N * 8];
  int count;
  constexpr OddEven() : at{}, count(0) {
    for (int p = 1; p < N; p *= 2) {
      for (int k = p; k >= 1; k /= 2) {
        for (int j = k % p; j + k < N; j += 2 * k) {
          for (int i = 0; i < k && i + j + k < N; ++i) {
            if ((i + j) / (2 * p) == (i + j + k) / (2 * p)) at[count++] = {i + j, i + j + k};
          }
        }
      }
    }
  }
};

// Steps of a merge on N wires: distances N/2, ..., 1; `kMirror` merges begin by comparing wire i with wire N - 1 - i.
// Every comparator puts the smaller value on the lower wire.
template <int N, bool kMirror>
struct Bitonic {
  Comparator at[N * 4];
  int count;
  constexpr Bitonic() : at{}, count(0) {
    for (int d = N / 2; d >= 1; d /= 2) {
      for (int i = 0; i < N; ++i) {
        if ((i & d) == 0) at[count++] = {i, kMirror && d == N / 2 ? N - 1 - i : i + d};
      }
    }
  }
};

template <typename Network, typename Step, typename V, size_t... I>
FASTGAN_INLINE void apply(Step& step, V* wires, std::index_sequence<I...>) {
  constexpr Network net;
  if constexpr (Step::kReverse) {
    step.advance(net.count);
    (step(wires[net.at[net.count - 1 - I].low], wires[net.at[net.count - 1 - I].high], net.count - 1 - I), ...);
  } else {
    (step(wires[net.at[I].low], wires[net.at[I].high], I), ...);
    step.advance(net.count);
  }
}
template <typename Network, typename Step, typename V>
FASTGAN_INLINE void apply(Step& step, V* wires) {
  apply<Network>(step, wires, std::make_index_sequence<Network().count>());
}

FASTGAN_INLINE Keys above_all(Keys) { return broadcast<int32_t>(INT32_MAX); }
FASTGAN_INLINE Pairs above_all(Pairs) { return broadcast(std::numeric_limits<double>::infinity()); }
FASTGAN_INLINE Vec<float> above_all(Vec<float>) { return Vec<float>{}; }  // is never exchanged

// log2(W) steps of a merge on two runs of W / 2 vectors, d apart.
template <int W, bool kMirror, typename Step, typename V>
FASTGAN_INLINE void merge_runs(Step& step, V* lower, V* upper, int64_t d) {
  V wires[W];
#pragma GCC unroll 16
  for (int w = 0; w < W / 2; ++w) {
    wires[w] = lower[w * d];
    wires[W / 2 + w] = upper[w * d];
  }
  apply<Bitonic<W, kMirror>>(step, wires);
#pragma GCC unroll 16
  for (int w = 0; w < W / 2; ++w) {
    lower[w * d] = wires[w];
    upper[w * d] = wires[W / 2 + w];
  }
}

// A call of its own where GCC would otherwise keep W addresses in registers, or rather on the stack.
template <int W, bool kMirror, typename Step, typename V>
__attribute__((noinline)) void merge_many_runs(Step& step, V* lower, V* upper, int64_t d) {
  merge_runs<W, kMirror>(step, lower, upper, d);
}

// The same where only so many vectors of the runs are there: the others would be above all and stay where they are.
template <int W, bool kMirror, typename Step, typename V>
__attribute__((noinline)) void merge_runs(Step& step, V* lower, V* upper, int64_t d, int64_t lowers, int64_t uppers) {
  V wires[W];
#pragma GCC unroll 16
  for (int w = 0; w < W / 2; ++w) {
    wires[w] = w < lowers ? lower[w * d] : above_all(V{});
    wires[W / 2 + w] = w < uppers ? upper[w * d] : above_all(V{});
  }
  apply<Bitonic<W, kMirror>>(step, wires);
#pragma GCC unroll 16
  for (int w = 0; w < W / 2; ++w) {
    if (w < lowers) lower[w * d] = wires[w];
    if (w < uppers) upper[w * d] = wires[W / 2 + w];
  }
}

// One pass over a[0, n): log2(W) steps of a merge whose distances begin at W d / 2.
template <int W, bool kMirror, typename Step, typename V>
void merge_pass(Step& step, V* a, int64_t d, int64_t n) {
  const int64_t span = W * d;
  const auto visit = [&](int64_t base, int64_t i) {
    const int64_t lower = base + i, upper = base + span / 2 + (kMirror ? d - 1 - i : i);
    if (upper + (W / 2 - 1) * d < n) {
      if constexpr (W <= 4) {
        merge_runs<W, kMirror>(step, a + lower, a + upper, d);
      } else {
        merge_many_runs<W, kMirror>(step, a + lower, a + upper, d);
      }
    } else if ((kMirror ? upper : lower + d) < n) {
      merge_runs<W, kMirror>(step, a + lower, a + upper, d, ceil_div(n - lower, d), ceil_div(n - upper, d));
    }
  };
  if constexpr (Step::kReverse) {
    for (int64_t base = (n - 1) / span * span; base >= 0; base -= span) {
      for (int64_t i = d - 1; i >= 0; --i) visit(base, i);
    }
  } else {
    for (int64_t base = 0; base < n; base += span) {
      for (int64_t i = 0; i < d; ++i) visit(base, i);
    }
  }
}

template <bool kMirror, typename Step, typename V>
FASTGAN_INLINE void merge_pass(Step& step, V* a, int wires, int64_t d, int64_t n) {
  switch (wires) {
    case 2: return merge_pass<2, kMirror>(step, a, d, n);
    case 4: return merge_pass<4, kMirror>(step, a, d, n);
    case 8: return merge_pass<8, kMirror>(step, a, d, n);
    default: return merge_pass<kBlock, kMirror>(step, a, d, n);
  }
}

// Merges sorted a[0, half) and a[half, n): passes of up to log2(kBlock) steps each, the last within blocks.
template <typename Step, typename V>
void merge(Step& step, V* a, int64_t half, int64_t n) {
  int wires[32] = {}, passes = 0;
  int64_t distances[32] = {};
  for (int64_t span = 2 * half; span > kBlock;) {
    wires[passes] = span / kBlock < kBlock ? static_cast<int>(span / kBlock) : kBlock;
    distances[passes] = span / wires[passes];
    span = distances[passes++];
  }
  const auto blocks = [&] {
    for (int64_t i = 0; i < n; i += kBlock) {
      V* const block = a + (Step::kReverse ? n - kBlock - i : i);
      V wires[kBlock];
#pragma GCC unroll 16
      for (int w = 0; w < kBlock; ++w) wires[w] = block[w];
      apply<Bitonic<kBlock, false>>(step, wires);
#pragma GCC unroll 16
      for (int w = 0; w < kBlock; ++w) block[w] = wires[w];
    }
  };
  if constexpr (Step::kReverse) {
    blocks();
    for (int p = passes - 1; p > 0; --p) merge_pass<false>(step, a, wires[p], distances[p], n);
    merge_pass<true>(step, a, wires[0], distances[0], n);
  } else {
    merge_pass<true>(step, a, wires[0], distances[0], n);
    for (int p = 1; p < passes; ++p) merge_pass<false>(step, a, wires[p], distances[p], n);
    blocks();
  }
}

template <typename Step, typename Ends, typename V>
__attribute__((noinline)) void sort_block(Step& step, const Ends& ends, V* a, int64_t first) {
  V wires[kBlock];
  if constexpr (Step::kReverse) {
#pragma GCC unroll 16
    for (int w = 0; w < kBlock; ++w) wires[w] = a[w];
    apply<OddEven<kBlock>>(step, wires);
    ends.store(first, wires);
  } else {
    ends.load(first, wires);
    apply<OddEven<kBlock>>(step, wires);
#pragma GCC unroll 16
    for (int w = 0; w < kBlock; ++w) a[w] = wires[w];
  }
}

// Sorts vectors [first, first + n) of `a` lane by lane, block by block from `ends`, which loads them; or, backwards,
// brings them to where they came from, and `ends` stores them. n is a multiple of kBlock.
template <typename Step, typename Ends, typename V>
void sort_columns(Step& step, const Ends& ends, V* a, int64_t first, int64_t n) {
  if (n <= kBlock) return sort_block(step, ends, a + first, first);
  int64_t half = kBlock;
  while (2 * half < n) half *= 2;
  if constexpr (Step::kReverse) {
    merge(step, a + first, half, n);
    sort_columns(step, ends, a, first + half, n - half);
    sort_columns(step, ends, a, first, half);
  } else {
    sort_columns(step, ends, a, first, half);
    sort_columns(step, ends, a, first + half, n - half);
    merge(step, a + first, half, n);
  }
}

// At least the comparators of a sort of n vectors: each step of a merge has `half` of them at most.
FASTGAN_INLINE int64_t comparators(int64_t n) {
  int64_t blocks = ceil_div(n, kBlock), count = blocks * OddEven<kBlock>().count;
  int steps = 1;
  for (int64_t span = 2 * kBlock; span / 2 < n; span *= 2) {
    steps = 0;
    for (int64_t d = span; d > 1; d /= 2) ++steps;
    count += ceil_div(n, span) * (span / 2) * steps;
  }
  return count;
}

// kRows × kRows transpose, by exchanging off-diagonal squares of half the size at each step.
template <int kStep>
FASTGAN_INLINE void transpose_step(Keys* r) {
  Keys keep_low, keep_high;
  for (int j = 0; j < kRows; ++j) {
    keep_low[j] = (j & kStep) == 0 ? j : kRows + j - kStep;
    keep_high[j] = (j & kStep) == 0 ? j + kStep : kRows + j;
  }
  for (int i = 0; i < kRows; ++i) {
    if ((i & kStep) != 0) continue;
    const Keys a = r[i], b = r[i + kStep];
    r[i] = __builtin_shuffle(a, b, keep_low);
    r[i + kStep] = __builtin_shuffle(a, b, keep_high);
  }
  if constexpr (kStep > 1) transpose_step<kStep / 2>(r);
}

// sort_key() with the top bit flipped, so that keys compare as signed integers; NaNs come first or last by their sign.
// Keys that are not `kStable` put -0 below 0.
template <bool kStable>
FASTGAN_INLINE Keys signed_keys(Vec<float> values) {
  Keys bits = (Keys)values;
  if constexpr (kStable) bits = bits == INT32_MIN ? Keys{} : bits;
  return bits ^ ((bits >> 31) & 0x7fffffff);
}
FASTGAN_INLINE Vec<float> signed_values(Keys keys) { return (Vec<float>)(keys ^ ((keys >> 31) & 0x7fffffff)); }

// The keys of `rows` <= kRows rows of n values, a row a lane; those past n are above every key.
template <typename S, bool kStable>
struct RowKeys {
  const S* values;
  int64_t row_stride, rows, n;
  FASTGAN_INLINE void load(int64_t first, Keys* wires) const {
    for (int i = 0; i < kBlock; i += kRows) {
      const S* const from = values + first + i;
      Keys* const square = wires + i;
      if (rows == kRows && n - first - i >= kRows) {
        for (int l = 0; l < kRows; ++l) {
          square[l] = signed_keys<kStable>(load_vector(from + l * row_stride));
          __builtin_prefetch(from + (l + kRows) * row_stride, 0, 2);  // of the next rows
        }
      } else {
        load_part(from, n - first - i, square);
      }
      transpose_step<kRows / 2>(square);
    }
  }

 private:
  void load_part(const S* from, int64_t count, Keys* square) const {
    count = count < 0 ? 0 : count < kRows ? count : kRows;
    Keys present;
    for (int k = 0; k < kRows; ++k) present[k] = -(k < count);
    for (int l = 0; l < kRows; ++l) {
      const Keys keys = signed_keys<kStable>(load_vector(from + (l < rows ? l : 0) * row_stride, count));
      square[l] = (keys & present) | (INT32_MAX & ~present);
    }
  }
};

// Half the lanes of sorted keys and their indices, packed into the 52 bits of a double's mantissa: with one exponent
// for all, doubles order as they do, and every instruction set has their minimum and maximum.
struct HalfPairs {
  typedef int32_t HalfKeys __attribute__((vector_size(sizeof(Keys) / 2)));
  typedef uint64_t Bits __attribute__((vector_size(sizeof(Keys))));
  const int32_t* keys;  // of the first of the lanes
  FASTGAN_INLINE void load(int64_t first, Pairs* wires) const {
#pragma GCC unroll 16
    for (int w = 0; w < kBlock; ++w) {
      HalfKeys key;
      std::memcpy(&key, keys + (first + w) * kRows, sizeof key);
      const Bits wide = __builtin_convertvector(key ^ INT32_MIN, Bits) & 0xffffffffu;
      wires[w] = (Pairs)((wide << 20) | (0x3ff0000000000000u | static_cast<uint64_t>(first + w)));
    }
  }
};

typedef int8_t Signs __attribute__((vector_size(kRows)));
FASTGAN_INLINE void store_lanes(int8_t* to, Vec<float> v, int64_t count) {
  const Signs signs = __builtin_convertvector(__builtin_convertvector(v, Keys), Signs);
  if (count >= kRows) {
    std::memcpy(to, &signs, sizeof signs);
  } else {
    std::memcpy(to, &signs, count);
  }
}
template <typename S>
FASTGAN_INLINE void store_lanes(S* to, Vec<float> v, int64_t count) {
  if (count >= kRows) {
    store_vector(to, v);
  } else {
    store_vector(to, v, count);
  }
}

// Stores columns [first, first + kBlock) of `rows` rows of n values.
template <typename S>
struct RowValues {
  S* values;
  int64_t rows, n;
  FASTGAN_INLINE void store(int64_t first, Vec<float>* wires) const {
    for (int64_t i = 0; i < kBlock && first + i < n; i += kRows) {
      const int64_t count = n - first - i;
      Keys square[kRows];
      for (int l = 0; l < kRows; ++l) square[l] = (Keys)wires[i + l];
      transpose_step<kRows / 2>(square);
      for (int64_t l = 0; l < rows; ++l) {
        store_lanes(values + l * n + first + i, (Vec<float>)square[l], count);
      }
    }
  }
};

// Vectors of n rows, a row a lane, as rows of n.
inline void lanes_to_rows(const Keys* lanes, int64_t n, int32_t* rows) {
  for (int64_t k = 0; k < n; k += kRows) {
    const int64_t count = n - k < kRows ? n - k : kRows;
    Keys square[kRows];
    for (int i = 0; i < kRows; ++i) square[i] = i < count ? lanes[k + i] : Keys{};
    transpose_step<kRows / 2>(square);
    for (int l = 0; l < kRows; ++l) std::memcpy(rows + l * n + k, &square[l], count * sizeof(int32_t));
  }
}

}  // namespace network

// Rows that are sorted together.
constexpr int kGroup = network::kRows;

FASTGAN_INLINE int64_t padded_size(int64_t n) { return ceil_div(n, network::kBlock) * network::kBlock; }

// Sorts up to kGroup rows of n values: the key of sorted value k of row l goes to keys[k][l]. keys has room for
// padded_size(n), decisions, which may be null, for network::comparators(n). Returns the end of the decisions:
// network::Undo takes the sort back from there.
template <typename S>
network::Decision* sort_group(const S* from, int64_t row_stride, int64_t rows, int64_t n, network::Keys* keys,
                              network::Decision* decisions) {
  using namespace network;
  if (decisions == nullptr) {
    Exchange step;
    sort_columns(step, RowKeys<S, false>{from, row_stride, rows, n}, keys, 0, padded_size(n));
    return nullptr;
  }
  Record step = {decisions};
  sort_columns(step, RowKeys<S, true>{from, row_stride, rows, n}, keys, 0, padded_size(n));
  return step.next;
}

// The same with indices: that of sorted value k of row l goes to order[k * kGroup + l]. order and pairs have room for
// padded_size(n) * kGroup.
template <typename S>
void sort_group_indexed(const S* from, int64_t row_stride, int64_t rows, int64_t n, network::Keys* keys,
                        uint32_t* order, double* pairs) {
  using namespace network;
  using HalfKeys = HalfPairs::HalfKeys;
  const int64_t padded = padded_size(n);
  const RowKeys<S, true> source = {from, row_stride, rows, n};
  for (int64_t first = 0; first < padded; first += kBlock) source.load(first, keys + first);
  Pairs* const packed = reinterpret_cast<Pairs*>(pairs);
  for (int half = 0; half < 2; ++half) {
    int32_t* const lanes = reinterpret_cast<int32_t*>(keys) + half * kHalf;
    Exchange step;
    sort_columns(step, HalfPairs{lanes}, packed, 0, padded);
    for (int64_t k = 0; k < n; ++k) {
      const HalfPairs::Bits bits = (HalfPairs::Bits)packed[k];
      const HalfKeys key = __builtin_convertvector(bits >> 20, HalfKeys) ^ INT32_MIN;
      const HalfKeys index = __builtin_convertvector(bits & 0xfffffu, HalfKeys);
      std::memcpy(lanes + k * kRows, &key, sizeof key);
      std::memcpy(order + k * kRows + half * kHalf, &index, sizeof index);
    }
  }
}

// --- radix sort --------------------------------------------------------------------------------------------------

namespace radix {

// What is moved: a key, or a key and an index.
template <typename Key, bool kIndexed>
struct Item;
template <>
struct Item<uint32_t, false> {
  uint32_t word;
  FASTGAN_INLINE static Item of(uint32_t key, uint32_t) { return {key}; }
  FASTGAN_INLINE uint32_t key() const { return word; }
  FASTGAN_INLINE uint32_t index() const { return 0; }
};
template <>
struct Item<uint32_t, true> {
  uint64_t word;
  FASTGAN_INLINE static Item of(uint32_t key, uint32_t index) { return {key_and_index(key, index)}; }
  FASTGAN_INLINE uint32_t key() const { return static_cast<uint32_t>(word >> 32); }
  FASTGAN_INLINE uint32_t index() const { return static_cast<uint32_t>(word); }
};
template <>
struct Item<uint64_t, false> {
  uint64_t word;
  FASTGAN_INLINE static Item of(uint64_t key, uint32_t) { return {key}; }
  FASTGAN_INLINE uint64_t key() const { return word; }
  FASTGAN_INLINE uint32_t index() const { return 0; }
};
template <>
struct Item<uint64_t, true> {
  uint64_t word;
  uint32_t from;
  FASTGAN_INLINE static Item of(uint64_t key, uint32_t index) { return {key, index}; }
  FASTGAN_INLINE uint64_t key() const { return word; }
  FASTGAN_INLINE uint32_t index() const { return from; }
};

template <typename S>
using key_t = decltype(sort_key(acc_t<S>{}));

// Values, and indices behind them, in place of items, which are at least as large.
template <typename S, bool kIndexed>
struct Output {
  acc_t<S>* values;
  uint32_t* order;
  FASTGAN_INLINE Output(void* items, int64_t n) : values(static_cast<acc_t<S>*>(items)), order(nullptr) {
    if constexpr (kIndexed) order = reinterpret_cast<uint32_t*>(values + n);
  }
  FASTGAN_INLINE void put(int64_t to, Item<key_t<S>, kIndexed> item) const {
    values[to] = value_of_key(item.key());
    if constexpr (kIndexed) order[to] = item.index();
  }
  FASTGAN_INLINE Sorted<acc_t<S>> sorted() const { return {values, order}; }
};

// Least significant digit first, kDigit bits a pass; passes in which all keys agree are left out. The last pass writes
// values and indices, into whichever of the two buffers it does not read.
template <int kDigit, typename S, bool kIndexed>
Sorted<acc_t<S>> sort(const S* from, int64_t n, Item<key_t<S>, kIndexed>* a, Item<key_t<S>, kIndexed>* b) {
  using I = Item<key_t<S>, kIndexed>;
  constexpr int kPasses = (static_cast<int>(sizeof(key_t<S>)) * 8 + kDigit - 1) / kDigit;
  constexpr uint32_t kMask = (1u << kDigit) - 1;
  uint32_t counts[kPasses][1 << kDigit];
  std::memset(counts, 0, sizeof counts);
  const auto digit = [](key_t<S> key, int pass) { return static_cast<uint32_t>(key >> (pass * kDigit)) & kMask; };

  for (int64_t i = 0; i < n; ++i) {
    const key_t<S> key = sort_key(load(from[i]));
    a[i] = I::of(key, static_cast<uint32_t>(i));
    for (int pass = 0; pass < kPasses; ++pass) ++counts[pass][digit(key, pass)];
  }
  int passes[kPasses], used = 0;
  for (int pass = 0; pass < kPasses; ++pass) {
    if (counts[pass][digit(a[0].key(), pass)] == n) continue;
    passes[used++] = pass;
    uint32_t sum = 0;
    for (uint32_t d = 0; d <= kMask; ++d) {
      const uint32_t count = counts[pass][d];
      counts[pass][d] = sum;
      sum += count;
    }
  }
  for (int p = 0; p + 1 < used; ++p) {
    uint32_t* next = counts[passes[p]];
    for (int64_t i = 0; i < n; ++i) b[next[digit(a[i].key(), passes[p])]++] = a[i];
    I* const other = a;
    a = b;
    b = other;
  }
  const Output<S, kIndexed> out(b, n);
  if (used == 0) {
    for (int64_t i = 0; i < n; ++i) out.put(i, a[i]);
  } else {
    uint32_t* next = counts[passes[used - 1]];
    for (int64_t i = 0; i < n; ++i) out.put(next[digit(a[i].key(), passes[used - 1])]++, a[i]);
  }
  return out.sorted();
}

template <typename S, bool kIndexed>
Sorted<acc_t<S>> insertion_sort(const S* from, int64_t n, Item<key_t<S>, kIndexed>* a, Item<key_t<S>, kIndexed>* b) {
  using I = Item<key_t<S>, kIndexed>;
  for (int64_t i = 0; i < n; ++i) {
    const I item = I::of(sort_key(load(from[i])), static_cast<uint32_t>(i));
    int64_t k = i;
    for (; k > 0 && a[k - 1].key() > item.key(); --k) a[k] = a[k - 1];
    a[k] = item;
  }
  const Output<S, kIndexed> out(b, n);
  for (int64_t k = 0; k < n; ++k) out.put(k, a[k]);
  return out.sorted();
}

}  // namespace radix

// Bytes of scratch that sort_row takes: 8 a sample, 16 with indices; twice as many for doubles.
template <typename S>
FASTGAN_INLINE int64_t sort_row_scratch(int64_t n, bool indexed) {
  using Key = radix::key_t<S>;
  return 2 * n * static_cast<int64_t>(indexed ? sizeof(radix::Item<Key, true>) : sizeof(radix::Item<Key, false>));
}

// Sorts one row of n < 2^32 values; the result lies in the scratch.
template <typename S, bool kIndexed>
Sorted<acc_t<S>> sort_row(const S* from, int64_t n, void* scratch) {
  auto* items = static_cast<radix::Item<radix::key_t<S>, kIndexed>*>(scratch);
  if (n <= 48) return radix::insertion_sort<S, kIndexed>(from, n, items, items + n);
  // Fewer passes, but counters that short rows do not pay for, and more places to write to than caches like.
  if (n >= 8192 && n < 131072) return radix::sort<11, S, kIndexed>(from, n, items, items + n);
  return radix::sort<8, S, kIndexed>(from, n, items, items + n);
}

}  // namespace fastgan::FASTGAN_ISA
