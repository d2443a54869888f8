#include "cpu/winograd.h"

#include <cstring>

#include "common/simd.h"
#include "cpu/samples.h"
#include "cpu/winograd/tiles.h"
#include "cpu/workspace.h"

namespace fastgan::FASTGAN_ISA {
namespace {

constexpr int64_t kVector = kLanes<float>;

// --- products --------------------------------------------------------------------------------------------------

// kRows x kPanel results stay in registers.
constexpr int kRows = kVector == 16 ? 12 : 6, kVectors = 2;
constexpr int64_t kPanel = kVectors * kVector;

// c [R, kPanel] = sum over k < terms of a[r * kRow + k * kStep] b[k, kPanel], or that added to it.
template <int R, int64_t kRow, int64_t kStep, bool kOnto>
FASTGAN_INLINE void product_of_terms(const float* a, const float* b, int64_t terms, float* c) {
  V sum[R][kVectors] = {};
  for (int64_t k = 0; k < terms; ++k, a += kStep, b += kPanel) {
    V right[kVectors];
    for (int v = 0; v < kVectors; ++v) right[v] = load_vector(b + v * kVector);
    for (int r = 0; r < R; ++r) {
      const V left = broadcast(a[r * kRow]);
      for (int v = 0; v < kVectors; ++v) sum[r][v] = fma(left, right[v], sum[r][v]);
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < kVectors; ++v) {
      float* to = c + r * kPanel + v * kVector;
      store_vector(to, kOnto ? load_vector(to) + sum[r][v] : sum[r][v]);
    }
  }
  asm volatile("" : : : "memory");  // GCC would keep the sums for the next terms, in more registers than there are
}

// The same for any depth: so many terms at a time are added up in registers, and then to the sums before. One long sum
// errs more.
template <int R, int64_t kRow, int64_t kStep, bool kOnto>
FASTGAN_INLINE void product_of_rows(const float* a, const float* b, int64_t depth, int64_t terms, float* c) {
  for (int64_t k = 0; k < depth; k += terms) {
    if constexpr (kStep == 1) {  // the next terms of these rows, or the first of the next rows
      const float* next = a + (k + terms < depth ? k + terms : R * kRow);
      for (int r = 0; r < R; ++r) __builtin_prefetch(next + r * kRow);
    }
    if (kOnto || k > 0) {
      product_of_terms<R, kRow, kStep, true>(a + k * kStep, b + k * kPanel, least(terms, depth - k), c);
    } else {
      product_of_terms<R, kRow, kStep, false>(a + k * kStep, b + k * kPanel, least(terms, depth - k), c);
    }
  }
}

template <int64_t kRow, int64_t kStep, bool kOnto, int R = kRows>
void product(int64_t rows, const float* a, const float* b, int64_t depth, int64_t terms, float* c) {
  for (; rows >= R; rows -= R, a += R * kRow, c += R * kPanel) {
    product_of_rows<R, kRow, kStep, kOnto>(a, b, depth, terms, c);
  }
  if constexpr (R > 1) {
    if (rows > 0) product<kRow, kStep, kOnto, R / 2>(rows, a, b, depth, terms, c);
  }
}

// --- tiles -----------------------------------------------------------------------------------------------------

struct Images {
  int64_t samples, rows, columns, channels;
  FASTGAN_INLINE int64_t at(int64_t n, int64_t i, int64_t j) const { return ((n * rows + i) * columns + j) * channels; }

  // Where the kSide x kSide pixels from (i, j) on lie; those outside are zeros.
  template <int kSide, typename T>
  FASTGAN_INLINE void pixels(const T* x, int64_t n, int64_t i, int64_t j, const T* zeros, const T** to) const {
    for (int k = 0; k < kSide * kSide; ++k) {
      const int64_t row = i + k / kSide, column = j + k % kSide;
      const bool inside = row >= 0 && row < rows && column >= 0 && column < columns;
      to[k] = inside ? x + at(n, row, column) : zeros;
    }
  }
};

// Tiles of results, of all images in turn: their sample, row and column. The last may reach beyond.
struct Tiles {
  int64_t samples, high, wide;
  FASTGAN_INLINE Tiles(const Images& results, int side)
      : samples(results.samples), high(ceil_div(results.rows, side)), wide(ceil_div(results.columns, side)) {}
  FASTGAN_INLINE int64_t count() const { return samples * high * wide; }
  // Calls body(index from first on, sample, row, column) for the tiles of a range.
  template <typename Body>
  FASTGAN_INLINE void each(const Range& range, const Body& body) const {
    int64_t n = range.begin / (high * wide), i = range.begin / wide % high, j = range.begin % wide;
    for (int64_t t = 0; t < range.end - range.begin; ++t) {
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

// Transformed tiles, or a part of them, as [channels / kWide, points, tiles, kWide]. Planes of a point lie this much
// further apart than they need to: addresses a power of two apart share few lines of a cache.
constexpr int64_t kApart = 64;

template <int64_t kWide>
struct Planes {
  float* memory;
  int64_t points, plane;

  static FASTGAN_INLINE int64_t size_of(int64_t tiles) { return tiles * kWide + kApart; }
  static FASTGAN_INLINE int64_t size_of(int64_t channels, int64_t points, int64_t tiles) {
    return ceil_div(channels, kWide) * points * size_of(tiles);
  }
  FASTGAN_INLINE Planes(float* where, int64_t points_of_all, int64_t tiles)
      : memory(where), points(points_of_all), plane(size_of(tiles)) {}
  FASTGAN_INLINE float* at(int64_t channel, int64_t point, int64_t tile) const {
    return memory + (channel / kWide * points + point) * plane + tile * kWide + channel % kWide;
  }
};

// Transforms, by Map, what the tiles of a range are computed of, or their gradients: pixels of x, `pad` before theirs,
// so many channels of them. Where the first tile goes `to` is `first`.
template <typename Tile, typename Map, typename T, typename To>
void transform_tiles(const T* x, const Images& images, int64_t channels, const Tiles& tiles, const Range& range,
                     int64_t pad, const T* zeros, const To& to, int64_t first) {
  tiles.each(range, [&](int64_t t, int64_t n, int64_t i, int64_t j) {
    const T* pixels[Map::kFrom];
    images.pixels<Map::kIn>(x, n, Tile::kSide * i - pad, Tile::kSide * j - pad, zeros, pixels);
    each_vector<float>(0, channels, [&](int64_t c, auto lanes) {
      V in[Map::kFrom], out[Map::kTo];
      for (int k = 0; k < Map::kFrom; ++k) in[k] = load_vector(pixels[k] + c, lanes);
      Map::apply(in, out);
      float* at = to.at(c, 0, range.begin + t - first);
      for (int k = 0; k < Map::kTo; ++k) store_vector(at + k * to.plane, out[k]);
    });
  });
}

// How many of so many tiles are transformed before their products are computed, all parts being of one size: their
// numbers, 12 MiB, are to stay in the third cache.
FASTGAN_INLINE int64_t tiles_of_part(int64_t tiles, int64_t numbers) {
  const int64_t limit = most((3 << 20) / numbers, 1);
  return ceil_div(tiles, ceil_div(tiles, limit));
}

// As many zeros as any image has channels.
template <typename T>
class Zeros {
 public:
  FASTGAN_INLINE explicit Zeros(int64_t count) : memory_(count) {
    std::memset(memory_, 0, static_cast<size_t>(count) * sizeof(T));
  }
  FASTGAN_INLINE const T* get() const { return memory_; }

 private:
  const Scratch<T> memory_;
};

// --- the convolution -------------------------------------------------------------------------------------------

constexpr int64_t kDepth = 64;  // channels at a time

// A convolution of x, with `pad` zeros around it: y = what comes of it + bias. transform(u, plane, filter, first, end)
// puts the weights of channels first .. end for the kPanel filters from `filter` on into u [points, end - first,
// kPanel], whose points are `plane` apart.
template <typename Tile_, typename T_, typename Transform>
struct Convolution {
  using Tile = Tile_;
  using T = T_;
  static constexpr int kPoints = Tile::kPoints;
  static constexpr int64_t kWeights = kDepth * kPanel + kApart;  // of a point

  const T* x;
  const Images& from;
  int64_t pad;
  const Transform& transform;
  const float* bias;
  T* y;
  const Images& to;
  const Tiles tiles{to, Tile::kSide};
  const Zeros<T> zeros{from.channels};
  // Large tiles magnify the errors of sums, and PyTorch's own sums of few terms are more exact.
  const int64_t terms = kPoints > 16 || from.channels < 128 ? 16 : 64;

  int64_t depth() const { return from.channels; }

  // Transforms the inputs of a range of tiles, the first of v being `first`.
  void transform_inputs(const Range& range, const Planes<kDepth>& v, int64_t first) const {
    transform_tiles<Tile, typename Tile::Input>(x, from, depth(), tiles, range, pad, zeros.get(), v, first);
  }
  void transform_weights(float* u, int64_t filter, int64_t channel) const {
    transform(u, kWeights, filter, channel, least(channel + kDepth, depth()));
  }
  // Adds the products of kDepth channels, from `channel` on, to m [points, count, kPanel], or begins with them.
  void add_products(const Planes<kDepth>& v, int64_t tile, int64_t count, int64_t channel, const float* u,
                    float* m) const {
    const int64_t size = least(kDepth, depth() - channel), plane = results(count);
    with_bool(channel > 0, [&](auto onto) {
      for (int k = 0; k < kPoints; ++k) {
        product<kDepth, 1, onto.value>(count, v.at(channel, k, tile), u + k * kWeights, size, terms, m + k * plane);
      }
    });
  }
  static int64_t results(int64_t count) { return count * kPanel + kApart; }  // of a point

  void transform_results(const Range& range, int64_t filter, const float* m) const {
    const int64_t plane = results(range.end - range.begin);
    tiles.each(range, [&](int64_t t, int64_t n, int64_t i, int64_t j) {
      each_vector<float>(0, least(kPanel, to.channels - filter), [&](int64_t f, auto lanes) {
        V in[kPoints], out[Tile::kResults];
        for (int k = 0; k < kPoints; ++k) in[k] = load_vector(m + k * plane + t * kPanel + f);
        Tile::Output::apply(in, out);
        const V more = bias == nullptr ? V{} : load_vector(bias + filter + f, lanes);
        for (int k = 0; k < Tile::kResults; ++k) {
          const int64_t row = Tile::kSide * i + k / Tile::kSide, column = Tile::kSide * j + k % Tile::kSide;
          if (row >= to.rows || column >= to.columns) continue;
          store_vector(y + to.at(n, row, column) + filter + f, out[k] + more, lanes);
        }
      });
    });
  }
};

// Transforms all weights first, and then inputs of a few tiles at a time, which stay in a core's second cache.
template <typename C>
void weights_first(const C& of, int threads) {
  constexpr int kPoints = C::kPoints;
  constexpr int64_t kInputs = 192 << 10, kWeights = kPoints * C::kWeights;
  const int64_t tiles = of.tiles.count(), chunks = ceil_div(of.depth(), kDepth),
                panels = ceil_div(of.to.channels, kPanel);
  const int64_t limit = kRows * most(kInputs / (kPoints * kDepth * chunks * kRows), 1);
  // As many blocks for every thread.
  const int64_t blocks = least(threads * ceil_div(tiles, limit * threads), tiles), block = ceil_div(tiles, blocks);
  const int64_t inputs = Planes<kDepth>::size_of(of.depth(), kPoints, block);
  const int64_t each = inputs + kPoints * C::results(block);
  const Workspace workspace(panels * chunks * kWeights + threads * each);
  float *const u = workspace, *const others = u + panels * chunks * kWeights;
  Shares shares_of_weights(panels * chunks, threads), shares(blocks, threads);
  parallel(threads, [&](int thread, int team) {
    for (Range range = shares_of_weights.next(); range.begin < range.end; range = shares_of_weights.next()) {
      for (int64_t i = range.begin; i < range.end; ++i) {
        of.transform_weights(u + i * kWeights, i / chunks * kPanel, i % chunks * kDepth);
      }
    }
    barrier(team);
    const Planes<kDepth> v(others + thread * each, kPoints, block);
    float* m = others + thread * each + inputs;
    for (Range range = shares.next(); range.begin < range.end; range = shares.next()) {
      for (int64_t b = range.begin; b < range.end; ++b) {
        const Range here = part(tiles, b, blocks);
        of.transform_inputs(here, v, here.begin);
        for (int64_t p = 0; p < panels; ++p) {
          for (int64_t c = 0; c < chunks; ++c) {
            of.add_products(v, 0, here.end - here.begin, c * kDepth, u + (p * chunks + c) * kWeights, m);
          }
          of.transform_results(here, p * kPanel, m);
        }
      }
    }
  });
}

// Transforms inputs first, as many as stay in the third cache, and weights where they are used, as many as stay in the
// second: more would take longer to write and to read than to compute again for every part of the tiles.
template <typename C>
void inputs_first(const C& of, int threads) {
  constexpr int kPoints = C::kPoints;
  constexpr int64_t kBlock = (360 << 10) / (kPoints * kPanel);  // tiles at a time, whose results take up to 1.4 MiB
  // Filters for one thread, 128 bytes: two that write neighbouring lines of 64 would take them from each other.
  constexpr int64_t kWidth = 128 / sizeof(typename C::T);
  static_assert(kWidth % kPanel == 0, "a share is a number of panels");
  const int64_t tiles = of.tiles.count(), depth = of.depth(), widths = ceil_div(of.to.channels, kWidth);
  const int64_t together = tiles_of_part(tiles, kPoints * ceil_div(depth, kDepth) * kDepth);
  const int64_t blocks = least(most(ceil_div(together, kBlock), ceil_div(threads, widths)), together);
  const int64_t inputs = Planes<kDepth>::size_of(depth, kPoints, together);
  const int64_t each = kPoints * (C::kWeights + C::results(ceil_div(together, blocks)));
  const Workspace workspace(inputs + threads * each);
  const Planes<kDepth> v(workspace, kPoints, together);
  for (int64_t first = 0; first < tiles; first += together) {
    const int64_t count = least(together, tiles - first);
    Shares shares_of_tiles(count, threads), shares(widths * blocks, threads);
    parallel(threads, [&](int thread, int team) {
      for (Range range = shares_of_tiles.next(); range.begin < range.end; range = shares_of_tiles.next()) {
        of.transform_inputs({first + range.begin, first + range.end}, v, first);
      }
      barrier(team);
      float *u = workspace + inputs + thread * each, *m = u + kPoints * C::kWeights;
      for (Range range = shares.next(); range.begin < range.end; range = shares.next()) {
        for (int64_t i = range.begin; i < range.end; ++i) {
          const Range block = part(count, i % blocks, blocks);
          const int64_t begin = i / blocks * kWidth, end = least(begin + kWidth, of.to.channels);
          for (int64_t filter = begin; filter < end; filter += kPanel) {
            for (int64_t channel = 0; channel < depth; channel += kDepth) {
              of.transform_weights(u, filter, channel);
              of.add_products(v, block.begin, block.end - block.begin, channel, u, m);
            }
            of.transform_results({first + block.begin, first + block.end}, filter, m);
          }
        }
      }
    });
  }
}

template <typename Tile, typename T, typename Transform>
void convolve(const T* x, const Images& from, int64_t pad, const Transform& transform, const float* bias, T* y,
              const Images& to, int threads) {
  const Convolution<Tile, T, Transform> of{x, from, pad, transform, bias, y, to};
  // First, and whole, what has fewer numbers: weights have as many for every filter as inputs for every tile.
  to.channels <= of.tiles.count() ? weights_first(of, threads) : inputs_first(of, threads);
}

// The transform of nine vectors, into places a `plane` apart.
template <typename Tile>
FASTGAN_INLINE void put_weight(const V* g, float* u, int64_t plane) {
  V out[Tile::kPoints];
  Tile::Weight::apply(g, out);
  for (int k = 0; k < Tile::kPoints; ++k) store_vector(u + k * plane, out[k]);
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

template <typename Tile, typename T>
void forward(const T* x, const float* w, const float* bias, T* y, const Images& from, const Images& to, int64_t pad,
             int threads) {
  const int64_t channels = from.channels, filters = to.channels;
  const auto transform = [&](float* u, int64_t plane, int64_t filter, int64_t first, int64_t end) {
    for (int64_t f = 0; f < kPanel; f += kVector) {
      for (int64_t c = first; c < end; c += kVector) {
        const int64_t count = least(end - c, kVector);
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
          put_weight<Tile>(of, u + (c - first + i) * kPanel + f, plane);
        }
      }
    }
  };
  convolve<Tile>(x, from, pad, transform, bias, y, to, threads);
}

template <typename Tile, typename T>
void backward_x(const T* grad, const float* w, T* grad_x, const Images& from, const Images& to, int64_t pad,
                int threads) {
  const int64_t channels = from.channels;
  // The convolution of the gradient, with 2 - pad zeros around it, with the weights turned round.
  const auto transform = [&](float* u, int64_t plane, int64_t channel, int64_t first, int64_t end) {
    const int64_t width = least(channels - channel, kPanel);
    for (int64_t f = first; f < end; ++f) {
      for (int64_t c = 0; c < kPanel; c += kVector) {
        const int64_t count = most(least(width - c, kVector), 0);
        V g[9];
        for (int k = 0; k < 9; ++k) g[k] = load_vector(w + (9 * f + 8 - k) * channels + channel + c, count);
        put_weight<Tile>(g, u + (f - first) * kPanel + c, plane);
      }
    }
  };
  convolve<Tile>(grad, to, 2 - pad, transform, nullptr, grad_x, from, threads);
}

// --- the gradient of the weights -------------------------------------------------------------------------------

// A piece is kFilters x kPanel weights, or fewer filters.
template <typename Tile_, typename T_>
struct WeightGradient {
  using Tile = Tile_;
  using T = T_;
  static constexpr int kPoints = Tile::kPoints;
  static constexpr int64_t kFilters = 64;
  static constexpr int64_t kResult = kFilters * kPanel + kApart;  // of a point

  const T *grad, *x;
  float* grad_w;
  const Images &from, &to;
  int64_t pad;
  const Tiles tiles{to, Tile::kSide};
  const Zeros<T> zeros{most(from.channels, to.channels)};
  const int64_t terms = tiles.count() <= 128 ? 16 : 64;  // PyTorch's own sums of few are more exact

  // Transforms a range of tiles, so many channels from one on; the first of v or m being `first`.
  void transform_inputs(const Range& range, int64_t channel, int64_t count, const Planes<kPanel>& v,
                        int64_t first) const {
    transform_tiles<Tile, typename Tile::Input>(x + channel, from, count, tiles, range, pad, zeros.get(), v, first);
  }
  void transform_gradients(const Range& range, int64_t filter, int64_t count, const Planes<kFilters>& m,
                           int64_t first) const {
    using Map = typename Tile::OutputGradient;
    transform_tiles<Tile, Map>(grad + filter, to, count, tiles, range, 0, zeros.get(), m, first);
  }
  // Adds the products of the first `count` tiles, of `filters` filters in m from `filter` on and of kPanel channels in
  // v from `channel` on, to the piece u [points, filters, kPanel], or begins with them.
  void add_products(bool onto_u, const Planes<kFilters>& m, int64_t filter, int64_t filters, const Planes<kPanel>& v,
                    int64_t channel, int64_t count, float* u) const {
    with_bool(onto_u, [&](auto onto) {
      for (int k = 0; k < kPoints; ++k) {
        product<1, kFilters, onto.value>(filters, m.at(filter, k, 0), v.at(channel, k, 0), count, terms,
                                         u + k * kResult);
      }
    });
  }
  void transform_results(const float* u, int64_t filter, int64_t filters, int64_t channel) const {
    for (int64_t f = 0; f < filters; ++f) {
      float* to_f = grad_w + 9 * (filter + f) * from.channels + channel;
      each_vector<float>(0, least(kPanel, from.channels - channel), [&](int64_t c, auto lanes) {
        V in[kPoints], out[9];
        for (int k = 0; k < kPoints; ++k) in[k] = load_vector(u + k * kResult + f * kPanel + c);
        Tile::WeightGradient::apply(in, out);
        for (int k = 0; k < 9; ++k) store_vector(to_f + k * from.channels + c, out[k], lanes);
      });
    }
  }
};

// A few pieces at a time, for which all tiles are transformed anew, some at a time: all stays in a core's second cache.
template <typename G>
void pieces_first(const G& of, int threads) {
  constexpr int kPoints = G::kPoints;
  constexpr int64_t kChannels = 64, kBlock = 64, kPieces = kChannels / kPanel;
  const int64_t channels = of.from.channels, filters = of.to.channels, tiles = of.tiles.count();
  int64_t side = G::kFilters;  // fewer filters where threads would have nothing to do
  while (side > 16 && ceil_div(filters, side) * ceil_div(channels, kChannels) < threads) side /= 2;
  const int64_t across = ceil_div(channels, kChannels), shares_in_all = across * ceil_div(filters, side);
  const int64_t inputs = Planes<kPanel>::size_of(kChannels, kPoints, kBlock),
                gradients = Planes<G::kFilters>::size_of(G::kFilters, kPoints, kBlock);
  const int64_t each = inputs + gradients + kPieces * kPoints * G::kResult;
  const Workspace workspace(threads * each);
  Shares shares(shares_in_all, threads);
  parallel(threads, [&](int thread, int) {
    const Planes<kPanel> v(workspace + thread * each, kPoints, kBlock);
    const Planes<G::kFilters> m(v.memory + inputs, kPoints, kBlock);
    float* u = m.memory + gradients;
    for (Range range = shares.next(); range.begin < range.end; range = shares.next()) {
      for (int64_t i = range.begin; i < range.end; ++i) {
        const int64_t filter = i / across * side, channel = i % across * kChannels;
        const int64_t height = least(side, filters - filter), width = least(kChannels, channels - channel);
        for (int64_t first = 0; first < tiles; first += kBlock) {
          const Range here{first, least(first + kBlock, tiles)};
          of.transform_inputs(here, channel, width, v, first);
          of.transform_gradients(here, filter, height, m, first);
          for (int64_t c = 0; c < width; c += kPanel) {
            of.add_products(first > 0, m, 0, height, v, c, here.end - first, u + c / kPanel * kPoints * G::kResult);
          }
        }
        for (int64_t c = 0; c < width; c += kPanel) {
          of.transform_results(u + c / kPanel * kPoints * G::kResult, filter, height, channel + c);
        }
      }
    }
  });
}

// Transforms tiles first, as many as stay in the third cache: for every piece anew would take as long as the products.
// Pieces wait for the next tiles, if there are any.
template <typename G>
void tiles_first(const G& of, int threads) {
  constexpr int kPoints = G::kPoints;
  const int64_t channels = of.from.channels, filters = of.to.channels, tiles = of.tiles.count();
  const auto inputs = [&](int64_t count) { return Planes<kPanel>::size_of(channels, kPoints, count); };
  const auto gradients = [&](int64_t count) { return Planes<G::kFilters>::size_of(filters, kPoints, count); };
  const int64_t together = tiles_of_part(tiles, inputs(1) - inputs(0) + gradients(1) - gradients(0));
  const int64_t across = ceil_div(channels, kPanel), pieces = across * ceil_div(filters, G::kFilters);
  const bool wait = together < tiles;
  const Workspace workspace(inputs(together) + gradients(together) + (wait ? pieces : threads) * kPoints * G::kResult);
  const Planes<kPanel> v(workspace, kPoints, together);
  const Planes<G::kFilters> m(v.memory + inputs(together), kPoints, together);
  float* const results = m.memory + gradients(together);
  for (int64_t first = 0; first < tiles; first += together) {
    const int64_t count = least(together, tiles - first);
    Shares shares_of_tiles(count, threads), shares(pieces, threads);
    parallel(threads, [&](int thread, int team) {
      for (Range range = shares_of_tiles.next(); range.begin < range.end; range = shares_of_tiles.next()) {
        const Range here{first + range.begin, first + range.end};
        of.transform_inputs(here, 0, channels, v, first);
        of.transform_gradients(here, 0, filters, m, first);
      }
      barrier(team);
      for (Range range = shares.next(); range.begin < range.end; range = shares.next()) {
        for (int64_t i = range.begin; i < range.end; ++i) {
          float* u = results + (wait ? i : thread) * kPoints * G::kResult;
          const int64_t filter = i / across * G::kFilters, height = least(G::kFilters, filters - filter);
          of.add_products(first > 0, m, filter, height, v, i % across * kPanel, count, u);
          if (first + count == tiles) of.transform_results(u, filter, height, i % across * kPanel);
        }
      }
    });
  }
}

template <typename Tile, typename T>
void backward_w(const T* grad, const T* x, float* grad_w, const Images& from, const Images& to, int64_t pad,
                int threads) {
  const WeightGradient<Tile, T> of{grad, x, grad_w, from, to, pad};
  const bool once = most(from.channels, to.channels) <= of.kFilters;  // each tile is transformed once either way
  Tile::kPoints == 16 || once ? pieces_first(of, threads) : tiles_first(of, threads);
}

template <typename T>
const T* as(const void* p) {
  return static_cast<const T*>(p);
}
template <typename T>
T* as(void* p) {
  return static_cast<T*>(p);
}

// Calls body(T{}, the images that are convolved, those that come of it).
template <typename Body>
void with_images(const WinogradSizes& of, const Body& body) {
  const int64_t less = 2 - 2 * of.pad;
  const Images from{of.samples, of.rows + less, of.columns + less, of.channels},
      to{of.samples, of.rows, of.columns, of.filters};
  of.dtype == static_cast<int>(DType::bf16) ? body(bf16_t{}, from, to) : body(float{}, from, to);
}

// Large tiles need fewer multiplications and err more. Those of float32 images are chosen to err at most twice as much
// as PyTorch's convolution, whose errors depend on how many terms are added up; in bfloat16 any tile does.
template <typename T>
using Small = Tile<std::conditional_t<std::is_same_v<T, float>, Two, Four>>;
using Large = Tile<Four>;
constexpr int64_t kLeastTerms = 128, kMostTerms = 512;

}  // namespace

void winograd_forward(const void* x, const float* w, const float* bias, void* y, const WinogradSizes& of, int threads) {
  with_images(of, [&](auto t, const Images& from, const Images& to) {
    using T = decltype(t);
    const auto run = of.channels >= kLeastTerms && of.channels <= kMostTerms ? forward<Large, T> : forward<Small<T>, T>;
    run(as<T>(x), w, bias, as<T>(y), from, to, of.pad, threads);
  });
}

void winograd_backward_x(const void* grad, const float* w, void* grad_x, const WinogradSizes& of, int threads) {
  with_images(of, [&](auto t, const Images& from, const Images& to) {
    using T = decltype(t);
    backward_x<Small<T>>(as<T>(grad), w, as<T>(grad_x), from, to, of.pad, threads);
  });
}

void winograd_backward_w(const void* grad, const void* x, float* grad_w, const WinogradSizes& of, int threads) {
  with_images(of, [&](auto t, const Images& from, const Images& to) {
    using T = decltype(t);
    backward_w<Small<T>>(as<T>(grad), as<T>(x), grad_w, from, to, of.pad, threads);
  });
}

}  // namespace fastgan::FASTGAN_ISA
