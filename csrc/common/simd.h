// Vectors of float or double for kernel files, which are compiled once per instruction set: 16, 32 or 64 bytes.
//
// Loads and stores convert from and to the element type in memory; `lanes` loads and stores touch only that many
// elements and fill the rest with zeros. Everything is inlined, so nothing is shared between instruction sets.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "common/dtype.h"
#include "common/threads.h"

#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#if defined(FASTGAN_ISA_avx512)
#define FASTGAN_VECTOR_BYTES 64
#elif defined(FASTGAN_ISA_avx2)
#define FASTGAN_VECTOR_BYTES 32
#else
#define FASTGAN_VECTOR_BYTES 16
#endif

namespace fastgan::FASTGAN_ISA {

template <typename A>
struct VectorOf {
  typedef A type __attribute__((vector_size(FASTGAN_VECTOR_BYTES)));
};
template <typename A>
using Vec = typename VectorOf<A>::type;

template <typename A>
inline constexpr int kLanes = FASTGAN_VECTOR_BYTES / static_cast<int>(sizeof(A));

namespace simd {
constexpr int kFloats = kLanes<float>;
typedef uint16_t Half __attribute__((vector_size(FASTGAN_VECTOR_BYTES / 2)));
typedef uint16_t Words __attribute__((vector_size(FASTGAN_VECTOR_BYTES)));
typedef uint32_t Bits __attribute__((vector_size(FASTGAN_VECTOR_BYTES)));

template <typename V, typename T>
FASTGAN_INLINE V bits_at(const T* p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
}  // namespace simd

template <typename A>
FASTGAN_INLINE Vec<A> broadcast(A value) {
  return value - Vec<A>{};  // folds: x - 0 is x, 0 + x is not where x is -0
}

// a * b + c, rounded once where the instruction set has it.
FASTGAN_INLINE Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) {
#if defined(FASTGAN_ISA_avx512)
  return (Vec<float>)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(FASTGAN_ISA_avx2)
  return (Vec<float>)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
  return (Vec<float>)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;
#endif
}
FASTGAN_INLINE Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) {
#if defined(FASTGAN_ISA_avx512)
  return (Vec<double>)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif defined(FASTGAN_ISA_avx2)
  return (Vec<double>)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#elif defined(__aarch64__)
  return (Vec<double>)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
#else
  return a * b + c;
#endif
}

// --- whole vectors ---------------------------------------------------------------------------------------------

FASTGAN_INLINE Vec<float> load_vector(const float* p) { return simd::bits_at<Vec<float>>(p); }
FASTGAN_INLINE Vec<double> load_vector(const double* p) { return simd::bits_at<Vec<double>>(p); }
#if defined(FASTGAN_ISA_avx512)
namespace simd {
// A float's upper half and back, by one permutation: of bfloat16s into the odd places, the even ones zero.
FASTGAN_INLINE Vec<float> widen_bf16(__m256i half) {
  const __m512i twice = (__m512i)(Words{0, 0, 1, 1, 2,  2,  3,  3,  4,  4,  5,  5,  6,  6,  7,  7,
                                        8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13, 14, 14, 15, 15});
  return (Vec<float>)_mm512_maskz_permutexvar_epi16(0xaaaaaaaau, twice, _mm512_castsi256_si512(half));
}
FASTGAN_INLINE __m256i upper_halves(__m512i v) {
  const __m512i odd = (__m512i)(Words{1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31});
  return _mm512_castsi512_si256(_mm512_permutexvar_epi16(odd, v));
}
}  // namespace simd
#endif

FASTGAN_INLINE Vec<float> load_vector(const bf16_t* p) {
#if defined(FASTGAN_ISA_avx512)
  return simd::widen_bf16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(FASTGAN_ISA_avx2)
  const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return (Vec<float>)_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16);
#else
  return (Vec<float>)(__builtin_convertvector(simd::bits_at<simd::Half>(p), simd::Bits) << 16);
#endif
}
FASTGAN_INLINE Vec<float> load_vector(const f16_t* p) {
#if defined(FASTGAN_ISA_avx512)
  return (Vec<float>)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(FASTGAN_ISA_avx2)
  return (Vec<float>)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  Vec<float> v;
  for (int i = 0; i < simd::kFloats; ++i) v[i] = load(p[i]);
  return v;
#endif
}

namespace simd {
// Round to nearest even; NaN stays NaN. (Arithmetic has made it a quiet one, which its upper half shows.)
FASTGAN_INLINE Half to_bf16(Vec<float> v) {
  const Bits bits = (Bits)v, up = ((bits >> 16) & 1u) + 0x7fffu;
#if defined(FASTGAN_ISA_avx512)
  const __mmask16 number = _mm512_cmp_ps_mask((__m512)v, (__m512)v, _CMP_ORD_Q);
  return (Half)upper_halves(_mm512_mask_add_epi32((__m512i)bits, number, (__m512i)bits, (__m512i)up));
#else
  const Bits result = (v != v) ? bits : bits + up;
  return __builtin_convertvector(result >> 16, Half);
#endif
}
#if defined(FASTGAN_ISA_avx512)
FASTGAN_INLINE __m256i to_f16(Vec<float> v) {
  return _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
#elif defined(FASTGAN_ISA_avx2)
FASTGAN_INLINE __m128i to_f16(Vec<float> v) {
  return _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
#endif
}  // namespace simd

FASTGAN_INLINE void store_vector(float* p, Vec<float> v) { std::memcpy(p, &v, sizeof v); }
FASTGAN_INLINE void store_vector(double* p, Vec<double> v) { std::memcpy(p, &v, sizeof v); }
FASTGAN_INLINE void store_vector(bf16_t* p, Vec<float> v) {
  const simd::Half half = simd::to_bf16(v);
  std::memcpy(p, &half, sizeof half);
}
#if defined(FASTGAN_ISA_avx512)
// bfloat16 where Isa::avx512_bf16 is: rounded by one instruction instead of six. Subnormal numbers become 0.
struct native_bf16_t : bf16_t {};

namespace simd {
FASTGAN_INLINE __m256i to_native_bf16(Vec<float> v) {
  __m256i half;
  asm("vcvtneps2bf16 %1, %0" : "=v"(half) : "v"((__m512)v));  // this file is compiled for processors without it, too
  return half;
}
}  // namespace simd

FASTGAN_INLINE void store_vector(native_bf16_t* p, Vec<float> v) {
  const __m256i half = simd::to_native_bf16(v);
  std::memcpy(p, &half, sizeof half);
}
#endif
FASTGAN_INLINE void store_vector(f16_t* p, Vec<float> v) {
#if defined(FASTGAN_ISA_avx512) || defined(FASTGAN_ISA_avx2)
  const auto half = simd::to_f16(v);
  std::memcpy(p, &half, sizeof half);
#else
  for (int i = 0; i < simd::kFloats; ++i) store(p[i], v[i]);
#endif
}

// --- stores that bypass the caches -----------------------------------------------------------------------------

// Stores v at p, which is aligned to a vector. Other threads see it after stream_fence(), which `parallel` calls.
template <typename A>
FASTGAN_INLINE void stream_vector(A* p, Vec<A> v) {
#if defined(FASTGAN_ISA_avx512)
  _mm512_stream_si512(reinterpret_cast<__m512i*>(p), (__m512i)v);
#elif defined(FASTGAN_ISA_avx2)
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p), (__m256i)v);
#elif defined(__SSE2__)
  _mm_stream_si128(reinterpret_cast<__m128i*>(p), (__m128i)v);
#else
  store_vector(p, v);
#endif
}

// --- the first `lanes` elements only ---------------------------------------------------------------------------

#if defined(FASTGAN_ISA_avx512)
namespace simd {
FASTGAN_INLINE __mmask16 first(int64_t lanes) { return static_cast<__mmask16>(_bzhi_u32(0xffffu, lanes)); }
FASTGAN_INLINE __m256i load16(const void* p, int64_t lanes) { return _mm256_maskz_loadu_epi16(first(lanes), p); }
FASTGAN_INLINE void store16(void* p, __m256i v, int64_t lanes) { _mm256_mask_storeu_epi16(p, first(lanes), v); }
}  // namespace simd

FASTGAN_INLINE Vec<float> load_vector(const float* p, int64_t lanes) {
  return (Vec<float>)_mm512_maskz_loadu_ps(simd::first(lanes), p);
}
FASTGAN_INLINE Vec<double> load_vector(const double* p, int64_t lanes) {
  return (Vec<double>)_mm512_maskz_loadu_pd(static_cast<__mmask8>(simd::first(lanes)), p);
}
FASTGAN_INLINE Vec<float> load_vector(const bf16_t* p, int64_t lanes) {
  return simd::widen_bf16(simd::load16(p, lanes));
}
FASTGAN_INLINE Vec<float> load_vector(const f16_t* p, int64_t lanes) {
  return (Vec<float>)_mm512_cvtph_ps(simd::load16(p, lanes));
}
FASTGAN_INLINE void store_vector(float* p, Vec<float> v, int64_t lanes) {
  _mm512_mask_storeu_ps(p, simd::first(lanes), (__m512)v);
}
FASTGAN_INLINE void store_vector(double* p, Vec<double> v, int64_t lanes) {
  _mm512_mask_storeu_pd(p, static_cast<__mmask8>(simd::first(lanes)), (__m512d)v);
}
FASTGAN_INLINE void store_vector(bf16_t* p, Vec<float> v, int64_t lanes) {
  simd::store16(p, (__m256i)simd::to_bf16(v), lanes);
}
FASTGAN_INLINE void store_vector(native_bf16_t* p, Vec<float> v, int64_t lanes) {
  simd::store16(p, simd::to_native_bf16(v), lanes);
}
FASTGAN_INLINE void store_vector(f16_t* p, Vec<float> v, int64_t lanes) { simd::store16(p, simd::to_f16(v), lanes); }
FASTGAN_INLINE Vec<float> first_lanes(Vec<float> v, int64_t lanes) {
  return (Vec<float>)_mm512_maskz_mov_ps(simd::first(lanes), (__m512)v);
}
FASTGAN_INLINE Vec<double> first_lanes(Vec<double> v, int64_t lanes) {
  return (Vec<double>)_mm512_maskz_mov_pd(static_cast<__mmask8>(simd::first(lanes)), (__m512d)v);
}
#else
#if defined(FASTGAN_ISA_avx2)
namespace simd {
FASTGAN_INLINE __m256i first_floats(int64_t lanes) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(lanes)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
FASTGAN_INLINE __m256i first_doubles(int64_t lanes) {
  return _mm256_cmpgt_epi64(_mm256_set1_epi64x(lanes), _mm256_setr_epi64x(0, 1, 2, 3));
}
}  // namespace simd

FASTGAN_INLINE Vec<float> load_vector(const float* p, int64_t lanes) {
  return (Vec<float>)_mm256_maskload_ps(p, simd::first_floats(lanes));
}
FASTGAN_INLINE Vec<double> load_vector(const double* p, int64_t lanes) {
  return (Vec<double>)_mm256_maskload_pd(p, simd::first_doubles(lanes));
}
FASTGAN_INLINE void store_vector(float* p, Vec<float> v, int64_t lanes) {
  _mm256_maskstore_ps(p, simd::first_floats(lanes), (__m256)v);
}
FASTGAN_INLINE void store_vector(double* p, Vec<double> v, int64_t lanes) {
  _mm256_maskstore_pd(p, simd::first_doubles(lanes), (__m256d)v);
}
FASTGAN_INLINE Vec<float> first_lanes(Vec<float> v, int64_t lanes) {
  return (Vec<float>)_mm256_and_ps((__m256)v, _mm256_castsi256_ps(simd::first_floats(lanes)));
}
FASTGAN_INLINE Vec<double> first_lanes(Vec<double> v, int64_t lanes) {
  return (Vec<double>)_mm256_and_pd((__m256d)v, _mm256_castsi256_pd(simd::first_doubles(lanes)));
}
#endif
template <typename T>
FASTGAN_INLINE Vec<acc_t<T>> load_vector(const T* p, int64_t lanes) {
  T part[kLanes<acc_t<T>>];
  std::memset(part, 0, sizeof part);
  for (int64_t i = 0; i < lanes; ++i) part[i] = p[i];
  return load_vector(part);
}
template <typename T>
FASTGAN_INLINE void store_vector(T* p, Vec<acc_t<T>> v, int64_t lanes) {
  T part[kLanes<acc_t<T>>];
  store_vector(part, v);
  for (int64_t i = 0; i < lanes; ++i) p[i] = part[i];
}
template <typename V>
FASTGAN_INLINE V first_lanes(V v, int64_t lanes) {
  for (int64_t i = lanes; i < static_cast<int64_t>(sizeof v / sizeof v[0]); ++i) v[i] = 0;
  return v;
}
#endif

// `lanes` as a type: Whole for a whole vector, so that one generic loop body serves whole vectors and the tail.
struct Whole {};

template <typename T>
FASTGAN_INLINE Vec<acc_t<T>> load_vector(const T* p, Whole) {
  return load_vector(p);
}
template <typename T, typename V>
FASTGAN_INLINE void store_vector(T* p, V v, Whole) {
  store_vector(p, v);
}
template <typename V>
FASTGAN_INLINE V first_lanes(V v, Whole) {
  return v;
}

// Stores whole vectors past the caches if kStream; p is aligned then, see `streams`.
template <bool kStream, typename T, typename V, typename L>
FASTGAN_INLINE void put_vector(T* p, V v, L lanes) {
  if constexpr (kStream && std::is_same_v<L, Whole> && std::is_same_v<T, acc_t<T>>) {
    stream_vector(p, v);
  } else {
    store_vector(p, v, lanes);
  }
}

// An ordinary store first reads the line that it replaces. From this size on that costs more than the next reader gains
// by finding the tensor in the caches: tensors of 3 to 16 MiB, written and then scaled in place, take 1.1 to 1.3 times
// as long so, smaller ones 0.8 to 1 times. So do those of 16-bit elements, whose vectors are half a line.
constexpr int64_t kStreamBytes = 3 << 20;

// Whether to write so many elements past the caches, in runs that begin at multiples of `stride` from `out` on.
template <typename T>
FASTGAN_INLINE bool streams(const T* out, int64_t elements, int64_t stride) {
  constexpr int64_t size = sizeof(T);
  return std::is_same_v<T, acc_t<T>> && size * elements >= kStreamBytes &&
         reinterpret_cast<uintptr_t>(out) % FASTGAN_VECTOR_BYTES == 0 && size * stride % FASTGAN_VECTOR_BYTES == 0;
}

// Copies past the caches, but for the ends, whose lines others may share. Elements that `streams` refuses: as usual.
template <typename T>
FASTGAN_INLINE void stream_copy(T* to, const T* from, int64_t count) {
  if constexpr (std::is_same_v<T, acc_t<T>>) {
    constexpr int64_t lanes = kLanes<T>;
    int64_t i = static_cast<int64_t>(-(reinterpret_cast<uintptr_t>(to) / sizeof(T)) % lanes);
    if (i > count) i = count;
    if (i > 0) store_vector(to, load_vector(from, i), i);
    for (; i + lanes <= count; i += lanes) stream_vector(to + i, load_vector(from + i));
    if (i < count) store_vector(to + i, load_vector(from + i, count - i), count - i);
  } else {
    std::memcpy(to, from, static_cast<size_t>(count) * sizeof(T));
  }
}

// Calls body(std::true_type or std::false_type).
template <typename Body>
FASTGAN_INLINE void with_bool(bool value, const Body& body) {
  value ? body(std::true_type{}) : body(std::false_type{});
}

// --- permutations ----------------------------------------------------------------------------------------------

// Of the elements of a, then b: those at places I.
template <size_t... I, typename V>
FASTGAN_INLINE V shuffled(V a, V b) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, I...);
#else  // which has that from GCC 12 on only
  using Places = decltype(a < b);
  return __builtin_shuffle(a, b, Places{I...});
#endif
}

namespace simd {
template <size_t kFirst, typename V, size_t... I>
FASTGAN_INLINE V every_other(V a, V b, std::index_sequence<I...>) {
  return shuffled<(2 * I + kFirst)...>(a, b);
}
template <size_t kFirst, typename V, size_t... I>
FASTGAN_INLINE V alternate(V a, V b, std::index_sequence<I...>) {
  return shuffled<(kFirst + I / 2 + (I & 1) * sizeof...(I))...>(a, b);
}
template <typename V>
using Lanes = std::make_index_sequence<sizeof(V) / sizeof(V{}[0])>;
}  // namespace simd

// Of the elements of a, then b: those at even places into a, at odd places into b.
template <typename V>
FASTGAN_INLINE void unzip(V& a, V& b) {
  const V even = simd::every_other<0>(a, b, simd::Lanes<V>{});
  b = simd::every_other<1>(a, b, simd::Lanes<V>{});
  a = even;
}
// The inverse: a0 b0 a1 b1 ...
template <typename V>
FASTGAN_INLINE void zip(V& a, V& b) {
  const V low = simd::alternate<0>(a, b, simd::Lanes<V>{});
  b = simd::alternate<sizeof(V) / sizeof(V{}[0]) / 2>(a, b, simd::Lanes<V>{});
  a = low;
}

// --- reductions ------------------------------------------------------------------------------------------------

// The sum of the lanes, always in the same order.
template <typename V>
FASTGAN_INLINE auto sum_lanes(V v) {
  constexpr int lanes = sizeof v / sizeof v[0];
#if defined(FASTGAN_ISA_avx512)
  if constexpr (lanes == 16) {
    return _mm512_reduce_add_ps((__m512)v);
  } else {
    return _mm512_reduce_add_pd((__m512d)v);
  }
#else
  for (int width = lanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) v[i] += v[i + width];
  }
  return v[0];
#endif
}

}  // namespace fastgan::FASTGAN_ISA
