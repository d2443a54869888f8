// Sorting the rows of a batch, on chip or device-wide.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "common/dtype.h"
#include "cuda/workspace.h"

namespace fastgan::cuda {

// float and 16-bit rows up to 8192 are sorted on chip, by the shared memory that a block may have on sm_80, sm_90 and
// sm_100; up to 4096 where that is less (sm_86, sm_89, sm_120); up to 2048 in what every device has (sm_75).
constexpr int kMuchMemory = 163 * 1024, kLittleMemory = 99 * 1024, kLeastMemory = 48 * 1024;
constexpr int64_t kLongestRowInMuchMemory = 8192, kLongestRowInLittleMemory = 4096, kLongestRowInLeastMemory = 2048;

// The longest row that the current device sorts on chip.
int64_t longest_row_on_chip();

// One side: rows of n values, and where its results go (null: not wanted).
struct RowSide {
  const void* values;  // [rows, n], float or 16-bit
  int n;
  bool keep_index;  // sort with the index; needed by grad and index
  void* grad;       // [rows, n], as values: the unit gradient, n D times the gradient of the cost
  float* sorted;    // [rows, n]
  uint32_t* index;  // [rows, n]
};

// Either (cost given) the distance and gradients of equal counts and uniform weights, or the sorted rows.
struct RowArguments {
  RowSide side[2];  // x, y
  int64_t rows;
  uint16_t infinity;  // 16-bit types: the bits of +inf
  float p;
  double* cost;   // [rows], or null: write the sorted rows only
  double* scale;  // [rows]
};

void launch_rows(DType dtype, const RowArguments& arguments, cudaStream_t stream);
void launch_rows_float(const RowArguments& arguments, cudaStream_t stream);
void launch_rows_16bit(const RowArguments& arguments, cudaStream_t stream);

// Rows sorted by one device-wide radix sort.
template <typename T>
struct SortedRows {
  T* values;        // [rows, n]
  uint32_t* index;  // [rows, n], or null if it was not kept
};

// rows * n < 2^31; for 16-bit types rows <= 2^16. T is double for f64, else float.
template <typename T>
SortedRows<T> sort_device_wide(DType dtype, const void* values, int64_t rows, int64_t n, bool keep_index,
                               Workspace& workspace, cudaStream_t stream);

inline uint16_t infinity_bits(DType dtype) { return dtype == DType::bf16 ? 0x7f80 : 0x7c00; }  // of 16-bit types

}  // namespace fastgan::cuda
