// Tensors handed over as Python objects, read through DLPack's exchange table: address, shape and strides in some 20
// ns.
//
// The structures are those of DLPack 1.3 (https://dmlc.github.io/dlpack/latest/c_api.html). Frameworks agree on them,
// so that no framework's header is needed; fastgan/kernels/native/_tensor.py hands over the table of torch.Tensor.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

#include "common/dtype.h"

namespace fastgan::dlpack {

struct Tensor {
  void* data;
  int32_t device_type, device_id, dims;
  uint8_t kind, bits;
  uint16_t lanes;
  const int64_t *shape, *strides;  // in elements
  uint64_t byte_offset;

  void* address() const { return static_cast<char*>(data) + byte_offset; }
  bool floating() const;  // of one of the four dtypes
  DType dtype() const;    // raises for others
  int64_t elements() const;
  bool contiguous() const;
  bool gapless() const;                       // contiguous, but for the order of its dimensions
  bool lies_like(const Tensor& other) const;  // of its shape and strides
};

// Takes a framework's table, a capsule as of torch.Tensor.__dlpack_c_exchange_api__.
void use(const pybind11::capsule& table);

// The tensor in memory that this process addresses, for as long as `object` lives; raises what the framework does for
// one without memory.
Tensor view(const pybind11::handle& object);

// Whether a kernel takes both as they are: in memory of this process, of one of the four dtypes and one shape, not
// empty, contiguous. Never raises.
bool alike(const pybind11::handle& a, const pybind11::handle& b);

// What kernels ask of a tensor; others are refused before a kernel follows their addresses. The address of None is
// null.
void refuse_unless(bool fits);
void* like(const pybind11::handle& object, const Tensor& other);  // of other's shape, dtype and strides
void* vector(const pybind11::handle& object, int64_t n, DType dtype);

// [N, ...] without gaps, sample after sample: [samples, size] for kernels, and of dtype `numbers` what is one of each.
struct Samples : Tensor {
  explicit Samples(const pybind11::handle& object);
  DType numbers;
  int code;
  int64_t samples, size;
};

// A number to be written, float or double.
class Scalar {
 public:
  explicit Scalar(const pybind11::handle& object);
  void operator=(double value) const;

 private:
  void *wide_ = nullptr, *narrow_ = nullptr;
};

// The framework's types of tensors, of which no subclass is told here from another object.
void use_types(const pybind11::type& tensor, const pybind11::type& parameter);

// Looks at `object` on any device: whether it is a tensor of these types, with memory.
bool look(const pybind11::handle& object, Tensor& tensor);

// What a call's arguments hold, of which some may be lists: tensors of these types whose memory holds their numbers as
// they are, one of them requiring a gradient or none, or something that Python must tell.
enum class Held : int { plain = 0, recorded = 1, unknown = -1 };
Held held(const pybind11::handle& arguments);

}  // namespace fastgan::dlpack
