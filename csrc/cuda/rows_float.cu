#include "cuda/rows.cuh"

namespace fastgan::cuda {

void launch_rows_float(const RowArguments& arguments, cudaStream_t stream) {
  launch_smallest<float>(arguments, stream);
}

}  // namespace fastgan::cuda
