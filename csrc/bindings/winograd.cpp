// fastgan._C.winograd_*: called by fastgan/kernels/native/winograd.py.
#include "cpu/winograd.h"

#include <pybind11/pybind11.h>

namespace py = pybind11;

namespace {

const float* in(uintptr_t address) { return reinterpret_cast<const float*>(address); }
float* out(uintptr_t address) { return reinterpret_cast<float*>(address); }

}  // namespace

void bind_winograd(py::module_& m) {
  const auto no_gil = py::call_guard<py::gil_scoped_release>();
  m.def(
      "winograd_forward",
      [](uintptr_t x, uintptr_t w, uintptr_t bias, uintptr_t y, int64_t samples, int64_t rows, int64_t columns,
         int64_t channels, int64_t filters, int64_t pad, int threads) {
        FASTGAN_CALL(winograd_forward, in(x), in(w), in(bias), out(y), samples, rows, columns, channels, filters, pad,
                     threads);
      },
      no_gil);
  m.def(
      "winograd_backward_x",
      [](uintptr_t grad, uintptr_t w, uintptr_t grad_x, int64_t samples, int64_t rows, int64_t columns,
         int64_t channels, int64_t filters, int64_t pad, int threads) {
        FASTGAN_CALL(winograd_backward_x, in(grad), in(w), out(grad_x), samples, rows, columns, channels, filters, pad,
                     threads);
      },
      no_gil);
  m.def(
      "winograd_backward_w",
      [](uintptr_t grad, uintptr_t x, uintptr_t grad_w, int64_t samples, int64_t rows, int64_t columns,
         int64_t channels, int64_t filters, int64_t pad, int threads) {
        FASTGAN_CALL(winograd_backward_w, in(grad), in(x), out(grad_w), samples, rows, columns, channels, filters, pad,
                     threads);
      },
      no_gil);
}
