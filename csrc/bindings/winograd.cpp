// fastgan._C.winograd_*: called by fastgan/kernels/native/winograd.py.
#include "cpu/winograd.h"

#include <pybind11/pybind11.h>

namespace py = pybind11;

using fastgan::WinogradSizes;

namespace {

template <typename T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

}  // namespace

void bind_winograd(py::module_& m) {
  const auto no_gil = py::call_guard<py::gil_scoped_release>();
  // The sizes of all three: dtype of the images, samples, rows, columns, channels, filters, pad.
  m.def(
      "winograd_forward",
      [](uintptr_t x, uintptr_t w, uintptr_t bias, uintptr_t y, int dtype, int64_t samples, int64_t rows,
         int64_t columns, int64_t channels, int64_t filters, int64_t pad, int threads) {
        const WinogradSizes of{dtype, samples, rows, columns, channels, filters, pad};
        FASTGAN_CALL(winograd_forward, at<void>(x), at<float>(w), at<float>(bias), at<void>(y), of, threads);
      },
      no_gil);
  m.def(
      "winograd_input_gradient",
      [](uintptr_t grad, uintptr_t w, uintptr_t grad_x, int dtype, int64_t samples, int64_t rows, int64_t columns,
         int64_t channels, int64_t filters, int64_t pad, int threads) {
        const WinogradSizes of{dtype, samples, rows, columns, channels, filters, pad};
        FASTGAN_CALL(winograd_backward_x, at<void>(grad), at<float>(w), at<void>(grad_x), of, threads);
      },
      no_gil);
  m.def(
      "winograd_weight_gradient",
      [](uintptr_t grad, uintptr_t x, uintptr_t grad_w, int dtype, int64_t samples, int64_t rows, int64_t columns,
         int64_t channels, int64_t filters, int64_t pad, int threads) {
        const WinogradSizes of{dtype, samples, rows, columns, channels, filters, pad};
        FASTGAN_CALL(winograd_backward_w, at<void>(grad), at<void>(x), at<float>(grad_w), of, threads);
      },
      no_gil);
}
