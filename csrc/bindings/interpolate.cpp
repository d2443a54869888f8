// fastgan._C.interpolate_*: called by fastgan/kernels/native/interpolate.py.
#include "cpu/interpolate.h"

#include <pybind11/pybind11.h>

#include "bindings/dlpack.h"

namespace py = pybind11;

using fastgan::dlpack::alike;
using fastgan::dlpack::like;
using fastgan::dlpack::look;
using fastgan::dlpack::refuse_unless;
using fastgan::dlpack::Samples;
using fastgan::dlpack::Tensor;
using fastgan::dlpack::vector;

void bind_interpolate(py::module_& m) {
  // Whether all are as torch.lerp takes them: float32 or float64 alike, contiguous images on the CPU, of at most so
  // many elements, and [N] or [N, 1, ..., 1]. Never raises.
  m.def(
      "interpolate_is_lerp", [](const py::handle& real, const py::handle& fake, const py::handle& alpha, int64_t most) {
        Tensor r, a;
        return alike(real, fake) && look(real, r) && look(alpha, a) && r.bits >= 32 && a.kind == r.kind &&
               a.bits == r.bits && a.device_type == r.device_type && r.dims > 0 && (a.dims == 1 || a.dims == r.dims) &&
               a.shape[0] == r.shape[0] && a.elements() == r.shape[0] && r.elements() <= most;
      });
  m.def("interpolate_forward", [](const py::handle& real, const py::handle& fake, const py::handle& alpha, bool draw,
                                  uint64_t seed, const py::handle& out, int threads) {
    const Samples r(real);
    const void* f = like(fake, r);
    void *const a = vector(alpha, r.samples, r.numbers), *const to = like(out, r);
    refuse_unless(f != nullptr && a != nullptr && to != nullptr);
    const py::gil_scoped_release release;
    FASTGAN_CALL(interpolate_forward, r.code, r.address(), f, a, draw, seed, to, r.samples, r.size, threads);
  });
  m.def("interpolate_backward",
        [](const py::handle& grad, const py::handle& real, const py::handle& fake, const py::handle& alpha,
           const py::handle& grad_real, const py::handle& grad_fake, const py::handle& grad_alpha, int threads) {
          const Samples g(grad);
          const void *const r = like(real, g), *const f = like(fake, g), *const a = vector(alpha, g.samples, g.numbers);
          void *const to_real = like(grad_real, g), *const to_fake = like(grad_fake, g);
          void* const to_alpha = vector(grad_alpha, g.samples, g.numbers);
          refuse_unless(a != nullptr && (to_alpha == nullptr || (r != nullptr && f != nullptr)));
          const py::gil_scoped_release release;
          FASTGAN_CALL(interpolate_backward, g.code, g.address(), r, f, a, to_real, to_fake, to_alpha, g.samples,
                       g.size, threads);
        });
}
