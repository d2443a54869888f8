// fastgan._C.wasserstein: called by fastgan/kernels/native/wasserstein.py.
#include "cpu/wasserstein.h"

#include <pybind11/pybind11.h>

namespace py = pybind11;

namespace {

using fastgan::WassersteinSide;

template <typename T>
T* pointer(const py::handle& address) {
  return reinterpret_cast<T*>(address.cast<uintptr_t>());
}

// (values, values' row stride, weights, weights' row stride, n, grad, grad_weights, cotangent); 0 for a null address
WassersteinSide side(const py::tuple& t) {
  return {pointer<const void>(t[0]), t[1].cast<int64_t>(), pointer<const double>(t[2]), t[3].cast<int64_t>(),
          t[4].cast<int64_t>(),      pointer<void>(t[5]),  pointer<double>(t[6]),       pointer<const void>(t[7])};
}

void wasserstein(const py::tuple& x, const py::tuple& y, int64_t rows, int dtype, double p, uintptr_t cost,
                 uintptr_t scale, uintptr_t grad, int threads) {
  const fastgan::WassersteinProblem problem = {side(x),
                                               side(y),
                                               rows,
                                               static_cast<fastgan::DType>(dtype),
                                               p,
                                               reinterpret_cast<double*>(cost),
                                               reinterpret_cast<double*>(scale),
                                               reinterpret_cast<const double*>(grad),
                                               threads};
  const py::gil_scoped_release release;
  FASTGAN_CALL(wasserstein, problem);
}

}  // namespace

void bind_wasserstein(py::module_& m) { m.def("wasserstein", &wasserstein); }
