// Runs: pixels of one row at a constant stride in every tensor; how a pass reads and writes their elements.
#pragma once

#include <type_traits>

#include "cpu/instance_norm/formulas.h"
#include "cpu/instance_norm/plan.h"

namespace fastgan::FASTGAN_ISA {
namespace {

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

// How results are stored: as usual, past the caches, or past the caches but for a padded one, which goes to scratch.
enum Stores { kUsual, kStreamed, kStreamedButPadded };

template <Stores kStores, typename Op, typename Act, typename T, typename G, typename Lanes>
FASTGAN_INLINE void write_to(const Op& op, const Vec<acc_t<T>>* coef, const Act& act, const Run<T, G>& run,
                             const Strides& s, int64_t pixel, int64_t i, Lanes lanes) {
  Outputs<Vec<acc_t<T>>> out;
  op.write(coef, act, read<Op>(run, s, pixel, i, lanes, true), out);
  constexpr bool kStream = kStores != kUsual;
  if constexpr (Op::kWritesPadded)
    put_vector<kStores == kStreamed>(run.padded + pixel * s.padded + i, out.padded, lanes);
  if constexpr (Op::kWritesPlain) put_vector<kStream>(run.plain + pixel * s.plain + i, out.plain, lanes);
  if constexpr (Op::kWritesPlain && !Op::kWritesPadded) {
    if (run.extra != nullptr) put_vector<kStream>(run.extra + pixel * s.extra + i, out.extra, lanes);
  }
}

// Calls body with the way, as a type, to store a run's results from pixel 0's element `first` on. `streams`: whether
// they are many enough to be written past the caches; `staged`: whether the padded one goes to scratch.
template <typename Op, typename T, typename G, typename Body>
FASTGAN_INLINE void with_stores(bool streams, bool staged, const Run<T, G>& run, const Strides& s, int64_t first,
                                const Body& body) {
  if constexpr (std::is_same_v<T, acc_t<T>>) {
    const auto aligned = [&](const T* to, int64_t stride) {
      if (to == nullptr) return true;
      const auto bits = reinterpret_cast<uintptr_t>(to + first) | static_cast<uintptr_t>(stride) * sizeof(T);
      return bits % FASTGAN_VECTOR_BYTES == 0;
    };
    if (streams && aligned(run.plain, s.plain) && aligned(run.extra, s.extra)) {
      if (!staged && aligned(run.padded, s.padded)) return body(std::integral_constant<Stores, kStreamed>{});
      if constexpr (Op::kWritesPadded && Op::kWritesPlain) {
        if (staged) return body(std::integral_constant<Stores, kStreamedButPadded>{});
      }
    }
  }
  body(std::integral_constant<Stores, kUsual>{});
}

}  // namespace
}  // namespace fastgan::FASTGAN_ISA
