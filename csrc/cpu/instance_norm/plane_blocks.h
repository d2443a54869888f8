// Channels first, where a plane is one chunk. A block is up to kLanes planes, whose sums and coefficients are the lanes
// of a vector. All of them are reduced before the first is written, so that the end of one sum does not hold up the
// next. A plane is rows of rows_.W elements: one row where it is dense in every tensor. Planes that would fill less
// than a vector or two lie across vectors instead: an element of each of kLanes planes in one.
#pragma once

#include <cstring>

#include "cpu/instance_norm/padding.h"
#include "cpu/instance_norm/runs.h"

namespace fastgan::FASTGAN_ISA {
namespace {

constexpr int64_t kL1Bytes = 32 << 10;
constexpr int64_t kBlockBytes = 64 << 10;  // what a block of planes reads, to find it in cache again
constexpr int64_t kSmallPlane = 9;         // up to which size planes lie across vectors
constexpr int64_t kAlignedRow = 512;       // from this size on, stores that cross no cache line are worth a tail more

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
        stages_(Op::kWritesPadded && stages_rows<T>(plan, tensors.padded) &&
                (plan.D == 1 || tensors.padded.d == tensors.padded.h * (plan.H + 2 * plan.pad_h))),
        streams_((stages_ || !(Op::kWritesPadded && plan.padded())) && streams<T>(nullptr, plan.elements(), kL)),
        folded_stride_(ceil_div(size_, kL) * kL),
        folded_per_thread_(block_ * folded_stride_ + kPageBytes / static_cast<int64_t>(sizeof(A))),
        folded_(folds_ ? plan.threads * folded_per_thread_ : 0),
        padded_size_((plan.D + 2 * plan.pad_d) * (plan.H + 2 * plan.pad_h) * (plan.W + 2 * plan.pad_w)),
        staged_per_thread_(padded_size_ + kPageBytes / static_cast<int64_t>(sizeof(T))),
        staged_(stages_ ? plan.threads * staged_per_thread_ : 0) {
    const auto dense = [&](const Strided& s) {
      return s.data == nullptr || ((s.c == size_ || plan.C == 1) && (s.n == plan.C * size_ || plan.N == 1));
    };
    dense_ = plan.D * plan.H == 1 && !plan.padded() && dense(t_.grad) && dense(t_.x) && dense(t_.residual) &&
             dense(t_.u) && dense(t_.v_residual) && dense(t_.padded) && dense(t_.plain) && dense(t_.extra);
    across_ = dense_ && size_ <= kSmallPlane && planes_ > 1;
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
    T* staged = stages_ ? staged_ + thread * staged_per_thread_ : nullptr;
    with_activation<V>(slope_, [&](const auto& act) {
      for (int64_t i = part_of_blocks.begin; i < part_of_blocks.end; ++i) {
        if (across_) {
          block_across(i * block_, act);
        } else if (folds_) {
          block<false, A>(i * block_, act, folded, staged);
        } else if (dense_) {
          block<true, T>(i * block_, act, nullptr, nullptr);
        } else {
          block<false, T>(i * block_, act, nullptr, staged);
        }
      }
    });
  }

 private:
  template <typename G>
  FASTGAN_INLINE Run<T, G> first_row(int64_t n, int64_t c) const {
    const auto at = [&](const Strided& s) { return address<T>(s, n, c, 0, 0, 0); };
    Run<T, G> run{};
    run.x = at(t_.x);
    run.residual = at(t_.residual);
    if constexpr (Op::kReadsGrad) run.grad = address<G>(t_.grad, n, c, 0, 0, 0);
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

  // The same of the i-th plane where they lie one behind the other.
  template <typename G>
  FASTGAN_INLINE Run<T, G> dense_plane(int64_t i) const {
    const auto at = [&](const Strided& s) { return s.data == nullptr ? nullptr : static_cast<T*>(s.data) + i * size_; };
    Run<T, G> run{};
    run.x = at(t_.x);
    run.residual = at(t_.residual);
    if constexpr (Op::kReadsGrad) run.grad = static_cast<const G*>(t_.grad.data) + i * size_;
    if constexpr (Op::kReadsU) run.u = at(t_.u), run.v_residual = at(t_.v_residual);
    if constexpr (Op::kWritesPadded) run.padded = at(t_.padded);
    if constexpr (Op::kWritesPlain) run.plain = at(t_.plain);
    if constexpr (Op::kWritesPlain && !Op::kWritesPadded) run.extra = at(t_.extra);
    return run;
  }

  // Calls visit(row) over the rows of a plane.
  template <bool kDense, typename G, typename Visit>
  FASTGAN_INLINE void for_rows(Run<T, G> slice, const Visit& visit) const {
    if constexpr (kDense) return visit(slice);
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

  // Calls visit(n, c - i, i, end) for planes i to end of a block, as many at once as lie in one sample.
  template <typename Visit>
  FASTGAN_INLINE void for_samples(int64_t first, int64_t planes, const Visit& visit) const {
    int64_t n = first / plan_.C, c = first % plan_.C;
    for (int64_t i = 0; i < planes;) {
      const int64_t end = least(planes, i + plan_.C - c);
      visit(n, c - i, i, end);
      i = end, c = 0, ++n;
    }
  }

  template <typename Act>
  void block_across(int64_t first, const Act& act_) const {
    const Act act = act_;
    const Op op = op_;
    const int64_t size = size_, planes = least(block_, planes_ - first);
    const Strides strides{kL, kL, kL, kL, kL, kL, kL};
    alignas(64) A coefs[Op::kCoefs][kL] = {}, origin[kL];
    alignas(64) double totals[kSums][kL];
    alignas(64) T memory[8][kSmallPlane * kL];
    T* free = memory[0];
    const auto take = [&](const T* of) {
      T* const taken = of == nullptr ? nullptr : free;
      if (of != nullptr) free += kSmallPlane * kL;
      return taken;
    };
    const auto turned = [&](const T* from) {
      T* const to = take(from);
      if (from == nullptr) return to;
      if (planes < kL) std::memset(static_cast<void*>(to), 0, sizeof memory[0]);
      for (int64_t i = 0; i < planes; ++i) {
        for (int64_t e = 0; e < size; ++e) to[e * kL + i] = from[i * size + e];
      }
      return to;
    };
    const auto turn_back = [&](const T* from, T* to) {
      if (to == nullptr) return;
      for (int64_t i = 0; i < planes; ++i) {
        for (int64_t e = 0; e < size; ++e) to[i * size + e] = from[e * kL + i];
      }
    };
    const Run<T, T> there = dense_plane<T>(first);
    Run<T, T> run{};
    run.x = turned(there.x), run.residual = turned(there.residual);
    run.grad = turned(there.grad), run.grad_stride = kL;
    run.u = turned(there.u), run.v_residual = turned(there.v_residual);
    run.padded = take(there.padded), run.plain = take(there.plain), run.extra = take(there.extra);

    V coef[Op::kCoefs], sums[kSums] = {};
    const auto load_coefs = [&] {
      for (int j = 0; j < Op::kCoefs; ++j) coef[j] = load_vector(coefs[j]);
    };
    for_samples(first, planes, [&](int64_t n, int64_t c, int64_t begin, int64_t end) {
#pragma omp simd
      for (int64_t i = begin; i < end; ++i) op.prepare(n, c + i, coefs[0] + i, kL);
    });
    if constexpr (Op::kMoments) {
      const V x0 = load_vector(run.x);
      V sum{};
      for (int64_t e = 0; e < size; ++e) sum += load_vector(run.x + e * kL) - x0;
      const V center = x0 + sum / static_cast<A>(size);
      store_vector(origin, center);
      for (int64_t e = 0; e < size; ++e) {
        const V d = load_vector(run.x + e * kL) - center;
        sums[0] += d;
        sums[1] = fma(d, d, sums[1]);
      }
    } else {
      load_coefs();
      for (int64_t e = 0; e < size; ++e) op.reduce(coef, act, read<Op>(run, strides, e, 0, Whole{}, false), sums);
    }
    for (int k = 0; k < kSums; ++k) {
      for (int64_t i = 0; i < kL; ++i) totals[k][i] = static_cast<double>(sums[k][i]);
    }
    for_samples(first, planes, [&](int64_t n, int64_t c, int64_t begin, int64_t end) {
#pragma omp simd
      for (int64_t i = begin; i < end; ++i) {
        op.finish(n, c + i, origin[i], totals[0] + i, kL, coefs[0] + i, kL, true);
      }
    });
    load_coefs();
    for (int64_t e = 0; e < size; ++e) write_to<kUsual>(op, coef, act, run, strides, e, 0, Whole{});
    turn_back(run.padded, there.padded), turn_back(run.plain, there.plain), turn_back(run.extra, there.extra);
  }

  template <bool kDense, typename G, typename Act>
  void block(int64_t first, const Act& act_, A* folded, T* staged) const {
    const Act act = act_;
    const Op op = op_;
    const int64_t width = rows_.W, planes = least(block_, planes_ - first);
    alignas(64) A coefs[Op::kCoefs][kL], origin[kL];
    alignas(64) double totals[kSums][kL];
    V sums[kSums][kL];
    Run<T, G> runs[kL];
    if (planes < kL) std::memset(sums, 0, sizeof sums), std::memset(origin, 0, sizeof origin);
    for_samples(first, planes, [&](int64_t n, int64_t c, int64_t begin, int64_t end) {
#pragma omp simd
      for (int64_t i = begin; i < end; ++i) op.prepare(n, c + i, coefs[0] + i, kL);
      if constexpr (kDense) return;
      Run<T, G> run = first_row<G>(n, c + begin);
      for (int64_t i = begin; i < end; ++i, advance(run, &Strided::c)) {
        if constexpr (std::is_same_v<G, A>) {
          if (folded != nullptr) {
            A* to = folded + i * folded_stride_;
            fold_plane(plan_, grad_, address<T>(grad_, n, c + i, 0, 0, 0), to);
            run.grad = to;
          }
        }
        runs[i] = run;
      }
    });
    const auto run_of = [&](int64_t i) {
      if constexpr (kDense) return dense_plane<G>(first + i);
      return runs[i];
    };
    if constexpr (Op::kMoments) {
      const int64_t seeds = least(width, kSeedElements), seed_rows = most(1, least(rows_.H, kSeedElements / width));
      for (int64_t i = 0; i < planes; ++i) {
        const T* x = run_of(i).x;
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
      for_rows<kDense>(run_of(i), [&](const Run<T, G>& row) FASTGAN_HERE {
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
    for_samples(first, planes, [&](int64_t n, int64_t c, int64_t begin, int64_t end) {
#pragma omp simd
      for (int64_t i = begin; i < end; ++i) {
        op.finish(n, c + i, origin[i], totals[0] + i, kL, coefs[0] + i, kL, true);
      }
    });
    for_samples(first, planes, [&](int64_t n, int64_t c, int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        V coef[Op::kCoefs];
        for (int j = 0; j < Op::kCoefs; ++j) coef[j] = broadcast(coefs[j][i]);
        Run<T, G> run = run_of(i);
        if constexpr (Op::kWritesPadded && !kDense) {
          if (staged != nullptr)
            run.padded = staged + plan_.pad_d * t_.padded.d + plan_.pad_h * t_.padded.h + plan_.pad_w;
        }
        for_rows<kDense>(run, [&](const Run<T, G>& row) FASTGAN_HERE {
          const int64_t head = width < kAlignedRow ? 0 : to_line(Op::kWritesPlain ? row.plain : row.padded);
          const bool streams = streams_ && (width >= kAlignedRow || (staged != nullptr && width % kL == 0));
          with_stores<Op>(streams, staged != nullptr, row, Strides{}, head, [&](auto stores) FASTGAN_HERE {
            for_vectors_backwards<kL>(width - head, [&](int64_t e, auto lanes) FASTGAN_HERE {
              write_to<stores.value>(op, coef, act, row, Strides{}, 0, head + e, lanes);
            });
          });
          if (head > 0) write_to<kUsual>(op, coef, act, row, Strides{}, 0, 0, head);
        });
        if (Op::kWritesPadded && plan_.padded()) {
          T* to = address<T>(t_.padded, n, c + i, 0, 0, 0);
          pad_plane(plan_, t_.padded, staged != nullptr ? staged : to);
          if (staged != nullptr) stream_copy(to, staged, padded_size_);
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
  const bool folds_, stages_, streams_;
  bool dense_, across_ = false;
  const int64_t folded_stride_, folded_per_thread_;
  const Scratch<A> folded_;
  const int64_t padded_size_, staged_per_thread_;
  const Scratch<T> staged_;
};

}  // namespace
}  // namespace fastgan::FASTGAN_ISA
