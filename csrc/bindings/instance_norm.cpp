// fastgan._C.instance_norm_{forward,backward,double_backward,over_samples}: called by
// fastgan/kernels/native/instance_norm.py.
//
// Absent tensors are None. A call returns False, and has done nothing, where an input's strides or dtype are none that
// the kernels read.
#include "cpu/instance_norm.h"

#include <pybind11/pybind11.h>

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <tuple>

#include "bindings/dlpack.h"

namespace py = pybind11;

namespace {

using fastgan::DType;
using fastgan::InstanceNorm;
using fastgan::Strided;
using fastgan::dlpack::look;
using fastgan::dlpack::Tensor;
using fastgan::dlpack::view;

// A strided row shorter than this costs more than a dense copy.
constexpr int64_t kShortestRow = 8;

// [N, C, *spatial]: whether the innermost elements lie next to each other.
bool reads(const Tensor& t, bool channels_last) {
  if (channels_last) return t.strides[1] == 1;
  const int last = t.dims - 1;
  int64_t packed = 1;
  for (int i = last; i >= 2; packed *= t.shape[i--]) {
    if (t.shape[i] != 1 && t.strides[i] != packed) return i < last && t.shape[last] >= kShortestRow;
  }
  return true;
}

// Whether arguments of the operator are tensors, on any device, and numbers of Python that fit each other. What else
// may, and what does not, is for fastgan/functional/instance_norm.py to tell.
bool fits(const py::handle& x, const py::handle& weight, const py::handle& bias, const py::handle& residual,
          const py::handle& slope, const py::handle& pad, const py::handle& eps) {
  if (!PyFloat_CheckExact(slope.ptr()) || !PyFloat_CheckExact(eps.ptr()) || !PyLong_CheckExact(pad.ptr())) return false;
  const double epsilon = PyFloat_AS_DOUBLE(eps.ptr());
  if (!std::isfinite(PyFloat_AS_DOUBLE(slope.ptr())) || !std::isfinite(epsilon) || epsilon < 0) return false;
  const long width = PyLong_AsLong(pad.ptr());
  PyErr_Clear();  // of a number that is none of C's
  Tensor t, other;
  if (!look(x, t) || t.dims < 3 || t.dims > 5 || !t.floating() || width < 0) return false;
  int64_t elements = 1;
  for (int i = 2; i < t.dims; elements *= t.shape[i++]) {
    if (width > 0 && t.shape[i] <= width) return false;
  }
  const auto beside = [&](const py::handle& object) {
    return look(object, other) && other.device_type == t.device_type && other.device_id == t.device_id;
  };
  for (const py::handle& parameter : {weight, bias}) {
    if (parameter.is_none()) continue;
    if (!beside(parameter) || !other.floating() || other.dims != 1 || other.shape[0] != t.shape[1]) return false;
  }
  if (!residual.is_none()) {
    if (!beside(residual) || other.kind != t.kind || other.bits != t.bits || other.dims != t.dims) return false;
    if (!std::equal(t.shape, t.shape + t.dims, other.shape)) return false;
  }
  return elements > 1;
}

// The tensors of a call, each checked against x.
class Call {
 public:
  Call(const py::handle& x, bool channels_last, int64_t pad, double slope, int threads) : x_(view(x)) {
    if (x_.dims < 3 || x_.dims > 5) throw std::invalid_argument("x must have 1, 2 or 3 spatial dimensions");
    problem.dtype = x_.dtype();
    problem.channels_last = channels_last;
    problem.threads = threads;
    problem.slope = slope;
    const int64_t* shape = x_.shape + x_.dims;
    problem.N = x_.shape[0], problem.C = x_.shape[1];
    problem.W = shape[-1], problem.pad_w = pad;
    if (x_.dims > 3) problem.H = shape[-2], problem.pad_h = pad;
    if (x_.dims > 4) problem.D = shape[-3], problem.pad_d = pad;
  }

  // [N, C, *spatial] of x's dtype, each spatial dimension `pad` larger on both sides.
  Strided written(const py::handle& tensor, int64_t pad = 0) const { return strided(tensor, pad).first; }
  Strided read(const py::handle& tensor, int64_t pad = 0) {
    const auto [s, t] = strided(tensor, pad);
    if (s.data != nullptr) readable_ = readable_ && reads(t, problem.channels_last);
    return s;
  }

  // [C] or [N, C], dense, of the statistics' dtype.
  void* per_channel(const py::handle& tensor) { return vector(tensor, 1); }
  void* per_plane(const py::handle& tensor) { return vector(tensor, 2); }

  // Mean and rstd, or a bytearray in which one follows the other.
  std::pair<void*, void*> statistics(const py::handle& mean, const py::handle& rstd) {
    if (!PyByteArray_CheckExact(mean.ptr())) return {per_plane(mean), per_plane(rstd)};
    const int64_t bytes = problem.N * problem.C * (problem.dtype == DType::f64 ? 8 : 4);
    if (PyByteArray_GET_SIZE(mean.ptr()) != 2 * bytes) {
      throw std::invalid_argument("packed statistics have not the size that x asks for");
    }
    char* const first = PyByteArray_AS_STRING(mean.ptr());
    return {first, first + bytes};
  }

  template <typename T>
  bool run(const T& tensors) const {
    if (!readable_) return false;
    const py::gil_scoped_release release;
    FASTGAN_CALL(instance_norm, problem, tensors);
    return true;
  }

  InstanceNorm problem;

 private:
  // Missing spatial dimensions have stride 0.
  std::pair<Strided, Tensor> strided(const py::handle& tensor, int64_t pad) const {
    if (tensor.is_none()) return {};
    const Tensor t = view(tensor);
    bool fits = t.dims == x_.dims && t.dtype() == problem.dtype;
    for (int i = 0; fits && i < t.dims; ++i) fits = t.shape[i] == x_.shape[i] + (i < 2 ? 0 : 2 * pad);
    if (!fits) throw std::invalid_argument("a tensor has not the shape and dtype that x asks for");
    const int64_t* strides = t.strides + t.dims;
    Strided s{t.address(), t.strides[0], t.strides[1], 0, 0, t.shape[t.dims - 1] == 1 ? 1 : strides[-1]};
    if (t.dims > 3) s.h = strides[-2];
    if (t.dims > 4) s.d = strides[-3];
    return {s, t};
  }

  void* vector(const py::handle& tensor, int dims) {
    if (tensor.is_none()) return nullptr;
    const Tensor t = view(tensor);
    if (t.dims != dims || t.shape[dims - 1] != problem.C || (dims == 2 && t.shape[0] != problem.N)) {
      throw std::invalid_argument("a tensor has not the channels, or samples and channels, of x");
    }
    readable_ = readable_ && t.contiguous() && t.dtype() == (problem.dtype == DType::f64 ? DType::f64 : DType::f32);
    return t.address();
  }

  const Tensor x_;
  bool readable_ = true;
};

}  // namespace

void bind_instance_norm(py::module_& m) {
  m.def("instance_norm_fits", &fits);
  m.def("instance_norm_reads",
        [](const py::handle& tensor, bool channels_last) { return reads(view(tensor), channels_last); });
  m.def("instance_norm_over_samples", [](const py::handle& mean, double elements, const py::handle& total) {
    const Tensor from = view(mean), to = view(total);
    if (from.dims != 2 || to.dims != 1 || from.shape[1] != to.shape[0] || from.dtype() != to.dtype() ||
        !from.contiguous()) {
      throw std::invalid_argument("dense means [N, C] add up to [C]");
    }
    const py::gil_scoped_release release;
    FASTGAN_CALL(sum_over_samples, from.dtype(), from.shape[0], from.shape[1], from.address(), elements, to.address());
  });
  m.def("instance_norm_forward",
        [](const py::handle& x, const py::handle& weight, const py::handle& bias, const py::handle& residual,
           const py::handle& y, const py::handle& mean, const py::handle& rstd, bool channels_last, int64_t pad,
           double slope, int threads, double eps) {
          Call call(x, channels_last, pad, slope, threads);
          call.problem.weight = call.per_channel(weight), call.problem.bias = call.per_channel(bias);
          fastgan::InstanceNormForward t;
          t.x = call.read(x), t.residual = call.read(residual), t.y = call.written(y, pad);
          t.eps = eps, std::tie(t.mean, t.rstd) = call.statistics(mean, rstd);
          return call.run(t);
        });
  m.def("instance_norm_backward",
        [](const py::handle& grad, const py::handle& x, const py::handle& weight, const py::handle& bias,
           const py::handle& residual, const py::handle& mean, const py::handle& rstd, const py::handle& grad_x,
           const py::handle& grad_z, const py::handle& m1, const py::handle& m2, bool channels_last, int64_t pad,
           double slope, int threads) {
          Call call(x, channels_last, pad, slope, threads);
          call.problem.weight = call.per_channel(weight), call.problem.bias = call.per_channel(bias);
          fastgan::InstanceNormBackward t;
          t.grad = call.read(grad, pad), t.x = call.read(x), t.residual = call.read(residual);
          std::tie(t.mean, t.rstd) = call.statistics(mean, rstd);
          t.grad_x = call.written(grad_x), t.grad_z = call.written(grad_z);
          t.m1 = call.per_plane(m1), t.m2 = call.per_plane(m2);
          return call.run(t);
        });
  m.def("instance_norm_double_backward",
        [](const py::handle& u, const py::handle& v_residual, const py::handle& v_weight, const py::handle& v_bias,
           const py::handle& grad, const py::handle& x, const py::handle& weight, const py::handle& bias,
           const py::handle& residual, const py::handle& mean, const py::handle& rstd, const py::handle& m1,
           const py::handle& m2, const py::handle& grad_grad, const py::handle& grad_x, const py::handle& grad_weight,
           bool channels_last, int64_t pad, double slope, int threads) {
          Call call(x, channels_last, pad, slope, threads);
          call.problem.weight = call.per_channel(weight), call.problem.bias = call.per_channel(bias);
          fastgan::InstanceNormDoubleBackward t;
          t.u = call.read(u), t.v_residual = call.read(v_residual);
          t.v_weight = call.per_channel(v_weight), t.v_bias = call.per_channel(v_bias);
          t.grad = call.read(grad, pad), t.x = call.read(x), t.residual = call.read(residual);
          t.mean = call.per_plane(mean), t.rstd = call.per_plane(rstd);
          t.m1 = call.per_plane(m1), t.m2 = call.per_plane(m2);
          t.grad_grad = call.written(grad_grad, pad), t.grad_x = call.written(grad_x);
          t.grad_weight = call.per_plane(grad_weight);
          return call.run(t);
        });
}
