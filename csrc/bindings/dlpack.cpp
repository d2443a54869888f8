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

}  // namespace

DType Tensor::dtype() const {
  constexpr uint8_t kFloat = 2, kBfloat = 4;
  if (kind == kBfloat && bits == 16) return DType::bf16;
  if (kind == kFloat && bits == 16) return DType::f16;
  if (kind == kFloat && bits == 32) return DType::f32;
  if (kind == kFloat && bits == 64) return DType::f64;
  throw std::invalid_argument("a C++ kernel got a tensor that is none of float32, float64, float16 and bfloat16");
}

void use(const pybind11::capsule& capsule) {
  const auto* offered = static_cast<const Table*>(capsule.get_pointer());
  if (offered->version.major != 1) throw std::runtime_error("DLPack's exchange table is not of version 1");
  table = offered;
}

Tensor view(const pybind11::handle& object) {
  constexpr int kCpu = 1, kPinned = 3;
  Tensor tensor;
  if (table == nullptr) throw std::runtime_error("no DLPack exchange table was handed over");
  if (table->view(object.ptr(), &tensor) != 0) throw pybind11::error_already_set();
  if (tensor.device_type != kCpu && tensor.device_type != kPinned) {
    throw std::invalid_argument("a C++ kernel for the CPU got a tensor on another device");
  }
  return tensor;
}

}  // namespace fastgan::dlpack
