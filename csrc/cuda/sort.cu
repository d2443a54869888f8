// Long rows: all rows of a batch in one device-wide radix sort on (row, key), so that the number of launches does not
// grow with the rows. A float key and its row share 64 bits, a 16-bit key and its row 32; a single float row sorts on
// 32 bits. float64 keys leave no room for the row: they are sorted first, then stably by row.
#include <cuda_fp16.h>

#include <cub/device/device_radix_sort.cuh>

#include "common/sort_keys.h"
#include "cuda/check.h"
#include "cuda/sort.h"
#include "cuda/value.cuh"

namespace fastgan::cuda {
namespace {

constexpr int kThreads = 256;

unsigned blocks_for(int64_t count) { return static_cast<unsigned>((count + kThreads - 1) / kThreads); }

int bits_of(int64_t rows) {  // of the numbers 0 ... rows - 1
  int bits = 0;
  while ((int64_t{1} << bits) < rows) ++bits;
  return bits;
}

template <typename Element>
struct ElementKey;
template <>
struct ElementKey<float> {
  static constexpr int kBits = 32;
};
template <>
struct ElementKey<uint16_t> {
  static constexpr int kBits = 16;
};

// keys[i] = row above key; index[i] = position in the row, if wanted.
template <typename Element, typename Key>
__global__ void encode_kernel(const Element* values, uint32_t count, uint32_t n, uint16_t infinity, Key* keys,
                              uint32_t* index) {
  const uint32_t i = blockIdx.x * kThreads + threadIdx.x;
  if (i >= count) return;
  const uint32_t row = i / n;
  Key key = load_key(values, i, infinity);
  if constexpr (sizeof(Key) > sizeof(Element)) key |= static_cast<Key>(row) << ElementKey<Element>::kBits;
  keys[i] = key;
  if (index != nullptr) index[i] = i - row * n;
}

template <typename Element, typename Key>
__global__ void decode_kernel(const Key* keys, uint32_t count, uint16_t infinity, float* sorted) {
  const uint32_t i = blockIdx.x * kThreads + threadIdx.x;
  if (i >= count) return;
  using ValueKey = std::conditional_t<sizeof(Element) == 4, uint32_t, uint16_t>;
  sorted[i] = value_of(static_cast<ValueKey>(keys[i]), infinity);
}

__global__ void encode_double_kernel(const double* values, uint32_t count, uint64_t* keys, uint32_t* position) {
  const uint32_t i = blockIdx.x * kThreads + threadIdx.x;
  if (i >= count) return;
  keys[i] = sort_key(values[i]);
  if (position != nullptr) position[i] = i;
}

__global__ void decode_double_kernel(const uint64_t* keys, uint32_t count, double* sorted) {
  const uint32_t i = blockIdx.x * kThreads + threadIdx.x;
  if (i < count) sorted[i] = value_of_key(keys[i]);
}

__global__ void rows_of_kernel(const uint32_t* position, uint32_t count, uint32_t n, uint32_t* row) {
  const uint32_t i = blockIdx.x * kThreads + threadIdx.x;
  if (i < count) row[i] = position[i] / n;
}

// Positions in the batch become values and positions in the row.
__global__ void gather_double_kernel(const double* values, uint32_t count, uint32_t n, uint32_t* position,
                                     double* sorted) {
  const uint32_t i = blockIdx.x * kThreads + threadIdx.x;
  if (i >= count) return;
  const uint32_t at = position[i];
  sorted[i] = values[at];
  position[i] = at % n;
}

template <typename Key>
void radix_sort(cub::DoubleBuffer<Key>& keys, cub::DoubleBuffer<uint32_t>* index, int64_t count, int end_bit,
                Workspace& workspace, cudaStream_t stream) {
  const int items = static_cast<int>(count);
  const auto sort = [&](void* temporary, size_t& bytes) {
    return index == nullptr
               ? cub::DeviceRadixSort::SortKeys(temporary, bytes, keys, items, 0, end_bit, stream)
               : cub::DeviceRadixSort::SortPairs(temporary, bytes, keys, *index, items, 0, end_bit, stream);
  };
  size_t bytes = 0;
  check(sort(nullptr, bytes), "cub::DeviceRadixSort (size of its workspace)");
  void* temporary = workspace.take<unsigned char>(static_cast<int64_t>(bytes));
  if (!workspace.measures()) check(sort(temporary, bytes), "cub::DeviceRadixSort");
}

template <typename T>
cub::DoubleBuffer<T> take_double_buffer(Workspace& workspace, int64_t count) {
  T* first = workspace.take<T>(count);
  return {first, workspace.take<T>(count)};
}

template <typename Element, typename Key>
SortedRows<float> sort_packed(DType dtype, const void* values, int64_t rows, int64_t n, bool keep_index,
                              Workspace& workspace, cudaStream_t stream) {
  const int64_t count = rows * n;
  const uint16_t infinity = infinity_bits(dtype);
  auto keys = take_double_buffer<Key>(workspace, count);
  cub::DoubleBuffer<uint32_t> index;
  if (keep_index) index = take_double_buffer<uint32_t>(workspace, count);
  float* sorted = workspace.take<float>(count);
  if (!workspace.measures()) {
    encode_kernel<Element, Key><<<blocks_for(count), kThreads, 0, stream>>>(
        static_cast<const Element*>(values), static_cast<uint32_t>(count), static_cast<uint32_t>(n), infinity,
        keys.Current(), keep_index ? index.Current() : nullptr);
    FASTGAN_CUDA_LAUNCHED("encode_kernel");
  }
  radix_sort(keys, keep_index ? &index : nullptr, count, ElementKey<Element>::kBits + bits_of(rows), workspace, stream);
  if (!workspace.measures()) {
    decode_kernel<Element, Key>
        <<<blocks_for(count), kThreads, 0, stream>>>(keys.Current(), static_cast<uint32_t>(count), infinity, sorted);
    FASTGAN_CUDA_LAUNCHED("decode_kernel");
  }
  return {sorted, keep_index ? index.Current() : nullptr};
}

}  // namespace

int64_t longest_row_on_chip() {
  int device, memory;
  FASTGAN_CUDA_CHECK(cudaGetDevice(&device));
  FASTGAN_CUDA_CHECK(cudaDeviceGetAttribute(&memory, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  return memory >= kMuchMemory     ? kLongestRowInMuchMemory
         : memory >= kLittleMemory ? kLongestRowInLittleMemory
                                   : kLongestRowInLeastMemory;
}

void launch_rows(DType dtype, const RowArguments& arguments, cudaStream_t stream) {
  if (dtype == DType::f32) return launch_rows_float(arguments, stream);
  launch_rows_16bit(arguments, stream);
}

template <>
SortedRows<float> sort_device_wide<float>(DType dtype, const void* values, int64_t rows, int64_t n, bool keep_index,
                                          Workspace& workspace, cudaStream_t stream) {
  const auto sort = dtype != DType::f32 ? sort_packed<uint16_t, uint32_t>
                    : rows == 1         ? sort_packed<float, uint32_t>
                                        : sort_packed<float, uint64_t>;
  return sort(dtype, values, rows, n, keep_index, workspace, stream);
}

template <>
SortedRows<double> sort_device_wide<double>(DType, const void* values, int64_t rows, int64_t n, bool keep_index,
                                            Workspace& workspace, cudaStream_t stream) {
  const int64_t count = rows * n;
  const auto items = static_cast<uint32_t>(count);
  const auto* source = static_cast<const double*>(values);
  const bool with_position = keep_index || rows > 1;
  auto keys = take_double_buffer<uint64_t>(workspace, count);
  cub::DoubleBuffer<uint32_t> position, row;
  if (with_position) position = take_double_buffer<uint32_t>(workspace, count);
  if (rows > 1) row = take_double_buffer<uint32_t>(workspace, count);
  double* sorted = workspace.take<double>(count);
  if (!workspace.measures()) {
    encode_double_kernel<<<blocks_for(count), kThreads, 0, stream>>>(source, items, keys.Current(),
                                                                     with_position ? position.Current() : nullptr);
    FASTGAN_CUDA_LAUNCHED("encode_double_kernel");
  }
  radix_sort(keys, with_position ? &position : nullptr, count, 64, workspace, stream);
  if (rows == 1) {
    if (!workspace.measures()) {
      decode_double_kernel<<<blocks_for(count), kThreads, 0, stream>>>(keys.Current(), items, sorted);
      FASTGAN_CUDA_LAUNCHED("decode_double_kernel");
    }
    return {sorted, keep_index ? position.Current() : nullptr};
  }
  if (!workspace.measures()) {
    rows_of_kernel<<<blocks_for(count), kThreads, 0, stream>>>(position.Current(), items, static_cast<uint32_t>(n),
                                                               row.Current());
    FASTGAN_CUDA_LAUNCHED("rows_of_kernel");
  }
  radix_sort(row, &position, count, bits_of(rows), workspace, stream);
  if (!workspace.measures()) {
    gather_double_kernel<<<blocks_for(count), kThreads, 0, stream>>>(source, items, static_cast<uint32_t>(n),
                                                                     position.Current(), sorted);
    FASTGAN_CUDA_LAUNCHED("gather_double_kernel");
  }
  return {sorted, position.Current()};
}

}  // namespace fastgan::cuda
