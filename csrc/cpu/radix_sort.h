// Radix sort of a row of floating-point values by order-preserving integer keys, with or without each value's index;
// stable. Included by kernel files, once per instruction set.
#pragma once

#include <cstdint>
#include <cstring>

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

// Values, and indices behind them, in place of items, which are at least as large. Made of sorted items by vectors:
// one scatter of items and this take less than a scatter of values and one of indices.
template <typename S, bool kIndexed>
struct Output {
  acc_t<S>* values;
  uint32_t* order;
  FASTGAN_INLINE Output(void* items, int64_t n) : values(static_cast<acc_t<S>*>(items)), order(nullptr) {
    if constexpr (kIndexed) order = reinterpret_cast<uint32_t*>(values + n);
  }
  FASTGAN_INLINE void put(int64_t first, int64_t count, const Item<key_t<S>, kIndexed>* items) const {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) {
      values[first + i] = value_of_key(items[i].key());
      if constexpr (kIndexed) order[first + i] = items[i].index();
    }
  }
  FASTGAN_INLINE Sorted<acc_t<S>> sorted() const { return {values, order}; }
};

// Calls use(item, i) for values [begin, end); keys are made by vectors.
template <typename S, bool kIndexed, typename Use>
FASTGAN_INLINE void for_each_item(const S* from, int64_t begin, int64_t end, const Use& use) {
  constexpr int64_t kBlock = 512;
  key_t<S> keys[kBlock];
  for (; begin < end; begin += kBlock) {
    const int64_t count = end - begin < kBlock ? end - begin : kBlock;
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) keys[i] = sort_key(load(from[begin + i]));
    for (int64_t i = 0; i < count; ++i)
      use(Item<key_t<S>, kIndexed>::of(keys[i], static_cast<uint32_t>(begin + i)), begin + i);
  }
}

// Least significant digit first, kDigit bits a pass; passes in which all keys agree are left out.
template <int kDigit, typename S, bool kIndexed>
Sorted<acc_t<S>> sort(const S* from, int64_t n, Item<key_t<S>, kIndexed>* a, Item<key_t<S>, kIndexed>* b) {
  using I = Item<key_t<S>, kIndexed>;
  constexpr int kPasses = (static_cast<int>(sizeof(key_t<S>)) * 8 + kDigit - 1) / kDigit;
  constexpr uint32_t kMask = (1u << kDigit) - 1;
  uint32_t counts[kPasses][1 << kDigit];
  std::memset(counts, 0, sizeof counts);
  const auto digit = [](const I& item, int pass) {
    return static_cast<uint32_t>(item.key() >> (pass * kDigit)) & kMask;
  };

  for_each_item<S, kIndexed>(from, 0, n, [&](const I& item, int64_t i) {
    a[i] = item;
    for (int pass = 0; pass < kPasses; ++pass) ++counts[pass][digit(item, pass)];
  });
  for (int pass = 0; pass < kPasses; ++pass) {
    uint32_t* const next = counts[pass];
    if (next[digit(a[0], pass)] == n) continue;
    uint32_t sum = 0;
    for (uint32_t d = 0; d <= kMask; ++d) {
      const uint32_t count = next[d];
      next[d] = sum;
      sum += count;
    }
    for (int64_t i = 0; i < n; ++i) b[next[digit(a[i], pass)]++] = a[i];
    I* const other = a;
    a = b;
    b = other;
  }
  const Output<S, kIndexed> out(b, n);
  out.put(0, n, a);
  return out.sorted();
}

constexpr int64_t kInsertion = 48;  // up to so many items are sorted by insertion

// Puts an item to its place among k sorted ones, behind those of its key.
template <typename I>
FASTGAN_INLINE void insert(I* items, int64_t k, I item) {
  for (; k > 0 && items[k - 1].key() > item.key(); --k) items[k] = items[k - 1];
  items[k] = item;
}

template <typename S, bool kIndexed>
Sorted<acc_t<S>> insertion_sort(const S* from, int64_t n, Item<key_t<S>, kIndexed>* a, Item<key_t<S>, kIndexed>* b) {
  using I = Item<key_t<S>, kIndexed>;
  for (int64_t i = 0; i < n; ++i) insert(a, i, I::of(sort_key(load(from[i])), static_cast<uint32_t>(i)));
  const Output<S, kIndexed> out(b, n);
  out.put(0, n, a);
  return out.sorted();
}

// Has the cache load what will be written all over.
template <typename T>
FASTGAN_INLINE void fetch(T* to, int64_t count) {
  constexpr int64_t kLine = 64 / sizeof(T);
  for (int64_t i = 0; i < count; i += kLine) __builtin_prefetch(to + i, 1);
}

// Rows that caches do not hold: values are dealt to buckets by the upper bits of their keys, then each bucket is sorted
// by the lower ones, two digits, while it is in cache, so that three passes reach memory instead of ten.
template <int kDigit>
inline constexpr int64_t kBuckets = int64_t{1} << (32 - 2 * kDigit);

// The bucket of a key; `least` is a multiple of 4^kDigit, and shift 2 kDigit at most.
struct BucketOf {
  uint32_t least;
  int shift;
  FASTGAN_INLINE uint32_t operator()(uint32_t key) const { return (key - least) >> shift; }
};

template <int kDigit, typename S>
void count_buckets(const S* from, int64_t begin, int64_t end, BucketOf bucket, uint32_t* counts) {
  std::memset(counts, 0, kBuckets<kDigit> * sizeof(uint32_t));
  for_each_item<S, false>(from, begin, end, [&](Item<uint32_t, false> item, int64_t) { ++counts[bucket(item.key())]; });
}

// Stable. next: where each bucket's next item goes.
template <typename S, bool kIndexed>
void deal(const S* from, int64_t begin, int64_t end, BucketOf bucket, uint32_t* next, Item<uint32_t, kIndexed>* to) {
  using I = Item<uint32_t, kIndexed>;
  constexpr int64_t kAhead = 128 / sizeof(I);
  for_each_item<S, kIndexed>(from, begin, end, [&](I item, int64_t) {
    I* const place = to + next[bucket(item.key())]++;
    __builtin_prefetch(place + kAhead, 1);  // buckets are more than hardware follows
    *place = item;
  });
}

// Sorts a bucket from `items` into `to`, which may be the same.
template <int kDigit, typename I>
FASTGAN_INLINE void sort_bucket(const I* items, int64_t count, I* scratch, I* to) {
  if (count <= kInsertion) {
    for (int64_t k = 0; k < count; ++k) insert(to, k, items[k]);
    return;
  }
  constexpr uint32_t kMask = (1u << kDigit) - 1;
  uint32_t low[kMask + 1] = {}, high[kMask + 1] = {}, lows = 0, highs = 0;
  for (int64_t i = 0; i < count; ++i) {
    ++low[items[i].key() & kMask];
    ++high[items[i].key() >> kDigit & kMask];
  }
  for (uint32_t k = 0; k <= kMask; ++k) {
    const uint32_t in_low = low[k], in_high = high[k];
    low[k] = lows;
    high[k] = highs;
    lows += in_low;
    highs += in_high;
  }
  for (int64_t i = 0; i < count; ++i) scratch[low[items[i].key() & kMask]++] = items[i];
  for (int64_t i = 0; i < count; ++i) to[high[scratch[i].key() >> kDigit & kMask]++] = scratch[i];
}

// A bucket in the making lies where nothing is yet or any more: in what was dealt to the buckets before it, or beyond
// its own place in the results.
template <typename S, bool kIndexed>
Sorted<acc_t<S>> bucket_sort(const S* from, int64_t n, Item<uint32_t, kIndexed>* a, Item<uint32_t, kIndexed>* b) {
  constexpr int kDigit = 10;
  uint32_t next[kBuckets<kDigit>], largest = 0, sum = 0;
  const BucketOf bucket = {0, 2 * kDigit};
  count_buckets<kDigit>(from, 0, n, bucket, next);
  for (uint32_t& place : next) {
    const uint32_t count = place;
    largest = count > largest ? count : largest;
    place = sum;
    sum += count;
  }
  if (largest >= n / 4) return sort<8, S, kIndexed>(from, n, a, b);
  deal<S, kIndexed>(from, 0, n, bucket, next, a);

  const Output<S, kIndexed> out(b, n);
  int64_t first = 0;
  for (const int64_t last : next) {
    const int64_t count = last - first;
    if (count == 0) continue;
    fetch(out.values + first, count);
    if constexpr (kIndexed) fetch(out.order + first, count);
    // last < n / 2 if it is not before `first`, so that there is room behind.
    auto* const scratch = first >= count ? a : reinterpret_cast<decltype(a)>(out.values + (last + 1) / 2 * 2);
    sort_bucket<kDigit>(a + first, count, scratch, a + first);
    out.put(first, count, a + first);
    first = last;
  }
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
  if (n <= radix::kInsertion) return radix::insertion_sort<S, kIndexed>(from, n, items, items + n);
  // Fewer passes, but counters that short rows do not pay for, and more places to write to than caches like.
  if (n >= 8192 && n < 131072) return radix::sort<11, S, kIndexed>(from, n, items, items + n);
  if constexpr (sizeof(radix::key_t<S>) == 4) {
    if (n >= 131072) return radix::bucket_sort<S, kIndexed>(from, n, items, items + n);
  }
  return radix::sort<8, S, kIndexed>(from, n, items, items + n);
}

}  // namespace fastgan::FASTGAN_ISA
