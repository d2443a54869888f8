// fastgan._C.interpolate_*: called by fastgan/kernels/native/interpolate.py.
#include "cpu/interpolate.h"

#include <pybind11/pybind11.h>

namespace py = pybind11;

void bind_interpolate(py::module_& m) {
  m.def(
      "interpolate_forward",
      [](int dtype, uintptr_t real, uintptr_t fake, uintptr_t alpha, bool draw, uint64_t seed, uintptr_t out,
         int64_t samples, int64_t size, int threads) {
        FASTGAN_CALL(interpolate_forward, dtype, reinterpret_cast<const void*>(real),
                     reinterpret_cast<const void*>(fake), reinterpret_cast<void*>(alpha), draw, seed,
                     reinterpret_cast<void*>(out), samples, size, threads);
      },
      py::call_guard<py::gil_scoped_release>());
  m.def(
      "interpolate_backward",
      [](int dtype, uintptr_t grad, uintptr_t real, uintptr_t fake, uintptr_t alpha, uintptr_t grad_real,
         uintptr_t grad_fake, uintptr_t grad_alpha, int64_t samples, int64_t size, int threads) {
        FASTGAN_CALL(interpolate_backward, dtype, reinterpret_cast<const void*>(grad),
                     reinterpret_cast<const void*>(real), reinterpret_cast<const void*>(fake),
                     reinterpret_cast<const void*>(alpha), reinterpret_cast<void*>(grad_real),
                     reinterpret_cast<void*>(grad_fake), reinterpret_cast<void*>(grad_alpha), samples, size, threads);
      },
      py::call_guard<py::gil_scoped_release>());
}
