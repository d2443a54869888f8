// |d|^p and its derivatives, with the conventions of fastgan/reference/wasserstein.py.
#pragma once

#include <cmath>

namespace fastgan::cuda {

// x - y, and 0 for two equal infinities.
template <typename T>
__device__ __forceinline__ T difference(T x, T y) {
  return x == y ? T(0) : x - y;
}

// D: the row's largest |d|, rounded up to a power of two, so that scaling is exact; 1 where that is 0 or not finite.
// Its inverse is finite too.
__device__ __forceinline__ double scale_of(double largest) {
  if (!(largest > 0) || isinf(largest)) return 1;
  int exponent;
  frexp(largest, &exponent);
  return ldexp(1.0, exponent < -1022 ? -1022 : exponent > 1022 ? 1022 : exponent);
}

// 1 / D, by D's exponent.
__device__ __forceinline__ double inverse_of_scale(double scale) {
  return __longlong_as_double((2046LL << 52) - __double_as_longlong(scale));
}

// u^q for u >= 0. In double the error of exp(q log u) grows as |log u^q|, so it stays below an ulp of the row's largest
// term, which is near 1; CUDA's double pow is a call, around which registers spill.
__device__ __forceinline__ float positive_power(float u, float q) { return powf(u, q); }
__device__ __forceinline__ double positive_power(double u, double q) { return exp(q * log(u)); }

// For finite p and u = d / D: cost = |u|^p and slope = p |u|^(p-1) sgn(u), with sgn(0) = 0.
template <typename T>
__device__ __forceinline__ void power(T d, T p, double inverse_scale, T& cost, T& slope) {
  if (p == T(1)) {
    cost = fabs(d);
    slope = d > 0 ? T(1) : d < 0 ? T(-1) : d;
  } else if (p == T(2)) {
    cost = d * d;
    slope = 2 * d;
  } else {
    const T u = static_cast<T>(fabs(d) * inverse_scale), power = positive_power(u, p - 1);
    cost = d == 0 ? T(0) : power * u;
    slope = d == 0 ? T(0) : static_cast<T>(copysign(p * power, d));
  }
}

// p (p - 1) |u|^(p-2), the second derivative, with 0 at 0.
template <typename T>
__device__ __forceinline__ T curvature(T d, T p, double inverse_scale) {
  if (p == T(1) || d == 0) return p == T(2) ? T(2) : T(0);
  if (p == T(2)) return 2;
  return p * (p - 1) * positive_power(static_cast<T>(fabs(d) * inverse_scale), p - 2);
}

}  // namespace fastgan::cuda
