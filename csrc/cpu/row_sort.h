// Sorting rows of floating-point values by order-preserving integer keys, with or without each value's index.
//
// Short rows go "row in lane": as many rows as a vector has lanes are transposed, and one sorting network, of vertical
// minima and maxima, sorts them all. Long rows are radix sorted one by one. Both are stable: an index breaks ties.
// Included by kernel files, once per instruction set.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#include "common/simd.h"
#include "common/sort_keys.h"

namespace fastgan::FASTGAN_ISA {

// Sorted values, `stride` apart, and where each was before (null unless asked for).
template <typename T>
struct Sorted {
  const T* values;
  const uint32_t* order;
  int64_t stride;
  FASTGAN_INLINE T operator[](int64_t k) const { return values[k * stride]; }
  FASTGAN_INLINE uint32_t from(int64_t k) const { return order[k * stride]; }
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

template <typename V>
FASTGAN_INLINE void exchange(V& a, V& b) {
  const V smaller = low(a, b);
  b = high(a, b);
  a = smaller;
}

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

// The last log2(N) steps of a bitonic merge: distances N/2, ..., 1.
template <int N>
struct Bitonic {
  Comparator at[N * 4];
  int count;
  constexpr Bitonic() : at{}, count(0) {
    for (int d = N / 2; d >= 1; d /= 2) {
      for (int i = 0; i < N; ++i) {
        if ((i & d) == 0) at[count++] = {i, i + d};
      }
    }
  }
};

template <typename Network, typename V, size_t... I>
FASTGAN_INLINE void apply(V* wires, std::index_sequence<I...>) {
  constexpr Network net;
  (exchange(wires[net.at[I].low], wires[net.at[I].high]), ...);
}

template <template <int> class Network, typename V>
FASTGAN_INLINE void apply_block(V* a) {
  V wires[kBlock];
  for (int i = 0; i < kBlock; ++i) wires[i] = a[i];
  apply<Network<kBlock>>(wires, std::make_index_sequence<Network<kBlock>().count>());
  for (int i = 0; i < kBlock; ++i) a[i] = wires[i];
}

// Sorts the n vectors lane by lane; n is a multiple of kBlock. Blocks are merged in pairs. All comparators put the
// smaller value on the lower wire, so wires past n, which would hold +inf, are left out.
template <typename V>
void sort_columns(V* a, int64_t n) {
  for (int64_t i = 0; i < n; i += kBlock) apply_block<OddEven>(a + i);
  for (int64_t half = kBlock; half < n; half *= 2) {
    for (int64_t base = 0; base + half < n; base += 2 * half) {
      const int64_t mirror = base + 2 * half - 1;
      const int64_t begin = mirror < n ? base : base + mirror - (n - 1);
      for (int64_t i = begin; i < base + half; ++i) exchange(a[i], a[mirror - (i - base)]);
    }
    for (int64_t d = half / 2; d >= kBlock; d /= 2) {
      for (int64_t base = 0; base + d < n; base += 2 * d) {
        const int64_t end = base + 2 * d < n ? base + d : n - d;
        for (int64_t i = base; i < end; ++i) exchange(a[i], a[i + d]);
      }
    }
    for (int64_t i = 0; i < n; i += kBlock) apply_block<Bitonic>(a + i);
  }
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

FASTGAN_INLINE Keys signed_keys(Vec<float> values) {  // sort_key() with the top bit flipped
  Keys bits = (Keys)values;
  const Keys magnitude = bits & 0x7fffffff;
  bits = magnitude > 0x7f800000 ? broadcast<int32_t>(0x7fc00000) : bits;
  bits = magnitude == 0 ? Keys{} : bits;
  return bits ^ ((bits >> 31) & 0x7fffffff);
}
FASTGAN_INLINE Vec<float> signed_values(Keys keys) { return (Vec<float>)(keys ^ ((keys >> 31) & 0x7fffffff)); }

// Keys [padded, kRows] of `rows` <= kRows rows of n values; the pads are above every key.
template <typename S>
FASTGAN_INLINE void load_keys(const S* values, int64_t row_stride, int64_t rows, int64_t n, int64_t padded,
                              Keys* keys) {
  for (int64_t k = 0; k < n; k += kRows) {
    Keys square[kRows];
    for (int l = 0; l < kRows; ++l) {
      const S* from = values + (l < rows ? l : 0) * row_stride + k;
      square[l] = signed_keys(n - k >= kRows ? load_vector(from) : load_vector(from, n - k));
    }
    transpose_step<kRows / 2>(square);
    const int64_t count = n - k < kRows ? n - k : kRows;
    for (int64_t i = 0; i < count; ++i) keys[k + i] = square[i];
  }
  for (int64_t k = n; k < padded; ++k) keys[k] = broadcast<int32_t>(INT32_MAX);
}

}  // namespace network

// Rows that are sorted together, and the longest ones that are.
constexpr int kGroup = network::kRows;

FASTGAN_INLINE int64_t padded_size(int64_t n) { return ceil_div(n, network::kBlock) * network::kBlock; }

// Sorts up to kGroup rows of n values: sorted value k of row l goes to values[k * kGroup + l], and so does its index if
// order is not null. values has room for padded_size(n) * kGroup, and so have order and, with it, pairs.
template <typename S>
void sort_group(const S* from, int64_t row_stride, int64_t rows, int64_t n, float* values, uint32_t* order,
                double* pairs) {
  using namespace network;
  const int64_t padded = padded_size(n);
  Keys* keys = reinterpret_cast<Keys*>(values);
  load_keys(from, row_stride, rows, n, padded, keys);
  if (order == nullptr) {
    sort_columns(keys, padded);
    for (int64_t k = 0; k < n; ++k) keys[k] = (Keys)signed_values(keys[k]);
    return;
  }
  // Key and index fill the 52 bits of a double's mantissa; with one exponent for all, doubles order as they do, and
  // every instruction set has their minimum and maximum.
  typedef int32_t HalfKeys __attribute__((vector_size(sizeof(Keys) / 2)));
  typedef uint64_t Bits __attribute__((vector_size(sizeof(Keys))));
  for (int half = 0; half < 2; ++half) {
    Pairs* packed = reinterpret_cast<Pairs*>(pairs);
    for (int64_t k = 0; k < padded; ++k) {
      HalfKeys key;
      std::memcpy(&key, values + k * kRows + half * kHalf, sizeof key);
      const Bits wide = __builtin_convertvector(key ^ INT32_MIN, Bits) & 0xffffffffu;
      packed[k] = (Pairs)((wide << 20) | (0x3ff0000000000000u | static_cast<uint64_t>(k)));
    }
    sort_columns(packed, padded);
    for (int64_t k = 0; k < n; ++k) {
      const Bits bits = (Bits)packed[k];
      const HalfKeys key = __builtin_convertvector(bits >> 20, HalfKeys) ^ INT32_MIN;
      const HalfKeys index = __builtin_convertvector(bits & 0xfffffu, HalfKeys);
      const HalfKeys value = key ^ ((key >> 31) & 0x7fffffff);
      std::memcpy(values + k * kRows + half * kHalf, &value, sizeof value);
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
  FASTGAN_INLINE Sorted<acc_t<S>> sorted() const { return {values, order, 1}; }
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
