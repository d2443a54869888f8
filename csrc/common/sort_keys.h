// Order-preserving maps from floating-point values to unsigned integers, so that values sort as integers.
//
// -0 maps to the key of +0: equal values have equal keys, and a stable sort keeps their order. A NaN of either sign
// maps above +inf (and comes back as NaN), so the last of a row's sorted values is NaN exactly when the row has one.
// All-ones is no value's key: it pads.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/dtype.h"

namespace fastgan {

FASTGAN_HOST_DEVICE uint32_t sort_key(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  const uint32_t magnitude = bits & 0x7fffffffu;
  bits = magnitude > 0x7f800000u ? 0x7fc00000u : magnitude == 0 ? 0u : bits;
  return bits ^ ((0u - (bits >> 31)) | 0x80000000u);
}

FASTGAN_HOST_DEVICE uint64_t sort_key(double value) {
  uint64_t bits;
  memcpy(&bits, &value, sizeof bits);
  const uint64_t magnitude = bits & 0x7fffffffffffffffu;
  bits = magnitude > 0x7ff0000000000000u ? 0x7ff8000000000000u : magnitude == 0 ? 0u : bits;
  return bits ^ ((uint64_t{0} - (bits >> 63)) | 0x8000000000000000u);
}

// float16 and bfloat16, by their bits; `infinity` is the type's bits of +inf (0x7c00, 0x7f80).
FASTGAN_HOST_DEVICE uint16_t sort_key16(uint16_t bits, uint16_t infinity) {
  const uint32_t magnitude = bits & 0x7fffu;
  const uint32_t clean = magnitude > infinity ? 0x7fffu & (infinity | (infinity >> 1)) : magnitude == 0 ? 0u : bits;
  return static_cast<uint16_t>(clean ^ ((clean & 0x8000u) != 0 ? 0xffffu : 0x8000u));
}

FASTGAN_HOST_DEVICE float value_of_key(uint32_t key) {
  const uint32_t bits = key ^ (((key >> 31) - 1u) | 0x80000000u);
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

FASTGAN_HOST_DEVICE double value_of_key(uint64_t key) {
  const uint64_t bits = key ^ (((key >> 63) - 1u) | 0x8000000000000000u);
  double value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// The bits of the float16 or bfloat16 with this key.
FASTGAN_HOST_DEVICE uint16_t bits_of_key16(uint16_t key) {
  return static_cast<uint16_t>(key ^ ((key & 0x8000u) != 0 ? 0x8000u : 0xffffu));
}

// Sorting pairs as one integer is a stable argsort.
FASTGAN_HOST_DEVICE uint64_t key_and_index(uint32_t key, uint32_t index) {
  return static_cast<uint64_t>(key) << 32 | index;
}

}  // namespace fastgan
