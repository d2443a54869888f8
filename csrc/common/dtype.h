// Element types as they lie in memory. Arithmetic is done in float (double for double).
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__F16C__)
#include <immintrin.h>
#endif

#if defined(__CUDACC__)
#define FASTGAN_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define FASTGAN_HOST_DEVICE inline __attribute__((always_inline))
#endif

namespace fastgan {

// The codes that Python passes (fastgan/kernels/native/_tensor.py).
enum class DType : int { f32 = 0, f64 = 1, f16 = 2, bf16 = 3 };

struct bf16_t {
  uint16_t bits;
};

#if !defined(__CUDACC__)
struct f16_t {  // not _Float16: GCC before 12, GCC before 13 on ARM and Clang before 15 have none in C++
  uint16_t bits;
};

template <typename T>
struct Accumulator {
  using type = float;
};
template <>
struct Accumulator<double> {
  using type = double;
};
template <typename T>
using acc_t = typename Accumulator<T>::type;

template <typename To, typename From>
FASTGAN_HOST_DEVICE To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "a bit cast keeps the size");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

// float16 to float and back; rounds to nearest even, NaN stays NaN.
#if defined(__F16C__)
FASTGAN_HOST_DEVICE float from_f16(uint16_t half) { return _cvtsh_ss(half); }
FASTGAN_HOST_DEVICE uint16_t to_f16(float x) { return _cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
#elif defined(__ARM_FP16_FORMAT_IEEE)
FASTGAN_HOST_DEVICE float from_f16(uint16_t half) { return bit_cast<__fp16>(half); }
FASTGAN_HOST_DEVICE uint16_t to_f16(float x) { return bit_cast<uint16_t>(static_cast<__fp16>(x)); }
#else
constexpr uint32_t kF16ExponentShift = (127 - 15) << 23;  // between the biases of the exponents

FASTGAN_HOST_DEVICE float from_f16(uint16_t half) {
  const uint32_t magnitude = half & 0x7fffu, sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t normal = (magnitude << 13) + (magnitude < 0x7c00u ? kF16ExponentShift : 2 * kF16ExponentShift);
  const float subnormal = static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-24f;
  return bit_cast<float>((magnitude < 0x400u ? bit_cast<uint32_t>(subnormal) : normal) | sign);
}
FASTGAN_HOST_DEVICE uint16_t to_f16(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x), magnitude = bits & 0x7fffffffu, sign = (bits >> 16) & 0x8000u;
  const uint32_t finite = magnitude < 0x47800000u ? magnitude : 0x47800000u;  // 65536 becomes infinity
  const uint32_t normal = (finite - kF16ExponentShift + 0xfffu + ((finite >> 13) & 1u)) >> 13;
  // The last place of a sum with 1/2 is that of a subnormal float16.
  const uint32_t subnormal = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  const uint32_t number = magnitude < 0x38800000u ? subnormal : normal;
  return static_cast<uint16_t>((magnitude > 0x7f800000u ? 0x7e00u | (magnitude >> 13 & 0x1ffu) : number) | sign);
}
#endif

FASTGAN_HOST_DEVICE float load(const float& x) { return x; }
FASTGAN_HOST_DEVICE double load(const double& x) { return x; }
FASTGAN_HOST_DEVICE float load(const f16_t& x) { return from_f16(x.bits); }
FASTGAN_HOST_DEVICE float load(const bf16_t& x) { return bit_cast<float>(static_cast<uint32_t>(x.bits) << 16); }

FASTGAN_HOST_DEVICE void store(float& to, float x) { to = x; }
FASTGAN_HOST_DEVICE void store(double& to, double x) { to = x; }
FASTGAN_HOST_DEVICE void store(int8_t& to, float x) { to = static_cast<int8_t>(x); }
FASTGAN_HOST_DEVICE void store(int8_t& to, double x) { to = static_cast<int8_t>(x); }
FASTGAN_HOST_DEVICE void store(f16_t& to, float x) { to.bits = to_f16(x); }
FASTGAN_HOST_DEVICE void store(bf16_t& to, float x) {  // round to nearest even; NaN stays NaN
  const uint32_t bits = bit_cast<uint32_t>(x);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  to.bits = static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? (bits >> 16) | 0x40u : rounded);
}
#endif

}  // namespace fastgan
