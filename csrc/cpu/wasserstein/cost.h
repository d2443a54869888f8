// The cost c(d) = |d|^p of a difference, with its first and second derivative.
#pragma once

#include <cmath>

#include "common/threads.h"

namespace fastgan::FASTGAN_ISA {
namespace {

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

}  // namespace
}  // namespace fastgan::FASTGAN_ISA
