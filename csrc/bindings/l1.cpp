// fastgan._C.l1_*: called by fastgan/kernels/native/l1.py.
//
// Lists have an item for each pair, or, of tensors, two: those of a and b.
#include "cpu/l1.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <vector>

#include "bindings/dlpack.h"

namespace py = pybind11;

using fastgan::DType;
using fastgan::L1Pair;
using fastgan::dlpack::like;
using fastgan::dlpack::refuse_unless;
using fastgan::dlpack::Scalar;
using fastgan::dlpack::Tensor;
using fastgan::dlpack::view;
using Sizes = std::vector<int64_t>;
using Numbers = std::vector<double>;

namespace {

// The pairs of a call. Those have signs whose sign_bytes are not 0: bytes of `signs`, one pair after the other.
class Call {
 public:
  Call(const Numbers& weights, const Sizes& sign_bytes, const py::handle& signs, const py::list& tensors)
      : weights_(weights), sign_bytes_(sign_bytes), signs_(view(signs)) {
    constexpr uint8_t kUnsigned = 1;
    refuse_unless(signs_.kind == kUnsigned && signs_.bits == 8 && signs_.contiguous());
    refuse_unless(weights.size() == sign_bytes.size() && 2 * weights.size() == tensors.size());
  }

  // Pair k, of n elements.
  L1Pair pair(size_t k, int64_t n) {
    L1Pair pair{};
    pair.n = n, pair.scale = weights_[k] / static_cast<double>(n);
    if (sign_bytes_[k] > 0) {
      refuse_unless(sign_bytes_[k] == fastgan::l1_chunks(pair) * fastgan::kL1SignBytes);
      pair.signs = static_cast<uint8_t*>(signs_.address()) + used_;
      used_ += sign_bytes_[k];
      refuse_unless(used_ <= signs_.elements());
    }
    return pair;
  }

  void add(const L1Pair& pair) {
    pairs_.push_back(pair);
    chunks_ += static_cast<size_t>(fastgan::l1_chunks(pair));
  }

  double forward(int threads) {
    Numbers partials(chunks_);
    return FASTGAN_CALL(l1_forward, pairs_.data(), count(), partials.data(), threads);
  }
  void backward(double grad, int threads) { FASTGAN_CALL(l1_backward, grad, pairs_.data(), count(), threads); }
  double directional(int threads) {
    Numbers partials(chunks_);
    return FASTGAN_CALL(l1_directional, pairs_.data(), count(), partials.data(), threads);
  }

 private:
  int64_t count() const { return static_cast<int64_t>(pairs_.size()); }

  const Numbers& weights_;
  const Sizes& sign_bytes_;
  const Tensor signs_;
  int64_t used_ = 0;
  size_t chunks_ = 0;
  std::vector<L1Pair> pairs_;
};

// The address of a tensor of n elements, or null, and its dtype.
void* whole(const py::handle& object, int64_t n, int& dtype) {
  if (object.is_none()) return nullptr;
  const Tensor t = view(object);
  refuse_unless(t.elements() == n && t.gapless());
  dtype = static_cast<int>(t.dtype());
  return t.address();
}

}  // namespace

void bind_l1(py::module_& m) {
  m.def("l1_forward", [](const py::handle& value, const py::list& tensors, const Numbers& weights,
                         const Sizes& sign_bytes, const py::handle& signs, const py::list& grads, int threads) {
    const Scalar result(value);
    Call call(weights, sign_bytes, signs, tensors);
    refuse_unless(grads.size() == tensors.size());
    for (size_t k = 0; k < weights.size(); ++k) {
      const Tensor a = view(tensors[2 * k]), b = view(tensors[2 * k + 1]);
      const DType of_a = a.dtype(), of_b = b.dtype();
      const bool widened = (of_a == DType::f32 && of_b != DType::f64) || (of_b == DType::f32 && of_a != DType::f64);
      refuse_unless(a.lies_like(b) && a.gapless() && a.elements() > 0 && (of_a == of_b || widened));
      L1Pair pair = call.pair(k, a.elements());
      pair.a = a.address(), pair.dtype_a = static_cast<int>(of_a), pair.grad_a = like(grads[2 * k], a);
      pair.b = b.address(), pair.dtype_b = static_cast<int>(of_b), pair.grad_b = like(grads[2 * k + 1], b);
      refuse_unless(pair.signs != nullptr || (pair.grad_a == nullptr && pair.grad_b == nullptr));
      call.add(pair);
    }
    const py::gil_scoped_release release;
    result = call.forward(threads);
  });
  m.def("l1_backward", [](double grad, const py::handle& signs, const Sizes& numels, const Numbers& weights,
                          const Sizes& sign_bytes, const py::list& grads, int threads) {
    Call call(weights, sign_bytes, signs, grads);
    refuse_unless(numels.size() == weights.size());
    for (size_t k = 0; k < weights.size(); ++k) {
      L1Pair pair = call.pair(k, numels[k]);
      pair.grad_a = whole(grads[2 * k], pair.n, pair.dtype_a),
      pair.grad_b = whole(grads[2 * k + 1], pair.n, pair.dtype_b);
      if (pair.grad_a == nullptr && pair.grad_b == nullptr) continue;
      refuse_unless(pair.signs != nullptr);
      call.add(pair);
    }
    const py::gil_scoped_release release;
    call.backward(grad, threads);
  });
  m.def("l1_directional", [](const py::handle& value, const py::list& directions, const py::handle& signs,
                             const Sizes& numels, const Numbers& weights, const Sizes& sign_bytes, int threads) {
    const Scalar result(value);
    Call call(weights, sign_bytes, signs, directions);
    refuse_unless(numels.size() == weights.size());
    for (size_t k = 0; k < weights.size(); ++k) {
      L1Pair pair = call.pair(k, numels[k]);
      pair.a = whole(directions[2 * k], pair.n, pair.dtype_a),
      pair.b = whole(directions[2 * k + 1], pair.n, pair.dtype_b);
      if (pair.signs != nullptr) call.add(pair);
    }
    const py::gil_scoped_release release;
    result = call.directional(threads);
  });
}
