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
  DType dtype() const;  // raises for other than the four
};

// Takes a framework's table, a capsule as of torch.Tensor.__dlpack_c_exchange_api__.
void use(const pybind11::capsule& table);

// The tensor in memory that this process addresses, for as long as `object` lives; raises what the framework does for
// one without memory.
Tensor view(const pybind11::handle& object);

}  // namespace fastgan::dlpack
