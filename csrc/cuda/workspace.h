// Scratch memory comes from the caller in one piece (so that it belongs to torch's allocator and a CUDA graph can
// replay it). The same code that uses it measures it: on a null base it only adds up.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fastgan::cuda {

class Workspace {
 public:
  explicit Workspace(void* base) : base_(static_cast<unsigned char*>(base)) {}

  template <typename T>
  T* take(int64_t count) {
    constexpr size_t kAlignment = 256;
    unsigned char* address = base_ == nullptr ? nullptr : base_ + used_;
    used_ += (static_cast<size_t>(count) * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
    return reinterpret_cast<T*>(address);
  }
  bool measures() const { return base_ == nullptr; }
  size_t bytes() const { return used_; }

 private:
  unsigned char* base_;
  size_t used_ = 0;
};

}  // namespace fastgan::cuda
