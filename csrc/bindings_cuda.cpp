// fastgan._cuda: the CUDA kernels, as functions of addresses, sizes and a stream. Loaded only where there is a device.
#include <cuda_runtime_api.h>
#include <pybind11/pybind11.h>

#include <cstdint>

#include "bindings/wasserstein_problem.h"
#include "cuda/check.h"
#include "cuda/wasserstein.h"

namespace py = pybind11;

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
        [](int device, const py::tuple& x, const py::tuple& y, int64_t rows, int dtype, double p, uintptr_t grad) {
          const OnDevice guard(device);
          return fastgan::cuda::wasserstein_workspace(fastgan::problem_of(x, y, rows, dtype, p, 0, 0, grad));
        });
  m.def("wasserstein", [](int device, uintptr_t stream, const py::tuple& x, const py::tuple& y, int64_t rows, int dtype,
                          double p, uintptr_t cost, uintptr_t scale, uintptr_t grad, uintptr_t workspace) {
    const fastgan::WassersteinProblem problem = fastgan::problem_of(x, y, rows, dtype, p, cost, scale, grad);
    const py::gil_scoped_release release;
    const OnDevice guard(device);
    fastgan::cuda::wasserstein(problem, reinterpret_cast<void*>(workspace), reinterpret_cast<cudaStream_t>(stream));
  });
}
