// fastgan._C.instance_norm_{forward,backward,double_backward}: called by fastgan/kernels/native/instance_norm.py.
#include "cpu/instance_norm.h"

#include <pybind11/pybind11.h>

#include <stdexcept>

namespace py = pybind11;

namespace {

using fastgan::DType;
using fastgan::InstanceNorm;
using fastgan::Strided;

int64_t integer(const py::tuple& t, size_t i) {
  return PyLong_AsLongLong(PyTuple_GET_ITEM(t.ptr(), static_cast<Py_ssize_t>(i)));
}

// None, or (address, strides [N, C, *spatial]); missing spatial dimensions come first and have stride 0.
Strided strided(const py::object& tensor) {
  Strided s;
  if (tensor.is_none()) return s;
  const py::tuple pair = tensor.cast<py::tuple>(), strides = pair[1].cast<py::tuple>();
  const size_t dims = strides.size();
  s.data = reinterpret_cast<void*>(integer(pair, 0));
  s.n = integer(strides, 0);
  s.c = integer(strides, 1);
  s.w = integer(strides, dims - 1);
  if (dims > 3) s.h = integer(strides, dims - 2);
  if (dims > 4) s.d = integer(strides, dims - 3);
  return s;
}

void* pointer(uintptr_t address) { return reinterpret_cast<void*>(address); }

// problem: (dtype, channels_last, threads, shape of x, reflect_pad, slope, address of weight, of bias)
InstanceNorm unpack(const py::tuple& problem) {
  const py::tuple shape = problem[3].cast<py::tuple>();
  const size_t dims = shape.size();
  if (dims < 3 || dims > 5) throw std::invalid_argument("x must have 1, 2 or 3 spatial dimensions");
  const int64_t pad = integer(problem, 4);
  InstanceNorm p;
  p.dtype = static_cast<DType>(integer(problem, 0));
  p.channels_last = integer(problem, 1) != 0;
  p.threads = static_cast<int>(integer(problem, 2));
  p.N = integer(shape, 0);
  p.C = integer(shape, 1);
  p.W = integer(shape, dims - 1);
  p.pad_w = pad;
  if (dims > 3) p.H = integer(shape, dims - 2), p.pad_h = pad;
  if (dims > 4) p.D = integer(shape, dims - 3), p.pad_d = pad;
  p.slope = problem[5].cast<double>();
  p.weight = pointer(static_cast<uintptr_t>(integer(problem, 6)));
  p.bias = pointer(static_cast<uintptr_t>(integer(problem, 7)));
  return p;
}

template <typename T>
void run(const InstanceNorm& problem, const T& tensors) {
  if (PyErr_Occurred() != nullptr) throw py::error_already_set();
  const py::gil_scoped_release release;
  FASTGAN_CALL(instance_norm, problem, tensors);
}

}  // namespace

void bind_instance_norm(py::module_& m) {
  m.def("instance_norm_forward", [](const py::tuple& problem, const py::object& x, const py::object& residual,
                                    const py::object& y, double eps, uintptr_t mean, uintptr_t rstd) {
    fastgan::InstanceNormForward t;
    t.x = strided(x), t.residual = strided(residual), t.y = strided(y);
    t.eps = eps, t.mean = pointer(mean), t.rstd = pointer(rstd);
    run(unpack(problem), t);
  });
  m.def("instance_norm_backward", [](const py::tuple& problem, const py::object& grad, const py::object& x,
                                     const py::object& residual, uintptr_t mean, uintptr_t rstd,
                                     const py::object& grad_x, const py::object& grad_z, uintptr_t m1, uintptr_t m2) {
    fastgan::InstanceNormBackward t;
    t.grad = strided(grad), t.x = strided(x), t.residual = strided(residual);
    t.mean = pointer(mean), t.rstd = pointer(rstd);
    t.grad_x = strided(grad_x), t.grad_z = strided(grad_z);
    t.m1 = pointer(m1), t.m2 = pointer(m2);
    run(unpack(problem), t);
  });
  m.def("instance_norm_double_backward",
        [](const py::tuple& problem, const py::object& u, const py::object& v_residual, uintptr_t v_weight,
           uintptr_t v_bias, const py::object& grad, const py::object& x, const py::object& residual, uintptr_t mean,
           uintptr_t rstd, uintptr_t m1, uintptr_t m2, const py::object& grad_grad, const py::object& grad_x,
           uintptr_t grad_weight) {
          fastgan::InstanceNormDoubleBackward t;
          t.u = strided(u), t.v_residual = strided(v_residual);
          t.v_weight = pointer(v_weight), t.v_bias = pointer(v_bias);
          t.grad = strided(grad), t.x = strided(x), t.residual = strided(residual);
          t.mean = pointer(mean), t.rstd = pointer(rstd), t.m1 = pointer(m1), t.m2 = pointer(m2);
          t.grad_grad = strided(grad_grad), t.grad_x = strided(grad_x), t.grad_weight = pointer(grad_weight);
          run(unpack(problem), t);
        });
}
