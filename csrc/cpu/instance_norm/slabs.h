// Groups in slabs: channels last, and planes of several chunks.
//
// A thread takes groups, or, where they are few or large, its slabs of one group after another.
#pragma once

#include <cstring>

#include "cpu/instance_norm/padding.h"
#include "cpu/instance_norm/runs.h"

namespace fastgan::FASTGAN_ISA {
namespace {

constexpr int64_t kTileBytes = 16 << 10;  // channels last: pixels that a block of channels goes over at once

template <int N>
struct Constant {
  static constexpr int value = N;
};

template <typename Op, typename T>
class Slabs {
  using A = acc_t<T>;
  using V = Vec<A>;
  static constexpr int64_t kL = kLanes<A>;
  static constexpr int kSums = Op::kSums;
  static constexpr bool kPixelwise = FASTGAN_VECTOR_BYTES < 64 && !Op::kMoments;  // AVX-512 has 32 registers

 public:
  Slabs(const Op& op, const Plan& plan, const Tensors& tensors, double slope)
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
        stages_(Op::kWritesPadded && stages_rows<T>(plan, tensors.padded)),
        streams_((stages_ || !(Op::kWritesPadded && plan.padded() && !plan.channels_last)) &&
                 streams<T>(nullptr, plan.elements(), kL)),
        tile_(most(kBlockPixels, kTileBytes / (unit_ * static_cast<int64_t>(sizeof(T))))),
        sums_((plan.together ? 2 : plan.threads) * sums_per_group()),
        totals_(plan.threads * kSums * step_),
        arrays_per_thread_((Op::kCoefs + 4) * step_ + (folds_ ? ceil_div(folded_elements(), kL) * kL : 0)),
        arrays_(plan.threads * arrays_per_thread_),
        staged_per_thread_(stages_ ? plan.rows_per_chunk * (plan.W + 2 * plan.pad_w) +
                                         kPageBytes / static_cast<int64_t>(sizeof(T))
                                   : 0),
        staged_(plan.threads * staged_per_thread_) {}

  // Every thread of the plan calls this.
  void run(int thread, int threads) const {
    A* arrays = arrays_ + thread * arrays_per_thread_;
    T* staged = stages_ ? staged_ + thread * staged_per_thread_ : nullptr;
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
        for (int64_t slab = plan_.slabs - 1; slab >= 0; --slab) write(group, slab, arrays, staged);
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
      for (int64_t slab = slabs.end - 1; slab >= slabs.begin; --slab) write(group, slab, arrays, staged);
    }
  }

 private:
  int64_t sums_per_group() const { return plan_.slabs * kSums * unit_; }
  int64_t chunk_elements() const { return plan_.rows_per_chunk * plan_.piece; }
  int64_t folded_elements() const {
    return plan_.channels_last ? plan_.piece * unit_ : chunk_elements() * (folds_once_ ? plan_.chunks : 1);
  }

  // A thread's arrays, each of step_ numbers: the coefficients, a vector of each in turn for every vector of channels;
  // sums (of the moments: origin, center, first, second); then where the padding's adjoint is added up: of a chunk or
  // all of them, or with channels last of a row.
  static FASTGAN_INLINE A* coefs_in(A* arrays, int64_t c) { return arrays + c * Op::kCoefs; }
  static FASTGAN_INLINE const A* coefs_in(const A* arrays, int64_t c) { return arrays + c * Op::kCoefs; }
  A* sums_in(A* arrays, int k) const { return arrays + (Op::kCoefs + k) * step_; }
  A* folded_in(A* arrays) const { return arrays + (Op::kCoefs + 4) * step_; }

  void prepare(const Group& group, A* arrays) const {
    const int64_t n = group.n, c0 = group.c;
    for (int64_t c = 0; c < unit_; ++c) op_.prepare(n, c0 + c, coefs_in(arrays, c / kL * kL) + c % kL, kL);
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
    const int64_t unit = unit_;
    if (unit == 1) return op.finish(group.n, group.c, *origin, totals, 1, arrays, kL, write);
    for (int64_t c = 0; c < unit; c += kL) {
      A* coefs = coefs_in(arrays, c);
      const int64_t lanes = least(kL, unit - c);
#pragma omp simd
      for (int64_t i = 0; i < lanes; ++i) {
        op.finish(group.n, group.c + c + i, origin[c + i], totals + c + i, unit, coefs + i, kL, write);
      }
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

  void write(const Group& group, int64_t slab, A* arrays, T* staged) const {
    const Range chunks = plan_.chunks_of(slab);
    for (int64_t i = chunks.end - 1; i >= chunks.begin; --i) {
      const Chunk chunk = plan_.chunk(i, i == chunks.begin);
      if (!folds_once_) fold_plane(group, chunk, i, arrays);
      with_activation<V>(slope_, [&](const auto& act) {
        for_runs(group, chunk, i, arrays, staged, [&](const auto& run) {
          plan_.channels_last ? write_pixels(run, act, arrays) : write_plane(run, act, arrays);
        });
      });
      if constexpr (Op::kWritesPadded) {
        if (!plan_.padded()) continue;
        if (staged != nullptr) {
          write_staged(group, chunk, staged);
          continue;
        }
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

  // Reflects the staged rows of a chunk and writes all that show them.
  void write_staged(const Group& group, const Chunk& chunk, T* staged) const {
    const int64_t width = t_.padded.h;
    const auto to = [&](int64_t d, int64_t h) { return address<T>(t_.padded, group.n, group.c, d, h, 0); };
    T* from = staged;  // rows up to here are written, but for their images
    T* at = staged;
    for (Rows row(plan_, chunk); row.more();) {
      push_columns(plan_, t_.padded, at, 0, plan_.W);
      if (!plan_.shown_once(row.d, row.h)) {
        const RowImages images(plan_, row.d, row.h);
        for (int i = 1; i < images.count; ++i) stream_copy(to(images.d[i], images.h[i]), at, width);
      }
      at += width;
      const int64_t d = row.d, rows = (at - from) / width, h = row.h + 1 - rows;
      row.next();
      if (row.more() && row.d == d) continue;
      stream_copy(to(d + plan_.pad_d, h + plan_.pad_h), from, at - from);
      from = at;
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

  // Calls visit(run) over the index-th chunk; a run writes to its padded row in `staged` if that is not null.
  template <typename Visit>
  FASTGAN_INLINE void for_runs(const Group& group, const Chunk& chunk, int64_t index, A* arrays, T* staged,
                               const Visit& visit) const {
    if constexpr (Op::kReadsGrad) {
      if (folds_ && plan_.channels_last) return for_folded_pixels(group, chunk, arrays, visit);
      if (folds_to_dense_) {
        const int64_t pixels = (chunk.row1 - chunk.row0) * plan_.W;
        return visit(run_at<A>(group, Rows(plan_, chunk), 0, pixels, folded_of(index, arrays)));
      }
      if (folds_) return for_rows<A>(group, chunk, folded_of(index, arrays), staged, visit);
    }
    for_rows<T>(group, chunk, nullptr, staged, visit);
  }

  template <typename G, typename Visit>
  FASTGAN_INLINE void for_rows(const Group& group, const Chunk& chunk, const G* folded, T* staged,
                               const Visit& visit) const {
    const int64_t width = chunk.w1 - chunk.w0;
    Run<T, G> run{};
    for (Rows row(plan_, chunk); row.more(); row.next()) {
      if (row.row == chunk.row0 || row.h == 0) {
        run = run_at<G>(group, row, chunk.w0, width,
                        folded == nullptr ? nullptr : folded + (row.row - chunk.row0) * width);
        if (Op::kWritesPadded && staged != nullptr)
          run.padded = staged + (row.row - chunk.row0) * t_.padded.h + plan_.pad_w;
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
    for (int j = 0; j < Op::kCoefs; ++j) coef[j] = broadcast(arrays[j * kL]);
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
    for_runs(group, chunk, index, arrays, nullptr, [&](auto run) {
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
    with_stores<Op>(streams_, stages_, run, Strides{}, 0, [&](auto stores) FASTGAN_HERE {
      for_vectors_backwards<kL>(run.pixels, [&](int64_t i, auto lanes) FASTGAN_HERE {
        write_to<stores.value>(op_, coef, act, run, Strides{}, 0, i, lanes);
      });
    });
  }

  // --- channels last ---

  // Calls visit(first pixel, last pixel, first channel, vectors as a type, lanes) over blocks of a run: kBlock vectors
  // of channels, whose coefficients and sums stay in registers, by pixels that stay in the first cache. Where those of
  // the backward passes would not fit into sixteen registers, a block is a vector of one pixel: they come from the
  // first cache anyway, and tensors are read from end to end, as prefetchers expect.
  template <typename Visit>
  FASTGAN_INLINE void for_blocks(int64_t pixels, const Visit& visit) const {
    if constexpr (kPixelwise) {
      const int64_t whole = unit_ / kL * kL;
      for (int64_t pixel = 0; pixel < pixels; ++pixel) {
        for (int64_t c = 0; c < whole; c += kL) visit(pixel, pixel + 1, c, Constant<1>{}, Whole{});
        if (whole < unit_) visit(pixel, pixel + 1, whole, Constant<1>{}, unit_ - whole);
      }
    } else {
      constexpr int block = Op::kBlock;
      for (int64_t begin = 0; begin < pixels; begin += tile_) {
        const int64_t end = least(begin + tile_, pixels);
        int64_t c = 0;
        for (; c + block * kL <= unit_; c += block * kL) visit(begin, end, c, Constant<block>{}, Whole{});
        for (; c + kL <= unit_; c += kL) visit(begin, end, c, Constant<1>{}, Whole{});
        if (c < unit_) visit(begin, end, c, Constant<1>{}, unit_ - c);
      }
    }
  }

  FASTGAN_INLINE void load_coefs(const A* arrays, int64_t c, V* coef) const {
    for (int j = 0; j < Op::kCoefs; ++j) coef[j] = load_vector(coefs_in(arrays, c) + j * kL);
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
    for_runs(group, chunk, index, arrays, nullptr, [&](auto run) {
      const Strides strides = strides_;
      for_blocks(run.pixels, [=](int64_t begin, int64_t end, int64_t c, auto vectors, auto lanes) FASTGAN_HERE {
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
    with_stores<Op>(streams_, false, run, strides, 0, [&](auto stores) {
      for_blocks(run.pixels, [=](int64_t begin, int64_t end, int64_t c, auto vectors, auto lanes) FASTGAN_HERE {
        constexpr int n = decltype(vectors)::value;
        V coef[n][Op::kCoefs];
        for (int v = 0; v < n; ++v) load_coefs(arrays, c + v * kL, coef[v]);
        for (int64_t pixel = begin; pixel < end; ++pixel) {
          for (int v = 0; v < n; ++v) {
            write_to<stores.value>(op_, coef[v], act, run, strides, pixel, c + v * kL, lanes);
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
  const bool folds_, folds_to_dense_, folds_once_, stages_, streams_;
  const int64_t tile_;
  const Scratch<double> sums_, totals_;
  const int64_t arrays_per_thread_;
  const Scratch<A> arrays_;
  const int64_t staged_per_thread_;
  const Scratch<T> staged_;
};

}  // namespace
}  // namespace fastgan::FASTGAN_ISA
