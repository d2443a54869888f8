#include "cpu/winograd.h"

#include <cstring>

#include "common/simd.h"
#include "cpu/samples.h"

namespace fastgan::FASTGAN_ISA {
namespace {

using V = Vec<float>;
constexpr int64_t kVector = kLanes<float>;

// --- transforms: the rows of B' d, of A' m, of A y, of G g and of G' u, for vectors d, m, y, g, u of 4, 4, 2, 3, 4 ---

FASTGAN_INLINE void input(const V* d, int step, V* out, int to) {
  const V d1 = d[step], d2 = d[2 * step];
  out[0] = d[0] - d2;
  out[to] = d1 + d2;
  out[2 * to] = d2 - d1;
  out[3 * to] = d1 - d[3 * step];
}

FASTGAN_INLINE void output(const V* m, int step, V* out, int to) {
  const V m1 = m[step], m2 = m[2 * step];
  out[0] = m[0] + m1 + m2;
  out[to] = m1 - m2 - m[3 * step];
}

FASTGAN_INLINE void output_adjoint(const V* y, int step, V* out, int to) {
  out[0] = y[0];
  out[to] = y[0] + y[step];
  out[2 * to] = y[0] - y[step];
  out[3 * to] = -y[step];
}

FASTGAN_INLINE void weight(const V* g, int step, V* out, int to) {
  const V half = broadcast(0.5F), even = (g[0] + g[2 * step]) * half, odd = g[step] * half;
  out[0] = g[0];
  out[to] = even + odd;
  out[2 * to] = even - odd;
  out[3 * to] = g[2 * step];
}

FASTGAN_INLINE void weight_adjoint(const V* u, int step, V* out, int to) {
  const V half = broadcast(0.5F), sum = (u[step] + u[2 * step]) * half;
  out[0] = u[0] + sum;
  out[to] = (u[step] - u[2 * step]) * half;
  out[2 * to] = sum + u[3 * step];
}

// --- products --------------------------------------------------------------------------------------------------

// kRows x kPanel results stay in registers.
constexpr int kRows = 6, kVectors = kVector == 16 ? 4 : 2;
constexpr int64_t kPanel = kVectors * kVector;

// c [R, kPanel] = sum over k < depth of a[r * row + k * step] b[k, kPanel], or that added to it.
template <int R, bool kOnto>
FASTGAN_INLINE void product_of_rows(const float* a, int64_t row, int64_t step, const float* b, int64_t depth,
                                    float* c) {
  V sum[R][kVectors] = {};
  for (int64_t k = 0; k < depth; ++k, a += step, b += kPanel) {
    V right[kVectors];
    for (int v = 0; v < kVectors; ++v) right[v] = load_vector(b + v * kVector);
    for (int r = 0; r < R; ++r) {
      const V left = broadcast(a[r * row]);
      for (int v = 0; v < kVectors; ++v) sum[r][v] = fma(left, right[v], sum[r][v]);
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < kVectors; ++v) {
      float* to = c + r * kPanel + v * kVector;
      if constexpr (kOnto) sum[r][v] += load_vector(to);  // last: sums of sums err less than one long one
      store_vector(to, sum[r][v]);
    }
  }
}

template <bool kOnto>
void product(int64_t rows, const float* a, int64_t row, int64_t step, const float* b, int64_t depth, float* c) {
  for (; rows >= kRows; rows -= kRows, a += kRows * row, c += kRows * kPanel) {
    product_of_rows<kRows, kOnto>(a, row, step, b, depth, c);
  }
  switch (rows) {
    case 5: return product_of_rows<5, kOnto>(a, row, step, b, depth, c);
    case 4: return product_of_rows<4, kOnto>(a, row, step, b, depth, c);
    case 3: return product_of_rows<3, kOnto>(a, row, step, b, depth, c);
    case 2: return product_of_rows<2, kOnto>(a, row, step, b, depth, c);
    case 1: return product_of_rows<1, kOnto>(a, row, step, b, depth, c);
    default: return;
  }
}

// --- tiles -----------------------------------------------------------------------------------------------------

struct Images {
  int64_t samples, rows, columns, channels;
  FASTGAN_INLINE int64_t at(int64_t n, int64_t i, int64_t j) const { return ((n * rows + i) * columns + j) * channels; }
};

// Tiles of 2 x 2, of all images in turn: their sample, row and column.
struct Tiles {
  int64_t samples, high, wide;
  FASTGAN_INLINE int64_t count() const { return samples * high * wide; }
  // Calls body(index from first on, sample, row, column) for the tiles from first to end.
  template <typename Body>
  FASTGAN_INLINE void each(int64_t first, int64_t end, const Body& body) const {
    int64_t n = first / (high * wide), i = first / wide % high, j = first % wide;
    for (int64_t t = 0; t < end - first; ++t) {
      body(t, n, i, j);
      if (++j == wide) {
        j = 0;
        if (++i == high) {
          i = 0;
          ++n;
        }
      }
    }
  }
};

// Transformed tiles are [16, tiles, channels]. Planes lie this much further apart than they need to: addresses a power
// of two apart share few lines of a cache.
constexpr int64_t kApart = 64;

// Where the 4 x 4 pixels of a tile of x lie, which has `pad` zeros around it.
FASTGAN_INLINE void pixels_of(const float* x, const Images& images, int64_t pad, int64_t n, int64_t i, int64_t j,
                              const float* zeros, const float** pixels) {
  for (int k = 0; k < 16; ++k) {
    const int64_t row = 2 * i + k / 4 - pad, column = 2 * j + k % 4 - pad;
    const bool inside = row >= 0 && row < images.rows && column >= 0 && column < images.columns;
    pixels[k] = inside ? x + images.at(n, row, column) : zeros;
  }
}

// B' d B.
FASTGAN_INLINE void transformed_input(const V* d, V* out) {
  V half[16];
  for (int k = 0; k < 4; ++k) input(d + k, 4, half + k, 4);
  for (int k = 0; k < 4; ++k) input(half + 4 * k, 1, out + 4 * k, 1);
}

// --- the convolution -------------------------------------------------------------------------------------------

// How many tiles are transformed at once: 288 KiB of inputs, which stay in a core's second cache, or a thread's share.
FASTGAN_INLINE int64_t block_of(int64_t tiles, int64_t channels, int threads) {
  const int64_t most = 4608 / channels / kRows, share = ceil_div(ceil_div(tiles, threads), kRows);
  return kRows * (most < 1 ? 1 : most < share ? most : share);
}

// y = the convolution of x, with `pad` zeros around it, + bias. transform(u, plane, filter, first, end) puts the
// weights of channels first .. end for the kPanel filters from `filter` on into u [16, channels, kPanel], the 16
// `plane` apart.
template <typename Transform>
void convolve(const float* x, const Images& from, int64_t pad, const Transform& transform, const float* bias, float* y,
              const Images& to, int threads) {
  const Tiles tiles{to.samples, to.rows / 2, to.columns / 2};
  const int64_t depth = from.channels, panels = ceil_div(to.channels, kPanel);
  const int64_t block = block_of(tiles.count(), depth, threads), blocks = ceil_div(tiles.count(), block);
  const int64_t inputs = block * depth + kApart, outputs = block * kPanel + kApart, plane = depth * kPanel + kApart,
                panel = 16 * plane;
  const int workers = blocks < threads ? static_cast<int>(blocks) : threads;
  const Scratch<float> u(panels * panel), scratch(workers * 16 * (inputs + outputs) + depth);
  float* zeros = scratch + workers * 16 * (inputs + outputs);
  std::memset(zeros, 0, static_cast<size_t>(depth) * sizeof(float));
  Shares shares(blocks, workers);
  parallel(workers, [&](int thread, int team) {
    const Range part_of_panels = part(panels * depth, thread, team);
    for (int64_t i = part_of_panels.begin, end; i < part_of_panels.end; i = end) {
      const int64_t p = i / depth;
      end = part_of_panels.end < (p + 1) * depth ? part_of_panels.end : (p + 1) * depth;
      transform(u + p * panel, plane, p * kPanel, i - p * depth, end - p * depth);
    }
    barrier(team);
    float *v = scratch + thread * 16 * (inputs + outputs), *m = v + 16 * inputs;
    for (Range range = shares.next(); range.begin < range.end; range = shares.next()) {
      for (int64_t b = range.begin; b < range.end; ++b) {
        const int64_t first = b * block, end = first + block < tiles.count() ? first + block : tiles.count();
        tiles.each(first, end, [&](int64_t t, int64_t n, int64_t i, int64_t j) {
          const float* pixels[16];
          pixels_of(x, from, pad, n, i, j, zeros, pixels);
          each_vector<float>(0, depth, [&](int64_t c, auto lanes) {
            V d[16], out[16];
            for (int k = 0; k < 16; ++k) d[k] = load_vector(pixels[k] + c, lanes);
            transformed_input(d, out);
            for (int k = 0; k < 16; ++k) store_vector(v + k * inputs + t * depth + c, out[k], lanes);
          });
        });
        for (int64_t p = 0; p < panels; ++p) {
          for (int k = 0; k < 16; ++k) {
            product<false>(end - first, v + k * inputs, depth, 1, u + p * panel + k * plane, depth, m + k * outputs);
          }
          const int64_t width = to.channels - p * kPanel < kPanel ? to.channels - p * kPanel : kPanel;
          tiles.each(first, end, [&](int64_t t, int64_t n, int64_t i, int64_t j) {
            each_vector<float>(0, width, [&](int64_t c, auto lanes) {
              V in[16], half[8], out[4];
              for (int k = 0; k < 16; ++k) in[k] = load_vector(m + k * outputs + t * kPanel + c);
              for (int k = 0; k < 4; ++k) output(in + k, 4, half + k, 4);
              for (int r = 0; r < 2; ++r) output(half + 4 * r, 1, out + 2 * r, 1);
              const int64_t channel = p * kPanel + c;
              const V more = bias == nullptr ? V{} : load_vector(bias + channel, lanes);
              for (int k = 0; k < 4; ++k) {
                store_vector(y + to.at(n, 2 * i + k / 2, 2 * j + k % 2) + channel, out[k] + more, lanes);
              }
            });
          });
        }
      }
    }
  });
}

// G g G' of nine vectors into places a `plane` apart.
FASTGAN_INLINE void put_weight(const V* g, float* u, int64_t plane) {
  V half[12], out[16];
  for (int k = 0; k < 3; ++k) weight(g + k, 3, half + k, 3);
  for (int r = 0; r < 4; ++r) weight(half + 3 * r, 1, out + 4 * r, 1);
  for (int k = 0; k < 16; ++k) store_vector(u + k * plane, out[k]);
}

template <int kRounds = kVector>
FASTGAN_INLINE void transpose(V* rows) {
  if constexpr (kRounds > 1) {
    V next[kVector];
    for (int i = 0; i < kVector / 2; ++i) {
      next[2 * i] = rows[i];
      next[2 * i + 1] = rows[i + kVector / 2];
      zip(next[2 * i], next[2 * i + 1]);
    }
    for (int i = 0; i < kVector; ++i) rows[i] = next[i];
    transpose<kRounds / 2>(rows);
  }
}

}  // namespace

void winograd_forward(const float* x, const float* w, const float* bias, float* y, int64_t samples, int64_t rows,
                      int64_t columns, int64_t channels, int64_t filters, int64_t pad, int threads) {
  const auto transform = [&](float* u, int64_t plane, int64_t filter, int64_t first, int64_t end) {
    for (int64_t f = 0; f < kPanel; f += kVector) {
      for (int64_t c = first; c < end; c += kVector) {
        const int64_t count = end - c < kVector ? end - c : kVector;
        V g[9][kVector];
        for (int k = 0; k < 9; ++k) {
          for (int64_t i = 0; i < kVector; ++i) {
            const int64_t at = filter + f + i;
            g[k][i] = at < filters ? load_vector(w + (9 * at + k) * channels + c, count) : V{};
          }
          transpose(g[k]);
        }
        for (int64_t i = 0; i < count; ++i) {
          V of[9];
          for (int k = 0; k < 9; ++k) of[k] = g[k][i];
          put_weight(of, u + (c + i) * kPanel + f, plane);
        }
      }
    }
  };
  const int64_t less = 2 - 2 * pad;
  convolve(x, {samples, rows + less, columns + less, channels}, pad, transform, bias, y,
           {samples, rows, columns, filters}, threads);
}

void winograd_backward_x(const float* grad, const float* w, float* grad_x, int64_t samples, int64_t rows,
                         int64_t columns, int64_t channels, int64_t filters, int64_t pad, int threads) {
  // The convolution of the gradient, with 2 - pad zeros around it, with the weights turned round.
  const auto transform = [&](float* u, int64_t plane, int64_t channel, int64_t first, int64_t end) {
    const int64_t width = channels - channel < kPanel ? channels - channel : kPanel;
    for (int64_t f = first; f < end; ++f) {
      for (int64_t c = 0; c < kPanel; c += kVector) {
        const int64_t count = width - c < 0 ? 0 : width - c < kVector ? width - c : kVector;
        V g[9];
        for (int k = 0; k < 9; ++k) g[k] = load_vector(w + (9 * f + 8 - k) * channels + channel + c, count);
        put_weight(g, u + f * kPanel + c, plane);
      }
    }
  };
  const int64_t less = 2 - 2 * pad;
  convolve(grad, {samples, rows, columns, filters}, 2 - pad, transform, nullptr, grad_x,
           {samples, rows + less, columns + less, channels}, threads);
}

void winograd_backward_w(const float* grad, const float* x, float* grad_w, int64_t samples, int64_t rows,
                         int64_t columns, int64_t channels, int64_t filters, int64_t pad, int threads) {
  const Images images{samples, rows + 2 - 2 * pad, columns + 2 - 2 * pad, channels},
      grads{samples, rows, columns, filters};
  const Tiles tiles{samples, rows / 2, columns / 2};
  // A piece of the weights at a time, for which all tiles are transformed anew: a twentieth of its products' time.
  constexpr int64_t kSide = 64, kBlock = 64;
  constexpr int64_t kPlane = kBlock * kSide + kApart, kResults = kSide * kSide + kApart;
  const int64_t across = ceil_div(filters, kSide), pieces = ceil_div(channels, kSide) * across;
  const int workers = pieces < threads ? static_cast<int>(pieces) : threads;
  constexpr int64_t kEach = 16 * (2 * kPlane + kResults);
  constexpr float zeros[kSide] = {};
  const Scratch<float> scratch(workers * kEach);
  Shares shares(pieces, workers);
  parallel(workers, [&](int thread, int) {
    // Inputs [16, panels, tiles, kPanel], gradients [16, tiles, filters], results [16, panels, filters, kPanel].
    float *v = scratch + thread * kEach, *m = v + 16 * kPlane, *u = m + 16 * kPlane;
    for (Range range = shares.next(); range.begin < range.end; range = shares.next()) {
      for (int64_t piece = range.begin; piece < range.end; ++piece) {
        const int64_t channel = piece / across * kSide, filter = piece % across * kSide;
        const int64_t width = channels - channel < kSide ? channels - channel : kSide;
        const int64_t height = filters - filter < kSide ? filters - filter : kSide;
        const int64_t panels = ceil_div(width, kPanel);
        if (width < kSide) std::memset(v, 0, sizeof(float) * 16 * kPlane);  // what only fills a panel
        for (int64_t first = 0; first < tiles.count(); first += kBlock) {
          const int64_t end = first + kBlock < tiles.count() ? first + kBlock : tiles.count();
          tiles.each(first, end, [&](int64_t t, int64_t n, int64_t i, int64_t j) {
            const float* pixels[16];
            pixels_of(x + channel, images, pad, n, i, j, zeros, pixels);
            each_vector<float>(0, width, [&](int64_t c, auto lanes) {
              V d[16], out[16];
              for (int k = 0; k < 16; ++k) d[k] = load_vector(pixels[k] + c, lanes);
              transformed_input(d, out);
              float* to = v + (c / kPanel * kBlock + t) * kPanel + c % kPanel;
              for (int k = 0; k < 16; ++k) store_vector(to + k * kPlane, out[k]);
            });
            const float* of = grad + grads.at(n, 2 * i, 2 * j) + filter;
            each_vector<float>(0, height, [&](int64_t f, auto lanes) {
              V in[4], half[8], out[16];
              for (int k = 0; k < 4; ++k) in[k] = load_vector(of + grads.at(0, k / 2, k % 2) + f, lanes);
              for (int k = 0; k < 2; ++k) output_adjoint(in + k, 2, half + k, 2);
              for (int r = 0; r < 4; ++r) output_adjoint(half + 2 * r, 1, out + 4 * r, 1);
              for (int k = 0; k < 16; ++k) store_vector(m + k * kPlane + t * kSide + f, out[k]);
            });
          });
          for (int64_t p = 0; p < 16 * panels; ++p) {
            const int64_t k = p / panels, of = p % panels;
            const float *a = m + k * kPlane, *b = v + k * kPlane + of * kBlock * kPanel;
            float* c = u + k * kResults + of * kSide * kPanel;
            first == 0 ? product<false>(height, a, 1, kSide, b, end - first, c)
                       : product<true>(height, a, 1, kSide, b, end - first, c);
          }
        }
        for (int64_t f = 0; f < height; ++f) {
          float* to = grad_w + 9 * (filter + f) * channels + channel;
          each_vector<float>(0, width, [&](int64_t c, auto lanes) {
            const float* from = u + (c / kPanel * kSide + f) * kPanel + c % kPanel;
            V in[16], half[12], out[9];
            for (int k = 0; k < 16; ++k) in[k] = load_vector(from + k * kResults);
            for (int k = 0; k < 4; ++k) weight_adjoint(in + k, 4, half + k, 4);
            for (int r = 0; r < 3; ++r) weight_adjoint(half + 4 * r, 1, out + 3 * r, 1);
            for (int k = 0; k < 9; ++k) store_vector(to + k * channels + c, out[k], lanes);
          });
        }
      }
    }
  });
}

}  // namespace fastgan::FASTGAN_ISA
