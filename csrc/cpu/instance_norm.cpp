// Instance norm + affine + residual + activation + reflection padding, its backward and its double backward.
//
// The formulas are those of fastgan/reference/instance_norm.py. Each of the three is a pass that reduces over a
// plane (sums of what the formulas need), a few scalars per plane, and a pass that writes; the second pass finds in
// cache what the first one read. Two layouts:
//
//   channels first   a group is one plane [D, H, W]; vectors run along W (along the whole plane where it is dense)
//   channels last    a group is one sample [D, H, W, C]; vectors run along C, four pixels share the coefficients
//
// Planes of at most a chunk are taken in blocks of up to kLanes, whose sums and coefficients are a vector's lanes.
//
// A group is cut into slabs and a slab into chunks, by its shape alone: the sums of a chunk are taken in the
// arithmetic's type, all further sums in double and in a fixed order. So the result does not depend on the number
// of threads. Threads share the groups out, or, where groups are few or large, the slabs of one group after another.
//
// Moments of x: a chunk's sums of x - k and (x - k)^2 about a center k, in one pass; k is the mean of the chunk before
// it (of a few first elements for a slab's first chunk). That loses nothing: the error is of the order of eps sum_i
// n (m_i - m_{i-1})^2 <= 4 eps sum_i n (m_i - m)^2, at most four times the variance's own last digit. With k = x[0]
// to begin with, a constant plane's variance is exactly 0.
//
// Reflection padding is pushed by whoever writes a source element, and its adjoint pulled by whoever reads one.
#include "cpu/instance_norm.h"

#include <type_traits>

#include "common/simd.h"
#include "common/threads.h"

namespace fastgan::FASTGAN_ISA {
namespace {

#define FASTGAN_HERE __attribute__((always_inline))  // the body of a loop

constexpr int64_t kChunkElements = 8192;  // channels first; 64 accumulators (AVX-512, float) of 128 elements each
constexpr int64_t kChunkPixels = 128;     // channels last
constexpr int64_t kSeedElements = 256;    // what a slab's first center is taken from
constexpr int64_t kSeedPixels = 16;
constexpr int64_t kSlabElements = 64 << 10;  // below this a slab is not worth another
constexpr int64_t kMaxSlabs = 64;
constexpr int64_t kThreadElements = 16 << 10;  // below this a thread is not worth waking
constexpr int64_t kL2Bytes = 768 << 10;        // what of a group may be expected to stay in a core's own cache
constexpr int64_t kL1Bytes = 32 << 10;
constexpr int64_t kBlockBytes = 64 << 10;  // what a block of planes reads, to find it in cache again
constexpr int64_t kAlignedRow = 512;       // from this size on, stores that cross no cache line are worth a tail more
constexpr int64_t kPageBytes = 4 << 10;    // what lies nearer is prefetched into the other core's cache
constexpr int64_t kTileBytes = 16 << 10;   // channels last: pixels that a block of channels goes over at once

template <int N>
struct Constant {
  static constexpr int value = N;
};

template <typename T>
FASTGAN_INLINE T at(const void* values, int64_t i, T otherwise) {
  return values == nullptr ? otherwise : static_cast<const T*>(values)[i];
}
FASTGAN_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
FASTGAN_INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

// --- elementwise formulas --------------------------------------------------------------------------------------
//
// Every pass has coefficients per plane; kCoefs is their number, and they are numbers (channels first) or vectors
// over channels (channels last, kBlock of them in registers). The sums of `finish` lie `apart` from one another.

// act'(z) times value, which for value = z is act(z). NaN stays NaN, and ReLU gives +0.
template <typename V, bool kRelu>
struct Activation {
  V slope;

  FASTGAN_INLINE V apply(V z, V value) const {
    if constexpr (kRelu) return z <= 0 ? V{} : value;
    return z <= 0 ? value * slope : value;
  }
};

// Calls body with the activation: ReLU is compiled apart; without one the slope is 1.
template <typename V, typename Body>
FASTGAN_INLINE void with_activation(double slope, const Body& body) {
  const V negative = broadcast(static_cast<std::decay_t<decltype(V{}[0])>>(slope));
  if (slope == 0) return body(Activation<V, true>{negative});
  body(Activation<V, false>{negative});
}

template <typename V>
struct Inputs {
  V grad, x, residual, u, v_residual;
  bool has_residual, has_v_residual;

  FASTGAN_INLINE V plus_residual(V z) const { return has_residual ? z + residual : z; }
};

template <typename V>
struct Outputs {
  V padded, plain, extra;
};

template <typename A>
struct Forward {
  using Acc = A;
  static constexpr bool kMoments = true, kReadsGrad = false, kReadsU = false, kWritesPadded = true,
                        kWritesPlain = false;
  static constexpr int kSums = 2, kBlock = 4;
  enum { kMean, kScale, kShift, kCoefs };

  const InstanceNorm& p;
  A eps;
  A *mean, *rstd;

  FASTGAN_INLINE void prepare(int64_t, int64_t, A*, int64_t) const {}
  // sums: of x - origin and of its square.
  FASTGAN_INLINE void finish(int64_t n, int64_t c, A origin, const double* sums, int64_t apart, A* coef, int64_t step,
                             bool write) const {
    const double elements = static_cast<double>(p.D * p.H * p.W);
    const double shift = sums[0] / elements;
    const double variance = sums[apart] / elements - shift * shift;
    const double r = 1.0 / __builtin_sqrt((variance < 0 ? 0.0 : variance) + static_cast<double>(eps));
    const A mean_nc = static_cast<A>(static_cast<double>(origin) + shift), rstd_nc = static_cast<A>(r);
    coef[kMean * step] = mean_nc;
    coef[kScale * step] = rstd_nc * at<A>(p.weight, c, 1);
    coef[kShift * step] = at<A>(p.bias, c, 0);
    if (write) {
      mean[n * p.C + c] = mean_nc;
      rstd[n * p.C + c] = rstd_nc;
    }
  }
  template <typename V, typename Act>
  FASTGAN_INLINE void reduce(const V*, const Act&, const Inputs<V>&, V*) const {}
  template <typename V, typename Act>
  FASTGAN_INLINE void write(const V* k, const Act& act, const Inputs<V>& in, Outputs<V>& out) const {
    const V z = in.plus_residual(fma(in.x - k[kMean], k[kScale], k[kShift]));
    out.padded = act.apply(z, z);
  }
};

template <typename A>
struct Backward {
  using Acc = A;
  static constexpr bool kMoments = false, kReadsGrad = true, kReadsU = false, kWritesPadded = false,
                        kWritesPlain = true;
  static constexpr int kSums = 2, kBlock = 4;
  enum { kMean, kScale, kShift, kGradX, kGradShift, kCoefs };

  const InstanceNorm& p;
  const A *mean, *rstd;
  A *m1, *m2;

  FASTGAN_INLINE void prepare(int64_t n, int64_t c, A* coef, int64_t step) const {
    coef[kMean * step] = mean[n * p.C + c];
    coef[kScale * step] = rstd[n * p.C + c] * at<A>(p.weight, c, 1);
    coef[kShift * step] = at<A>(p.bias, c, 0);
  }
  // sums: of g and of g (x - mean).
  FASTGAN_INLINE void finish(int64_t n, int64_t c, A, const double* sums, int64_t apart, A* coef, int64_t step,
                             bool write) const {
    const double elements = static_cast<double>(p.D * p.H * p.W);
    const double r = static_cast<double>(rstd[n * p.C + c]);
    const double mean_g = sums[0] / elements, mean_gxhat = sums[apart] / elements * r;
    const double s = r * static_cast<double>(at<A>(p.weight, c, 1));
    coef[kGradX * step] = static_cast<A>(-s * r * mean_gxhat);
    coef[kGradShift * step] = static_cast<A>(-s * mean_g);
    if (write && m1 != nullptr) {
      m1[n * p.C + c] = static_cast<A>(mean_g);
      m2[n * p.C + c] = static_cast<A>(mean_gxhat);
    }
  }
  template <typename V, typename Act>
  FASTGAN_INLINE V gradient(const V* k, const Act& act, const Inputs<V>& in, V d) const {
    return act.apply(in.plus_residual(fma(d, k[kScale], k[kShift])), in.grad);
  }
  template <typename V, typename Act>
  FASTGAN_INLINE void reduce(const V* k, const Act& act, const Inputs<V>& in, V* sums) const {
    const V d = in.x - k[kMean], g = gradient(k, act, in, d);
    sums[0] += g;
    sums[1] = fma(g, d, sums[1]);
  }
  // grad_x = w r (g - m1 - (x - mean) r m2)
  template <typename V, typename Act>
  FASTGAN_INLINE void write(const V* k, const Act& act, const Inputs<V>& in, Outputs<V>& out) const {
    const V d = in.x - k[kMean], g = gradient(k, act, in, d);
    out.plain = fma(d, k[kGradX], fma(g, k[kScale], k[kGradShift]));
    out.extra = g;
  }
};

template <typename A>
struct DoubleBackward {
  using Acc = A;
  static constexpr bool kMoments = false, kReadsGrad = true, kReadsU = true, kWritesPadded = true, kWritesPlain = true;
  static constexpr int kSums = 3, kBlock = 2;
  enum { kMean, kScale, kShift, kM1, kMeanU, kGradX, kGradShift, kXU, kXG, kXX, kCoefs };

  const InstanceNorm& p;
  const A *mean, *rstd, *m1, *m2, *v_weight, *v_bias;
  A* grad_weight;

  FASTGAN_INLINE void prepare(int64_t n, int64_t c, A* coef, int64_t step) const {
    coef[kMean * step] = mean[n * p.C + c];
    coef[kScale * step] = rstd[n * p.C + c] * at<A>(p.weight, c, 1);
    coef[kShift * step] = at<A>(p.bias, c, 0);
    coef[kM1 * step] = m1[n * p.C + c];
  }
  // With d = x - mean, u' = u - mean(u) and g' = g - m1; sums: of u, of u d and of u g' (q = mean(u g) - mean(u) m1).
  //   grad_g = s u' + r (v_w - s a) d + v_b + v_res
  //   grad_x = -s r m2 u' + r (v_w - s a) g' - r^2 (s (q - 3 a m2) + v_w m2) d
  FASTGAN_INLINE void finish(int64_t n, int64_t c, A, const double* sums, int64_t apart, A* coef, int64_t step,
                             bool write) const {
    const double elements = static_cast<double>(p.D * p.H * p.W);
    const int64_t nc = n * p.C + c;
    const double r = static_cast<double>(rstd[nc]), m = static_cast<double>(m2[nc]);
    const double s = r * static_cast<double>(at<A>(p.weight, c, 1));
    const double v_w = static_cast<double>(at<A>(v_weight, c, 0));
    const double mean_u = sums[0] / elements, a = sums[apart] / elements * r;
    const double q = sums[2 * apart] / elements;
    coef[kMeanU * step] = static_cast<A>(mean_u);
    coef[kGradX * step] = static_cast<A>(r * (v_w - s * a));
    coef[kGradShift * step] = at<A>(v_bias, c, 0);
    coef[kXU * step] = static_cast<A>(-s * r * m);
    coef[kXG * step] = static_cast<A>(r * (v_w - s * a));
    coef[kXX * step] = static_cast<A>(-r * r * (s * (q - 3 * a * m) + v_w * m));
    if (write) grad_weight[nc] = static_cast<A>(r * elements * (q - a * m));
  }
  template <typename V, typename Act>
  FASTGAN_INLINE void reduce(const V* k, const Act& act, const Inputs<V>& in, V* sums) const {
    const V d = in.x - k[kMean];
    const V g = act.apply(in.plus_residual(fma(d, k[kScale], k[kShift])), in.grad) - k[kM1];
    sums[0] += in.u;
    sums[1] = fma(in.u, d, sums[1]);
    sums[2] = fma(in.u, g, sums[2]);
  }
  template <typename V, typename Act>
  FASTGAN_INLINE void write(const V* k, const Act& act, const Inputs<V>& in, Outputs<V>& out) const {
    const V d = in.x - k[kMean], u = in.u - k[kMeanU];
    const V z = in.plus_residual(fma(d, k[kScale], k[kShift]));
    const V g = act.apply(z, in.grad) - k[kM1];
    V grad_g = fma(k[kScale], u, fma(d, k[kGradX], k[kGradShift]));
    if (in.has_v_residual) grad_g += in.v_residual;
    out.padded = act.apply(z, grad_g);
    out.plain = fma(u, k[kXU], fma(g, k[kXG], d * k[kXX]));
  }
};

// --- geometry --------------------------------------------------------------------------------------------------

// The tensors of a pass; absent ones have a null address.
struct Tensors {
  Strided grad, x, residual, u, v_residual;
  Strided padded, plain, extra;
};

// Rows [row0, row1) of a group, a row being one (d, h); columns [w0, w1) of each. `first`: of a slab.
struct Chunk {
  int64_t row0, row1, w0, w1;
  bool first;

  // About its first `pixels` pixels.
  FASTGAN_INLINE Chunk seed(int64_t pixels) const {
    return {row0, least(row1, row0 + most(1, pixels / (w1 - w0))), w0, least(w1, w0 + pixels), true};
  }
};

// A plane (n, c), or with channels last a sample n, whose first channel is c = 0.
struct Group {
  int64_t n, c;
};

struct Plan {
  int64_t N, C, D, H, W, pad_d, pad_h, pad_w;
  int64_t groups, slabs, chunks, rows_per_chunk, pieces, piece;
  bool channels_last, together;
  int threads;

  FASTGAN_INLINE Group group(int64_t i) const { return channels_last ? Group{i, 0} : Group{i / C, i % C}; }
  FASTGAN_INLINE int64_t elements() const { return N * C * D * H * W; }
  FASTGAN_INLINE bool padded() const { return pad_d + pad_h + pad_w > 0; }
  // Whether the padding repeats nothing of row (d, h) but its ends.
  FASTGAN_INLINE bool shown_once(int64_t d, int64_t h) const { return inner(d, D, pad_d) && inner(h, H, pad_h); }
  static FASTGAN_INLINE bool inner(int64_t i, int64_t size, int64_t pad) {
    return pad == 0 || ((i < 1 || i > pad) && (i < size - 1 - pad || i > size - 2));
  }
  // Small planes have one slab, one chunk and D = 1, and no time for divisions.
  FASTGAN_INLINE Range chunks_of(int64_t slab) const {
    return slabs == 1 ? Range{0, chunks} : part(chunks, slab, slabs);
  }
  FASTGAN_INLINE Chunk chunk(int64_t i, bool first) const {
    if (chunks == 1) return {0, D * H, 0, W, first};
    const int64_t row = i / pieces * rows_per_chunk, w0 = i % pieces * piece;
    return {row, least(row + rows_per_chunk, D * H), w0, least(w0 + piece, W), first};
  }
};

// Walks over the rows of a chunk.
struct Rows {
  const int64_t H, end;
  int64_t row, d, h;

  FASTGAN_INLINE Rows(const Plan& plan, const Chunk& chunk)
      : H(plan.H), end(chunk.row1), row(chunk.row0), d(plan.D == 1 ? 0 : row / H), h(plan.D == 1 ? row : row % H) {}
  FASTGAN_INLINE bool more() const { return row < end; }
  FASTGAN_INLINE void next() {
    ++row;
    if (++h == H) h = 0, ++d;
  }
};

// Merges spatial dimensions that lie behind one another in every tensor: most often all of them.
template <typename... S>
void merge_dims(Plan& plan, S&... tensors) {
  const auto merge = [&](int64_t Strided::* outer, int64_t Strided::* inner, int64_t& outer_size, int64_t& inner_size) {
    if (outer_size > 1 && ((tensors.data != nullptr && tensors.*outer != inner_size * tensors.*inner) || ...)) return;
    inner_size *= outer_size;
    outer_size = 1;
    ((tensors.*outer = 0), ...);
  };
  merge(&Strided::d, &Strided::h, plan.D, plan.H);
  // What was merged into H has D = 1 behind it, so H and W can be looked at alone.
  if (plan.D == 1) merge(&Strided::h, &Strided::w, plan.H, plan.W);
}

Plan make_plan(const InstanceNorm& p, Tensors& t, int64_t element_bytes) {
  Plan plan{};
  plan.N = p.N, plan.C = p.C, plan.D = p.D, plan.H = p.H, plan.W = p.W;
  plan.pad_d = p.pad_d, plan.pad_h = p.pad_h, plan.pad_w = p.pad_w;
  plan.channels_last = p.channels_last;
  if (!plan.padded()) merge_dims(plan, t.grad, t.x, t.residual, t.u, t.v_residual, t.padded, t.plain, t.extra);

  const int64_t unit = p.channels_last ? p.C : 1;
  const int64_t chunk = p.channels_last ? kChunkPixels : kChunkElements;  // in pixels
  plan.piece = least(plan.W, chunk);
  plan.pieces = ceil_div(plan.W, most(1, plan.piece));
  plan.rows_per_chunk = plan.pieces > 1 ? 1 : most(1, chunk / most(1, plan.W));
  plan.chunks = ceil_div(plan.D * plan.H, plan.rows_per_chunk) * plan.pieces;

  const int64_t elements = plan.D * plan.H * plan.W * unit;
  plan.groups = p.channels_last ? plan.N : plan.N * plan.C;
  plan.slabs = least(least(plan.chunks, kMaxSlabs), most(1, elements / kSlabElements));

  const int64_t threads = most(1, least(p.threads, plan.groups * most(elements, 16) / kThreadElements));
  const int64_t rounds = ceil_div(plan.groups, threads);
  const bool uneven = rounds * threads * 10 > plan.groups * 11;
  plan.together = threads > 1 && plan.slabs >= threads && (uneven || elements * element_bytes > kL2Bytes);
  plan.threads = static_cast<int>(plan.together ? threads : least(threads, plan.groups));
  return plan;
}

template <typename T>
FASTGAN_INLINE T* address(const Strided& s, int64_t n, int64_t c, int64_t d, int64_t h, int64_t w) {
  if (s.data == nullptr) return nullptr;
  return static_cast<T*>(s.data) + n * s.n + c * s.c + d * s.d + h * s.h + w * s.w;
}

// The positions of a padded dimension that show element i of [0, size): itself first. Returns how many.
FASTGAN_INLINE int images(int64_t i, int64_t size, int64_t pad, int64_t* at) {
  int count = 0;
  at[count++] = i + pad;
  if (pad > 0 && i >= 1 && i <= pad) at[count++] = pad - i;
  if (pad > 0 && i >= size - 1 - pad && i <= size - 2) at[count++] = pad + 2 * (size - 1) - i;
  return count;
}

// --- loops over vectors ---------------------------------------------------------------------------------------

// Calls visit(offset, lanes, which of 4 accumulators) over n elements.
template <int64_t kL, typename Visit>
FASTGAN_INLINE void for_vectors(int64_t n, const Visit& visit) {
  int64_t i = 0;
  for (; i + 4 * kL <= n; i += 4 * kL) {
    visit(i, Whole{}, 0);
    visit(i + kL, Whole{}, 1);
    visit(i + 2 * kL, Whole{}, 2);
    visit(i + 3 * kL, Whole{}, 3);
  }
  for (; i + kL <= n; i += kL) visit(i, Whole{}, 0);
  if (i < n) visit(i, n - i, 1);
}

// The same from the end on: what a pass read last is what the first cache still holds.
template <int64_t kL, typename Visit>
FASTGAN_INLINE void for_vectors_backwards(int64_t n, const Visit& visit) {
  int64_t i = n / kL * kL;
  if (i < n) visit(i, n - i);
  for (; i % (4 * kL) > 0; i -= kL) visit(i - kL, Whole{});
  for (; i > 0; i -= 4 * kL) {
    visit(i - kL, Whole{});
    visit(i - 2 * kL, Whole{});
    visit(i - 3 * kL, Whole{});
    visit(i - 4 * kL, Whole{});
  }
}

// --- reflection padding and its adjoint -----------------------------------------------------------------------

// The rows of the padded tensor that show row (d, h).
struct RowImages {
  int64_t d[9], h[9];
  int count = 0;
  FASTGAN_INLINE RowImages(const Plan& plan, int64_t at_d, int64_t at_h) {
    int64_t ds[3], hs[3];
    const int nd = images(at_d, plan.D, plan.pad_d, ds), nh = images(at_h, plan.H, plan.pad_h, hs);
    for (int i = 0; i < nd; ++i) {
      for (int j = 0; j < nh; ++j, ++count) d[count] = ds[i], h[count] = hs[j];
    }
  }
};

// Calls visit(source column, padded column) for the columns of [w0, w1) that the padding of a row repeats.
template <typename Visit>
FASTGAN_INLINE void for_reflected_columns(const Plan& plan, int64_t w0, int64_t w1, const Visit& visit) {
  const int64_t pad = plan.pad_w, last = plan.W - 1;
  for (int64_t w = most(w0, 1); w < least(w1, pad + 1); ++w) visit(w, pad - w);
  for (int64_t w = most(w0, last - pad); w < least(w1, last); ++w) visit(w, pad + 2 * last - w);
}

// Repeats columns [w0, w1) of a row of the padded tensor, already written, on both its sides.
template <typename T>
FASTGAN_INLINE void push_columns(const Plan& plan, const Strided& to, T* row, int64_t w0, int64_t w1) {
  const int64_t unit = plan.channels_last ? plan.C : 1;
  for_reflected_columns(plan, w0, w1, [&](int64_t w, int64_t image) {
    if (unit == 1) {
      row[image * to.w] = row[(plan.pad_w + w) * to.w];
    } else {
      std::memcpy(row + image * to.w, row + (plan.pad_w + w) * to.w, static_cast<size_t>(unit) * sizeof(T));
    }
  });
}

// Repeats columns [w0, w1) of row (d, h), already written to `from` in the padded tensor, in the rows that show it.
template <typename T>
FASTGAN_INLINE void push_rows(const Plan& plan, const Strided& to, const T* from, const Group& group, int64_t d,
                              int64_t h, int64_t w0, int64_t w1) {
  if (plan.shown_once(d, h)) return;
  const int64_t unit = plan.channels_last ? plan.C : 1;
  const RowImages rows(plan, d, h);
  const int64_t begin = (plan.pad_w + w0) * to.w;
  for (int i = 1; i < rows.count; ++i) {
    T* row = address<T>(to, group.n, group.c, rows.d[i], rows.h[i], 0);
    std::memcpy(row + begin, from + begin, static_cast<size_t>((w1 - w0) * unit) * sizeof(T));
    push_columns(plan, to, row, w0, w1);
  }
}

template <typename T, typename A>
FASTGAN_INLINE void add_to(A* sum, const T* values, int64_t count, bool first) {
  int64_t i = 0;
  for (; i + kLanes<A> <= count; i += kLanes<A>) {
    const Vec<A> v = load_vector(values + i);
    store_vector(sum + i, first ? v : v + load_vector(sum + i));
  }
  for (; i < count; ++i) sum[i] = first ? load(values[i]) : sum[i] + load(values[i]);
}

// sum[w1 - w0, unit] = the gradient of all that shows columns [w0, w1) of row (d, h).
template <typename T, typename A>
void pull_reflections(const Plan& plan, const Strided& grad, int64_t n, int64_t c, int64_t d, int64_t h, int64_t w0,
                      int64_t w1, A* sum) {
  const int64_t unit = plan.channels_last ? plan.C : 1;
  const RowImages rows(plan, d, h);
  for (int i = 0; i < rows.count; ++i) {
    const T* row = address<T>(grad, n, c, rows.d[i], rows.h[i], 0);
    if (grad.w == unit) {
      add_to(sum, row + (plan.pad_w + w0) * unit, (w1 - w0) * unit, i == 0);
    } else {
      for (int64_t w = w0; w < w1; ++w) add_to(sum + (w - w0) * unit, row + (plan.pad_w + w) * grad.w, unit, i == 0);
    }
    for_reflected_columns(plan, w0, w1, [&](int64_t w, int64_t image) {
      if (unit == 1) {
        sum[w - w0] += load(row[image * grad.w]);
      } else {
        add_to(sum + (w - w0) * unit, row + image * grad.w, unit, false);
      }
    });
  }
}

// Channels first: the same of a whole chunk; most rows are shown once and have only their ends to fold.
template <typename T, typename A>
void fold_rows(const Plan& plan, const Strided& grad, const Group& group, const Chunk& chunk, A* to) {
  const int64_t w0 = chunk.w0, w1 = chunk.w1;
  for (Rows row(plan, chunk); row.more(); row.next(), to += w1 - w0) {
    if (!plan.shown_once(row.d, row.h)) {
      pull_reflections<T, A>(plan, grad, group.n, group.c, row.d, row.h, w0, w1, to);
      continue;
    }
    const T* from = address<T>(grad, group.n, group.c, row.d + plan.pad_d, row.h + plan.pad_h, 0);
    const T* inner = from + plan.pad_w + w0;
    for_vectors<kLanes<A>>(w1 - w0, [&](int64_t i, auto lanes, int)
                                        FASTGAN_HERE { store_vector(to + i, load_vector(inner + i, lanes), lanes); });
    for_reflected_columns(plan, w0, w1, [&](int64_t w, int64_t image) { to[w - w0] += load(from[image]); });
  }
}

// Of a padded dimension: the k-th position, those that are no copies first, and the element that position i shows.
FASTGAN_INLINE int64_t position(int64_t k, int64_t size, int64_t pad) {
  return k < size ? pad + k : k - size < pad ? k - size : k;
}
FASTGAN_INLINE int64_t reflected(int64_t i, int64_t size, int64_t pad) {
  return i < pad ? pad - i : i < pad + size ? i - pad : pad + 2 * (size - 1) - i;
}

// Channels first, a whole plane whose elements themselves are written: columns, then whole rows, then whole slices.
template <typename T>
void pad_plane(const Plan& plan, const Strided& to, T* plane) {
  const int64_t D = plan.D, H = plan.H, W = plan.W, pad_d = plan.pad_d, pad_h = plan.pad_h, pad_w = plan.pad_w;
  const size_t bytes = static_cast<size_t>(W + 2 * pad_w) * sizeof(T);
  for (int64_t d = pad_d; d < pad_d + D; ++d) {
    T* slice = plane + d * to.d;
    for (int64_t h = pad_h; h < pad_h + H; ++h) {
      T *first = slice + h * to.h + pad_w, *last = first + W - 1;
      for (int64_t w = 1; w <= pad_w; ++w) first[-w] = first[w], last[w] = last[-w];
    }
    for (int64_t k = H; k < H + 2 * pad_h; ++k) {
      const int64_t h = position(k, H, pad_h);
      std::memcpy(slice + h * to.h, slice + (pad_h + reflected(h, H, pad_h)) * to.h, bytes);
    }
  }
  for (int64_t k = D; k < D + 2 * pad_d; ++k) {
    const int64_t d = position(k, D, pad_d);
    const T* from = plane + (pad_d + reflected(d, D, pad_d)) * to.d;
    for (int64_t h = 0; h < H + 2 * pad_h; ++h) std::memcpy(plane + d * to.d + h * to.h, from + h * to.h, bytes);
  }
}

// Its adjoint: sum [D, H, W] = the gradient of all that shows each element.
template <typename T, typename A>
void fold_plane(const Plan& plan, const Strided& grad, const T* plane, A* sum) {
  const int64_t D = plan.D, H = plan.H, W = plan.W, pad_d = plan.pad_d, pad_h = plan.pad_h, pad_w = plan.pad_w;
  for (int64_t i = 0; i < D + 2 * pad_d; ++i) {
    const int64_t d = position(i, D, pad_d);
    const T* slice = plane + d * grad.d + pad_w;
    A* sums = sum + reflected(d, D, pad_d) * H * W;
    const T* row = slice + pad_h * grad.h;
    for (int64_t h = 0; h < H; ++h, row += grad.h) {
      A* to = sums + h * W;
      for_vectors<kLanes<A>>(W, [&](int64_t w, auto lanes, int) FASTGAN_HERE {
        const Vec<A> v = load_vector(row + w, lanes);
        store_vector(to + w, i < D ? v : v + load_vector(to + w, lanes), lanes);
      });
    }
    const auto ends = [&](const T* from, A* to) FASTGAN_HERE {
      for (int64_t w = 1; w <= pad_w; ++w) to[w] += load(from[-w]), to[W - 1 - w] += load(from[W - 1 + w]);
    };
    row = slice + pad_h * grad.h;
    for (int64_t h = 0; h < H; ++h, row += grad.h) ends(row, sums + h * W);
    for (int64_t k = H; k < H + 2 * pad_h; ++k) {
      const int64_t h = position(k, H, pad_h);
      A* to = sums + reflected(h, H, pad_h) * W;
      add_to(to, slice + h * grad.h, W, false);
      ends(slice + h * grad.h, to);
    }
  }
}

// --- runs: pixels of one row at a constant stride in every tensor ---------------------------------------------

// G: the gradient's element type: T, or the arithmetic's type where the padding's adjoint was added up in scratch.
template <typename T, typename G>
struct Run {
  int64_t pixels, grad_stride;
  const G* grad;
  const T *x, *residual, *u, *v_residual;
  T *padded, *plain, *extra;
};

struct Strides {  // of a pixel, where they are the same for all runs
  int64_t x, residual, u, v_residual, padded, plain, extra;
};

template <typename Op, typename T, typename G, typename Lanes>
FASTGAN_INLINE Inputs<Vec<acc_t<T>>> read(const Run<T, G>& run, const Strides& s, int64_t pixel, int64_t i, Lanes lanes,
                                          bool with_v_residual) {
  Inputs<Vec<acc_t<T>>> in{};
  in.x = load_vector(run.x + pixel * s.x + i, lanes);
  in.has_residual = run.residual != nullptr;
  if (in.has_residual) in.residual = load_vector(run.residual + pixel * s.residual + i, lanes);
  if constexpr (Op::kReadsGrad) in.grad = load_vector(run.grad + pixel * run.grad_stride + i, lanes);
  if constexpr (Op::kReadsU) {
    in.u = load_vector(run.u + pixel * s.u + i, lanes);
    in.has_v_residual = with_v_residual && run.v_residual != nullptr;
    if (in.has_v_residual) in.v_residual = load_vector(run.v_residual + pixel * s.v_residual + i, lanes);
  }
  return in;
}

template <bool kStream, typename Op, typename Act, typename T, typename G, typename Lanes>
FASTGAN_INLINE void write_to(const Op& op, const Vec<acc_t<T>>* coef, const Act& act, const Run<T, G>& run,
                             const Strides& s, int64_t pixel, int64_t i, Lanes lanes) {
  Outputs<Vec<acc_t<T>>> out;
  op.write(coef, act, read<Op>(run, s, pixel, i, lanes, true), out);
  if constexpr (Op::kWritesPadded) put_vector<kStream>(run.padded + pixel * s.padded + i, out.padded, lanes);
  if constexpr (Op::kWritesPlain) put_vector<kStream>(run.plain + pixel * s.plain + i, out.plain, lanes);
  if constexpr (Op::kWritesPlain && !Op::kWritesPadded) {
    if (run.extra != nullptr) put_vector<kStream>(run.extra + pixel * s.extra + i, out.extra, lanes);
  }
}

// Calls body(std::true_type) where a run's results, from pixel 0's element `first` on, are written past the caches,
// else body(std::false_type). `streams`: whether they are many enough.
template <typename Op, typename T, typename G, typename Body>
FASTGAN_INLINE void with_stores(bool streams, const Run<T, G>& run, const Strides& s, int64_t first, const Body& body) {
  if constexpr (std::is_same_v<T, acc_t<T>>) {
    const auto aligned = [&](const T* to, int64_t stride) {
      const auto bits = reinterpret_cast<uintptr_t>(to + first) | static_cast<uintptr_t>(stride) * sizeof(T);
      return to == nullptr || bits % FASTGAN_VECTOR_BYTES == 0;
    };
    if (streams && aligned(run.padded, s.padded) && aligned(run.plain, s.plain) && aligned(run.extra, s.extra)) {
      return body(std::true_type{});
    }
  }
  body(std::false_type{});
}

// --- the work of a group --------------------------------------------------------------------------------------

template <typename Op, typename T>
class Worker {
  using A = acc_t<T>;
  using V = Vec<A>;
  static constexpr int64_t kL = kLanes<A>;
  static constexpr int kSums = Op::kSums;

 public:
  Worker(const Op& op, const Plan& plan, const Tensors& tensors, double slope)
      : op_(op),
        plan_(plan),
        t_(tensors),
        unit_(plan.channels_last ? plan.C : 1),
        step_(ceil_div(unit_, kL) * kL),
        strides_{t_.x.w, t_.residual.w, t_.u.w, t_.v_residual.w, t_.padded.w, t_.plain.w, t_.extra.w},
        slope_(slope),
        folds_(Op::kReadsGrad && plan.padded()),
        folds_to_dense_(folds_to_dense()),
        folds_once_(folds_ && !plan.channels_last && plan.slabs == 1),
        streams_(!(Op::kWritesPadded && plan.padded()) && streams<T>(nullptr, plan.elements(), kL)),
        tile_(most(kBlockPixels, kTileBytes / (unit_ * static_cast<int64_t>(sizeof(T))))),
        sums_((plan.together ? 2 : plan.threads) * sums_per_group()),
        totals_(plan.threads * kSums * step_),
        arrays_per_thread_((Op::kCoefs + 4) * step_ + (folds_ ? ceil_div(folded_elements(), kL) * kL : 0)),
        arrays_(plan.threads * arrays_per_thread_) {}

  // Every thread of the plan calls this.
  void run(int thread, int threads) const {
    A* arrays = arrays_ + thread * arrays_per_thread_;
    double* totals = totals_ + thread * kSums * step_;
    for (int64_t i = 0; i < (Op::kCoefs + 4) * step_; ++i) arrays[i] = 0;
    if (!plan_.together) {
      const Range groups = part(plan_.groups, thread, threads);
      double* sums = sums_ + thread * sums_per_group();
      for (int64_t i = groups.begin; i < groups.end; ++i) {
        const Group group = plan_.group(i);
        prepare(group, arrays);
        for (int64_t slab = 0; slab < plan_.slabs; ++slab) reduce(group, slab, arrays, sums);
        finish(group, sums, totals, arrays, true);
        for (int64_t slab = plan_.slabs - 1; slab >= 0; --slab) write(group, slab, arrays);
      }
      return;
    }
    const Range slabs = part(plan_.slabs, thread, threads);
    for (int64_t i = 0; i < plan_.groups; ++i) {
      const Group group = plan_.group(i);
      // Two sets of sums take turns, so that one barrier a group is enough.
      double* sums = sums_ + (i & 1) * sums_per_group();
      prepare(group, arrays);
      for (int64_t slab = slabs.begin; slab < slabs.end; ++slab) reduce(group, slab, arrays, sums);
      barrier(threads);
      finish(group, sums, totals, arrays, thread == 0);
      for (int64_t slab = slabs.end - 1; slab >= slabs.begin; --slab) write(group, slab, arrays);
    }
  }

 private:
  int64_t sums_per_group() const { return plan_.slabs * kSums * unit_; }
  int64_t chunk_elements() const { return plan_.rows_per_chunk * plan_.piece; }
  int64_t folded_elements() const {
    return plan_.channels_last ? plan_.piece * unit_ : chunk_elements() * (folds_once_ ? plan_.chunks : 1);
  }

  // A thread's arrays, each of step_ numbers: the coefficients; sums (of the moments: origin, center, first, second);
  // then where the padding's adjoint is added up: of a chunk or all of them, or with channels last of a row.
  A* sums_in(A* arrays, int k) const { return arrays + (Op::kCoefs + k) * step_; }
  A* folded_in(A* arrays) const { return arrays + (Op::kCoefs + 4) * step_; }

  void prepare(const Group& group, A* arrays) const {
    const int64_t n = group.n, c0 = group.c;
    for (int64_t c = 0; c < unit_; ++c) op_.prepare(n, c0 + c, arrays + c, step_);
    if constexpr (Op::kMoments) {
      const T* x = address<T>(t_.x, n, c0, 0, 0, 0);
      for (int64_t c = 0; c < unit_; ++c) sums_in(arrays, 0)[c] = load(x[c]);
    }
  }

  void finish(const Group& group, const double* sums, double* totals, A* arrays, bool write) const {
    for (int64_t i = 0; i < kSums * unit_; ++i) totals[i] = sums[i];
    for (int64_t slab = 1; slab < plan_.slabs; ++slab) {
      for (int64_t i = 0; i < kSums * unit_; ++i) totals[i] += sums[slab * kSums * unit_ + i];
    }
    const A* origin = sums_in(arrays, 0);
    const Op op = op_;
    const int64_t step = step_, unit = unit_;
    if (unit == 1) return op.finish(group.n, group.c, *origin, totals, 1, arrays, step, write);
#pragma omp simd
    for (int64_t c = 0; c < unit; ++c) {
      op.finish(group.n, group.c + c, origin[c], totals + c, unit, arrays + c, step, write);
    }
  }

  void reduce(const Group& group, int64_t slab, A* arrays, double* group_sums) const {
    double* sums = group_sums + slab * kSums * unit_;
    for (int64_t i = 0; i < kSums * unit_; ++i) sums[i] = 0;
    if constexpr (Op::kMoments) {
      for (int64_t c = 0; c < unit_; ++c) sums_in(arrays, 1)[c] = sums_in(arrays, 0)[c];
    }
    const Range chunks = plan_.chunks_of(slab);
    for (int64_t i = chunks.begin; i < chunks.end; ++i) {
      const Chunk chunk = plan_.chunk(i, i == chunks.begin);
      if constexpr (Op::kMoments) {
        plan_.channels_last ? moments_of_pixels(group, chunk, arrays, sums)
                            : moments_of_plane(group, chunk, arrays, sums);
      } else {
        fold_plane(group, chunk, i, arrays);
        with_activation<V>(slope_, [&](const auto& act) {
          plan_.channels_last ? reduce_pixels(group, chunk, i, act, arrays, sums)
                              : reduce_plane(group, chunk, i, act, arrays, sums);
        });
      }
    }
  }

  void write(const Group& group, int64_t slab, A* arrays) const {
    const Range chunks = plan_.chunks_of(slab);
    for (int64_t i = chunks.end - 1; i >= chunks.begin; --i) {
      const Chunk chunk = plan_.chunk(i, i == chunks.begin);
      if (!folds_once_) fold_plane(group, chunk, i, arrays);
      with_activation<V>(slope_, [&](const auto& act) {
        for_runs(group, chunk, i, arrays, [&](const auto& run) {
          plan_.channels_last ? write_pixels(run, act, arrays) : write_plane(run, act, arrays);
        });
      });
      if constexpr (Op::kWritesPadded) {
        if (!plan_.padded()) continue;
        T* to = nullptr;
        for (Rows row(plan_, chunk); row.more(); row.next(), to += t_.padded.h) {
          if (row.row == chunk.row0 || row.h == 0) {
            to = address<T>(t_.padded, group.n, group.c, row.d + plan_.pad_d, row.h + plan_.pad_h, 0);
          }
          push_columns(plan_, t_.padded, to, chunk.w0, chunk.w1);
          push_rows(plan_, t_.padded, to, group, row.d, row.h, chunk.w0, chunk.w1);
        }
      }
    }
  }

  // Columns [w0, w1) of a row and the rows behind it, of which `grad` was folded if it is not null.
  template <typename G>
  FASTGAN_INLINE Run<T, G> run_at(const Group& group, const Rows& row, int64_t w0, int64_t pixels,
                                  const G* grad) const {
    const int64_t n = group.n, c = group.c, d = row.d, h = row.h;
    const int64_t at_d = d + plan_.pad_d, at_h = h + plan_.pad_h, at_w = w0 + plan_.pad_w;
    Run<T, G> run{};
    run.pixels = pixels;
    run.x = address<T>(t_.x, n, c, d, h, w0);
    run.residual = address<T>(t_.residual, n, c, d, h, w0);
    if constexpr (Op::kReadsU) {
      run.u = address<T>(t_.u, n, c, d, h, w0);
      run.v_residual = address<T>(t_.v_residual, n, c, d, h, w0);
    }
    if constexpr (Op::kWritesPadded) run.padded = address<T>(t_.padded, n, c, at_d, at_h, at_w);
    if constexpr (Op::kWritesPlain) run.plain = address<T>(t_.plain, n, c, d, h, w0);
    if constexpr (Op::kWritesPlain && !Op::kWritesPadded) run.extra = address<T>(t_.extra, n, c, d, h, w0);
    if constexpr (Op::kReadsGrad) {
      run.grad = grad != nullptr ? grad : address<G>(t_.grad, n, c, at_d, at_h, at_w);
      run.grad_stride = grad != nullptr ? unit_ : t_.grad.w;
    }
    return run;
  }

  // Calls visit(run) over the index-th chunk.
  template <typename Visit>
  FASTGAN_INLINE void for_runs(const Group& group, const Chunk& chunk, int64_t index, A* arrays,
                               const Visit& visit) const {
    if constexpr (Op::kReadsGrad) {
      if (folds_ && plan_.channels_last) return for_folded_pixels(group, chunk, arrays, visit);
      if (folds_to_dense_) {
        const int64_t pixels = (chunk.row1 - chunk.row0) * plan_.W;
        return visit(run_at<A>(group, Rows(plan_, chunk), 0, pixels, folded_of(index, arrays)));
      }
      if (folds_) return for_rows<A>(group, chunk, folded_of(index, arrays), visit);
    }
    for_rows<T>(group, chunk, nullptr, visit);
  }

  template <typename G, typename Visit>
  FASTGAN_INLINE void for_rows(const Group& group, const Chunk& chunk, const G* folded, const Visit& visit) const {
    const int64_t width = chunk.w1 - chunk.w0;
    Run<T, G> run{};
    for (Rows row(plan_, chunk); row.more(); row.next()) {
      if (row.row == chunk.row0 || row.h == 0) {
        run = run_at<G>(group, row, chunk.w0, width,
                        folded == nullptr ? nullptr : folded + (row.row - chunk.row0) * width);
      }
      visit(run);
      run.x += t_.x.h, run.residual += t_.residual.h, run.u += t_.u.h, run.v_residual += t_.v_residual.h;
      run.padded += t_.padded.h, run.plain += t_.plain.h, run.extra += t_.extra.h;
      run.grad += folded == nullptr ? t_.grad.h : width;
    }
  }

  // Channels last: only what the padding repeats is folded.
  template <typename Visit>
  FASTGAN_INLINE void for_folded_pixels(const Group& group, const Chunk& chunk, A* arrays, const Visit& visit) const {
    const int64_t w0 = chunk.w0, w1 = chunk.w1;
    for (Rows row(plan_, chunk); row.more(); row.next()) {
      const bool once = plan_.shown_once(row.d, row.h);
      const int64_t left = once ? least(most(w0, plan_.pad_w + 1), w1) : w1;
      const int64_t right = most(left, least(w1, plan_.W - 1 - plan_.pad_w));
      const auto fold = [&](int64_t begin, int64_t end) {
        if (begin == end) return;
        A* sum = folded_in(arrays);
        pull_reflections<T, A>(plan_, t_.grad, group.n, group.c, row.d, row.h, begin, end, sum);
        visit(run_at<A>(group, row, begin, end - begin, sum));
      };
      fold(w0, left);
      if (left < right) visit(run_at<T>(group, row, left, right - left, nullptr));
      fold(right, w1);
    }
  }

  // --- channels first ---

  // Whether a folded chunk lies in one piece in every tensor, so that no row has a beginning or an end.
  bool folds_to_dense() const {
    if (!folds_ || Op::kWritesPadded || plan_.channels_last || plan_.pieces > 1) return false;
    const auto dense = [&](const Strided& s) {
      return s.data == nullptr || ((s.w == 1 || plan_.W == 1) && (s.h == plan_.W || plan_.H == 1) &&
                                   (s.d == plan_.H * plan_.W || plan_.D == 1));
    };
    return dense(t_.x) && dense(t_.residual) && dense(t_.plain) && dense(t_.extra);
  }

  A* folded_of(int64_t chunk, A* arrays) const {
    return folded_in(arrays) + (folds_once_ ? chunk * chunk_elements() : 0);
  }

  void fold_plane(const Group& group, const Chunk& chunk, int64_t index, A* arrays) const {
    if (folds_ && !plan_.channels_last) fold_rows<T>(plan_, t_.grad, group, chunk, folded_of(index, arrays));
  }

  FASTGAN_INLINE void load_coefs(const A* arrays, V* coef) const {
    for (int j = 0; j < Op::kCoefs; ++j) coef[j] = broadcast(arrays[j * step_]);
  }

  static FASTGAN_INLINE double sum(const V* parts) {
    return static_cast<double>(sum_lanes((parts[0] + parts[1]) + (parts[2] + parts[3])));
  }

  // A chunk's sums of x - center and of its square.
  void deviations_of_plane(const Group& group, const Chunk& chunk, A center, double* result) const {
    V first[4] = {}, second[4] = {};
    const V k = broadcast(center);
    for (Rows row(plan_, chunk); row.more(); row.next()) {
      const T* x = address<T>(t_.x, group.n, group.c, row.d, row.h, chunk.w0);
      for_vectors<kL>(chunk.w1 - chunk.w0, [&](int64_t i, auto lanes, int j) FASTGAN_HERE {
        const V d = first_lanes(load_vector(x + i, lanes) - k, lanes);
        first[j] += d;
        second[j] = fma(d, d, second[j]);
      });
    }
    result[0] = sum(first);
    result[1] = sum(second);
  }

  void moments_of_plane(const Group& group, const Chunk& chunk, A* arrays, double* sums) const {
    const double origin = static_cast<double>(*sums_in(arrays, 0));
    A& center = *sums_in(arrays, 1);
    const int64_t elements = (chunk.row1 - chunk.row0) * (chunk.w1 - chunk.w0);
    const double count = static_cast<double>(elements);
    double d[2];
    if (chunk.first) {
      const Chunk seed = chunk.seed(least(kSeedElements, most(16, elements / 16)));
      deviations_of_plane(group, seed, center, d);
      center += static_cast<A>(d[0] / static_cast<double>((seed.row1 - seed.row0) * (seed.w1 - seed.w0)));
    }
    deviations_of_plane(group, chunk, center, d);
    // From the center to the plane's first element: sum (x - o) = sum (x - k) + n (k - o), and so on.
    const double shift = static_cast<double>(center) - origin;
    sums[0] += d[0] + count * shift;
    sums[1] += d[1] + shift * (2 * d[0] + count * shift);
    center += static_cast<A>(d[0] / count);
  }

  template <typename Act>
  void reduce_plane(const Group& group, const Chunk& chunk, int64_t index, const Act& act_, A* arrays,
                    double* sums) const {
    const Act act = act_;  // in registers: no store can change it
    V parts[4][kSums] = {};
    for_runs(group, chunk, index, arrays, [&](auto run) {
      V coef[Op::kCoefs], mine[4][kSums];
      load_coefs(arrays, coef);
      std::memcpy(mine, parts, sizeof parts);
      for_vectors<kL>(run.pixels, [&](int64_t i, auto lanes, int j) FASTGAN_HERE {
        op_.reduce(coef, act, read<Op>(run, Strides{}, 0, i, lanes, false), mine[j]);
      });
      std::memcpy(parts, mine, sizeof parts);
    });
    for (int k = 0; k < kSums; ++k) {
      const V column[4] = {parts[0][k], parts[1][k], parts[2][k], parts[3][k]};
      sums[k] += sum(column);
    }
  }

  template <typename Act, typename G>
  FASTGAN_INLINE void write_plane(const Run<T, G>& run_, const Act& act_, const A* arrays) const {
    const Act act = act_;
    const Run<T, G> run = run_;
    V coef[Op::kCoefs];
    load_coefs(arrays, coef);
    with_stores<Op>(streams_, run, Strides{}, 0, [&](auto stream) FASTGAN_HERE {
      for_vectors_backwards<kL>(run.pixels, [&](int64_t i, auto lanes) FASTGAN_HERE {
        write_to<stream.value>(op_, coef, act, run, Strides{}, 0, i, lanes);
      });
    });
  }

  // --- channels last ---

  // Calls visit(first pixel, last pixel, first channel, vectors as a type, lanes) over blocks of a run: kBlock vectors
  // of channels, whose coefficients and sums stay in registers, by pixels that stay in the first cache.
  template <typename Visit>
  FASTGAN_INLINE void for_blocks(int64_t pixels, const Visit& visit) const {
    constexpr int block = Op::kBlock * FASTGAN_VECTOR_BYTES / 64 > 0 ? Op::kBlock * FASTGAN_VECTOR_BYTES / 64 : 1;
    for (int64_t begin = 0; begin < pixels; begin += tile_) {
      const int64_t end = least(begin + tile_, pixels);
      int64_t c = 0;
      for (; c + block * kL <= unit_; c += block * kL) visit(begin, end, c, Constant<block>{}, Whole{});
      if constexpr (block > 1) {
        for (; c + kL <= unit_; c += kL) visit(begin, end, c, Constant<1>{}, Whole{});
      }
      if (c < unit_) visit(begin, end, c, Constant<1>{}, unit_ - c);
    }
  }

  FASTGAN_INLINE void load_coefs(const A* arrays, int64_t c, V* coef) const {
    for (int j = 0; j < Op::kCoefs; ++j) coef[j] = load_vector(arrays + j * step_ + c);
  }

  void deviations_of_pixels(const Group& group, const Chunk& chunk, const A* center, A* first, A* second) const {
    for (int64_t c = 0; c < step_; ++c) first[c] = second[c] = 0;
    for (Rows row(plan_, chunk); row.more(); row.next()) {
      const T* x = address<T>(t_.x, group.n, 0, row.d, row.h, chunk.w0);
      const int64_t stride = t_.x.w;
      for_blocks(chunk.w1 - chunk.w0, [=](int64_t begin, int64_t end, int64_t c, auto vectors, auto lanes) {
        constexpr int n = decltype(vectors)::value;
        V k[n], sum[n], squares[n];
        for (int v = 0; v < n; ++v) {
          k[v] = load_vector(center + c + v * kL);
          sum[v] = load_vector(first + c + v * kL);
          squares[v] = load_vector(second + c + v * kL);
        }
        for (int64_t pixel = begin; pixel < end; ++pixel) {
          for (int v = 0; v < n; ++v) {
            const V d = load_vector(x + pixel * stride + c + v * kL, lanes) - k[v];
            sum[v] += d;
            squares[v] = fma(d, d, squares[v]);
          }
        }
        for (int v = 0; v < n; ++v) {
          store_vector(first + c + v * kL, sum[v]);
          store_vector(second + c + v * kL, squares[v]);
        }
      });
    }
  }

  void moments_of_pixels(const Group& group, const Chunk& chunk, A* arrays, double* sums) const {
    const A* origin = sums_in(arrays, 0);
    A *center = sums_in(arrays, 1), *first = sums_in(arrays, 2), *second = sums_in(arrays, 3);
    if (chunk.first) {
      const Chunk seed = chunk.seed(kSeedPixels);
      deviations_of_pixels(group, seed, center, first, second);
      const A per = A{1} / static_cast<A>((seed.row1 - seed.row0) * (seed.w1 - seed.w0));
      for (int64_t c = 0; c < unit_; ++c) center[c] += first[c] * per;
    }
    deviations_of_pixels(group, chunk, center, first, second);
    const double count = static_cast<double>((chunk.row1 - chunk.row0) * (chunk.w1 - chunk.w0)), per = 1 / count;
    const int64_t unit = unit_;
#pragma omp simd
    for (int64_t c = 0; c < unit; ++c) {
      const double d = static_cast<double>(first[c]);
      const double shift = static_cast<double>(center[c]) - static_cast<double>(origin[c]);
      sums[c] += d + count * shift;
      sums[unit + c] += static_cast<double>(second[c]) + shift * (2 * d + count * shift);
      center[c] += static_cast<A>(d * per);
    }
  }

  template <typename Act>
  void reduce_pixels(const Group& group, const Chunk& chunk, int64_t index, const Act& act_, A* arrays,
                     double* sums) const {
    const Act act = act_;
    A* first = sums_in(arrays, 0);
    const int64_t step = step_, unit = unit_;
    for (int64_t i = 0; i < kSums * step; ++i) first[i] = 0;
    for_runs(group, chunk, index, arrays, [&](auto run) {
      const Strides strides = strides_;
      for_blocks(run.pixels, [=](int64_t begin, int64_t end, int64_t c, auto vectors, auto lanes) {
        constexpr int n = decltype(vectors)::value;
        V coef[n][Op::kCoefs], parts[n][kSums];
        for (int v = 0; v < n; ++v) {
          load_coefs(arrays, c + v * kL, coef[v]);
          for (int k = 0; k < kSums; ++k) parts[v][k] = load_vector(first + k * step + c + v * kL);
        }
        for (int64_t pixel = begin; pixel < end; ++pixel) {
          for (int v = 0; v < n; ++v) {
            op_.reduce(coef[v], act, read<Op>(run, strides, pixel, c + v * kL, lanes, false), parts[v]);
          }
        }
        for (int v = 0; v < n; ++v) {
          for (int k = 0; k < kSums; ++k) store_vector(first + k * step + c + v * kL, parts[v][k]);
        }
      });
    });
    for (int k = 0; k < kSums; ++k) {
#pragma omp simd
      for (int64_t c = 0; c < unit; ++c) sums[k * unit + c] += static_cast<double>(first[k * step + c]);
    }
  }

  template <typename Act, typename G>
  FASTGAN_INLINE void write_pixels(const Run<T, G>& run_, const Act& act_, const A* arrays) const {
    const Act act = act_;
    const Run<T, G> run = run_;
    const Strides strides = strides_;
    with_stores<Op>(streams_, run, strides, 0, [&](auto stream) {
      for_blocks(run.pixels, [=](int64_t begin, int64_t end, int64_t c, auto vectors, auto lanes) {
        constexpr int n = decltype(vectors)::value;
        V coef[n][Op::kCoefs];
        for (int v = 0; v < n; ++v) load_coefs(arrays, c + v * kL, coef[v]);
        for (int64_t pixel = begin; pixel < end; ++pixel) {
          for (int v = 0; v < n; ++v) {
            write_to<stream.value>(op_, coef[v], act, run, strides, pixel, c + v * kL, lanes);
          }
        }
      });
    });
  }

  static constexpr int64_t kBlockPixels = 4;  // at least, of a tile

  const Op& op_;
  const Plan& plan_;
  const Tensors& t_;
  const int64_t unit_, step_;  // elements of a pixel, rounded up to whole vectors
  const Strides strides_;
  const double slope_;
  const bool folds_, folds_to_dense_, folds_once_, streams_;
  const int64_t tile_;
  const Scratch<double> sums_, totals_;
  const int64_t arrays_per_thread_;
  const Scratch<A> arrays_;
};

// --- blocks of planes -----------------------------------------------------------------------------------------

// Channels first, where a plane is one chunk. A block is up to kLanes planes, whose sums and coefficients are the lanes
// of a vector. All of them are reduced before the first is written, so that the end of one sum does not hold up the
// next. A plane is rows of rows_.W elements: one row where it is dense in every tensor.
template <typename Op, typename T>
class PlaneBlocks {
  using A = acc_t<T>;
  using V = Vec<A>;
  static constexpr int64_t kL = kLanes<A>;
  static constexpr int kSums = Op::kSums, kReads = 1 + Op::kReadsGrad + Op::kReadsU;

 public:
  PlaneBlocks(const Op& op, const Plan& plan, const Tensors& tensors, double slope)
      : op_(op),
        plan_(plan),
        grad_(tensors.grad),
        t_(tensors),
        rows_(plan),
        size_(plan.D * plan.H * plan.W),
        planes_(plan.N * plan.C),
        block_(planes_per_block(size_ * kReads * static_cast<int64_t>(sizeof(T)))),
        slope_(slope),
        folds_(Op::kReadsGrad && plan.padded()),
        streams_(!(Op::kWritesPadded && plan.padded()) && streams<T>(nullptr, plan.elements(), kL)),
        folded_stride_(ceil_div(size_, kL) * kL),
        folded_per_thread_(block_ * folded_stride_ + kPageBytes / static_cast<int64_t>(sizeof(A))),
        folded_(folds_ ? plan.threads * folded_per_thread_ : 0) {
    if (!folds_) return;
    if (!Op::kWritesPadded) merge_dims(rows_, t_.x, t_.residual, t_.plain, t_.extra);
    t_.grad.h = rows_.W, t_.grad.d = rows_.H * rows_.W;  // in scratch
  }

  // As many planes as the second cache holds with ease; one of half the first cache is better alone.
  static int64_t planes_per_block(int64_t bytes) {
    return bytes >= kL1Bytes / 2 ? 1 : least(kL, kBlockBytes / most(1, bytes));
  }

  int64_t blocks() const { return ceil_div(planes_, block_); }

  void run(int thread, int threads) const {
    const Range part_of_blocks = part(blocks(), thread, threads);
    A* folded = folded_ + (folds_ ? thread * folded_per_thread_ : 0);
    with_activation<V>(slope_, [&](const auto& act) {
      for (int64_t i = part_of_blocks.begin; i < part_of_blocks.end; ++i) {
        if (folds_) {
          block<A>(i * block_, act, folded);
        } else {
          block<T>(i * block_, act, nullptr);
        }
      }
    });
  }

 private:
  // The first row of a plane, whose gradient was folded if `folded` is not null.
  template <typename G>
  FASTGAN_INLINE Run<T, G> first_row(int64_t n, int64_t c, const G* folded) const {
    const auto at = [&](const Strided& s) { return address<T>(s, n, c, 0, 0, 0); };
    Run<T, G> run{};
    run.x = at(t_.x);
    run.residual = at(t_.residual);
    if constexpr (Op::kReadsGrad) run.grad = folded != nullptr ? folded : address<G>(t_.grad, n, c, 0, 0, 0);
    if constexpr (Op::kReadsU) run.u = at(t_.u), run.v_residual = at(t_.v_residual);
    if constexpr (Op::kWritesPadded) {
      run.padded = address<T>(t_.padded, n, c, plan_.pad_d, plan_.pad_h, plan_.pad_w);
    }
    if constexpr (Op::kWritesPlain) run.plain = at(t_.plain);
    if constexpr (Op::kWritesPlain && !Op::kWritesPadded) run.extra = at(t_.extra);
    return run;
  }

  template <typename G>
  FASTGAN_INLINE void advance(Run<T, G>& run, int64_t Strided::* by) const {
    run.x += t_.x.*by, run.residual += t_.residual.*by;
    if constexpr (Op::kReadsGrad) run.grad += t_.grad.*by;
    if constexpr (Op::kReadsU) run.u += t_.u.*by, run.v_residual += t_.v_residual.*by;
    if constexpr (Op::kWritesPadded) run.padded += t_.padded.*by;
    if constexpr (Op::kWritesPlain) run.plain += t_.plain.*by;
    if constexpr (Op::kWritesPlain && !Op::kWritesPadded) run.extra += t_.extra.*by;
  }

  // Calls visit(row) over the rows of a plane.
  template <typename G, typename Visit>
  FASTGAN_INLINE void for_rows(Run<T, G> slice, const Visit& visit) const {
    for (int64_t d = 0; d < rows_.D; ++d, advance(slice, &Strided::d)) {
      Run<T, G> row = slice;
      for (int64_t h = 0; h < rows_.H; ++h, advance(row, &Strided::h)) visit(row);
    }
  }

  // Elements up to the next address of a whole vector.
  static FASTGAN_INLINE int64_t to_line(const T* p) {
    return static_cast<int64_t>(-(reinterpret_cast<uintptr_t>(p) / sizeof(T)) % kL);
  }

  // Calls visit(offset, lanes, which of 2 accumulators) over a plane.
  template <typename Visit>
  static FASTGAN_INLINE void for_plane(int64_t size, const Visit& visit) {
    int64_t i = 0;
    for (; i + 2 * kL <= size; i += 2 * kL) {
      visit(i, Whole{}, 0);
      visit(i + kL, Whole{}, 1);
    }
    for (; i + kL <= size; i += kL) visit(i, Whole{}, 0);
    if (i < size) visit(i, size - i, 1);
  }

  // The sums of each vector's lanes.
  static FASTGAN_INLINE V sum_each(V* vectors) {
    for (int64_t count = kL; count > 1; count /= 2) {
      for (int64_t i = 0; i < count; i += 2) {
        V a = vectors[i], b = vectors[i + 1];
        unzip(a, b);
        vectors[i / 2] = a + b;
      }
    }
    return vectors[0];
  }

  template <typename G, typename Act>
  void block(int64_t first, const Act& act_, A* folded) const {
    const Act act = act_;
    const Op op = op_;
    const int64_t C = plan_.C, width = rows_.W, planes = least(block_, planes_ - first);
    alignas(64) A coefs[Op::kCoefs][kL], origin[kL];
    alignas(64) double totals[kSums][kL];
    V sums[kSums][kL];
    Run<T, G> runs[kL];
    if (planes < kL) std::memset(sums, 0, sizeof sums), std::memset(origin, 0, sizeof origin);

    // Calls visit(n, c, plane) with as many planes at once as lie in one sample.
    const auto for_samples = [&](const auto& visit) {
      int64_t n = first / C, c = first % C;
      for (int64_t i = 0; i < planes;) {
        const int64_t end = least(planes, i + C - c);
        visit(n, c - i, i, end);
        i = end, c = 0, ++n;
      }
    };
    for_samples([&](int64_t n, int64_t c, int64_t begin, int64_t end) {
#pragma omp simd
      for (int64_t i = begin; i < end; ++i) op.prepare(n, c + i, coefs[0] + i, kL);
      for (int64_t i = begin; i < end; ++i) {
        G* to = nullptr;
        if constexpr (std::is_same_v<G, A>) {
          if (folded != nullptr) {
            to = folded + i * folded_stride_;
            fold_plane(plan_, grad_, address<T>(grad_, n, c + i, 0, 0, 0), to);
          }
        }
        runs[i] = first_row<G>(n, c + i, to);
      }
    });
    if constexpr (Op::kMoments) {
      const int64_t seeds = least(width, kSeedElements), seed_rows = most(1, least(rows_.H, kSeedElements / width));
      for (int64_t i = 0; i < planes; ++i) {
        const T* x = runs[i].x;
        const V x0 = broadcast(load(*x));
        origin[i] = load(*x);
        V sum[2] = {};
        for (int64_t row = 0; row < seed_rows; ++row, x += t_.x.h) {
          for_plane(seeds, [&](int64_t e, auto lanes, int j)
                               FASTGAN_HERE { sum[j] += first_lanes(load_vector(x + e, lanes) - x0, lanes); });
        }
        sums[0][i] = sum[0] + sum[1];
      }
      store_vector(origin, load_vector(origin) + sum_each(sums[0]) / static_cast<A>(seeds * seed_rows));
    }
    for (int64_t i = 0; i < planes; ++i) {
      V coef[Op::kCoefs], parts[2][kSums] = {};
      for (int j = 0; j < Op::kCoefs; ++j) coef[j] = broadcast(coefs[j][i]);
      const V center = broadcast(origin[i]);
      for_rows(runs[i], [&](const Run<T, G>& row) FASTGAN_HERE {
        for_plane(width, [&](int64_t e, auto lanes, int j) FASTGAN_HERE {
          if constexpr (Op::kMoments) {
            const V d = first_lanes(load_vector(row.x + e, lanes) - center, lanes);
            parts[j][0] += d;
            parts[j][1] = fma(d, d, parts[j][1]);
          } else {
            op.reduce(coef, act, read<Op>(row, Strides{}, 0, e, lanes, false), parts[j]);
          }
        });
      });
      for (int k = 0; k < kSums; ++k) sums[k][i] = parts[0][k] + parts[1][k];
    }
    for (int k = 0; k < kSums; ++k) {
      const V sum = sum_each(sums[k]);
      for (int64_t i = 0; i < kL; ++i) totals[k][i] = static_cast<double>(sum[i]);
    }
    for_samples([&](int64_t n, int64_t c, int64_t begin, int64_t end) {
#pragma omp simd
      for (int64_t i = begin; i < end; ++i) {
        op.finish(n, c + i, origin[i], totals[0] + i, kL, coefs[0] + i, kL, true);
      }
    });
    for_samples([&](int64_t n, int64_t c, int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        V coef[Op::kCoefs];
        for (int j = 0; j < Op::kCoefs; ++j) coef[j] = broadcast(coefs[j][i]);
        for_rows(runs[i], [&](const Run<T, G>& row) FASTGAN_HERE {
          const int64_t head = width < kAlignedRow ? 0 : to_line(Op::kWritesPlain ? row.plain : row.padded);
          with_stores<Op>(streams_ && width >= kAlignedRow, row, Strides{}, head, [&](auto stream) FASTGAN_HERE {
            for_vectors_backwards<kL>(width - head, [&](int64_t e, auto lanes) FASTGAN_HERE {
              write_to<stream.value>(op, coef, act, row, Strides{}, 0, head + e, lanes);
            });
          });
          if (head > 0) write_to<false>(op, coef, act, row, Strides{}, 0, 0, head);
        });
        if (Op::kWritesPadded && plan_.padded()) {
          pad_plane(plan_, t_.padded, address<T>(t_.padded, n, c + i, 0, 0, 0));
        }
      }
    });
  }

  const Op& op_;
  const Plan& plan_;
  const Strided grad_;
  Tensors t_;
  Plan rows_;
  const int64_t size_, planes_, block_;
  const double slope_;
  const bool folds_, streams_;
  const int64_t folded_stride_, folded_per_thread_;
  const Scratch<A> folded_;
};

template <typename T, typename Op>
void run(const InstanceNorm& p, Tensors& tensors, const Op& op) {
  if (p.N * p.C * p.D * p.H * p.W == 0) return;
  const Plan plan = make_plan(p, tensors, sizeof(T));
  if (!plan.channels_last && plan.chunks == 1) {
    const PlaneBlocks<Op, T> planes(op, plan, tensors, p.slope);
    return parallel(static_cast<int>(least(plan.threads, planes.blocks())),
                    [&](int thread, int threads) { planes.run(thread, threads); });
  }
  const Worker<Op, T> worker(op, plan, tensors, p.slope);
  parallel(plan.threads, [&](int thread, int threads) { worker.run(thread, threads); });
}

// Calls body with a null pointer to the element type.
template <typename Body>
void for_dtype(DType dtype, const Body& body) {
  switch (dtype) {
    case DType::f32: return body(static_cast<float*>(nullptr));
    case DType::f64: return body(static_cast<double*>(nullptr));
    case DType::f16: return body(static_cast<f16_t*>(nullptr));
    case DType::bf16: return body(static_cast<bf16_t*>(nullptr));
  }
}

}  // namespace

void instance_norm(const InstanceNorm& p, const InstanceNormForward& t) {
  Tensors tensors{};
  tensors.x = t.x, tensors.residual = t.residual, tensors.padded = t.y;
  for_dtype(p.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    using A = acc_t<T>;
    run<T>(p, tensors, Forward<A>{p, static_cast<A>(t.eps), static_cast<A*>(t.mean), static_cast<A*>(t.rstd)});
  });
}

void instance_norm(const InstanceNorm& p, const InstanceNormBackward& t) {
  Tensors tensors{};
  tensors.grad = t.grad, tensors.x = t.x, tensors.residual = t.residual;
  tensors.plain = t.grad_x, tensors.extra = t.grad_z;
  for_dtype(p.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    using A = acc_t<T>;
    run<T>(p, tensors,
           Backward<A>{p, static_cast<const A*>(t.mean), static_cast<const A*>(t.rstd), static_cast<A*>(t.m1),
                       static_cast<A*>(t.m2)});
  });
}

void instance_norm(const InstanceNorm& p, const InstanceNormDoubleBackward& t) {
  Tensors tensors{};
  tensors.u = t.u, tensors.v_residual = t.v_residual;
  tensors.grad = t.grad, tensors.x = t.x, tensors.residual = t.residual;
  tensors.padded = t.grad_grad, tensors.plain = t.grad_x;
  for_dtype(p.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    using A = acc_t<T>;
    run<T>(
        p, tensors,
        DoubleBackward<A>{p, static_cast<const A*>(t.mean), static_cast<const A*>(t.rstd), static_cast<const A*>(t.m1),
                          static_cast<const A*>(t.m2), static_cast<const A*>(t.v_weight),
                          static_cast<const A*>(t.v_bias), static_cast<A*>(t.grad_weight)});
  });
}

}  // namespace fastgan::FASTGAN_ISA
