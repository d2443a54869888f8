// The threads that work on one row: a warp or a block. Reductions add in a fixed order.
#pragma once

#include <cstdint>

namespace fastgan::cuda {

// The largest |d| of a row and the first position that has it.
struct Largest {
  double size;
  int64_t at;
};

// A NaN is never the largest; nor is a position without mass (size -1).
__device__ __forceinline__ Largest larger(Largest a, Largest b) {
  return b.size > a.size || (b.size == a.size && b.at < a.at) ? b : a;
}

__device__ __forceinline__ double warp_sum(double value) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(~0u, value, offset);
  return value;
}

__device__ __forceinline__ Largest warp_largest(Largest value) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    value = larger(value, {__shfl_xor_sync(~0u, value.size, offset), __shfl_xor_sync(~0u, value.at, offset)});
  }
  return value;
}

// Every thread of the group calls these together and gets the same result.
struct WarpGroup {
  static constexpr int size = 32;
  __device__ static int rank() { return threadIdx.x % 32; }
  __device__ static void sync() { __syncwarp(); }
  __device__ static double sum(double value) { return warp_sum(value); }
  __device__ static Largest largest(Largest value) { return warp_largest(value); }
};

template <int THREADS>
struct BlockGroup {
  static_assert(THREADS % 32 == 0);
  static constexpr int size = THREADS;
  __device__ static int rank() { return threadIdx.x; }
  __device__ static void sync() { __syncthreads(); }

  __device__ static double sum(double value) {
    __shared__ double partial[THREADS / 32];
    share(partial, warp_sum(value));
    double total = partial[0];
    for (int w = 1; w < THREADS / 32; ++w) total += partial[w];
    return total;
  }
  __device__ static Largest largest(Largest value) {
    __shared__ Largest partial[THREADS / 32];
    share(partial, warp_largest(value));
    Largest total = partial[0];
    for (int w = 1; w < THREADS / 32; ++w) total = larger(total, partial[w]);
    return total;
  }

 private:
  // Each warp's value, for all to see.
  template <typename T>
  __device__ static void share(T* partial, T value) {
    __syncthreads();  // reads of an earlier call are over
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
    __syncthreads();
  }
};

}  // namespace fastgan::cuda
