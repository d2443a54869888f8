#include "cpu/winograd.h"

#include "common/simd.h"
#include "cpu/samples.h"

namespace fastgan::FASTGAN_ISA {
namespace {

using V = Vec<float>;

// The rows of B' d, of B v, of A' m, of A y, of G g and of G' u, for vectors d, v, m, y, g, u of 4, 4, 4, 2, 3, 4.
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

// Calls body(image, row of tiles) for all of them, on as many threads as so many elements are worth.
template <typename Body>
void each_row(int64_t samples, int64_t rows, int64_t elements, int threads, const Body& body) {
  parallel(team_for(elements, threads), [&](int thread, int team) {
    const Range range = part(samples * rows, thread, team);
    for (int64_t i = range.begin; i < range.end; ++i) body(i / rows, i % rows);
  });
}

}  // namespace

void winograd_input(const float* x, float* v, int64_t plane, int64_t samples, int64_t rows, int64_t columns,
                    int64_t channels, int threads) {
  const int64_t high = rows / 2 - 1, wide = columns / 2 - 1, line = columns * channels;
  each_row(samples, high, samples * rows * line, threads, [&](int64_t n, int64_t i) {
    for (int64_t j = 0; j < wide; ++j) {
      const float* from = x + (n * rows + 2 * i) * line + 2 * j * channels;
      float* to = v + ((n * high + i) * wide + j) * channels;
      each_vector<float>(0, channels, [&](int64_t c, auto lanes) {
        V d[16], half[16], out[16];
        for (int k = 0; k < 16; ++k) d[k] = load_vector(from + k / 4 * line + k % 4 * channels + c, lanes);
        for (int k = 0; k < 4; ++k) input(d + k, 4, half + k, 4);
        for (int k = 0; k < 4; ++k) input(half + 4 * k, 1, out + 4 * k, 1);
        for (int k = 0; k < 16; ++k) store_vector(to + k * plane + c, out[k], lanes);
      });
    }
  });
}

void winograd_input_adjoint(const float* v, int64_t plane, float* x, bool onto, int64_t samples, int64_t rows,
                            int64_t columns, int64_t channels, int threads) {
  const int64_t high = rows / 2 - 1, wide = columns / 2 - 1, line = columns * channels;
  // Two rows of x: the upper half of the tiles in their row, and the lower half of those above. Of a tile's four
  // columns the right two wait for the tile to its right.
  each_row(samples, high + 1, samples * rows * line, threads, [&](int64_t n, int64_t i) {
    const Scratch<float> waiting(4 * channels);
    for (int64_t j = 0; j <= wide; ++j) {
      const float* below = i < high && j < wide ? v + ((n * high + i) * wide + j) * channels : nullptr;
      const float* above = i > 0 && j < wide ? v + ((n * high + i - 1) * wide + j) * channels : nullptr;
      float* to = x + (n * rows + 2 * i) * line + 2 * j * channels;
      each_vector<float>(0, channels, [&](int64_t c, auto lanes) {
        V half[8] = {}, out[8] = {};
        for (int k = 0; k < 4; ++k) {
          if (below != nullptr) {
            const V v1 = load_vector(below + (4 + k) * plane + c, lanes);
            const V v2 = load_vector(below + (8 + k) * plane + c, lanes);
            half[k] += load_vector(below + k * plane + c, lanes);
            half[4 + k] += v1 - v2 + load_vector(below + (12 + k) * plane + c, lanes);
          }
          if (above != nullptr) {
            const V v1 = load_vector(above + (4 + k) * plane + c, lanes);
            const V v2 = load_vector(above + (8 + k) * plane + c, lanes);
            half[k] += v1 + v2 - load_vector(above + k * plane + c, lanes);
            half[4 + k] -= load_vector(above + (12 + k) * plane + c, lanes);
          }
        }
        for (int r = 0; r < 2; ++r) {
          const V* h = half + 4 * r;
          out[4 * r] = h[0];
          out[4 * r + 1] = h[1] - h[2] + h[3];
          out[4 * r + 2] = h[1] + h[2] - h[0];
          out[4 * r + 3] = -h[3];
          for (int k = 0; k < 2; ++k) {
            float *wait = waiting + (2 * r + k) * channels + c, *at = to + r * line + k * channels + c;
            V sum = out[4 * r + k];
            if (j > 0) sum += load_vector(wait, lanes);
            if (onto && i == 0) sum += load_vector(at, lanes);
            store_vector(at, sum, lanes);
            store_vector(wait, out[4 * r + 2 + k], lanes);
          }
        }
      });
    }
  });
}

void winograd_output(const float* m, int64_t plane, const float* bias, float* y, int64_t samples, int64_t rows,
                     int64_t columns, int64_t channels, int threads) {
  const int64_t high = rows / 2, wide = columns / 2, line = columns * channels;
  each_row(samples, high, samples * rows * line, threads, [&](int64_t n, int64_t i) {
    for (int64_t j = 0; j < wide; ++j) {
      const float* from = m + ((n * high + i) * wide + j) * channels;
      float* to = y + (n * rows + 2 * i) * line + 2 * j * channels;
      each_vector<float>(0, channels, [&](int64_t c, auto lanes) {
        V in[16], half[8], out[4];
        for (int k = 0; k < 16; ++k) in[k] = load_vector(from + k * plane + c, lanes);
        for (int k = 0; k < 4; ++k) output(in + k, 4, half + k, 4);
        for (int r = 0; r < 2; ++r) output(half + 4 * r, 1, out + 2 * r, 1);
        const V b = bias == nullptr ? V{} : load_vector(bias + c, lanes);
        for (int k = 0; k < 4; ++k) store_vector(to + k / 2 * line + k % 2 * channels + c, out[k] + b, lanes);
      });
    }
  });
}

void winograd_output_adjoint(const float* y, float* m, int64_t plane, int64_t samples, int64_t rows, int64_t columns,
                             int64_t channels, int threads) {
  const int64_t high = rows / 2, wide = columns / 2, line = columns * channels;
  each_row(samples, high, samples * rows * line, threads, [&](int64_t n, int64_t i) {
    for (int64_t j = 0; j < wide; ++j) {
      const float* from = y + (n * rows + 2 * i) * line + 2 * j * channels;
      float* to = m + ((n * high + i) * wide + j) * channels;
      each_vector<float>(0, channels, [&](int64_t c, auto lanes) {
        V in[4], half[8], out[16];
        for (int k = 0; k < 4; ++k) in[k] = load_vector(from + k / 2 * line + k % 2 * channels + c, lanes);
        for (int k = 0; k < 2; ++k) output_adjoint(in + k, 2, half + k, 2);
        for (int r = 0; r < 4; ++r) output_adjoint(half + 2 * r, 1, out + 4 * r, 1);
        for (int k = 0; k < 16; ++k) store_vector(to + k * plane + c, out[k], lanes);
      });
    }
  });
}

void winograd_weight(const float* w, float* u, int64_t plane, int64_t filters, int64_t channels, int threads) {
  each_row(1, filters, 9 * filters * channels, threads, [&](int64_t, int64_t f) {
    const float* from = w + 9 * f * channels;
    each_vector<float>(0, channels, [&](int64_t c, auto lanes) {
      V g[9], half[12], out[16];
      for (int k = 0; k < 9; ++k) g[k] = load_vector(from + k * channels + c, lanes);
      for (int k = 0; k < 3; ++k) weight(g + k, 3, half + k, 3);
      for (int r = 0; r < 4; ++r) weight(half + 3 * r, 1, out + 4 * r, 1);
      for (int k = 0; k < 16; ++k) store_vector(u + k * plane + f * channels + c, out[k], lanes);
    });
  });
}

void winograd_weight_adjoint(const float* u, int64_t plane, float* w, int64_t filters, int64_t channels, int threads) {
  each_row(1, filters, 9 * filters * channels, threads, [&](int64_t, int64_t f) {
    float* to = w + 9 * f * channels;
    each_vector<float>(0, channels, [&](int64_t c, auto lanes) {
      V in[16], half[12], out[9];
      for (int k = 0; k < 16; ++k) in[k] = load_vector(u + k * plane + f * channels + c, lanes);
      for (int k = 0; k < 4; ++k) weight_adjoint(in + k, 4, half + k, 4);
      for (int r = 0; r < 3; ++r) weight_adjoint(half + 4 * r, 1, out + 3 * r, 1);
      for (int k = 0; k < 9; ++k) store_vector(to + k * channels + c, out[k], lanes);
    });
  });
}

}  // namespace fastgan::FASTGAN_ISA
