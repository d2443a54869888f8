// Tuples of addresses and sizes, as fastgan/kernels/native/wasserstein.py makes them, as structs.
#pragma once

#include <pybind11/pybind11.h>

#include "common/wasserstein.h"

namespace fastgan {

template <typename T>
T* pointer(const pybind11::handle& address) {
  return reinterpret_cast<T*>(address.cast<uintptr_t>());
}

// (values, values' row stride, weights, weights' row stride, n, grad, signs, grad_weights, cotangent, whether the
// weights are floats); 0 for no address.
inline WassersteinSide side_of(const pybind11::tuple& t) {
  const bool floats = t[9].cast<bool>();
  return {pointer<const void>(t[0]),
          t[1].cast<int64_t>(),
          floats ? nullptr : pointer<const double>(t[2]),
          t[3].cast<int64_t>(),
          t[4].cast<int64_t>(),
          pointer<void>(t[5]),
          pointer<uint32_t>(t[6]),
          floats ? nullptr : pointer<double>(t[7]),
          floats ? pointer<const float>(t[2]) : nullptr,
          floats ? pointer<float>(t[7]) : nullptr,
          pointer<const void>(t[8])};
}

inline WassersteinProblem problem_of(const pybind11::tuple& x, const pybind11::tuple& y, int64_t rows, int dtype,
                                     double p, uintptr_t cost, uintptr_t scale, uintptr_t grad) {
  return {side_of(x),
          side_of(y),
          rows,
          static_cast<DType>(dtype),
          p,
          reinterpret_cast<double*>(cost),
          reinterpret_cast<double*>(scale),
          reinterpret_cast<const double*>(grad)};
}

}  // namespace fastgan
