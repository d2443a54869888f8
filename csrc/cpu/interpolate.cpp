#include "cpu/interpolate.h"

#include "common/philox.h"
#include "common/simd.h"
#include "cpu/samples.h"

namespace fastgan::FASTGAN_ISA {
namespace {

template <typename T>
void forward(const T* real, const T* fake, acc_t<T>* alpha, bool draw, uint64_t seed, T* out, int64_t samples,
             int64_t size, int threads) {
  using A = acc_t<T>;
  if (draw) {
    parallel(team_for(samples, threads), [&](int thread, int team) {
      const Range range = part(samples, thread, team);
#pragma omp simd
      for (int64_t n = range.begin; n < range.end; ++n) alpha[n] = uniform(philox(seed, static_cast<uint64_t>(n)));
    });
  }
  with_bool(streams(out, samples * size, size), [&](auto stream) {
    each_piece(samples, size, threads, [&](int64_t n, int64_t, int64_t begin, int64_t end) {
      const Vec<A> a = broadcast(alpha[n]), b = broadcast(1 - alpha[n]);
      each_vector<A>(begin, end, [&](int64_t i, auto lanes) {
        put_vector<stream.value>(out + i, a * load_vector(real + i, lanes) + b * load_vector(fake + i, lanes), lanes);
      });
    });
  });
}

template <typename T>
void backward(const T* grad, const T* real, const T* fake, const acc_t<T>* alpha, T* grad_real, T* grad_fake,
              acc_t<T>* grad_alpha, int64_t samples, int64_t size, int threads) {
  using A = acc_t<T>;
  const int64_t pieces = pieces_of(size);
  const Scratch<double> partials(grad_alpha == nullptr ? 0 : samples * pieces);
  each_piece(samples, size, threads, [&](int64_t n, int64_t piece, int64_t begin, int64_t end) {
    const Vec<A> a = broadcast(alpha[n]), b = broadcast(1 - alpha[n]);
    Vec<A> sum{};
    each_vector<A>(begin, end, [&](int64_t i, auto lanes) {
      const Vec<A> g = load_vector(grad + i, lanes);
      if (grad_real != nullptr) store_vector(grad_real + i, a * g, lanes);
      if (grad_fake != nullptr) store_vector(grad_fake + i, b * g, lanes);
      if (grad_alpha != nullptr) sum += g * (load_vector(real + i, lanes) - load_vector(fake + i, lanes));
    });
    if (grad_alpha != nullptr) partials[n * pieces + piece] = static_cast<double>(sum_lanes(sum));
  });
  if (grad_alpha == nullptr) return;
  for (int64_t n = 0; n < samples; ++n) {
    grad_alpha[n] = static_cast<A>(sum_partials(partials + n * pieces, pieces));
  }
}

}  // namespace

void interpolate_forward(int dtype, const void* real, const void* fake, void* alpha, bool draw, uint64_t seed,
                         void* out, int64_t samples, int64_t size, int threads) {
  with_dtype(dtype, [&](auto t) {
    using T = decltype(t);
    forward(static_cast<const T*>(real), static_cast<const T*>(fake), static_cast<acc_t<T>*>(alpha), draw, seed,
            static_cast<T*>(out), samples, size, threads);
  });
}

void interpolate_backward(int dtype, const void* grad, const void* real, const void* fake, const void* alpha,
                          void* grad_real, void* grad_fake, void* grad_alpha, int64_t samples, int64_t size,
                          int threads) {
  with_dtype(dtype, [&](auto t) {
    using T = decltype(t);
    backward(static_cast<const T*>(grad), static_cast<const T*>(real), static_cast<const T*>(fake),
             static_cast<const acc_t<T>*>(alpha), static_cast<T*>(grad_real), static_cast<T*>(grad_fake),
             static_cast<acc_t<T>*>(grad_alpha), samples, size, threads);
  });
}

}  // namespace fastgan::FASTGAN_ISA
