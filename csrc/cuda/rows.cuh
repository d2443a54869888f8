// Rows that fit on chip: one warp or one block sorts a row of x and its partner of y in shared memory. With equal
// counts and uniform weights the same kernel goes on to the distance and both gradients, so that each value is read
// once and each gradient written once; otherwise it hands out the sorted rows for the kernels of coupling.cuh.
#pragma once

#include <cub/block/block_exchange.cuh>
#include <cub/block/block_radix_sort.cuh>
#include <cub/warp/warp_merge_sort.cuh>

#include "common/wasserstein.h"
#include "cuda/check.h"
#include "cuda/group.cuh"
#include "cuda/power.cuh"
#include "cuda/sort.h"
#include "cuda/value.cuh"

namespace fastgan::cuda {

struct LessThan {
  template <typename T>
  __device__ bool operator()(T a, T b) const {
    return a < b;
  }
};

// A warp per row: merge sort on key << bits | index, one integer, whose order is that of a stable sort.
template <typename Element, int ITEMS>
struct WarpSorter {
  static constexpr int kThreads = 128, kCapacity = 32 * ITEMS;
  static constexpr int kRowsPerBlock = kThreads / 32;
  using Group = WarpGroup;
  using Pairs = cub::WarpMergeSort<std::conditional_t<sizeof(Element) == 4, uint64_t, uint32_t>, ITEMS, 32>;
  using Keys = cub::WarpMergeSort<uint32_t, ITEMS, 32>;
  union Temporary {
    typename Pairs::TempStorage pairs;
    typename Keys::TempStorage keys;
  };

  __device__ static void sort(Temporary& temporary, const Element* row, int n, bool keep_index, uint16_t infinity,
                              float* values, uint16_t* index) {
    const int lane = Group::rank();
    if (sizeof(Element) == 4 && !keep_index) {
      uint32_t keys[ITEMS];
#pragma unroll
      for (int k = 0; k < ITEMS; ++k) {
        const int i = k * 32 + lane;
        keys[k] = i < n ? load_key(row, i, infinity) : ~0u;
      }
      Keys(temporary.keys).Sort(keys, LessThan());
#pragma unroll
      for (int k = 0; k < ITEMS; ++k) {
        const int rank = lane * ITEMS + k;
        if (rank < n) values[rank] = value_of(keys[k], infinity);
      }
      return;
    }
    constexpr int kShift = sizeof(Element) == 4 ? 32 : 16;
    using Pair = std::conditional_t<sizeof(Element) == 4, uint64_t, uint32_t>;
    using Key = std::conditional_t<sizeof(Element) == 4, uint32_t, uint16_t>;
    Pair pairs[ITEMS];
#pragma unroll
    for (int k = 0; k < ITEMS; ++k) {
      const int i = k * 32 + lane;
      pairs[k] = i < n ? static_cast<Pair>(load_key(row, i, infinity)) << kShift | static_cast<Pair>(i) : ~Pair{0};
    }
    Pairs(temporary.pairs).Sort(pairs, LessThan());
#pragma unroll
    for (int k = 0; k < ITEMS; ++k) {
      const int rank = lane * ITEMS + k;
      if (rank < n) {
        values[rank] = value_of(static_cast<Key>(pairs[k] >> kShift), infinity);
        index[rank] = static_cast<uint16_t>(pairs[k]);
      }
    }
  }
};

// A block per row: radix sort, stable, with 16-bit indices.
template <typename Element, int THREADS, int ITEMS>
struct BlockSorter {
  static constexpr int kThreads = THREADS, kCapacity = THREADS * ITEMS;
  static constexpr int kRowsPerBlock = 1;
  using Group = BlockGroup<THREADS>;
  using Key = std::conditional_t<sizeof(Element) == 4, uint32_t, uint16_t>;
  using Pairs = cub::BlockRadixSort<Key, THREADS, ITEMS, uint16_t, 4>;
  using Keys = cub::BlockRadixSort<Key, THREADS, ITEMS, cub::NullType, 4>;
  using Exchange = cub::BlockExchange<Key, THREADS, ITEMS>;
  union Temporary {
    typename Pairs::TempStorage pairs;
    typename Keys::TempStorage keys;
    typename Exchange::TempStorage exchange;
  };

  __device__ static void sort(Temporary& temporary, const Element* row, int n, bool keep_index, uint16_t infinity,
                              float* values, uint16_t* index) {
    // Coalesced loads, a warp's values next to each other; then each thread's, so that the sort is stable.
    Key keys[ITEMS];
    const int warp_first = static_cast<int>(threadIdx.x / 32) * 32 * ITEMS + static_cast<int>(threadIdx.x % 32);
#pragma unroll
    for (int k = 0; k < ITEMS; ++k) {
      const int i = warp_first + k * 32;
      keys[k] = i < n ? load_key(row, i, infinity) : static_cast<Key>(~Key{0});
    }
    Exchange(temporary.exchange).WarpStripedToBlocked(keys);
    Group::sync();
    if (keep_index) {
      uint16_t indices[ITEMS];
#pragma unroll
      for (int k = 0; k < ITEMS; ++k) indices[k] = static_cast<uint16_t>(threadIdx.x * ITEMS + k);
      Pairs(temporary.pairs).SortBlockedToStriped(keys, indices);
#pragma unroll
      for (int k = 0; k < ITEMS; ++k) {
        const int rank = k * THREADS + threadIdx.x;
        if (rank < n) index[rank] = indices[k];
      }
    } else {
      Keys(temporary.keys).SortBlockedToStriped(keys);
    }
#pragma unroll
    for (int k = 0; k < ITEMS; ++k) {
      const int rank = k * THREADS + threadIdx.x;
      if (rank < n) values[rank] = value_of(keys[k], infinity);
    }
  }
};

// What one row takes of shared memory: the sort's own, reused to reorder the gradient, and both sorted sides.
template <typename Sorter>
struct RowMemory {
  union {
    typename Sorter::Temporary temporary;
    float reordered[Sorter::kCapacity];
  };
  float values[2][Sorter::kCapacity];
  uint16_t index[2][Sorter::kCapacity];
};

template <typename Element, typename Sorter>
__global__ void __launch_bounds__(Sorter::kThreads) rows_kernel(const __grid_constant__ RowArguments arguments) {
  using Group = typename Sorter::Group;
  extern __shared__ __align__(16) unsigned char shared[];
  const int slot = Sorter::kRowsPerBlock == 1 ? 0 : threadIdx.x / 32;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * Sorter::kRowsPerBlock + slot;
  if (row >= arguments.rows) return;
  RowMemory<Sorter>& memory = reinterpret_cast<RowMemory<Sorter>*>(shared)[slot];

#pragma unroll 1  // one copy of the sort
  for (int s = 0; s < 2; ++s) {
    const RowSide& side = arguments.side[s];
    Group::sync();
    Sorter::sort(memory.temporary, static_cast<const Element*>(side.values) + row * side.n, side.n, side.keep_index,
                 arguments.infinity, memory.values[s], memory.index[s]);
  }
  Group::sync();

  if (arguments.cost == nullptr) {
#pragma unroll 1
    for (int s = 0; s < 2; ++s) {
      const RowSide& side = arguments.side[s];
      for (int k = Group::rank(); k < side.n; k += Group::size) {
        side.sorted[row * side.n + k] = memory.values[s][k];
        if (side.keep_index) side.index[row * side.n + k] = memory.index[s][k];
      }
    }
    return;
  }

  const int n = arguments.side[0].n;
  const bool has_nan = isnan(memory.values[0][n - 1]) || isnan(memory.values[1][n - 1]);
  float* slope = memory.values[0];  // d_k, then its slope, replace x_k
  Group::sync();                    // all have looked at the last values
  Largest largest{-1, 0};
  for (int k = Group::rank(); k < n; k += Group::size) {
    const float d = difference(memory.values[0][k], memory.values[1][k]);
    slope[k] = d;
    largest = larger(largest, {fabsf(d), k});
  }
  if (is_scaled(arguments.p)) largest = Group::largest(largest);
  double cost = largest.size, scale = 1;
  if (isinf(arguments.p)) {
    for (int k = Group::rank(); k < n; k += Group::size) {
      slope[k] = k == largest.at && slope[k] != 0 ? copysignf(static_cast<float>(n), slope[k]) : 0;
    }
  } else {
    if (is_scaled(arguments.p)) scale = scale_of(largest.size);
    const double inverse_scale = inverse_of_scale(scale);
    double sum = 0;
    for (int k = Group::rank(); k < n; k += Group::size) {
      float cost_k, slope_k;
      power(slope[k], arguments.p, inverse_scale, cost_k, slope_k);
      slope[k] = slope_k;
      sum += cost_k;
    }
    cost = Group::sum(sum) / n;
  }
  const float factor = has_nan ? NAN : 1.0f;
  if (Group::rank() == 0) {
    arguments.cost[row] = factor * cost;
    arguments.scale[row] = scale;
  }
#pragma unroll 1
  for (int s = 0; s < 2; ++s) {
    const RowSide& side = arguments.side[s];
    if (side.grad == nullptr) continue;
    // Reordered on chip, written in order.
    Group::sync();
    for (int k = Group::rank(); k < n; k += Group::size) {
      memory.reordered[memory.index[s][k]] = s == 0 ? factor * slope[k] : -factor * slope[k];
    }
    Group::sync();
    Element* grad = static_cast<Element*>(side.grad) + row * n;
    for (int i = Group::rank(); i < n; i += Group::size) store_value(grad + i, memory.reordered[i], arguments.infinity);
  }
}

template <typename Element, typename Sorter>
void launch_sorter(const RowArguments& arguments, cudaStream_t stream) {
  constexpr size_t bytes = sizeof(RowMemory<Sorter>) * Sorter::kRowsPerBlock;
  constexpr int memory = Sorter::kCapacity <= kLongestRowInLeastMemory    ? kLeastMemory
                         : Sorter::kCapacity <= kLongestRowInLittleMemory ? kLittleMemory
                                                                          : kMuchMemory;
  static_assert(bytes + 1024 <= memory);
  const auto kernel = rows_kernel<Element, Sorter>;
  if (bytes > 48 * 1024) {
    FASTGAN_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  }
  const int64_t blocks = (arguments.rows + Sorter::kRowsPerBlock - 1) / Sorter::kRowsPerBlock;
  kernel<<<static_cast<unsigned>(blocks), Sorter::kThreads, bytes, stream>>>(arguments);
  FASTGAN_CUDA_LAUNCHED("rows_kernel");
}

// The smallest sorter that holds both rows.
template <typename Element>
void launch_smallest(const RowArguments& arguments, cudaStream_t stream) {
  const int n = arguments.side[0].n > arguments.side[1].n ? arguments.side[0].n : arguments.side[1].n;
  if (n <= 64) return launch_sorter<Element, WarpSorter<Element, 2>>(arguments, stream);
  if (n <= 128) return launch_sorter<Element, WarpSorter<Element, 4>>(arguments, stream);
  if (n <= 256) return launch_sorter<Element, WarpSorter<Element, 8>>(arguments, stream);
  if (n <= 512) return launch_sorter<Element, WarpSorter<Element, 16>>(arguments, stream);
  if (n <= 1024) return launch_sorter<Element, BlockSorter<Element, 128, 8>>(arguments, stream);
  if (n <= 2048) return launch_sorter<Element, BlockSorter<Element, 128, 16>>(arguments, stream);
  if (n <= 4096) return launch_sorter<Element, BlockSorter<Element, 256, 16>>(arguments, stream);
  launch_sorter<Element, BlockSorter<Element, 512, 16>>(arguments, stream);
}

}  // namespace fastgan::cuda
