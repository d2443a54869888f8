// fastgan._C.gradient_penalty_*: called by fastgan/kernels/native/gradient_penalty.py.
#include "cpu/gradient_penalty.h"

#include <pybind11/pybind11.h>

#include "bindings/dlpack.h"

namespace py = pybind11;

using fastgan::dlpack::like;
using fastgan::dlpack::Samples;
using fastgan::dlpack::Scalar;
using fastgan::dlpack::vector;

void bind_gradient_penalty(py::module_& m) {
  m.def("gradient_penalty_forward",
        [](const py::handle& grads, const py::handle& penalty, const py::handle& norms, double weight,
           const py::handle& out, double target, bool one_sided, int threads) {
          const Samples g(grads);
          const Scalar result(penalty);
          void *const n = vector(norms, g.samples, g.numbers), *const to = like(out, g);
          // Rounded where PyTorch's product with the penalty is, so that one computed apart gives the same to the bit.
          const auto rounded = [&](double value) {
            return g.numbers == fastgan::DType::f64 ? value : static_cast<double>(static_cast<float>(value));
          };
          weight = rounded(weight);
          const py::gil_scoped_release release;
          result = weight * rounded(FASTGAN_CALL(gradient_penalty_forward, g.code, g.address(), n, weight, to, target,
                                                 one_sided, g.samples, g.size, threads));
        });
  m.def("gradient_penalty_backward", [](double grad, const py::handle& grads, const py::handle& norms,
                                        const py::handle& out, double target, bool one_sided, int threads) {
    const Samples g(grads);
    void *const n = vector(norms, g.samples, g.numbers), *const to = like(out, g);
    const py::gil_scoped_release release;
    FASTGAN_CALL(gradient_penalty_backward, g.code, grad, g.address(), n, to, target, one_sided, g.samples, g.size,
                 threads);
  });
  m.def("gradient_penalty_double_backward",
        [](const py::handle& u, double grad, const py::handle& grads, const py::handle& norms,
           const py::handle& grad_grad, const py::handle& out, double target, bool one_sided, int threads) {
          const Samples g(grads);
          const Scalar result(grad_grad);
          void *const v = like(u, g), *const n = vector(norms, g.samples, g.numbers), *const to = like(out, g);
          const py::gil_scoped_release release;
          result = FASTGAN_CALL(gradient_penalty_double_backward, g.code, grad, v, g.address(), n, to, target,
                                one_sided, g.samples, g.size, threads);
        });
}
