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

template <bool kStream, typename T>
FASTGAN_INLINE void scale_into(double factor, const T* from, T* to, int64_t begin, int64_t end) {
  const Vec<acc_t<T>> by = broadcast(static_cast<acc_t<T>>(factor));
  each_vector<acc_t<T>>(begin, end, [&](int64_t i, auto lanes) {
    put_vector<kStream>(to + i, by * load_vector(from + i, lanes), lanes);
  });
}

template <typename T>
double forward(const T* grads, acc_t<T>* norms, double grad, T* out, double target, bool one_sided, int64_t samples,
               int64_t size, int threads) {
  using A = acc_t<T>;
  const int64_t pieces = pieces_of(size);
  const Scratch<double> partials(samples * pieces);
  const auto square = [&](int64_t i, auto lanes) {
    const Vec<A> g = load_vector(grads + i, lanes);
    return g * g;
  };
  if (out == nullptr) {
    sum_then<A, false>(samples, size, threads, partials, square, [](auto...) {});
  } else {
    with_bool(streams(out, samples * size, size), [&](auto stream) {
      sum_then<A, true>(samples, size, threads, partials, square, [&](int64_t, double sum, int64_t begin, int64_t end) {
        const double norm = static_cast<double>(static_cast<A>(__builtin_sqrt(sum)));
        scale_into<stream.value>(grad * coefficients(norm, target, one_sided, samples).c, grads, out, begin, end);
      });
    });
  }
  double penalty = 0;
  for (int64_t n = 0; n < samples; ++n) {
    const double norm = __builtin_sqrt(sum_partials(partials + n * pieces, pieces)), excess = norm - target;
    norms[n] = static_cast<A>(norm);
    penalty += one_sided && excess < 0 ? 0 : excess * excess;
  }
  return penalty / static_cast<double>(samples);
}

template <typename T>
void backward(double grad, const T* grads, const acc_t<T>* norms, T* out, double target, bool one_sided,
              int64_t samples, int64_t size, int threads) {
  with_bool(streams(out, samples * size, size), [&](auto stream) {
    each_piece(samples, size, threads, [&](int64_t n, int64_t, int64_t begin, int64_t end) {
      const double c = coefficients(static_cast<double>(norms[n]), target, one_sided, samples).c;
      scale_into<stream.value>(grad * c, grads, out, begin, end);
    });
  });
}

template <typename T>
double double_backward(double grad, const T* u, const T* grads, const acc_t<T>* norms, T* out, double target,
                       bool one_sided, int64_t samples, int64_t size, int threads) {
  using A = acc_t<T>;
  const int64_t pieces = pieces_of(size);
  const Scratch<double> partials(samples * pieces);
  const auto product = [&](int64_t i, auto lanes) { return load_vector(u + i, lanes) * load_vector(grads + i, lanes); };
  with_bool(streams(out, samples * size, size), [&](auto stream) {
    const auto write = [&](int64_t n, double dot, int64_t begin, int64_t end) {
      const Coefficients k = coefficients(static_cast<double>(norms[n]), target, one_sided, samples);
      const Vec<A> of_u = broadcast(static_cast<A>(grad * k.c)), of_g = broadcast(static_cast<A>(grad * k.e * dot));
      each_vector<A>(begin, end, [&](int64_t i, auto lanes) {
        const Vec<A> v = of_u * load_vector(u + i, lanes) + of_g * load_vector(grads + i, lanes);
        put_vector<stream.value>(out + i, v, lanes);
      });
    };
    sum_then<A, true>(samples, size, threads, partials, product, write);
  });
  double grad_grad = 0;
  for (int64_t n = 0; n < samples; ++n) {
    const double c = coefficients(static_cast<double>(norms[n]), target, one_sided, samples).c;
    grad_grad += c * sum_partials(partials + n * pieces, pieces);
  }
  return grad_grad;
}

}  // namespace

double gradient_penalty_forward(int dtype, const void* grads, void* norms, double grad, void* out, double target,
                                bool one_sided, int64_t samples, int64_t size, int threads) {
  double penalty = 0;
  with_dtype(dtype, [&](auto t) {
    using T = decltype(t);
    penalty = forward(static_cast<const T*>(grads), static_cast<acc_t<T>*>(norms), grad, static_cast<T*>(out), target,
                      one_sided, samples, size, threads);
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
