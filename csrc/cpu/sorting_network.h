// Sorting many short rows at once, "row in lane": as many rows as a vector has lanes are transposed, and one sorting
// network, of vertical minima and maxima, sorts them all; with what its comparators did noted, it can be run backwards.
// Included by kernel files, once per instruction set.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "common/simd.h"

namespace fastgan::FASTGAN_ISA {

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
//
// Every step's operator()(a, b, at) is given the place of its comparator in a record of them. One network on adjacent
// wires has its comparators in order; kBlock tiles of a merge, which lie side by side, have theirs by turns, so that
// the decisions of one comparator on kBlock neighbouring wires are one vector.

// The lanes in which a comparator exchanged, a bit each.
#if defined(FASTGAN_ISA_avx512)
using Decision = uint16_t;
FASTGAN_INLINE Decision larger(Keys a, Keys b) { return _mm512_cmpgt_epi32_mask((__m512i)a, (__m512i)b); }
FASTGAN_INLINE Decision equal(Keys a, Keys b) { return _mm512_cmpeq_epi32_mask((__m512i)a, (__m512i)b); }
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
FASTGAN_INLINE Decision bits_of(Keys mask) {
#if defined(FASTGAN_ISA_avx2)
  return static_cast<Decision>(_mm256_movemask_ps((__m256)mask));
#else
  const Keys bits = mask & lane_bits();
  return static_cast<Decision>(bits[0] | bits[1] | bits[2] | bits[3]);
#endif
}
FASTGAN_INLINE Decision larger(Keys a, Keys b) { return bits_of(a > b); }
FASTGAN_INLINE Decision equal(Keys a, Keys b) { return bits_of(a == b); }
FASTGAN_INLINE Vec<float> choose(Decision second, Vec<float> a, Vec<float> b) {
  return (broadcast<int32_t>(second) & lane_bits()) != 0 ? b : a;
}
#endif

struct Exchange {
  static constexpr bool kReverse = false, kPacked = false;
  template <typename V>
  FASTGAN_INLINE void operator()(V& a, V& b, int) const {
    const V smaller = low(a, b);
    b = high(a, b);
    a = smaller;
  }
  FASTGAN_INLINE Exchange tile(int) const { return {}; }
  FASTGAN_INLINE void advance(int) {}
};

// Exchanges, and notes what it did.
struct Record {
  static constexpr bool kReverse = false, kPacked = false;
  Decision* next;
  FASTGAN_INLINE void operator()(Keys& a, Keys& b, int at) const {
    // volatile: GCC would collect the decisions of many comparators into one vector.
    *const_cast<volatile Decision*>(next + at) = larger(a, b);
    Exchange()(a, b, at);
  }
  FASTGAN_INLINE Record tile(int i) const { return {next + i}; }
  FASTGAN_INLINE void advance(int count) { next += count; }
};

// Takes the recorded exchanges back: what stands at the places of sorted keys returns to where the keys came from.
struct Undo {
  static constexpr bool kReverse = true, kPacked = false;
  const Decision* end;
  FASTGAN_INLINE void operator()(Vec<float>& a, Vec<float>& b, int at) const {
    const Vec<float> first = choose(end[at], a, b);
    b = choose(end[at], b, a);
    a = first;
  }
  FASTGAN_INLINE Undo tile(int i) const { return {end + i}; }
  FASTGAN_INLINE void advance(int count) { end -= count; }
};

// A number of {-1, 0, 1} for each lane of kBlock wires: the lanes of each wire that are positive, a bit each, and then
// those that are negative.
typedef Decision Signs __attribute__((vector_size(2 * kBlock * sizeof(Decision))));

// Takes exchanges of signs back, a block of wires in one vector: a comparator is one selection of bits.
struct UndoSigns {
  static constexpr bool kReverse = true, kPacked = true;
  const Decision* end;
  FASTGAN_INLINE Signs exchanges(int at) const {  // of both halves
#if defined(FASTGAN_ISA_avx512)
    return (Signs)_mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(end + at)));
#else
    typedef uint64_t Halves __attribute__((vector_size(sizeof(Signs))));
    uint64_t half;
    std::memcpy(&half, end + at, sizeof half);
    return (Signs)(Halves{} + half);
#endif
  }
  FASTGAN_INLINE void operator()(Signs& a, Signs& b, int at) const {
    const Signs both = exchanges(at), changed = (a ^ b) & both;
    a ^= changed;
    b ^= changed;
  }
  FASTGAN_INLINE UndoSigns tile(int) const { return *this; }
  FASTGAN_INLINE void advance(int count) { end -= count; }
};

struct Comparator {
  int low, high;
};

// Batcher's odd-even merge sort of N wires: 63 comparators for 16. Those of a layer have no wire in common.
template <int N>
struct OddEven {
  Comparator at[N * 8];
  int layer[N * 8];
  int count, layers;
  constexpr OddEven() : at{}, layer{}, count(0), layers(0) {
    for (int p = 1; p < N; p *= 2) {
      for (int k = p; k >= 1; k /= 2) {
        for (int j = k % p; j + k < N; j += 2 * k) {
          for (int i = 0; i < k && i + j + k < N; ++i) {
            if ((i + j) / (2 * p) == (i + j + k) / (2 * p)) {
              layer[count] = layers;
              at[count++] = {i + j, i + j + k};
            }
          }
        }
        ++layers;
      }
    }
  }
};

// Steps of a merge on N wires: distances N/2, ..., 1; `kMirror` merges begin by comparing wire i with wire N - 1 - i.
// Every comparator puts the smaller value on the lower wire.
template <int N, bool kMirror>
struct Bitonic {
  Comparator at[N * 4];
  int layer[N * 4];
  int count, layers;
  constexpr Bitonic() : at{}, layer{}, count(0), layers(0) {
    for (int d = N / 2; d >= 1; d /= 2) {
      for (int i = 0; i < N; ++i) {
        if ((i & d) != 0) continue;
        layer[count] = layers;
        at[count++] = {i, kMirror && d == N / 2 ? N - 1 - i : i + d};
      }
      ++layers;
    }
  }
};

// Applies a network to wires; the record has its comparators `stride` apart.
template <typename Network, int kStride, typename Step, typename V, size_t... I>
FASTGAN_INLINE void apply(const Step& step, V* wires, std::index_sequence<I...>) {
  constexpr Network net;
  constexpr int last = net.count - 1;
  if constexpr (Step::kReverse) {
    (step(wires[net.at[last - I].low], wires[net.at[last - I].high], (last - I) * kStride), ...);
  } else {
    (step(wires[net.at[I].low], wires[net.at[I].high], I * kStride), ...);
  }
}
template <typename Network>
inline constexpr int kCount = Network().count;

template <typename Network, int kStride, typename Step, typename V>
FASTGAN_INLINE void apply(const Step& step, V* wires) {
  apply<Network, kStride>(step, wires, std::make_index_sequence<kCount<Network>>());
}

// For each layer of a network on the wires of a block, and each element of Signs: the wire that its own may be
// exchanged with, and where among the layer's comparators that one is.
template <typename Network>
struct Layers {
  Decision partner[Network().layers][2 * kBlock], comparator[Network().layers][2 * kBlock];
  int first[Network().layers];
  constexpr Layers() : partner{}, comparator{}, first{} {
    constexpr Network net;
    for (int l = 0; l < net.layers; ++l) {
      for (int w = 0; w < 2 * kBlock; ++w) partner[l][w] = static_cast<Decision>(w);
    }
    for (int c = net.count - 1; c >= 0; --c) first[net.layer[c]] = c;
    for (int c = 0; c < net.count; ++c) {
      const int l = net.layer[c];
      for (int half = 0; half < 2 * kBlock; half += kBlock) {
        const int a = net.at[c].low + half, b = net.at[c].high + half;
        partner[l][a] = static_cast<Decision>(b);
        partner[l][b] = static_cast<Decision>(a);
        comparator[l][a] = comparator[l][b] = static_cast<Decision>(c - first[l]);
      }
    }
  }
};
template <typename Network>
inline constexpr Layers<Network> kLayersOf{};

FASTGAN_INLINE Signs permuted(Signs v, const Decision* from) {
  Signs order;
  std::memcpy(&order, from, sizeof order);
#if defined(FASTGAN_ISA_avx512)
  return (Signs)_mm512_permutexvar_epi16((__m512i)order, (__m512i)v);
#elif defined(FASTGAN_ISA_avx2)
  return (Signs)_mm_shuffle_epi8((__m128i)v, (__m128i)order);
#elif defined(__ARM_NEON)
  return (Signs)vqtbl1q_u8((uint8x16_t)v, (uint8x16_t)order);
#else
  Signs result;
  for (int i = 0; i < 2 * kBlock; ++i) result[i] = v[order[i]];
  return result;
#endif
}

// Takes the exchanges of W blocks back, each of which went through the network; layer by layer, so that none waits.
// decisions(w) are block w's.
template <typename Network, int W, typename Decisions, size_t... L>
FASTGAN_INLINE void undo_layers(const Decisions& decisions, Signs* v, std::index_sequence<L...>) {
  const Layers<Network>& net = kLayersOf<Network>;
  const auto undo = [&](int l) __attribute__((always_inline)) {
#pragma GCC unroll 16
    for (int w = 0; w < W; ++w) {
      const Signs exchanged = permuted(UndoSigns{decisions(w)}.exchanges(net.first[l]), net.comparator[l]);
      v[w] = (v[w] & ~exchanged) | (permuted(v[w], net.partner[l]) & exchanged);
    }
  };
  (undo(sizeof...(L) - 1 - L), ...);
}
template <typename Network, int W, typename Decisions>
FASTGAN_INLINE void undo_layers(const Decisions& decisions, Signs* v) {
  undo_layers<Network, W>(decisions, v, std::make_index_sequence<Network().layers>());
}

// A network on one block of wires, from and to memory.
template <typename Network, typename Step, typename V>
FASTGAN_INLINE void apply_to_block(Step& step, V* block) {
  V wires[kBlock];
#pragma GCC unroll 16
  for (int w = 0; w < kBlock; ++w) wires[w] = block[w];
  if constexpr (Step::kReverse) step.advance(kCount<Network>);
  apply<Network, 1>(step, wires);
  if constexpr (!Step::kReverse) step.advance(kCount<Network>);
#pragma GCC unroll 16
  for (int w = 0; w < kBlock; ++w) block[w] = wires[w];
}
template <typename Network>
FASTGAN_INLINE void apply_to_block(UndoSigns& step, Signs* block) {
  step.advance(kCount<Network>);
  undo_layers<Network, 1>([&](int) { return step.end; }, block);
}

FASTGAN_INLINE Keys above_all(Keys) { return broadcast<int32_t>(INT32_MAX); }
FASTGAN_INLINE Pairs above_all(Pairs) { return broadcast(std::numeric_limits<double>::infinity()); }
FASTGAN_INLINE Vec<float> above_all(Vec<float>) { return Vec<float>{}; }  // is never exchanged

FASTGAN_INLINE Signs above_all(Signs) { return Signs{}; }

// log2(W) steps of a merge on two runs of W / 2 vectors, d apart.
template <int W, bool kMirror, typename Step, typename V>
FASTGAN_INLINE void merge_runs(const Step& step, V* lower, V* upper, int64_t d) {
  V wires[W];
#pragma GCC unroll 16
  for (int w = 0; w < W / 2; ++w) {
    wires[w] = lower[w * d];
    wires[W / 2 + w] = upper[w * d];
  }
  apply<Bitonic<W, kMirror>, kBlock>(step, wires);
#pragma GCC unroll 16
  for (int w = 0; w < W / 2; ++w) {
    lower[w * d] = wires[w];
    upper[w * d] = wires[W / 2 + w];
  }
}

// A call of its own where GCC would otherwise keep W addresses in registers, or rather on the stack.
template <int W, bool kMirror, typename Step, typename V>
__attribute__((noinline)) void merge_many_runs(const Step& step, V* lower, V* upper, int64_t d) {
  merge_runs<W, kMirror>(step, lower, upper, d);
}

// The same where only so many vectors of the runs are there: the others would be above all and stay where they are.
template <int W, bool kMirror, typename Step, typename V>
__attribute__((noinline)) void merge_runs(const Step& step, V* lower, V* upper, int64_t d, int64_t lowers,
                                          int64_t uppers) {
  V wires[W];
#pragma GCC unroll 16
  for (int w = 0; w < W / 2; ++w) {
    wires[w] = w < lowers ? lower[w * d] : above_all(V{});
    wires[W / 2 + w] = w < uppers ? upper[w * d] : above_all(V{});
  }
  apply<Bitonic<W, kMirror>, kBlock>(step, wires);
#pragma GCC unroll 16
  for (int w = 0; w < W / 2; ++w) {
    if (w < lowers) lower[w * d] = wires[w];
    if (w < uppers) upper[w * d] = wires[W / 2 + w];
  }
}

// Signs of mirrored runs, where the wires of a vector stand the other way round.
struct Mirror {
  Decision order[2 * kBlock];
  constexpr Mirror() : order{} {
    for (int w = 0; w < 2 * kBlock; ++w)
      order[w] = static_cast<Decision>(w / kBlock * kBlock + kBlock - 1 - w % kBlock);
  }
};
constexpr Mirror kMirrored{};
template <int W>
FASTGAN_INLINE void mirror(Signs* upper, int64_t d, int64_t uppers) {
  for (int w = 0; w < W / 2 && w < uppers; ++w) upper[w * d] = permuted(upper[w * d], kMirrored.order);
}

// One pass over a[0, n): log2(W) steps of a merge whose distances begin at W d / 2. n and d are multiples of kBlock,
// and so many tiles are there, or not, together.
template <int W, bool kMirror, typename Step, typename V>
void merge_pass(Step& step, V* a, int64_t d, int64_t n) {
  constexpr int kDecisions = kCount<Bitonic<W, kMirror>> * kBlock;
  const int64_t span = W * d;
  const auto visit = [&](int64_t base, int64_t i) {
    const int64_t lower = base + i, upper = base + span / 2 + (kMirror ? d - kBlock - i : i);
    const bool whole = upper + (W / 2 - 1) * d < n;
    if (!whole && !((kMirror ? upper : lower + d) < n)) return;
    const int64_t lowers = ceil_div(n - lower, d), uppers = ceil_div(n - upper, d);
    if constexpr (Step::kReverse) step.advance(kDecisions);
    if constexpr (Step::kPacked) {
      Signs *const low = a + lower / kBlock, *const up = a + upper / kBlock;
      if (kMirror) mirror<W>(up, d / kBlock, uppers);
      if (whole) {
        merge_many_runs<W, kMirror>(step, low, up, d / kBlock);
      } else {
        merge_runs<W, kMirror>(step, low, up, d / kBlock, lowers, uppers);
      }
      if (kMirror) mirror<W>(up, d / kBlock, uppers);
    } else {
      for (int t = 0; t < kBlock; ++t) {
        V *const low = a + lower + t, *const up = a + upper + (kMirror ? kBlock - 1 - t : t);
        if (!whole) {
          merge_runs<W, kMirror>(step.tile(t), low, up, d, lowers, uppers);
        } else if constexpr (W <= 4) {
          merge_runs<W, kMirror>(step.tile(t), low, up, d);
        } else {
          merge_many_runs<W, kMirror>(step.tile(t), low, up, d);
        }
      }
    }
    if constexpr (!Step::kReverse) step.advance(kDecisions);
  };
  if constexpr (Step::kReverse) {
    for (int64_t base = (n - 1) / span * span; base >= 0; base -= span) {
      for (int64_t i = d - kBlock; i >= 0; i -= kBlock) visit(base, i);
    }
  } else {
    for (int64_t base = 0; base < n; base += span) {
      for (int64_t i = 0; i < d; i += kBlock) visit(base, i);
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

// The vector of a wire; of a block's wires, where they are packed.
template <typename Step, typename V>
FASTGAN_INLINE V* vector_of(V* a, int64_t wire) {
  return a + (Step::kPacked ? wire / kBlock : wire);
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
      apply_to_block<Bitonic<kBlock, false>>(step, vector_of<Step>(a, Step::kReverse ? n - kBlock - i : i));
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
  using Network = OddEven<kBlock>;
  if constexpr (Step::kPacked) {
    apply_to_block<Network>(step, a);
    ends.store(first, *a);
  } else {
    V wires[kBlock];
    if constexpr (Step::kReverse) {
#pragma GCC unroll 16
      for (int w = 0; w < kBlock; ++w) wires[w] = a[w];
      step.advance(kCount<Network>);
      apply<Network, 1>(step, wires);
      ends.store(first, wires);
    } else {
      ends.load(first, wires);
      apply<Network, 1>(step, wires);
      step.advance(kCount<Network>);
#pragma GCC unroll 16
      for (int w = 0; w < kBlock; ++w) a[w] = wires[w];
    }
  }
}

// Where sorted blocks go, still in registers, as what follows wants them: back to memory.
template <typename V>
struct ToMemory {
  V* to;
  FASTGAN_INLINE void store(int64_t first, const V* wires) const {
#pragma GCC unroll 16
    for (int w = 0; w < kBlock; ++w) to[first + w] = wires[w];
  }
};

// The last pass of a merge, on one block.
template <typename Step, typename V, typename Out>
FASTGAN_INLINE void finish_registers(const Step& step, V* wires, int64_t first, const Out& out) {
  apply<Bitonic<kBlock, false>, 1>(step, wires);
  out.store(first, wires);
}
// The same from memory.
template <typename Step, typename V, typename Out>
FASTGAN_INLINE void finish_block(const Step& step, const V* a, int64_t first, const Out& out) {
  V wires[kBlock];
#pragma GCC unroll 16
  for (int w = 0; w < kBlock; ++w) wires[w] = a[first + w];
  finish_registers(step, wires, first, out);
}

// Sorts two blocks and merges them: the second does not leave the registers in between, which saves a third of the
// stores (a core stores half a vector a cycle). Decisions are where merge() would put them.
template <typename Step, typename Ends, typename V, typename Out>
__attribute__((noinline)) void sort_two_blocks(Step& step, const Ends& ends, V* a, int64_t first, const Out& out) {
  constexpr int kLast = kCount<Bitonic<kBlock, false>>;
  sort_block(step, ends, a, first);
  V wires[kBlock];
  ends.load(first + kBlock, wires);
  apply<OddEven<kBlock>, 1>(step, wires);
  step.advance(kCount<OddEven<kBlock>>);
#pragma GCC unroll 16
  for (int w = 0; w < kBlock; ++w) {
    V lower = a[w];
    step(lower, wires[kBlock - 1 - w], w);
    a[w] = lower;
  }
  step.advance(kBlock);
  finish_registers(step.tile(kLast), wires, kBlock, out);
  finish_block(step, a, 0, out);
  step.advance(2 * kLast);
}

// The steps of a merge across W blocks, on one wire of each. Returns that of the first block, and stores it only if it
// is not kept.
template <int W, bool kKept, typename Step, typename V>
FASTGAN_INLINE V merge_wires(const Step& step, V* low, V* up) {
  V wires[W];
#pragma GCC unroll 16
  for (int w = 0; w < W / 2; ++w) {
    wires[w] = low[w * kBlock];
    wires[W / 2 + w] = up[w * kBlock];
  }
  apply<Bitonic<W, true>, kBlock>(step, wires);
#pragma GCC unroll 16
  for (int w = 0; w < W / 2; ++w) {
    if (w > 0 || !kKept) low[w * kBlock] = wires[w];
    up[w * kBlock] = wires[W / 2 + w];
  }
  return wires[0];
}

// Merges W / 2 sorted blocks with W / 2 others: merge() with distances that the compiler knows.
template <int W, typename Step, typename V, typename Out>
__attribute__((noinline)) void merge_blocks(Step& step, V* a, const Out& out) {
  constexpr int kFirst = kCount<Bitonic<W, true>>, kLast = kCount<Bitonic<kBlock, false>>;
  V *const low = a, *const up = a + W / 2 * kBlock + (kBlock - 1);
  int block = 0;
  if constexpr (W == 4 && kBlock == 16) {  // registers are enough to keep the first block there
    V wires[kBlock];
#pragma GCC unroll 16
    for (int t = 0; t < kBlock; ++t) wires[t] = merge_wires<W, true>(step.tile(t), low + t, up - t);
    step.advance(kFirst * kBlock);
    finish_registers(step, wires, 0, out);
    step.advance(kLast);
    block = 1;
  } else {
    for (int t = 0; t < kBlock; ++t) merge_wires<W, false>(step.tile(t), low + t, up - t);
    step.advance(kFirst * kBlock);
  }
  for (; block < W; ++block) {
    finish_block(step, a, block * kBlock, out);
    step.advance(kLast);
  }
}

// Merges a[0, half) and a[half, n), and hands every block on.
template <typename Step, typename V, typename Out>
FASTGAN_INLINE void merge_into(Step& step, V* a, int64_t half, int64_t n, const Out& out) {
  if (n == 2 * half) {
    if (n == 4 * kBlock) return merge_blocks<4>(step, a, out);
    if (n == 8 * kBlock) return merge_blocks<8>(step, a, out);
    if constexpr (kBlock == 16) {
      if (n == 16 * kBlock) return merge_blocks<16>(step, a, out);
    }
  }
  merge(step, a, half, n);
  if constexpr (!std::is_same_v<Out, ToMemory<V>>) {
    for (int64_t first = 0; first < n; first += kBlock) out.store(first, a + first);
  }
}

FASTGAN_INLINE int64_t half_of(int64_t n) {
  int64_t half = kBlock;
  while (2 * half < n) half *= 2;
  return half;
}

// Sorts vectors [first, first + n) of `a` lane by lane, block by block from `ends`, which loads them. n is a multiple
// of kBlock. The last pass hands its blocks on to `out`.
template <typename Step, typename Ends, typename V, typename Out>
void sort_columns_into(Step& step, const Ends& ends, V* a, int64_t first, int64_t n, const Out& out) {
  if (n == 2 * kBlock) return sort_two_blocks(step, ends, a, first, out);
  if (n <= kBlock) {
    sort_block(step, ends, a, first);
    if constexpr (!std::is_same_v<Out, ToMemory<V>>) out.store(0, a);
    return;
  }
  const int64_t half = half_of(n);
  sort_columns_into(step, ends, a, first, half, ToMemory<V>{a});
  sort_columns_into(step, ends, a + half, first + half, n - half, ToMemory<V>{a + half});
  merge_into(step, a, half, n, out);
}

// Decisions of a sort of W blocks, W a power of two; and where among them those of its part-th sort of N blocks begin.
constexpr int decisions_of(int w) {
  if (w == 1) return kCount<OddEven<kBlock>>;
  int steps = 1;
  while (1 << steps < w) ++steps;
  return 2 * decisions_of(w / 2) + w / 2 * steps * kBlock + w * kCount<Bitonic<kBlock, false>>;
}
constexpr int decisions_before(int part, int n, int w) {
  return n == w ? 0 : decisions_before(part / 2, 2 * n, w) + part % 2 * decisions_of(n);
}

// Takes signs of W blocks back through the sort that noted these decisions: all merges of N blocks at a time, and none
// leaves the registers.
template <int W, int N = W>
FASTGAN_INLINE void undo_blocks(const Decision* decisions, Signs* v) {
  if constexpr (N == 1) {
    undo_layers<OddEven<kBlock>, W>([&](int w) { return decisions + decisions_before(w, 1, W); }, v);
  } else {
    using Across = Bitonic<N, true>;
    const auto merge = [&](int part) { return decisions + decisions_before(part, N, W) + 2 * decisions_of(N / 2); };
    undo_layers<Bitonic<kBlock, false>, W>(
        [&](int w) { return merge(w / N) + kCount<Across> * kBlock + w % N * kCount<Bitonic<kBlock, false>>; }, v);
#pragma GCC unroll 16
    for (int part = 0; part < W / N; ++part) {
      mirror<N>(v + part * N + N / 2, 1, N / 2);
      apply<Across, kBlock>(UndoSigns{merge(part)}, v + part * N);
      mirror<N>(v + part * N + N / 2, 1, N / 2);
    }
    undo_blocks<W, N / 2>(decisions, v);
  }
}
template <int W, typename Ends>
__attribute__((noinline)) void undo_blocks(UndoSigns& step, const Ends& ends, const Signs* a, int64_t first) {
  Signs v[W];
#pragma GCC unroll 16
  for (int w = 0; w < W; ++w) v[w] = a[w];
  step.advance(decisions_of(W));
  undo_blocks<W>(step.end, v);
#pragma GCC unroll 16
  for (int w = W - 1; w >= 0; --w) ends.store(first + w * kBlock, v[w]);
}

// Sorts n vectors into `a`; or, backwards, brings them from there to where they came from, and `ends` stores them.
template <typename Step, typename Ends, typename V>
void sort_columns(Step& step, const Ends& ends, V* a, int64_t first, int64_t n) {
  if constexpr (Step::kPacked) {
    if (n == 4 * kBlock) return undo_blocks<4>(step, ends, vector_of<Step>(a, first), first);
  }
  if constexpr (Step::kReverse) {
    if (n <= kBlock) return sort_block(step, ends, vector_of<Step>(a, first), first);
    const int64_t half = half_of(n);
    merge(step, vector_of<Step>(a, first), half, n);
    sort_columns(step, ends, a, first + half, n - half);
    sort_columns(step, ends, a, first, half);
  } else {
    sort_columns_into(step, ends, a + first, first, n, ToMemory<V>{a + first});
  }
}

// Room for the decisions of a sort of n vectors: each step of a merge has `half` comparators at most, and layers are
// read as vectors.
FASTGAN_INLINE int64_t comparators(int64_t n) {
  int64_t blocks = ceil_div(n, kBlock), count = kBlock + blocks * kCount<OddEven<kBlock>>;
  int steps = 1;
  for (int64_t span = 2 * kBlock; span / 2 < n; span *= 2) {
    steps = 0;
    for (int64_t d = span; d > 1; d /= 2) ++steps;
    count += ceil_div(n, span) * (span / 2) * steps;
  }
  return count;
}

// kRows × kRows transpose.
#if defined(FASTGAN_ISA_avx512)
// Squares of 4 × 4 within 128-bit lanes.
FASTGAN_INLINE void transpose_squares(const __m512i* a, __m512i* to) {
  const __m512i low01 = _mm512_unpacklo_epi32(a[0], a[1]), high01 = _mm512_unpackhi_epi32(a[0], a[1]);
  const __m512i low23 = _mm512_unpacklo_epi32(a[2], a[3]), high23 = _mm512_unpackhi_epi32(a[2], a[3]);
  to[0] = _mm512_unpacklo_epi64(low01, low23);
  to[1] = _mm512_unpackhi_epi64(low01, low23);
  to[2] = _mm512_unpacklo_epi64(high01, high23);
  to[3] = _mm512_unpackhi_epi64(high01, high23);
}

// The squares within lanes, then those of lanes; GCC's own choice takes twice as long.
FASTGAN_INLINE void transpose(Keys* r) {
  __m512i square[kRows];
#pragma GCC unroll 4
  for (int i = 0; i < kRows; i += 4) transpose_squares(reinterpret_cast<const __m512i*>(r + i), square + i);
#pragma GCC unroll 4
  for (int k = 0; k < 4; ++k) {
    const __m512i even01 = _mm512_shuffle_i32x4(square[k], square[4 + k], 0x88);
    const __m512i odd01 = _mm512_shuffle_i32x4(square[k], square[4 + k], 0xdd);
    const __m512i even23 = _mm512_shuffle_i32x4(square[8 + k], square[12 + k], 0x88);
    const __m512i odd23 = _mm512_shuffle_i32x4(square[8 + k], square[12 + k], 0xdd);
    r[k] = (Keys)_mm512_shuffle_i32x4(even01, even23, 0x88);
    r[4 + k] = (Keys)_mm512_shuffle_i32x4(odd01, odd23, 0x88);
    r[8 + k] = (Keys)_mm512_shuffle_i32x4(even01, even23, 0xdd);
    r[12 + k] = (Keys)_mm512_shuffle_i32x4(odd01, odd23, 0xdd);
  }
}
#else
// By exchanging off-diagonal squares of half the size at each step.
template <int kStep, size_t... J>
FASTGAN_INLINE void exchange_squares(Keys& upper, Keys& lower, std::index_sequence<J...>) {
  const Keys a = upper, b = lower;
  upper = shuffled<((J & kStep) == 0 ? J : kRows + J - kStep)...>(a, b);
  lower = shuffled<((J & kStep) == 0 ? J + kStep : kRows + J)...>(a, b);
}
template <int kStep>
FASTGAN_INLINE void transpose_step(Keys* r) {
  for (int i = 0; i < kRows; ++i) {
    if ((i & kStep) == 0) exchange_squares<kStep>(r[i], r[i + kStep], std::make_index_sequence<kRows>());
  }
  if constexpr (kStep > 1) transpose_step<kStep / 2>(r);
}
FASTGAN_INLINE void transpose(Keys* r) { transpose_step<kRows / 2>(r); }
#endif

// sort_key() with the top bit flipped, so that keys compare as signed integers; NaNs come first or last by their sign.
// Keys that are not `kStable` put -0 below 0.
template <bool kStable>
FASTGAN_INLINE Keys signed_keys(Vec<float> values) {
  Keys bits = (Keys)values;
  if constexpr (kStable) bits = bits == INT32_MIN ? Keys{} : bits;
  return bits ^ ((bits >> 31) & 0x7fffffff);
}
FASTGAN_INLINE Vec<float> signed_values(Keys keys) { return (Vec<float>)(keys ^ ((keys >> 31) & 0x7fffffff)); }

#if defined(FASTGAN_ISA_avx512)
// Eight elements from a, then eight from b: an insertion from memory takes no shuffle.
FASTGAN_INLINE __m256i two_halves(const void* a, const void* b) {
  const __m128i first = _mm_loadu_si128(static_cast<const __m128i*>(a));
  return _mm256_inserti128_si256(_mm256_castsi128_si256(first), _mm_loadu_si128(static_cast<const __m128i*>(b)), 1);
}
FASTGAN_INLINE Vec<float> load_two(const float* a, const float* b) {
  const __m256i first = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(a));
  const __m256i second = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b));
  return (Vec<float>)_mm512_inserti64x4(_mm512_castsi256_si512(first), second, 1);
}
FASTGAN_INLINE Vec<float> load_two(const bf16_t* a, const bf16_t* b) {
  return (Vec<float>)_mm512_slli_epi32(_mm512_cvtepu16_epi32(two_halves(a, b)), 16);
}
FASTGAN_INLINE Vec<float> load_two(const f16_t* a, const f16_t* b) {
  return (Vec<float>)_mm512_cvtph_ps(two_halves(a, b));
}

// The keys of eight columns of kRows rows, transposed: halves of rows are put together as they are loaded, then
// quarters by shuffles, then squares of four: 24 shuffles where transpose(), of what is in registers, takes 32.
template <bool kStable, typename S>
FASTGAN_INLINE void load_columns(const S* from, int64_t row_stride, Keys* wires) {
  __m512i square[8];
#pragma GCC unroll 4
  for (int k = 0; k < 4; ++k) {
    const auto load = [&](int row) {
      return (__m512i)signed_keys<kStable>(load_two(from + row * row_stride, from + (row + 4) * row_stride));
    };
    const __m512i upper = load(k), lower = load(k + 8);
    square[k] = _mm512_shuffle_i32x4(upper, lower, 0x88);
    square[4 + k] = _mm512_shuffle_i32x4(upper, lower, 0xdd);
  }
  transpose_squares(square, reinterpret_cast<__m512i*>(wires));
  transpose_squares(square + 4, reinterpret_cast<__m512i*>(wires) + 4);
}
#endif

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
        load_whole(from, square);
        // The next group's: a line, or half of one, a row.
#pragma GCC unroll 16
        for (int l = 0; l < kRows; ++l) __builtin_prefetch(from + (l + kRows) * row_stride, 0, 2);
      } else {
        load_part(from, n - first - i, square);
      }
    }
  }

 private:
  FASTGAN_INLINE void load_whole(const S* from, Keys* square) const {
#if defined(FASTGAN_ISA_avx512)
    load_columns<kStable>(from, row_stride, square);
    load_columns<kStable>(from + 8, row_stride, square + 8);
#else
    for (int l = 0; l < kRows; ++l) square[l] = signed_keys<kStable>(load_vector(from + l * row_stride));
    transpose(square);
#endif
  }
  void load_part(const S* from, int64_t count, Keys* square) const {
    count = count < 0 ? 0 : count < kRows ? count : kRows;
    Keys present;
    for (int k = 0; k < kRows; ++k) present[k] = -(k < count);
    for (int l = 0; l < kRows; ++l) {
      const Keys keys = signed_keys<kStable>(load_vector(from + (l < rows ? l : 0) * row_stride, count));
      square[l] = (keys & present) | (INT32_MAX & ~present);
    }
    transpose(square);
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
      transpose(square);
      for (int64_t l = 0; l < rows; ++l) {
        store_lanes(values + l * n + first + i, (Vec<float>)square[l], count);
      }
    }
  }
};

// Stores blocks of signs, last block first, as `words` words a row.
struct SignWords {
  uint32_t* to;
  int64_t rows, words, blocks;
  FASTGAN_INLINE void store(int64_t first, Signs v) const {
    uint32_t* const word = to + first / 16;
#if defined(FASTGAN_ISA_avx512)
#pragma GCC unroll 16
    for (int l = kRows - 1; l >= 0; --l, v += v) {  // the lane's bit on top
      if (l < rows) word[l * words] = _mm512_movepi16_mask((__m512i)v);
    }
#else
    const bool second = first % 16 != 0, whole = second || first / kBlock + 1 == blocks;
    for (int64_t l = 0; l < rows; ++l) {
#if defined(FASTGAN_ISA_avx2)
      const uint32_t bits = _mm_movemask_epi8(_mm_sll_epi64((__m128i)v, _mm_cvtsi32_si128(7 - static_cast<int>(l))));
#else
      uint32_t bits = 0;
      for (int w = 0; w < 2 * kBlock; ++w) bits |= ((v[w] >> l) & 1u) << w;
#endif
      const uint32_t half = ((bits & 0xff) | (bits >> 8) << 16) << (second ? 8 : 0);
      word[l * words] = whole ? half : word[l * words] | half;
    }
#endif
  }
};

// Vectors of n rows, a row a lane, as rows of n.
inline void lanes_to_rows(const Keys* lanes, int64_t n, int32_t* rows) {
  for (int64_t k = 0; k < n; k += kRows) {
    const int64_t count = n - k < kRows ? n - k : kRows;
    Keys square[kRows];
    for (int i = 0; i < kRows; ++i) square[i] = i < count ? lanes[k + i] : Keys{};
    transpose(square);
    if (count == kRows) {  // of constant size: no call
      for (int l = 0; l < kRows; ++l) std::memcpy(rows + l * n + k, &square[l], sizeof square[l]);
    } else {
      for (int l = 0; l < kRows; ++l) std::memcpy(rows + l * n + k, &square[l], count * sizeof(int32_t));
    }
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

// The same without decisions: the last pass hands blocks of sorted keys on to `out` (see network::ToMemory), and leaves
// no more than scratch in `keys`.
template <typename S, typename Out>
void sort_group_into(const S* from, int64_t row_stride, int64_t rows, int64_t n, network::Keys* keys, const Out& out) {
  network::Exchange step;
  network::sort_columns_into(step, network::RowKeys<S, false>{from, row_stride, rows, n}, keys, 0, padded_size(n), out);
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

}  // namespace fastgan::FASTGAN_ISA
