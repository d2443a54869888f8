// CUDA calls that fail become exceptions that name the call.
#pragma once

#include <cuda_runtime_api.h>

#include <stdexcept>
#include <string>

namespace fastgan::cuda {

inline void check(cudaError_t status, const char* call) {
  if (status == cudaSuccess) return;
  throw std::runtime_error(std::string("CUDA: ") + call + ": " + cudaGetErrorName(status) + ": " +
                           cudaGetErrorString(status));
}

}  // namespace fastgan::cuda

#define FASTGAN_CUDA_CHECK(call) ::fastgan::cuda::check((call), #call)
// After a launch; `kernel` names it.
#define FASTGAN_CUDA_LAUNCHED(kernel) ::fastgan::cuda::check(cudaGetLastError(), "launch of " kernel)
