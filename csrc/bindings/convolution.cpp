// fastgan._C.convolution_weight_gradient: called by fastgan/kernels/native/convolution.py.
#include <pybind11/pybind11.h>

#include "cpu/weight_gradient.h"

namespace py = pybind11;

void bind_convolution(py::module_& m) {
  m.def(
      "convolution_weight_gradient",
      [](uintptr_t grad, uintptr_t x, uintptr_t grad_w, int64_t samples, int64_t rows, int64_t columns, int64_t filters,
         int64_t x_rows, int64_t x_columns, int64_t channels, int64_t window_rows, int64_t window_columns,
         int64_t stride_rows, int64_t stride_columns, int64_t pad_rows, int64_t pad_columns, int threads) {
        const fastgan::ConvolutionSizes of{samples,        rows,     columns,     filters,        x_rows,
                                           x_columns,      channels, window_rows, window_columns, stride_rows,
                                           stride_columns, pad_rows, pad_columns};
        FASTGAN_CALL(convolution_backward_w, reinterpret_cast<const float*>(grad), reinterpret_cast<const float*>(x),
                     reinterpret_cast<float*>(grad_w), of, threads);
      },
      py::call_guard<py::gil_scoped_release>());
}
