// Winograd's tiles: F(2x2, 3x3) and F(4x4, 3x3), and what transforms them. The formulas:
// fastgan/reference/winograd.py.
#pragma once

#include "common/simd.h"

namespace fastgan::FASTGAN_ISA {
namespace {

using V = Vec<float>;

// A side: kOut results of kIn values, by polynomials at the points 0, 1, -1 and infinity.
struct Two {
  static constexpr int kOut = 2, kIn = 4;
  static constexpr float B[4][4] = {{1, 0, -1, 0}, {0, 1, 1, 0}, {0, -1, 1, 0}, {0, 1, 0, -1}};
  static constexpr float G[4][3] = {{1, 0, 0}, {0.5F, 0.5F, 0.5F}, {0.5F, -0.5F, 0.5F}, {0, 0, 1}};
  static constexpr float A[2][4] = {{1, 1, 1, 0}, {0, 1, -1, -1}};
};

// At 0, 1, -1, 1/2, -2 and infinity: rounding grows half as much so as with the usual 2 and -2.
struct Four {
  static constexpr int kOut = 4, kIn = 6;
  static constexpr float B[6][6] = {{1, -1.5F, -2, 1.5F, 1, 0}, {0, -1, 0.5F, 2.5F, 1, 0},  {0, 1, -2.5F, 0.5F, 1, 0},
                                    {0, -2, -1, 2, 1, 0},       {0, 0.5F, -1, -0.5F, 1, 0}, {0, 1, -1.5F, -2, 1.5F, 1}};
  static constexpr float G[6][3] = {{1, 0, 0},
                                    {1.F / 3, 1.F / 3, 1.F / 3},
                                    {-1.F / 3, 1.F / 3, -1.F / 3},
                                    {-16.F / 15, -8.F / 15, -4.F / 15},
                                    {1.F / 15, -2.F / 15, 4.F / 15},
                                    {0, 0, 1}};
  static constexpr float A[4][6] = {
      {1, 1, 1, 1, 1, 0}, {0, 1, -1, 0.5F, -2, 0}, {0, 1, 1, 0.25F, 4, 0}, {0, 1, -1, 0.125F, -8, 1}};
};

// A matrix, or its transpose.
template <const auto& kMatrix, bool kTransposed>
struct Transform {
  static constexpr int kFirst = sizeof kMatrix / sizeof kMatrix[0], kSecond = sizeof kMatrix[0] / sizeof(float);
  static constexpr int kRows = kTransposed ? kSecond : kFirst, kColumns = kTransposed ? kFirst : kSecond;

  static constexpr float at(int row, int column) { return kTransposed ? kMatrix[column][row] : kMatrix[row][column]; }
  static constexpr bool empty_from(int row, int column) {
    return column == kColumns || (at(row, column) == 0 && empty_from(row, column + 1));
  }

  // The sum of a row's products with x from a column on, which are not all 0. x_j lies at x[j * step].
  template <int kRow, int kColumn>
  static FASTGAN_INLINE V dot(const V* x, int step) {
    constexpr float factor = at(kRow, kColumn);
    if constexpr (factor == 0) {
      return dot<kRow, kColumn + 1>(x, step);
    } else if constexpr (empty_from(kRow, kColumn + 1)) {
      return x[kColumn * step] * factor;
    } else {
      const V more = dot<kRow, kColumn + 1>(x, step);
      if constexpr (factor == 1) return x[kColumn * step] + more;
      if constexpr (factor == -1) return more - x[kColumn * step];
      return fma(broadcast(factor), x[kColumn * step], more);
    }
  }
  template <int kRow = 0>
  static FASTGAN_INLINE void along(const V* x, int step, V* y, int to) {
    if constexpr (kRow < kRows) {
      y[kRow * to] = dot<kRow, 0>(x, step);
      along<kRow + 1>(x, step, y, to);
    }
  }
};

// y = M x M' of a square x.
template <const auto& kMatrix, bool kTransposed>
struct Transform2d {
  using Line = Transform<kMatrix, kTransposed>;
  static constexpr int kIn = Line::kColumns, kOut = Line::kRows;  // sides
  static constexpr int kFrom = kIn * kIn, kTo = kOut * kOut;

  static FASTGAN_INLINE void apply(const V* x, V* y) {
    V half[kOut * kIn];
    for (int k = 0; k < kIn; ++k) Line::along(x + k, kIn, half + k, kIn);
    for (int k = 0; k < kOut; ++k) Line::along(half + k * kIn, 1, y + k * kOut, 1);
  }
};

template <typename Side>
struct Tile {
  static constexpr int kSide = Side::kOut;
  static constexpr int kResults = kSide * kSide, kPoints = Side::kIn * Side::kIn;

  using Input = Transform2d<Side::B, false>;
  using Weight = Transform2d<Side::G, false>;
  using Output = Transform2d<Side::A, false>;
  // Of gradients: the adjoints of the last two.
  using OutputGradient = Transform2d<Side::A, true>;
  using WeightGradient = Transform2d<Side::G, true>;
};

}  // namespace
}  // namespace fastgan::FASTGAN_ISA
