// fastgan._cuda: the CUDA kernels, as functions of addresses, sizes and a stream. Loaded only where there is a device.
#include <cuda_runtime_api.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cmath>
#include <cstdint>

#include "cuda/check.h"
#include "cuda/wasserstein.h"

namespace py = pybind11;
using fastgan::cuda::WassersteinProblem;
using fastgan::cuda::WassersteinSide;

namespace {

// Makes a device current for a scope.
class OnDevice {
 public:
  explicit OnDevice(int device) {
    FASTGAN_CUDA_CHECK(cudaGetDevice(&previous_));
    if (device != previous_) FASTGAN_CUDA_CHECK(cudaSetDevice(device));
    changed_ = device != previous_;
  }
  ~OnDevice() {
    if (changed_) cudaSetDevice(previous_);
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int previous_ = 0;
  bool changed_ = false;
};

// (values, weights, weights' row stride, n, grad, grad_weights, cotangent); addresses, 0 for none.
using Side = std::array<int64_t, 7>;

template <typename T>
T* pointer(int64_t address) {
  return reinterpret_cast<T*>(static_cast<uintptr_t>(address));
}

WassersteinSide side_of(const py::tuple& tuple) {
  const Side s = tuple.cast<Side>();
  return {pointer<const void>(s[0]), pointer<const double>(s[1]), s[2], s[3], pointer<void>(s[4]),
          pointer<double>(s[5]),     pointer<const void>(s[6])};
}

WassersteinProblem problem_of(const py::tuple& x, const py::tuple& y, int64_t rows, int dtype, double p, int64_t cost,
                              int64_t scale, int64_t grad) {
  return {side_of(x),
          side_of(y),
          rows,
          static_cast<fastgan::DType>(dtype),
          p,
          pointer<double>(cost),
          pointer<double>(scale),
          pointer<const double>(grad)};
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "fastgan's CUDA kernels";
  m.def("runtime_version", [] {
    int version = 0;
    FASTGAN_CUDA_CHECK(cudaRuntimeGetVersion(&version));
    return version;
  });
  // Why this build cannot run on a device; empty if it can.
  m.def("why_not", [](int device) {
    const OnDevice guard(device);
    return fastgan::cuda::why_no_kernels();
  });
  m.def("wasserstein_workspace",
        [](int device, const py::tuple& x, const py::tuple& y, int64_t rows, int dtype, double p, int64_t grad) {
          const OnDevice guard(device);
          return fastgan::cuda::wasserstein_workspace(problem_of(x, y, rows, dtype, p, 0, 0, grad));
        });
  m.def("wasserstein", [](int device, int64_t stream, const py::tuple& x, const py::tuple& y, int64_t rows, int dtype,
                          double p, int64_t cost, int64_t scale, int64_t grad, int64_t workspace) {
    const WassersteinProblem problem = problem_of(x, y, rows, dtype, p, cost, scale, grad);
    const py::gil_scoped_release release;
    const OnDevice guard(device);
    fastgan::cuda::wasserstein(problem, pointer<void>(workspace), pointer<CUstream_st>(stream));
  });
}
