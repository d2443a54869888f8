#include "cpu/gradient_penalty.h"

#include "common/simd.h"
#include "cpu/samples.h"

namespace fastgan::FASTGAN_ISA {
namespace {

struct Coefficients {
  double c, e;
};

FASTGAN_INLINE Coefficients coefficients(double norm, double target, bool one_sided, int64_t samples) {
  const double scale = 2.0 / static_cast<double>(samples);
  if (target == 0) return {scale, 0};
  if (!(norm > (one_sided ? target : 0.0)) && norm == norm) return {0, 0};  // a NaN norm stays visible
  return {scale * (1 - target / norm), scale * target / (norm * norm * norm)};
}

// Calls term(vector index, lanes) -> vector over the samples; the sums of each sample's terms go to total(n, sum).
template <typename A, typename Term, typename Total>
FASTGAN_INLINE void sum_each_sample(int64_t samples, int64_t size, int threads, const Term& term, const Total& total) {
  const int64_t pieces = pieces_of(size);
  const Scratch<double> partials(samples * pieces);
  each_piece(samples, size, threads, [&](int64_t n, int64_t piece, int64_t begin, int64_t end) {
    Vec<A> sum[4] = {};
    int64_t i = begin;
    for (; i + 4 * kLanes<A> <= end; i += 4 * kLanes<A>) {
      for (int k = 0; k < 4; ++k) sum[k] += term(i + k * kLanes<A>, Whole{});
    }
    each_vector<A>(i, end, [&](int64_t j, auto lanes) { sum[0] += term(j, lanes); });
    partials[n * pieces + piece] = static_cast<double>(sum_lanes((sum[0] + sum[1]) + (sum[2] + sum[3])));
  });
  for (int64_t n = 0; n < samples; ++n) total(n, sum_partials(partials + n * pieces, pieces));
}

template <typename T>
double forward(const T* grads, acc_t<T>* norms, double target, bool one_sided, int64_t samples, int64_t size,
               int threads) {
  using A = acc_t<T>;
  double penalty = 0;
  sum_each_sample<A>(
      samples, size, threads,
      [&](int64_t i, auto lanes) {
        const Vec<A> g = load_vector(grads + i, lanes);
        return g * g;
      },
      [&](int64_t n, double sum) {
        const double norm = __builtin_sqrt(sum), excess = norm - target;
        norms[n] = static_cast<A>(norm);
        penalty += one_sided && excess < 0 ? 0 : excess * excess;
      });
  return penalty / static_cast<double>(samples);
}

template <typename T>
void backward(double grad, const T* grads, const acc_t<T>* norms, T* out, double target, bool one_sided,
              int64_t samples, int64_t size, int threads) {
  using A = acc_t<T>;
  each_piece(samples, size, threads, [&](int64_t n, int64_t, int64_t begin, int64_t end) {
    const double c = coefficients(static_cast<double>(norms[n]), target, one_sided, samples).c;
    const Vec<A> factor = broadcast(static_cast<A>(grad * c));
    each_vector<A>(begin, end, [&](int64_t i, auto lanes) {
      store_vector(out + i, factor * load_vector(grads + i, lanes), lanes);
    });
  });
}

template <typename T>
double double_backward(double grad, const T* u, const T* grads, const acc_t<T>* norms, T* out, double target,
                       bool one_sided, int64_t samples, int64_t size, int threads) {
  using A = acc_t<T>;
  const Scratch<double> dots(samples);
  double grad_grad = 0;
  sum_each_sample<A>(
      samples, size, threads,
      [&](int64_t i, auto lanes) { return load_vector(u + i, lanes) * load_vector(grads + i, lanes); },
      [&](int64_t n, double dot) {
        dots[n] = dot;
        grad_grad += coefficients(static_cast<double>(norms[n]), target, one_sided, samples).c * dot;
      });
  each_piece(samples, size, threads, [&](int64_t n, int64_t, int64_t begin, int64_t end) {
    const Coefficients k = coefficients(static_cast<double>(norms[n]), target, one_sided, samples);
    const Vec<A> of_u = broadcast(static_cast<A>(grad * k.c));
    const Vec<A> of_g = broadcast(static_cast<A>(grad * k.e * dots[n]));
    each_vector<A>(begin, end, [&](int64_t i, auto lanes) {
      store_vector(out + i, of_u * load_vector(u + i, lanes) + of_g * load_vector(grads + i, lanes), lanes);
    });
  });
  return grad_grad;
}

}  // namespace

double gradient_penalty_forward(int dtype, const void* grads, void* norms, double target, bool one_sided,
                                int64_t samples, int64_t size, int threads) {
  double penalty = 0;
  with_dtype(dtype, [&](auto t) {
    using T = decltype(t);
    penalty =
        forward(static_cast<const T*>(grads), static_cast<acc_t<T>*>(norms), target, one_sided, samples, size, threads);
  });
  return penalty;
}

void gradient_penalty_backward(int dtype, double grad, const void* grads, const void* norms, void* out, double target,
                               bool one_sided, int64_t samples, int64_t size, int threads) {
  with_dtype(dtype, [&](auto t) {
    using T = decltype(t);
    backward(grad, static_cast<const T*>(grads), static_cast<const acc_t<T>*>(norms), static_cast<T*>(out), target,
             one_sided, samples, size, threads);
  });
}

double gradient_penalty_double_backward(int dtype, double grad, const void* u, const void* grads, const void* norms,
                                        void* out, double target, bool one_sided, int64_t samples, int64_t size,
                                        int threads) {
  double grad_grad = 0;
  with_dtype(dtype, [&](auto t) {
    using T = decltype(t);
    grad_grad = double_backward(grad, static_cast<const T*>(u), static_cast<const T*>(grads),
                                static_cast<const acc_t<T>*>(norms), static_cast<T*>(out), target, one_sided, samples,
                                size, threads);
  });
  return grad_grad;
}

}  // namespace fastgan::FASTGAN_ISA
