// Runs CUDA kernels on the CPU: the blocks of a grid one after the other, the threads of a block as fibers that take
// turns at barriers, shuffles and votes, both in random order. It shows whether kernels compute the right thing
// (indices, bounds, reductions, bookkeeping between launches, divergent or mismatched collectives, what a missing
// barrier leaves to chance, reads of shared memory that the block has not written), not how fast they are.
//
// The parts of CUB that the kernels use are replaced by plain code with the same meaning.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

using std::copysign;
using std::isfinite;
using std::isinf;
using std::isnan;

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __shared__ static
#define __align__(n) alignas(n)

namespace emulation {

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "CUDA emulation: %s\n", what);
  std::abort();
}

struct Group {  // a warp or a block
  unsigned size = 0, alive = 0, arrived = 0, generation = 0;
  const char* operation = nullptr;
  alignas(16) unsigned char slots[32][32];
};

struct Fiber {
  ucontext_t context;
  std::unique_ptr<unsigned char[]> stack;
  unsigned thread = 0;
  bool finished = false;
};

struct Machine {
  ucontext_t scheduler;
  std::vector<Fiber> fibers;
  std::vector<Group> warps;
  Group block;
  Fiber* running = nullptr;
  unsigned block_index = 0;
  int vote = 0;
  uint64_t progress = 0;
  std::function<void()> kernel;
  std::vector<unsigned char> shared;
  std::mt19937 random;
};

inline Machine& machine() {
  static Machine m;
  return m;
}

inline void release_if_complete(Group& group) {
  if (group.arrived == 0 || group.arrived < group.alive) return;
  group.arrived = 0;
  group.operation = nullptr;
  ++group.generation;
  ++machine().progress;
}

inline void barrier(Group& group, const char* operation) {
  Machine& m = machine();
  if (group.operation != nullptr && std::strcmp(group.operation, operation) != 0)
    fail("threads meet in different operations");
  group.operation = operation;
  const unsigned generation = group.generation;
  ++group.arrived;
  release_if_complete(group);
  while (group.generation == generation) swapcontext(&m.running->context, &m.scheduler);
}

inline Group& warp() { return machine().warps[machine().running->thread / 32]; }

template <typename T>
T exchange(T value, unsigned from, const char* operation) {
  static_assert(sizeof(T) <= 32 && std::is_trivially_copyable_v<T>);
  Group& group = warp();
  if (group.alive != group.size) fail("a shuffle or vote of a warp with threads that have left");
  std::memcpy(group.slots[machine().running->thread % 32], &value, sizeof value);
  barrier(group, operation);
  std::memcpy(&value, group.slots[from % 32], sizeof value);
  barrier(group, operation);
  return value;
}

inline void run_fiber() {
  Machine& m = machine();
  m.kernel();
  Fiber& self = *m.running;
  self.finished = true;
  Group& own = m.warps[self.thread / 32];
  --own.alive;
  --m.block.alive;
  release_if_complete(own);
  release_if_complete(m.block);
  ++m.progress;
  swapcontext(&self.context, &m.scheduler);
}

inline void launch(unsigned grid, unsigned threads, size_t shared_bytes, std::function<void()> kernel) {
  constexpr size_t kStack = 128 << 10;
  Machine& m = machine();
  if (threads % 32 != 0) fail("a block of incomplete warps");
  m.kernel = std::move(kernel);
  if (m.fibers.size() < threads) m.fibers.resize(threads);
  std::vector<unsigned> blocks(grid), order(threads);
  std::iota(blocks.begin(), blocks.end(), 0u);
  std::iota(order.begin(), order.end(), 0u);
  std::shuffle(blocks.begin(), blocks.end(), m.random);
  for (const unsigned block : blocks) {
    m.block_index = block;
    m.shared.assign(shared_bytes + 64, 0xa5);  // poison
    std::shuffle(order.begin(), order.end(), m.random);
    m.warps.assign(threads / 32, Group{});
    for (Group& warp : m.warps) warp.size = warp.alive = 32;
    m.block = Group{};
    m.block.size = m.block.alive = threads;
    for (unsigned t = 0; t < threads; ++t) {
      Fiber& fiber = m.fibers[t];
      if (!fiber.stack) fiber.stack.reset(new unsigned char[kStack]);
      fiber.thread = t;
      fiber.finished = false;
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = fiber.stack.get();
      fiber.context.uc_stack.ss_size = kStack;
      fiber.context.uc_link = nullptr;
      makecontext(&fiber.context, reinterpret_cast<void (*)()>(run_fiber), 0);
    }
    for (unsigned left = threads; left > 0;) {
      const uint64_t before = m.progress;
      std::rotate(order.begin(), order.begin() + m.random() % threads, order.end());
      for (const unsigned t : order) {
        Fiber& fiber = m.fibers[t];
        if (fiber.finished) continue;
        m.running = &fiber;
        swapcontext(&m.scheduler, &fiber.context);
        if (fiber.finished) --left;
      }
      if (left > 0 && m.progress == before) fail("deadlock: threads wait for others that never come");
    }
    const size_t end = m.shared.size();
    for (size_t i = end - 48; i < end; ++i) {
      if (m.shared[i] != 0xa5) fail("a write beyond the shared memory of the launch");
    }
  }
}

struct Index {
  unsigned x;
};
inline Index thread_index() { return {machine().running->thread}; }
inline Index block_index() { return {machine().block_index}; }
inline unsigned char* dynamic_shared() {
  const auto address = reinterpret_cast<uintptr_t>(machine().shared.data());
  return reinterpret_cast<unsigned char*>((address + 15) / 16 * 16);
}

}  // namespace emulation

#define threadIdx (::emulation::thread_index())
#define blockIdx (::emulation::block_index())

inline void __syncthreads() { ::emulation::barrier(::emulation::machine().block, "__syncthreads"); }
inline void __syncwarp() { ::emulation::barrier(::emulation::warp(), "__syncwarp"); }
inline int __syncthreads_or(int value) {
  auto& m = ::emulation::machine();
  __syncthreads();
  m.vote = 0;
  __syncthreads();
  m.vote |= value;
  __syncthreads();
  const int result = m.vote;
  __syncthreads();
  return result;
}
template <typename T>
T __shfl_sync(unsigned, T value, int lane) {
  return ::emulation::exchange(value, static_cast<unsigned>(lane), "__shfl_sync");
}
template <typename T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return ::emulation::exchange(value, threadIdx.x ^ static_cast<unsigned>(mask), "__shfl_xor_sync");
}
template <typename T>
T __shfl_up_sync(unsigned, T value, unsigned delta) {
  const unsigned lane = threadIdx.x % 32;
  return ::emulation::exchange(value, lane >= delta ? lane - delta : lane, "__shfl_up_sync");
}
inline unsigned __ballot_sync(unsigned, bool value) {
  unsigned votes = 0;
  for (unsigned lane = 0; lane < 32; ++lane)
    votes |= unsigned{::emulation::exchange(value, lane, "__ballot_sync")} << lane;
  return votes;
}
inline int __ffs(int value) { return __builtin_ffs(value); }
inline double __longlong_as_double(long long bits) {
  double value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
inline long long __double_as_longlong(double value) {
  long long bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

// --- 16-bit types ------------------------------------------------------------------------------------------------

using __half = _Float16;
struct __nv_bfloat16 {
  uint16_t bits;
};
inline float __half2float(__half value) { return static_cast<float>(value); }
inline __half __float2half_rn(float value) { return static_cast<__half>(value); }
inline __half __ushort_as_half(uint16_t bits) {
  __half value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
inline uint16_t __half_as_ushort(__half value) {
  uint16_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
inline float __bfloat162float(__nv_bfloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}
inline __nv_bfloat16 __float2bfloat16_rn(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if (isnan(value)) return {0x7fff};
  return {static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
}
inline __nv_bfloat16 __ushort_as_bfloat16(uint16_t bits) { return {bits}; }
inline uint16_t __bfloat16_as_ushort(__nv_bfloat16 value) { return value.bits; }

// --- the runtime -------------------------------------------------------------------------------------------------

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
struct CUstream_st;
using cudaStream_t = CUstream_st*;
struct cudaFuncAttributes {};
inline const char* cudaGetErrorName(cudaError_t) { return ""; }
inline const char* cudaGetErrorString(cudaError_t) { return ""; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
enum cudaDeviceAttr { cudaDevAttrMaxSharedMemoryPerBlockOptin = 97 };
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  const char* memory = std::getenv("CUDA_EMULATION_SHARED_MEMORY");
  return *value = memory == nullptr ? 227 * 1024 : std::atoi(memory), cudaSuccess;
}
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaRuntimeGetVersion(int* version) { return *version = 0, cudaSuccess; }
template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel, cudaFuncAttribute, size_t bytes) {  // MaxDynamicSharedMemorySize
  int memory;
  cudaDeviceGetAttribute(&memory, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0);
  return bytes <= static_cast<size_t>(memory) ? cudaSuccess : cudaErrorInvalidValue;
}
template <typename Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, Kernel) {
  return cudaSuccess;
}

// --- CUB ---------------------------------------------------------------------------------------------------------

namespace cub {

struct NullType {};

template <typename Key, int ITEMS, int THREADS>
struct WarpMergeSort {
  static_assert(THREADS == 32);
  struct TempStorage {
    Key keys[32 * ITEMS];
  };
  explicit WarpMergeSort(TempStorage& storage) : storage(storage) {}
  template <typename Less>
  void Sort(Key (&keys)[ITEMS], Less less) {
    const unsigned lane = threadIdx.x % 32;
    std::copy_n(keys, ITEMS, storage.keys + lane * ITEMS);
    __syncwarp();
    if (lane == 0) std::sort(storage.keys, storage.keys + 32 * ITEMS, less);
    __syncwarp();
    std::copy_n(storage.keys + lane * ITEMS, ITEMS, keys);
    __syncwarp();
  }
  TempStorage& storage;
};

template <typename T, int THREADS, int ITEMS>
struct BlockExchange {
  struct TempStorage {
    T items[THREADS * ITEMS];
  };
  explicit BlockExchange(TempStorage& storage) : storage(storage) {}
  void WarpStripedToBlocked(T (&items)[ITEMS]) {
    T* warp = storage.items + threadIdx.x / 32 * 32 * ITEMS;
    const unsigned lane = threadIdx.x % 32;
    for (int k = 0; k < ITEMS; ++k) warp[k * 32 + lane] = items[k];
    __syncwarp();
    std::copy_n(warp + lane * ITEMS, ITEMS, items);
  }
  TempStorage& storage;
};

template <typename Key, int THREADS, int ITEMS, typename Value, int BITS>
struct BlockRadixSort {
  struct TempStorage {
    Key keys[THREADS * ITEMS];
    std::conditional_t<std::is_same_v<Value, NullType>, Key, Value> values[THREADS * ITEMS];
  };
  explicit BlockRadixSort(TempStorage& storage) : storage(storage) {}
  void SortBlockedToStriped(Key (&keys)[ITEMS]) {
    std::copy_n(keys, ITEMS, storage.keys + threadIdx.x * ITEMS);
    __syncthreads();
    if (threadIdx.x == 0) std::sort(storage.keys, storage.keys + THREADS * ITEMS);
    __syncthreads();
    for (int k = 0; k < ITEMS; ++k) keys[k] = storage.keys[k * THREADS + threadIdx.x];
  }
  void SortBlockedToStriped(Key (&keys)[ITEMS], Value (&values)[ITEMS]) {
    std::copy_n(keys, ITEMS, storage.keys + threadIdx.x * ITEMS);
    std::copy_n(values, ITEMS, storage.values + threadIdx.x * ITEMS);
    __syncthreads();
    if (threadIdx.x == 0) {
      std::vector<std::pair<Key, Value>> pairs;
      for (int i = 0; i < THREADS * ITEMS; ++i) pairs.emplace_back(storage.keys[i], storage.values[i]);
      std::stable_sort(pairs.begin(), pairs.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
      for (int i = 0; i < THREADS * ITEMS; ++i) std::tie(storage.keys[i], storage.values[i]) = pairs[i];
    }
    __syncthreads();
    for (int k = 0; k < ITEMS; ++k) {
      keys[k] = storage.keys[k * THREADS + threadIdx.x];
      values[k] = storage.values[k * THREADS + threadIdx.x];
    }
  }
  TempStorage& storage;
};

template <typename T, int THREADS>
struct BlockScan {
  struct TempStorage {
    T sums[THREADS];
  };
  explicit BlockScan(TempStorage& storage) : storage(storage) {}
  template <int ITEMS>
  void InclusiveSum(T (&in)[ITEMS], T (&out)[ITEMS], T& total) {
    std::partial_sum(in, in + ITEMS, out);
    storage.sums[threadIdx.x] = out[ITEMS - 1];
    __syncthreads();
    const T before = std::accumulate(storage.sums, storage.sums + threadIdx.x, T{});
    total = std::accumulate(storage.sums, storage.sums + THREADS, T{});
    for (T& item : out) item += before;
    __syncthreads();
  }
  TempStorage& storage;
};

template <typename T>
struct DoubleBuffer {
  T* buffers[2] = {nullptr, nullptr};
  int selector = 0;
  DoubleBuffer() = default;
  DoubleBuffer(T* current, T* alternate) : buffers{current, alternate} {}
  T* Current() { return buffers[selector]; }
  T* Alternate() { return buffers[selector ^ 1]; }
};

struct DeviceRadixSort {
  template <typename Key>
  static cudaError_t SortKeys(void* temporary, size_t& bytes, DoubleBuffer<Key>& keys, int count, int begin, int end,
                              cudaStream_t stream) {
    DoubleBuffer<uint32_t> none;
    return SortPairs(temporary, bytes, keys, none, count, begin, end, stream);
  }
  template <typename Key, typename Value>
  static cudaError_t SortPairs(void* temporary, size_t& bytes, DoubleBuffer<Key>& keys, DoubleBuffer<Value>& values,
                               int count, int begin, int end, cudaStream_t) {
    if (temporary == nullptr) return bytes = 1000, cudaSuccess;
    if (begin != 0 || end > static_cast<int>(8 * sizeof(Key))) ::emulation::fail("bits that a key does not have");
    std::memset(temporary, 0xa5, bytes);
    const Key mask = end == 8 * sizeof(Key) ? ~Key{0} : (Key{1} << end) - 1;
    std::vector<int> order(count);
    std::iota(order.begin(), order.end(), 0);
    const Key* from = keys.Current();
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return (from[a] & mask) < (from[b] & mask); });
    for (int i = 0; i < count; ++i) keys.Alternate()[i] = from[order[i]];
    if (values.Current() != nullptr) {
      for (int i = 0; i < count; ++i) values.Alternate()[i] = values.Current()[order[i]];
    }
    keys.selector ^= 1;
    values.selector ^= 1;
    return cudaSuccess;
  }
};

}  // namespace cub
