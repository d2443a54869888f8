// Elements in memory. Kernels see a 16-bit type as its bits, and know it by its bits of +inf.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "common/dtype.h"
#include "common/sort_keys.h"

namespace fastgan::cuda {

constexpr uint16_t kInfinityOfBfloat = 0x7f80;

__device__ __forceinline__ uint32_t load_key(const float* values, uint32_t i, uint16_t) { return sort_key(values[i]); }
__device__ __forceinline__ uint16_t load_key(const uint16_t* values, uint32_t i, uint16_t infinity) {
  return sort_key16(values[i], infinity);
}
__device__ __forceinline__ float value_of(uint32_t key, uint16_t) { return value_of_key(key); }
__device__ __forceinline__ float value_of(uint16_t key, uint16_t infinity) {
  const uint16_t bits = bits_of_key16(key);
  return infinity == kInfinityOfBfloat ? __bfloat162float(__ushort_as_bfloat16(bits))
                                       : __half2float(__ushort_as_half(bits));
}

__device__ __forceinline__ void store_value(float* to, float value, uint16_t) { *to = value; }
__device__ __forceinline__ void store_value(uint16_t* to, float value, uint16_t infinity) {
  *to = infinity == kInfinityOfBfloat ? __bfloat16_as_ushort(__float2bfloat16_rn(value))
                                      : __half_as_ushort(__float2half_rn(value));
}

// For kernels that sum in T and meet the elements' own type only at their end.
template <typename T>
__device__ __forceinline__ T load_value(const void* values, DType dtype, int64_t at) {
  switch (dtype) {
    case DType::f64: return static_cast<T>(static_cast<const double*>(values)[at]);
    case DType::f32: return static_cast<T>(static_cast<const float*>(values)[at]);
    case DType::f16: return static_cast<T>(__half2float(static_cast<const __half*>(values)[at]));
    default: return static_cast<T>(__bfloat162float(static_cast<const __nv_bfloat16*>(values)[at]));
  }
}
template <typename T>
__device__ __forceinline__ void store_value(void* values, DType dtype, int64_t at, T value) {
  switch (dtype) {
    case DType::f64: static_cast<double*>(values)[at] = static_cast<double>(value); return;
    case DType::f32: static_cast<float*>(values)[at] = static_cast<float>(value); return;
    case DType::f16: static_cast<__half*>(values)[at] = __float2half_rn(static_cast<float>(value)); return;
    default: static_cast<__nv_bfloat16*>(values)[at] = __float2bfloat16_rn(static_cast<float>(value));
  }
}

}  // namespace fastgan::cuda
