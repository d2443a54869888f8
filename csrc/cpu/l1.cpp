// Reads every element once. The forward pass leaves two bits per element and can write the gradients in the same loop:
// 3 1/16 passes over memory for both, and nothing left to do for an incoming gradient of 1. For any other, and for
// derivatives of the gradients, the bits are read, 1/16 of a float32 tensor.
#include "cpu/l1.h"

#include <type_traits>

#include "common/simd.h"
#include "cpu/samples.h"

namespace fastgan::FASTGAN_ISA {
namespace {

constexpr int64_t kBlock = 64;  // elements per two words of signs

// A bit for every lane that is greater than zero.
template <typename V>
FASTGAN_INLINE uint64_t positive(V v) {
  [[maybe_unused]] constexpr bool is_float = sizeof v[0] == sizeof(float);
#if defined(FASTGAN_ISA_avx512)
  if constexpr (is_float) {
    return _mm512_cmp_ps_mask((__m512)v, _mm512_setzero_ps(), _CMP_GT_OQ);
  } else {
    return _mm512_cmp_pd_mask((__m512d)v, _mm512_setzero_pd(), _CMP_GT_OQ);
  }
#elif defined(FASTGAN_ISA_avx2)
  if constexpr (is_float) {
    return static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps((__m256)v, _mm256_setzero_ps(), _CMP_GT_OQ)));
  } else {
    return static_cast<unsigned>(_mm256_movemask_pd(_mm256_cmp_pd((__m256d)v, _mm256_setzero_pd(), _CMP_GT_OQ)));
  }
#else
  uint64_t bits = 0;
  for (int i = 0; i < kLanes<std::decay_t<decltype(v[0])>>; ++i) bits |= static_cast<uint64_t>(v[i] > 0) << i;
  return bits;
#endif
}

template <typename A>
struct Words;
template <>
struct Words<float> {
  typedef uint32_t type __attribute__((vector_size(FASTGAN_VECTOR_BYTES)));
};
template <>
struct Words<double> {
  typedef uint64_t type __attribute__((vector_size(FASTGAN_VECTOR_BYTES)));
};

// plus where the lane's bit of `above` is set, minus where that of `below` is, else 0.
template <typename A>
FASTGAN_INLINE Vec<A> choose(uint64_t above, uint64_t below, Vec<A> plus, Vec<A> minus) {
#if defined(FASTGAN_ISA_avx512)
  if constexpr (sizeof(A) == 4) {
    const __m512 v = _mm512_maskz_mov_ps(static_cast<__mmask16>(above), (__m512)plus);
    return (Vec<A>)_mm512_mask_mov_ps(v, static_cast<__mmask16>(below), (__m512)minus);
  } else {
    const __m512d v = _mm512_maskz_mov_pd(static_cast<__mmask8>(above), (__m512d)plus);
    return (Vec<A>)_mm512_mask_mov_pd(v, static_cast<__mmask8>(below), (__m512d)minus);
  }
#else
  using W = typename Words<A>::type;
  W lane;
  for (int i = 0; i < kLanes<A>; ++i) lane[i] = 1u << i;
  using Word = std::decay_t<decltype(lane[0])>;
  const W in_above = (W)(((W{} + static_cast<Word>(above)) & lane) != 0);
  const W in_below = (W)(((W{} + static_cast<Word>(below)) & lane) != 0);
  return (Vec<A>)(((W)plus & in_above) | ((W)minus & in_below));
#endif
}

FASTGAN_INLINE Vec<float> absolute(Vec<float> v) { return (Vec<float>)((Words<float>::type)v & 0x7fffffffu); }
FASTGAN_INLINE Vec<double> absolute(Vec<double> v) {
  return (Vec<double>)((Words<double>::type)v & 0x7fffffffffffffffull);
}

// What is left of a block for the vector that begins at `offset`.
FASTGAN_INLINE int64_t lanes_left(int64_t length, int64_t offset, int64_t lanes) {
  const int64_t left = length - offset;
  return left < 0 ? 0 : left < lanes ? left : lanes;
}

// Calls body(offset, vector in the block, lanes) for each vector of a block of `length` elements.
template <typename A, typename Body>
FASTGAN_INLINE void each_of_block(int64_t length, const Body& body) {
  constexpr int lanes = kLanes<A>;
  if (length == kBlock) {
#pragma GCC unroll 16
    for (int v = 0; v < kBlock / lanes; ++v) body(v * lanes, v, Whole{});
  } else {
    for (int v = 0; v * lanes < length; ++v) body(v * lanes, v, lanes_left(length, v * lanes, lanes));
  }
}

template <typename A>
struct Sums {
  Vec<A> lane[kBlock / kLanes<A>];
  FASTGAN_INLINE Sums() {
    for (auto& v : lane) v = Vec<A>{};
  }
  FASTGAN_INLINE double total() const {
    double sum = 0;
    for (const auto& v : lane) sum += static_cast<double>(sum_lanes(v));
    return sum;
  }
};

// plus where v is greater than zero, minus where it is less, else 0.
template <typename A>
FASTGAN_INLINE Vec<A> by_sign(Vec<A> v, Vec<A> plus, Vec<A> minus) {
  using W = typename Words<A>::type;
  return (Vec<A>)(((W)plus & (W)(v > 0)) | ((W)minus & (W)(v < 0)));
}

// What the forward pass writes beside the value. Gradients: `value` times the sign for a, its negative for b.
enum class Writes { nothing, signs, gradients, streamed_gradients };

template <Writes kWrites, typename Ta, typename Tb>
FASTGAN_INLINE double forward_chunk(const Ta* a, const Tb* b, uint8_t* signs, Ta* grad_a, Tb* grad_b, acc_t<Ta> value,
                                    int64_t n) {
  using A = acc_t<Ta>;
  constexpr bool stream = kWrites == Writes::streamed_gradients;
  const Vec<A> plus = broadcast(value), minus = broadcast(-value);
  Sums<A> sums;
  for (int64_t i = 0; i < n; i += kBlock) {
    uint64_t words[2] = {0, 0};
    each_of_block<A>(n - i < kBlock ? n - i : kBlock, [&](int64_t offset, int v, auto lanes) {
      const Vec<A> d = load_vector(a + i + offset, lanes) - load_vector(b + i + offset, lanes);
      sums.lane[v] += absolute(d);
      if constexpr (kWrites >= Writes::signs) {
        words[0] |= positive(d) << offset;
        words[1] |= positive(-d) << offset;
      }
      if constexpr (kWrites >= Writes::gradients) {
        if (grad_a != nullptr) put_vector<stream>(grad_a + i + offset, by_sign<A>(d, plus, minus), lanes);
        if (grad_b != nullptr) put_vector<stream>(grad_b + i + offset, by_sign<A>(d, minus, plus), lanes);
      }
    });
    if constexpr (kWrites >= Writes::signs) std::memcpy(signs + i / 4, words, sizeof words);
  }
  return sums.total();
}

template <bool kStream, typename T>
FASTGAN_INLINE void backward_chunk(acc_t<T> value, const uint8_t* signs, T* out, int64_t n) {
  using A = acc_t<T>;
  const Vec<A> plus = broadcast(value), minus = broadcast(-value);
  for (int64_t i = 0; i < n; i += kBlock) {
    uint64_t words[2];
    std::memcpy(words, signs + i / 4, sizeof words);
    each_of_block<A>(n - i < kBlock ? n - i : kBlock, [&](int64_t offset, int, auto lanes) {
      put_vector<kStream>(out + i + offset, choose<A>(words[0] >> offset, words[1] >> offset, plus, minus), lanes);
    });
  }
}

template <typename T>
FASTGAN_INLINE double directional_chunk(const T* u, const uint8_t* signs, int64_t n) {
  using A = acc_t<T>;
  Sums<A> sums;
  for (int64_t i = 0; i < n; i += kBlock) {
    uint64_t words[2];
    std::memcpy(words, signs + i / 4, sizeof words);
    each_of_block<A>(n - i < kBlock ? n - i : kBlock, [&](int64_t offset, int v, auto lanes) {
      const Vec<A> value = load_vector(u + i + offset, lanes);
      sums.lane[v] += choose<A>(words[0] >> offset, words[1] >> offset, value, -value);
    });
  }
  return sums.total();
}

// Calls body(pair, chunk in the pair, chunk overall) for every chunk of all pairs.
template <typename Body>
FASTGAN_INLINE void each_chunk(const L1Pair* pairs, int64_t count, int threads, const Body& body) {
  int64_t chunks = 0, elements = 0;
  for (int64_t k = 0; k < count; ++k) {
    chunks += l1_chunks(pairs[k]);
    elements += pairs[k].n;
  }
  parallel(team_for(elements, threads), [&](int thread, int team) {
    const Range range = part(chunks, thread, team);
    int64_t first = 0;  // of the pair's chunks
    for (int64_t k = 0; k < count; ++k) {
      const int64_t size = l1_chunks(pairs[k]);
      const int64_t begin = range.begin > first ? range.begin : first;
      const int64_t end = range.end < first + size ? range.end : first + size;
      for (int64_t c = begin; c < end; ++c) body(pairs[k], c - first, c);
      first += size;
    }
  });
}

template <typename Ta, typename Tb>
double forward_typed(const L1Pair& pair, int64_t chunk) {
  const int64_t begin = chunk * kL1Chunk, left = pair.n - begin, n = left < kL1Chunk ? left : kL1Chunk;
  const auto at = [&](auto* base) { return base == nullptr ? nullptr : base + begin; };
  const Ta* a = at(static_cast<const Ta*>(pair.a));
  const Tb* b = at(static_cast<const Tb*>(pair.b));
  Ta* grad_a = at(static_cast<Ta*>(pair.grad_a));
  Tb* grad_b = at(static_cast<Tb*>(pair.grad_b));
  const auto value = static_cast<acc_t<Ta>>(pair.scale);
  if (pair.signs == nullptr) return forward_chunk<Writes::nothing>(a, b, nullptr, grad_a, grad_b, value, n);
  uint8_t* signs = pair.signs + chunk * kL1SignBytes;
  const int64_t used = ceil_div(n, kBlock) * (kBlock / 4);
  std::memset(signs + used, 0, static_cast<size_t>(kL1SignBytes - used));
  if (grad_a == nullptr && grad_b == nullptr) {
    return forward_chunk<Writes::signs>(a, b, signs, grad_a, grad_b, value, n);
  }
  const auto past_caches = [&](auto* grad) { return grad == nullptr || streams(grad, pair.n, kL1Chunk); };
  return past_caches(grad_a) && past_caches(grad_b)
             ? forward_chunk<Writes::streamed_gradients>(a, b, signs, grad_a, grad_b, value, n)
             : forward_chunk<Writes::gradients>(a, b, signs, grad_a, grad_b, value, n);
}

double forward_one(const L1Pair& pair, int64_t chunk) {
  double sum = 0;
  with_dtype(pair.dtype_a, [&](auto a) {
    with_dtype(pair.dtype_b, [&](auto b) {
      using Ta = decltype(a);
      using Tb = decltype(b);
      constexpr bool doubles = sizeof(Ta) == 8 || sizeof(Tb) == 8;
      constexpr bool singles = sizeof(Ta) == 4 || sizeof(Tb) == 4;
      if constexpr (std::is_same_v<Ta, Tb> || (singles && !doubles)) sum = forward_typed<Ta, Tb>(pair, chunk);
    });
  });
  return sum;
}

template <typename T>
void backward_typed(double value, const L1Pair& pair, void* out, int64_t chunk) {
  const int64_t begin = chunk * kL1Chunk, left = pair.n - begin, n = left < kL1Chunk ? left : kL1Chunk;
  with_bool(streams(static_cast<const T*>(out), pair.n, kL1Chunk), [&](auto stream) {
    backward_chunk<stream.value>(static_cast<acc_t<T>>(value), pair.signs + chunk * kL1SignBytes,
                                 static_cast<T*>(out) + begin, n);
  });
}

void write_gradients(double grad, const L1Pair& pair, int64_t chunk) {
  const double value = grad * pair.scale;
  const auto write = [&](void* to, int dtype, double signed_value) {
    if (to == nullptr) return;
    with_dtype(dtype, [&](auto t) { backward_typed<decltype(t)>(signed_value, pair, to, chunk); });
  };
  write(pair.grad_a, pair.dtype_a, value);
  write(pair.grad_b, pair.dtype_b, -value);
}

template <typename T>
double directional_typed(const L1Pair& pair, const void* u, int64_t chunk) {
  const int64_t begin = chunk * kL1Chunk, left = pair.n - begin, n = left < kL1Chunk ? left : kL1Chunk;
  return directional_chunk(static_cast<const T*>(u) + begin, pair.signs + chunk * kL1SignBytes, n);
}

// The sum over pairs of scale times the sum of the pair's partials.
double weighted_total(const L1Pair* pairs, int64_t count, const double* partials) {
  double total = 0;
  for (int64_t k = 0; k < count; ++k) {
    double sum = 0;
    for (int64_t c = 0; c < l1_chunks(pairs[k]); ++c) sum += *partials++;
    total += pairs[k].scale * sum;
  }
  return total;
}

}  // namespace

double l1_forward(const L1Pair* pairs, int64_t count, double* partials, int threads) {
  each_chunk(pairs, count, threads,
             [&](const L1Pair& pair, int64_t chunk, int64_t c) { partials[c] = forward_one(pair, chunk); });
  return weighted_total(pairs, count, partials);
}

void l1_backward(double grad, const L1Pair* pairs, int64_t count, int threads) {
  each_chunk(pairs, count, threads,
             [&](const L1Pair& pair, int64_t chunk, int64_t) { write_gradients(grad, pair, chunk); });
}

double l1_directional(const L1Pair* pairs, int64_t count, double* partials, int threads) {
  each_chunk(pairs, count, threads, [&](const L1Pair& pair, int64_t chunk, int64_t c) {
    double sum = 0;
    const auto add = [&](const void* u, int dtype, double side) {
      if (u == nullptr) return;
      with_dtype(dtype, [&](auto t) { sum += side * directional_typed<decltype(t)>(pair, u, chunk); });
    };
    add(pair.a, pair.dtype_a, 1.0);
    add(pair.b, pair.dtype_b, -1.0);
    partials[c] = sum;
  });
  return weighted_total(pairs, count, partials);
}

}  // namespace fastgan::FASTGAN_ISA
