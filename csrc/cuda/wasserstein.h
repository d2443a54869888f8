// The exact 1-D Wasserstein cost of batched rows on the GPU.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <string>

#include "common/wasserstein.h"

namespace fastgan::cuda {

// Why this build has no code for the current device; empty if it has.
std::string why_no_kernels();

// Bytes of workspace that the problem takes; bounded for any number of rows.
size_t wasserstein_workspace(const WassersteinProblem& problem);

// Enqueues everything on the stream; allocates nothing, so that a graph can capture it. The workspace is aligned to
// 256 bytes and in use until the stream has passed. Throws std::runtime_error if a CUDA call fails.
void wasserstein(const WassersteinProblem& problem, void* workspace, cudaStream_t stream);

}  // namespace fastgan::cuda
