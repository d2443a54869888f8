// fastgan._C.wasserstein, wasserstein_costs and wasserstein_scale_signs: called by
// fastgan/kernels/native/wasserstein.py.
#include "cpu/wasserstein.h"

#include <pybind11/pybind11.h>

#include "bindings/wasserstein_problem.h"

namespace py = pybind11;

namespace {

void wasserstein(const py::tuple& x, const py::tuple& y, int64_t rows, int dtype, double p, uintptr_t cost,
                 uintptr_t scale, uintptr_t grad, int threads) {
  const fastgan::WassersteinProblem problem = fastgan::problem_of(x, y, rows, dtype, p, cost, scale, grad);
  const py::gil_scoped_release release;
  FASTGAN_CALL(wasserstein, problem, threads);
}

// Costs alone, without weights: fewer arguments than a side of the other has.
void wasserstein_costs(uintptr_t x, int64_t x_stride, int64_t n, uintptr_t y, int64_t y_stride, int64_t m, int64_t rows,
                       int dtype, double p, uintptr_t cost, uintptr_t scale, int threads) {
  fastgan::WassersteinProblem problem = {};
  problem.x.values = reinterpret_cast<const void*>(x);
  problem.x.values_stride = x_stride;
  problem.x.n = n;
  problem.y.values = reinterpret_cast<const void*>(y);
  problem.y.values_stride = y_stride;
  problem.y.n = m;
  problem.rows = rows;
  problem.dtype = static_cast<fastgan::DType>(dtype);
  problem.p = p;
  problem.cost = reinterpret_cast<double*>(cost);
  problem.scale = reinterpret_cast<double*>(scale);
  const py::gil_scoped_release release;
  FASTGAN_CALL(wasserstein, problem, threads);
}

void scale_signs(uintptr_t signs, uintptr_t factors, int64_t rows, int64_t n, int dtype, uintptr_t grad, int threads) {
  const py::gil_scoped_release release;
  FASTGAN_CALL(scale_signs, reinterpret_cast<const uint32_t*>(signs), reinterpret_cast<const double*>(factors), rows, n,
               static_cast<fastgan::DType>(dtype), reinterpret_cast<void*>(grad), threads);
}

}  // namespace

void bind_wasserstein(py::module_& m) {
  m.def("wasserstein", &wasserstein);
  m.def("wasserstein_costs", &wasserstein_costs);
  m.def("wasserstein_scale_signs", &scale_signs);
}
