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
      "winograd_input",
      [](uintptr_t x, uintptr_t v, int64_t plane, int64_t samples, int64_t rows, int64_t columns, int64_t channels,
         int threads) {
        FASTGAN_CALL(winograd_input, in(x), out(v), plane, samples, rows, columns, channels, threads);
      },
      no_gil);
  m.def(
      "winograd_input_adjoint",
      [](uintptr_t v, int64_t plane, uintptr_t x, bool onto, int64_t samples, int64_t rows, int64_t columns,
         int64_t channels, int threads) {
        FASTGAN_CALL(winograd_input_adjoint, in(v), plane, out(x), onto, samples, rows, columns, channels, threads);
      },
      no_gil);
  m.def(
      "winograd_output",
      [](uintptr_t m, int64_t plane, uintptr_t bias, uintptr_t y, int64_t samples, int64_t rows, int64_t columns,
         int64_t channels, int threads) {
        FASTGAN_CALL(winograd_output, in(m), plane, in(bias), out(y), samples, rows, columns, channels, threads);
      },
      no_gil);
  m.def(
      "winograd_output_adjoint",
      [](uintptr_t y, uintptr_t m, int64_t plane, int64_t samples, int64_t rows, int64_t columns, int64_t channels,
         int threads) {
        FASTGAN_CALL(winograd_output_adjoint, in(y), out(m), plane, samples, rows, columns, channels, threads);
      },
      no_gil);
  m.def(
      "winograd_weight",
      [](uintptr_t w, uintptr_t u, int64_t plane, int64_t filters, int64_t channels, int threads) {
        FASTGAN_CALL(winograd_weight, in(w), out(u), plane, filters, channels, threads);
      },
      no_gil);
  m.def(
      "winograd_weight_adjoint",
      [](uintptr_t u, int64_t plane, uintptr_t w, int64_t filters, int64_t channels, int threads) {
        FASTGAN_CALL(winograd_weight_adjoint, in(u), plane, out(w), filters, channels, threads);
      },
      no_gil);
}
