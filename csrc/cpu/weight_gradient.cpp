// For every place (r, s) in the window, the gradient of the weights is a product of two matrices,
//   grad_w[k, r, s, c] = sum over pixels (n, i, j) of grad[n, i, j, k] x[n, i stride + r - pad, j stride + s - pad, c].
// A few pixels at a time are packed, so that both matrices are read in the order in which they lie, and every product
// of this block is added to the results. A block and its results stay in a core's second cache.
#include "cpu/weight_gradient.h"

#include "common/simd.h"
#include "cpu/samples.h"
#include "cpu/workspace.h"

namespace fastgan::FASTGAN_ISA {
namespace {

using V = Vec<float>;
constexpr int64_t kVector = kLanes<float>;

// R x kPanel results stay in registers.
constexpr int kFew = 4, kRows = kVector == 16 ? 8 : kFew, kVectors = 2;
constexpr int64_t kPanel = kVectors * kVector;
constexpr int64_t kFilters = 64, kChannels = 64;  // results at a time
constexpr int64_t kPixels = 64;                   // that are added up in registers: one long sum errs more

// c [R, kPanel] = sum over pixels of a [rows, columns, kFilters] b [rows, columns, kPanel], or that added to it.
// Rows of b are `apart`.
template <int R, bool kOnto>
FASTGAN_INLINE void product(const float* a, const float* b, int64_t rows, int64_t columns, int64_t apart, float* c) {
  V sum[R][kVectors] = {};
  for (int64_t i = 0; i < rows; ++i, b += apart) {
    const float* pixel = b;
    for (int64_t j = 0; j < columns; ++j, a += kFilters, pixel += kPanel) {
      V right[kVectors];
      for (int v = 0; v < kVectors; ++v) right[v] = load_vector(pixel + v * kVector);
      for (int r = 0; r < R; ++r) {
        const V left = broadcast(a[r]);
        for (int v = 0; v < kVectors; ++v) sum[r][v] = fma(left, right[v], sum[r][v]);
      }
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < kVectors; ++v) {
      float* to = c + r * kPanel + v * kVector;
      store_vector(to, kOnto ? load_vector(to) + sum[r][v] : sum[r][v]);
    }
  }
  asm volatile("" : : : "memory");  // GCC would keep the sums for the next product, in more registers than there are
}

// Copies `count` numbers, and zeros up to `whole`.
FASTGAN_INLINE void pack(const float* from, int64_t count, int64_t whole, float* to) {
  each_vector<float>(0, count, [&](int64_t c, auto lanes) { store_vector(to + c, load_vector(from + c, lanes)); });
  for (int64_t c = ceil_div(count, kVector) * kVector; c < whole; c += kVector) store_vector(to + c, V{});
}

// The pixels of a block: some rows of a sample's result, and some of their columns.
struct Block {
  int64_t sample, row, rows, column, columns;
};

struct WeightGradient {
  const float *grad, *x;
  float* grad_w;
  const ConvolutionSizes& of;

  // As many columns, and rows if these are few.
  const int64_t columns = ceil_div(of.columns, ceil_div(of.columns, kPixels)), rows = most(kPixels / columns, 1);
  // Of x, columns that are the stride apart lie side by side, for they meet the same column of the window.
  const int64_t phase = (columns - 1 + ceil_div(of.window_columns, of.stride_columns)) * kPanel;
  const int64_t row = of.stride_columns * phase, panel = rows * row;

  static constexpr int64_t kResult = kFilters * kPanel;                                   // of a place in the window
  int64_t results() const { return of.window_columns * (kChannels / kPanel) * kResult; }  // of a row of it
  int64_t gradients() const { return rows * columns * kFilters; }
  int64_t inputs() const { return kChannels / kPanel * panel; }

  void pack_gradients(const Block& block, int64_t filter, int64_t filters, float* a) const {
    for (int64_t i = 0; i < block.rows; ++i) {
      const float* from =
          grad + ((block.sample * of.rows + block.row + i) * of.columns + block.column) * of.filters + filter;
      for (int64_t j = 0; j < block.columns; ++j, a += kFilters, from += of.filters) pack(from, filters, kRows, a);
    }
  }

  // What meets row r of the window, as [panels, rows, stride, columns, kPanel].
  void pack_inputs(const Block& block, int64_t r, int64_t channel, int64_t channels, float* b) const {
    for (int64_t i = 0; i < block.rows; ++i) {
      const int64_t from_row = (block.row + i) * of.stride_rows + r - of.pad_rows;
      const bool outside = from_row < 0 || from_row >= of.x_rows;
      for (int64_t j = 0; j < (block.columns - 1) * of.stride_columns + of.window_columns; ++j) {
        const int64_t from_column = block.column * of.stride_columns + j - of.pad_columns;
        const bool zeros = outside || from_column < 0 || from_column >= of.x_columns;
        const int64_t at = ((block.sample * of.x_rows + from_row) * of.x_columns + from_column) * of.channels + channel;
        float* to = b + i * row + j % of.stride_columns * phase + j / of.stride_columns * kPanel;
        for (int64_t c = 0; c < channels; c += kPanel, to += panel) {
          pack(zeros ? x : x + at + c, zeros ? 0 : least(kPanel, channels - c), kPanel, to);
        }
      }
    }
  }

  // Adds the products of a block to the results of a row of the window, [panels, columns, filters, kPanel], or begins
  // with them.
  template <int R, bool kOnto>
  void add_products(const Block& block, const float* a, const float* b, int64_t filters, int64_t channels,
                    float* to) const {
    for (int64_t c = 0; c < channels; c += kPanel, b += panel) {
      for (int64_t s = 0; s < of.window_columns; ++s, to += kResult) {
        const float* right = b + s % of.stride_columns * phase + s / of.stride_columns * kPanel;
        for (int64_t f = 0; f < filters; f += R) {
          product<R, kOnto>(a + f, right, block.rows, block.columns, row, to + f * kPanel);
        }
      }
    }
  }

  void write(const float* from, int64_t r, int64_t filter, int64_t filters, int64_t channel, int64_t channels) const {
    for (int64_t c = 0; c < channels; c += kPanel) {
      for (int64_t s = 0; s < of.window_columns; ++s, from += kResult) {
        for (int64_t f = 0; f < filters; ++f) {
          float* to = grad_w + (((filter + f) * of.window_rows + r) * of.window_columns + s) * of.channels + channel;
          each_vector<float>(c, least(c + kPanel, channels), [&](int64_t at, auto lanes) {
            store_vector(to + at, load_vector(from + f * kPanel + at - c), lanes);
          });
        }
      }
    }
  }

  template <typename Body>
  FASTGAN_INLINE void each_block(const Body& body) const {
    for (int64_t n = 0; n < of.samples; ++n) {
      for (int64_t i = 0; i < of.rows; i += rows) {
        for (int64_t j = 0; j < of.columns; j += columns) {
          body(Block{n, i, least(rows, of.rows - i), j, least(columns, of.columns - j)});
        }
      }
    }
  }
};

}  // namespace

void convolution_backward_w(const float* grad, const float* x, float* grad_w, const ConvolutionSizes& of, int threads) {
  const WeightGradient w{grad, x, grad_w, of};
  const int64_t across = ceil_div(of.channels, kChannels), pieces = across * ceil_div(of.filters, kFilters);
  // Rows of the window by themselves if threads would have nothing to do; gradients are then packed for each.
  const int64_t height = pieces % threads == 0 || pieces >= 4 * threads ? of.window_rows : 1;
  const int64_t each = w.gradients() + w.inputs() + height * w.results();
  const Workspace workspace(threads * each);
  Shares shares(pieces * (of.window_rows / height), threads);
  parallel(threads, [&](int thread, int) {
    float *const a = workspace + thread * each, *const b = a + w.gradients(), *const to = b + w.inputs();
    for (Range range = shares.next(); range.begin < range.end; range = shares.next()) {
      for (int64_t share = range.begin; share < range.end; ++share) {
        const int64_t piece = share % pieces, first = share / pieces * height;
        const int64_t filter = piece / across * kFilters, filters = least(kFilters, of.filters - filter);
        const int64_t channel = piece % across * kChannels, channels = least(kChannels, of.channels - channel);
        bool onto = false;
        w.each_block([&](const Block& block) {
          w.pack_gradients(block, filter, filters, a);
          for (int64_t r = 0; r < height; ++r) {
            w.pack_inputs(block, first + r, channel, channels, b);
            with_bool(onto, [&](auto onto_them) {
              const auto add = filters <= kFew ? &WeightGradient::template add_products<kFew, onto_them.value>
                                               : &WeightGradient::template add_products<kRows, onto_them.value>;
              (w.*add)(block, a, b, filters, channels, to + r * w.results());
            });
          }
          onto = true;
        });
        for (int64_t r = 0; r < height; ++r) {
          w.write(to + r * w.results(), first + r, filter, filters, channel, channels);
        }
      }
    }
  });
}

}  // namespace fastgan::FASTGAN_ISA
