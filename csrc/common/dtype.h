// Element types as they lie in memory. Arithmetic is done in float (double for double).
#pragma once

#include <cstdint>
#include <cstring>

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
using f16_t = _Float16;

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

FASTGAN_HOST_DEVICE float load(const float& x) { return x; }
FASTGAN_HOST_DEVICE double load(const double& x) { return x; }
FASTGAN_HOST_DEVICE float load(const f16_t& x) { return static_cast<float>(x); }
FASTGAN_HOST_DEVICE float load(const bf16_t& x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

FASTGAN_HOST_DEVICE void store(float& to, float x) { to = x; }
FASTGAN_HOST_DEVICE void store(double& to, double x) { to = x; }
FASTGAN_HOST_DEVICE void store(int8_t& to, float x) { to = static_cast<int8_t>(x); }
FASTGAN_HOST_DEVICE void store(int8_t& to, double x) { to = static_cast<int8_t>(x); }
FASTGAN_HOST_DEVICE void store(f16_t& to, float x) { to = static_cast<f16_t>(x); }
FASTGAN_HOST_DEVICE void store(bf16_t& to, float x) {  // round to nearest even; NaN stays NaN
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  to.bits = static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? (bits >> 16) | 0x40u : rounded);
}
#endif

}  // namespace fastgan
