// fastgan._C.wasserstein, wasserstein_costs, wasserstein_means and wasserstein_scale_signs: called by
// fastgan/kernels/native/wasserstein.py.
#include "cpu/wasserstein.h"

#include <pybind11/pybind11.h>

#include <cmath>
#include <vector>

#include "bindings/wasserstein_problem.h"

namespace py = pybind11;

namespace {

void wasserstein(const py::tuple& x, const py::tuple& y, int64_t rows, int dtype, double p, uintptr_t cost,
                 uintptr_t scale, uintptr_t grad, int threads) {
  const fastgan::WassersteinProblem problem = fastgan::problem_of(x, y, rows, dtype, p, cost, scale, grad);
  const py::gil_scoped_release release;
  FASTGAN_CALL(wasserstein, problem, threads);
}

// Costs alone, without weights.
fastgan::WassersteinProblem costs_problem(uintptr_t x, int64_t x_stride, int64_t n, uintptr_t y, int64_t y_stride,
                                          int64_t m, int64_t rows, int dtype, double p) {
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
  return problem;
}

// They take fewer arguments than a side of the others has.
void wasserstein_costs(uintptr_t x, int64_t x_stride, int64_t n, uintptr_t y, int64_t y_stride, int64_t m, int64_t rows,
                       int dtype, double p, uintptr_t cost, uintptr_t scale, int threads) {
  fastgan::WassersteinProblem problem = costs_problem(x, x_stride, n, y, y_stride, m, rows, dtype, p);
  problem.cost = reinterpret_cast<double*>(cost);
  problem.scale = reinterpret_cast<double*>(scale);
  const py::gil_scoped_release release;
  FASTGAN_CALL(wasserstein, problem, threads);
}

// The p-th root of the mean of W_p^p over each `together` rows, float or double as the samples are; p is 1 or 2.
void wasserstein_means(uintptr_t x, int64_t x_stride, int64_t n, uintptr_t y, int64_t y_stride, int64_t m, int64_t rows,
                       int64_t together, int dtype, double p, uintptr_t values, int threads) {
  const py::gil_scoped_release release;
  std::vector<double> costs(static_cast<size_t>(2 * rows));
  fastgan::WassersteinProblem problem = costs_problem(x, x_stride, n, y, y_stride, m, rows, dtype, p);
  problem.cost = costs.data();
  problem.scale = costs.data() + rows;
  FASTGAN_CALL(wasserstein, problem, threads);
  for (int64_t group = 0; group < rows / together; ++group) {
    double sum = 0;
    for (int64_t row = group * together; row < (group + 1) * together; ++row) sum += costs[static_cast<size_t>(row)];
    const double mean = sum / static_cast<double>(together), value = p == 1 ? mean : std::sqrt(mean);
    if (problem.dtype == fastgan::DType::f64) {
      reinterpret_cast<double*>(values)[group] = value;
    } else {
      reinterpret_cast<float*>(values)[group] = static_cast<float>(value);
    }
  }
}

void scale_signs(uintptr_t x_signs, uintptr_t y_signs, uintptr_t factors, int64_t stride, int factors_dtype,
                 uintptr_t scale, int64_t rows, int64_t n, int dtype, uintptr_t x_grad, uintptr_t y_grad, int threads) {
  const auto signs = [](uintptr_t at) { return reinterpret_cast<const uint32_t*>(at); };
  const auto grad = [](uintptr_t at) { return reinterpret_cast<void*>(at); };
  const fastgan::SignGradients problem = {{signs(x_signs), signs(y_signs)},
                                          {grad(x_grad), grad(y_grad)},
                                          static_cast<fastgan::DType>(dtype),
                                          rows,
                                          n,
                                          reinterpret_cast<const void*>(factors),
                                          static_cast<fastgan::DType>(factors_dtype),
                                          stride,
                                          reinterpret_cast<const double*>(scale)};
  const py::gil_scoped_release release;
  FASTGAN_CALL(scale_signs, problem, threads);
}

}  // namespace

void bind_wasserstein(py::module_& m) {
  m.def("wasserstein", &wasserstein);
  m.def("wasserstein_costs", &wasserstein_costs);
  m.def("wasserstein_means", &wasserstein_means);
  m.def("wasserstein_scale_signs", &scale_signs);
}
