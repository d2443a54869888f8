// The elementwise formulas of instance norm: forward, backward, double backward.
//
// Every pass has coefficients per plane; kCoefs is their number, and they are numbers (channels first) or vectors
// over channels (channels last, kBlock of them in registers). The sums of `finish` lie `apart` from one another.
#pragma once

#include <type_traits>

#include "common/simd.h"
#include "cpu/instance_norm.h"

namespace fastgan::FASTGAN_ISA {
namespace {

template <typename T>
FASTGAN_INLINE T at(const void* values, int64_t i, T otherwise) {
  return values == nullptr ? otherwise : static_cast<const T*>(values)[i];
}

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
    if (write && mean != nullptr) {
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

}  // namespace
}  // namespace fastgan::FASTGAN_ISA
