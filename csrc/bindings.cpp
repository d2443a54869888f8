// fastgan._C: the C++ kernels, as functions of tensors (dlpack.h), which check what they are given, or of addresses and
// sizes, whose callers (fastgan/kernels/native) have. Every entry releases the GIL. NumPy users come through
// fastgan.numpy.
#include <pybind11/pybind11.h>

#include "bindings/dlpack.h"
#include "cpu/isa.h"

namespace py = pybind11;

void bind_convolution(py::module_& m);
void bind_gradient_penalty(py::module_& m);
void bind_instance_norm(py::module_& m);
void bind_interpolate(py::module_& m);
void bind_l1(py::module_& m);
void bind_wasserstein(py::module_& m);
void bind_winograd(py::module_& m);

PYBIND11_MODULE(_C, m) {
  m.doc() = "fastgan's C++ kernels";
  m.def("build_info", [] {
    py::dict info;
    info["compiler"] = FASTGAN_BUILD_COMPILER;
    info["isas"] = FASTGAN_BUILD_ISAS;
    info["cuda"] = FASTGAN_BUILD_CUDA;
    info["cuda_built"] = FASTGAN_BUILD_CUDA_BUILT != 0;
#ifdef _OPENMP
    info["openmp"] = true;
#else
    info["openmp"] = false;
#endif
    return info;
  });
  m.def("use_dlpack", &fastgan::dlpack::use);
  m.def("alike", &fastgan::dlpack::alike);
  m.def("use_types", &fastgan::dlpack::use_types);
  m.def("held", [](const py::handle& arguments) { return static_cast<int>(fastgan::dlpack::held(arguments)); });
  m.def("cpu_isa", [] { return fastgan::isa_name(fastgan::cpu_isa()); });
  bind_convolution(m);
  bind_gradient_penalty(m);
  bind_instance_norm(m);
  bind_interpolate(m);
  bind_l1(m);
  bind_wasserstein(m);
  bind_winograd(m);
}
