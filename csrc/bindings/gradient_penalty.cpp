// fastgan._C.gradient_penalty_*: called by fastgan/kernels/native/gradient_penalty.py.
#include "cpu/gradient_penalty.h"

#include <pybind11/pybind11.h>

namespace py = pybind11;

void bind_gradient_penalty(py::module_& m) {
  m.def(
      "gradient_penalty_forward",
      [](int dtype, uintptr_t grads, uintptr_t norms, double grad, uintptr_t out, double target, bool one_sided,
         int64_t samples, int64_t size, int threads) {
        return FASTGAN_CALL(gradient_penalty_forward, dtype, reinterpret_cast<const void*>(grads),
                            reinterpret_cast<void*>(norms), grad, reinterpret_cast<void*>(out), target, one_sided,
                            samples, size, threads);
      },
      py::call_guard<py::gil_scoped_release>());
  m.def(
      "gradient_penalty_backward",
      [](int dtype, double grad, uintptr_t grads, uintptr_t norms, uintptr_t out, double target, bool one_sided,
         int64_t samples, int64_t size, int threads) {
        FASTGAN_CALL(gradient_penalty_backward, dtype, grad, reinterpret_cast<const void*>(grads),
                     reinterpret_cast<const void*>(norms), reinterpret_cast<void*>(out), target, one_sided, samples,
                     size, threads);
      },
      py::call_guard<py::gil_scoped_release>());
  m.def(
      "gradient_penalty_double_backward",
      [](int dtype, double grad, uintptr_t u, uintptr_t grads, uintptr_t norms, uintptr_t out, double target,
         bool one_sided, int64_t samples, int64_t size, int threads) {
        return FASTGAN_CALL(gradient_penalty_double_backward, dtype, grad, reinterpret_cast<const void*>(u),
                            reinterpret_cast<const void*>(grads), reinterpret_cast<const void*>(norms),
                            reinterpret_cast<void*>(out), target, one_sided, samples, size, threads);
      },
      py::call_guard<py::gil_scoped_release>());
}
