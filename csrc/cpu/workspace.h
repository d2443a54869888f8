// Memory for kernels that need megabytes of it. For kernel files.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>

#include "common/threads.h"

namespace fastgan::FASTGAN_ISA {

struct KeptMemory {
  ~KeptMemory() { std::free(memory); }
  void resize(int64_t count) {
    std::free(memory);
    memory = nullptr;
    size = 0;
    if (count == 0) return;
    memory = static_cast<float*>(std::aligned_alloc(64, 64 * static_cast<size_t>(ceil_div(count, 16))));
    if (memory == nullptr) throw std::bad_alloc();
    size = count;
  }
  float* memory = nullptr;
  int64_t size = 0;
};

// Memory for a call, of which the thread keeps up to 64 MiB for the next: to make megabytes of new pages ready for use
// takes half as long as the products of a convolution.
class Workspace {
 public:
  FASTGAN_INLINE explicit Workspace(int64_t count) {
    if (count > kept_.size) kept_.resize(count);
    memory_ = kept_.memory;
  }
  FASTGAN_INLINE ~Workspace() {
    if (kept_.size > (64 << 20) / 4) kept_.resize(0);
  }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  FASTGAN_INLINE operator float*() const { return memory_; }

 private:
  static inline thread_local KeptMemory kept_;
  float* memory_;  // for all threads
};

}  // namespace fastgan::FASTGAN_ISA
