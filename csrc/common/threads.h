// Splitting work over threads. Every function is inlined: kernel files are compiled once per instruction set.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>

#ifdef _OPENMP
#include <omp.h>
#endif
#ifdef __SSE2__
#include <emmintrin.h>
#endif

#define FASTGAN_INLINE inline __attribute__((always_inline))

namespace fastgan {

struct Range {
  int64_t begin, end;
};

// The index-th of `parts` contiguous parts of [0, n), whose sizes differ by one at most.
FASTGAN_INLINE Range part(int64_t n, int64_t index, int64_t parts) {
  const int64_t size = n / parts, extra = n % parts;
  const int64_t begin = index * size + (index < extra ? index : extra);
  return {begin, begin + size + (index < extra ? 1 : 0)};
}

FASTGAN_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
FASTGAN_INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
FASTGAN_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Makes what this thread wrote past the caches visible before what it writes next.
FASTGAN_INLINE void stream_fence() {
#ifdef __SSE2__
  _mm_sfence();
#endif
}

// Calls body(thread, threads) on `threads` threads of the OpenMP pool that torch uses too; on the caller for one.
template <typename Body>
FASTGAN_INLINE void parallel(int threads, const Body& body) {
#ifdef _OPENMP
  if (threads > 1) {
#pragma omp parallel num_threads(threads)
    {
      body(omp_get_thread_num(), omp_get_num_threads());
      stream_fence();
    }
    return;
  }
#else
  (void)threads;
#endif
  body(0, 1);
  stream_fence();
}

// Parts of [0, n) that the threads of a `parallel` take when they get free: one that the machine slows down, or that
// wakes late, takes fewer. Only for work whose result does not depend on who does it.
class Shares {
 public:
  FASTGAN_INLINE Shares(int64_t n, int threads) : n_(n), size_(threads > 1 ? ceil_div(n, 8 * threads) : n), next_(0) {}
  FASTGAN_INLINE Range next() {  // empty once there are none
    const int64_t begin = __atomic_fetch_add(&next_, size_, __ATOMIC_RELAXED);
    return {begin, begin + size_ < n_ ? begin + size_ : n_};
  }

 private:
  const int64_t n_, size_;
  int64_t next_;
};

// Waits for the other threads of the enclosing `parallel`.
FASTGAN_INLINE void barrier(int threads) {
  (void)threads;
#ifdef _OPENMP
  if (threads > 1) {
#pragma omp barrier
  }
#endif
}

// Uninitialised memory aligned to 64 bytes, freed with its owner.
template <typename T>
class Scratch {
 public:
  FASTGAN_INLINE explicit Scratch(int64_t count)
      : data_(static_cast<T*>(std::aligned_alloc(64, static_cast<size_t>(ceil_div(count * sizeof(T) + 1, 64) * 64)))) {
    if (data_ == nullptr) throw std::bad_alloc();
  }
  FASTGAN_INLINE ~Scratch() { std::free(data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  FASTGAN_INLINE operator T*() const { return data_; }

 private:
  T* data_;
};

}  // namespace fastgan
