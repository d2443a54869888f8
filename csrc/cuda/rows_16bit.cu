#include "cuda/rows.cuh"

namespace fastgan::cuda {

void launch_rows_16bit(const RowArguments& arguments, cudaStream_t stream) {
  launch_smallest<uint16_t>(arguments, stream);
}

}  // namespace fastgan::cuda
