#include "bindings/dlpack.h"

#include <stdexcept>

namespace fastgan::dlpack {
namespace {

struct Table {
  struct {
    uint32_t major, minor;
  } version;
  void *previous, *allocate, *own, *wrap;
  int (*view)(void* object, Tensor* tensor);  // nonzero with a Python exception set
  void* stream;
};

const Table* table = nullptr;

bool on_cpu(const Tensor& tensor) {
  constexpr int kCpu = 1, kPinned = 3;
  return tensor.device_type == kCpu || tensor.device_type == kPinned;
}

// Fails, with a Python exception set, for an object that is no tensor or has no memory.
bool read(const pybind11::handle& object, Tensor* tensor) { return table->view(object.ptr(), tensor) == 0; }

bool of_one_dtype(const Tensor& a, const Tensor& b) { return a.kind == b.kind && a.bits == b.bits; }

}  // namespace

bool Tensor::floating() const {
  constexpr uint8_t kFloat = 2, kBfloat = 4;
  return kind == kFloat ? bits == 16 || bits == 32 || bits == 64 : kind == kBfloat && bits == 16;
}

DType Tensor::dtype() const {
  constexpr uint8_t kFloat = 2;
  if (!floating()) {
    throw std::invalid_argument("a C++ kernel got a tensor that is none of float32, float64, float16 and bfloat16");
  }
  if (kind != kFloat) return DType::bf16;
  return bits == 16 ? DType::f16 : bits == 32 ? DType::f32 : DType::f64;
}

int64_t Tensor::elements() const {
  int64_t count = 1;
  for (int i = 0; i < dims; ++i) count *= shape[i];
  return count;
}

bool Tensor::contiguous() const {
  int64_t packed = 1;
  for (int i = dims; i-- > 0; packed *= shape[i]) {
    if (shape[i] != 1 && strides[i] != packed) return false;
  }
  return true;
}

bool Tensor::gapless() const {
  int64_t last = 0;
  for (int i = 0; i < dims; ++i) last += (shape[i] - 1) * strides[i];
  return last == elements() - 1;
}

bool Tensor::lies_like(const Tensor& other) const {
  bool same = dims == other.dims;
  for (int i = 0; same && i < dims; ++i) {
    same = shape[i] == other.shape[i] && (shape[i] == 1 || strides[i] == other.strides[i]);
  }
  return same;
}

void use(const pybind11::capsule& capsule) {
  const auto* offered = static_cast<const Table*>(capsule.get_pointer());
  if (offered->version.major != 1) throw std::runtime_error("DLPack's exchange table is not of version 1");
  table = offered;
}

Tensor view(const pybind11::handle& object) {
  Tensor tensor;
  if (table == nullptr) throw std::runtime_error("no DLPack exchange table was handed over");
  if (!read(object, &tensor)) throw pybind11::error_already_set();
  if (!on_cpu(tensor)) throw std::invalid_argument("a C++ kernel for the CPU got a tensor on another device");
  return tensor;
}

bool alike(const pybind11::handle& a, const pybind11::handle& b) {
  Tensor s, t;
  if (table == nullptr) return false;
  if (!read(a, &s) || !read(b, &t)) {
    PyErr_Clear();
    return false;
  }
  return on_cpu(s) && on_cpu(t) && s.data != nullptr && t.data != nullptr && s.floating() && of_one_dtype(s, t) &&
         s.elements() > 0 && s.contiguous() && s.lies_like(t);
}

void refuse_unless(bool fits) {
  if (!fits) throw std::invalid_argument("a tensor has not the shape, dtype or strides that the others ask for");
}

void* like(const pybind11::handle& object, const Tensor& other) {
  if (object.is_none()) return nullptr;
  const Tensor t = view(object);
  refuse_unless(t.lies_like(other) && of_one_dtype(t, other));
  return t.address();
}

void* vector(const pybind11::handle& object, int64_t n, DType dtype) {
  if (object.is_none()) return nullptr;
  const Tensor t = view(object);
  refuse_unless(t.dims == 1 && t.shape[0] == n && t.contiguous() && t.dtype() == dtype);
  return t.address();
}

Scalar::Scalar(const pybind11::handle& object) {
  const Tensor t = view(object);
  const DType dtype = t.dtype();
  refuse_unless(t.dims == 0 && (dtype == DType::f64 || dtype == DType::f32));
  (dtype == DType::f64 ? wide_ : narrow_) = t.address();
}

void Scalar::operator=(double value) const {
  if (wide_ != nullptr) *static_cast<double*>(wide_) = value;
  if (narrow_ != nullptr) *static_cast<float*>(narrow_) = static_cast<float>(value);
}

Samples::Samples(const pybind11::handle& object)
    : Tensor(view(object)), numbers(dtype()), code(static_cast<int>(numbers)) {
  if (numbers != DType::f64) numbers = DType::f32;
  refuse_unless(dims > 0 && elements() > 0 && gapless());
  samples = shape[0], size = elements() / samples;
  refuse_unless(samples == 1 || strides[0] == size);
}

}  // namespace fastgan::dlpack
