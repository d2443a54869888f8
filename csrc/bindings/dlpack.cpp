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
PyTypeObject *tensor_type = nullptr, *parameter_type = nullptr;

bool is_tensor(PyTypeObject* type) { return type == tensor_type || type == parameter_type; }

bool is_true(PyObject* value) {
  const auto owned = pybind11::reinterpret_steal<pybind11::object>(value);
  if (!owned) throw pybind11::error_already_set();
  return value == Py_True;
}

bool on_cpu(const Tensor& tensor) {
  constexpr int kCpu = 1, kPinned = 3;
  return tensor.device_type == kCpu || tensor.device_type == kPinned;
}

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
  const int64_t all = elements();
  int64_t packed = 1;
  while (packed != all) {
    int next = dims - 1;  // the dimension that lies about those found so far
    while (next >= 0 && (shape[next] == 1 || strides[next] != packed)) --next;
    if (next < 0) return false;
    packed *= shape[next];
  }
  return true;
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
  if (table->view(object.ptr(), &tensor) != 0) throw pybind11::error_already_set();
  if (!on_cpu(tensor)) throw std::invalid_argument("a C++ kernel for the CPU got a tensor on another device");
  return tensor;
}

bool alike(const pybind11::handle& a, const pybind11::handle& b) {
  Tensor s, t;
  return look(a, s) && look(b, t) && on_cpu(s) && on_cpu(t) && s.data != nullptr && t.data != nullptr && s.floating() &&
         of_one_dtype(s, t) && s.elements() > 0 && s.contiguous() && s.lies_like(t);
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

void use_types(const pybind11::type& tensor, const pybind11::type& parameter) {
  tensor_type = reinterpret_cast<PyTypeObject*>(tensor.inc_ref().ptr());
  parameter_type = reinterpret_cast<PyTypeObject*>(parameter.inc_ref().ptr());
}

bool look(const pybind11::handle& object, Tensor& tensor) {
  if (table == nullptr || !is_tensor(Py_TYPE(object.ptr()))) return false;
  if (table->view(object.ptr(), &tensor) == 0) return true;
  PyErr_Clear();
  return false;
}

Held held(const pybind11::handle& arguments) {
  static PyObject* const is_neg = PyUnicode_InternFromString("is_neg");
  static PyObject* const requires_grad = PyUnicode_InternFromString("requires_grad");
  if (!PyTuple_Check(arguments.ptr()) && !PyList_Check(arguments.ptr())) return Held::unknown;
  Held found = Held::plain;
  PyObject** const items = PySequence_Fast_ITEMS(arguments.ptr());
  for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(arguments.ptr()); ++i) {
    PyTypeObject* const type = Py_TYPE(items[i]);
    if (is_tensor(type)) {
      Tensor tensor;
      // A view can be the negative of its memory, as the imaginary part of a conjugate is.
      if (!look(items[i], tensor) || is_true(PyObject_CallMethodNoArgs(items[i], is_neg))) return Held::unknown;
      if (is_true(PyObject_GetAttr(items[i], requires_grad))) found = Held::recorded;
    } else if (type == &PyList_Type) {
      const Held within = held(items[i]);
      if (within == Held::unknown) return within;
      if (within == Held::recorded) found = within;
    } else if (tensor_type == nullptr || PyType_IsSubtype(type, tensor_type)) {
      return Held::unknown;
    }
  }
  return found;
}

}  // namespace fastgan::dlpack
