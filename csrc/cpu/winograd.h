// The transforms of Winograd's minimal filtering F(2x2, 3x3) on [N, H, W, C] memory, and their adjoints. The products
// between them are matrix products, which the caller has done. The formulas: fastgan/reference/winograd.py.
#pragma once

#include <cstdint>

#include "cpu/isa.h"

namespace fastgan {

// clang-format off
FASTGAN_PER_ISA(
  // x [samples, rows, columns, channels] -> v [16, tiles, channels], tiles = samples * (rows / 2 - 1) * (columns / 2 - 1);
  // the 16 planes are `plane` elements apart.
  void winograd_input(const float* x, float* v, int64_t plane, int64_t samples, int64_t rows, int64_t columns,
                      int64_t channels, int threads);
  // Its adjoint: v -> x; with `onto`, added to what the first two rows of the (one) sample hold.
  void winograd_input_adjoint(const float* v, int64_t plane, float* x, bool onto, int64_t samples, int64_t rows, int64_t columns,
                              int64_t channels, int threads);
  // m [16, tiles, channels] (+ bias [channels] or null) -> y [samples, rows, columns, channels], tiles = samples *
  // rows / 2 * columns / 2.
  void winograd_output(const float* m, int64_t plane, const float* bias, float* y, int64_t samples, int64_t rows,
                       int64_t columns, int64_t channels, int threads);
  // Its adjoint: y -> m.
  void winograd_output_adjoint(const float* y, float* m, int64_t plane, int64_t samples, int64_t rows, int64_t columns,
                               int64_t channels, int threads);
  // w [filters, 3, 3, channels] -> u [16, filters, channels].
  void winograd_weight(const float* w, float* u, int64_t plane, int64_t filters, int64_t channels, int threads);
  // Its adjoint: u -> w.
  void winograd_weight_adjoint(const float* u, int64_t plane, float* w, int64_t filters, int64_t channels, int threads);
)
// clang-format on

}  // namespace fastgan
