// Signs of 16 samples as a word of two bits each, and gradients from them: a sixteenth of what floats would be.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cpu/sorting_network.h"
#include "cpu/wasserstein.h"
#include "cpu/wasserstein/work.h"

namespace fastgan::FASTGAN_ISA {
namespace {

// Signs [n], a byte each, as words of 16.
void pack_signs(const int8_t* signs, int64_t n, uint32_t* words) {
  for (int64_t i = 0; i < n; i += 16) {
    uint32_t positive = 0, negative = 0;
#if defined(FASTGAN_ISA_avx512) || defined(FASTGAN_ISA_avx2)
    if (n - i >= 16) {
      const __m128i sixteen = _mm_loadu_si128(reinterpret_cast<const __m128i*>(signs + i));
      positive = _mm_movemask_epi8(_mm_cmpgt_epi8(sixteen, _mm_setzero_si128()));
      negative = _mm_movemask_epi8(sixteen);
      words[i / 16] = positive | negative << 16;
      continue;
    }
#endif
    for (int64_t k = 0; k < 16 && i + k < n; ++k) {
      positive |= static_cast<uint32_t>(signs[i + k] > 0) << k;
      negative |= static_cast<uint32_t>(signs[i + k] < 0) << k;
    }
    words[i / 16] = positive | negative << 16;
  }
}

// 16 signs times a factor, also one that is not finite.
FASTGAN_INLINE void scale_word(uint32_t word, float factor, float* to) {
  using network::Decision;
  const Vec<float> zero = broadcast(0 * factor), plus = broadcast(factor), minus = broadcast(-factor);
  for (int k = 0; k < 16; k += kGroup) {
    constexpr uint32_t kMask = (1u << kGroup) - 1;
    const Decision positive = static_cast<Decision>(word >> k & kMask);
    const Decision negative = static_cast<Decision>(word >> (16 + k) & kMask);
    store_vector(to + k, network::choose(positive, network::choose(negative, zero, minus), plus));
  }
}
FASTGAN_INLINE void scale_word(uint32_t word, double factor, double* to) {
  for (int k = 0; k < 16; ++k)
    to[k] = factor * (static_cast<int>(word >> k & 1) - static_cast<int>(word >> (16 + k) & 1));
}

// Words [begin, end), of one row.
template <typename S>
FASTGAN_INLINE void scale_words(const uint32_t* signs, acc_t<S> factor, int64_t row, int64_t begin, int64_t end,
                                int64_t n, S* grad) {
  for (int64_t w = begin; w < end; ++w) {
    const int64_t k = (w - row * sign_words(n)) * 16;
    S* const to = grad + row * n + k;
    acc_t<S> values[16];
    if constexpr (std::is_same_v<S, float>) {
      if (n - k >= 16) {
        scale_word(signs[w], factor, to);
        continue;
      }
    }
    scale_word(signs[w], factor, values);
    for (int64_t i = 0; i < 16 && k + i < n; ++i) store(to[i], values[i]);
  }
}

double factor_of_row(const SignGradients& g, int64_t row) {
  const auto at = [&](auto* factors) { return static_cast<double>(load(factors[row * g.stride])); };
  double factor = 0;
  switch (g.factors_dtype) {
    case DType::f32: factor = at(static_cast<const float*>(g.factors)); break;
    case DType::f64: factor = at(static_cast<const double*>(g.factors)); break;
    case DType::f16: factor = at(static_cast<const f16_t*>(g.factors)); break;
    case DType::bf16: factor = at(static_cast<const bf16_t*>(g.factors)); break;
  }
  return g.scale == nullptr ? factor : factor / g.scale[row] / static_cast<double>(g.n);
}

template <typename S>
void scale_rows(const SignGradients& problem, int most) {
  const SignGradients g = problem;
  const int64_t words = sign_words(g.n);
  const int threads = useful_threads(g.rows * g.n, most);
  Shares shares[2] = {{g.signs[0] == nullptr ? 0 : g.rows * words, threads},
                      {g.signs[1] == nullptr ? 0 : g.rows * words, threads}};
  parallel(threads, [&](int, int) {
    for (int side = 0; side < 2; ++side) {
      Shares& left = shares[side];
      for (Range range = left.next(); range.begin < range.end; range = left.next()) {
        for (int64_t row = range.begin / words; row * words < range.end; ++row) {
          const int64_t begin = row * words > range.begin ? row * words : range.begin;
          const int64_t end = (row + 1) * words < range.end ? (row + 1) * words : range.end;
          const acc_t<S> factor = static_cast<acc_t<S>>(factor_of_row(g, row));
          scale_words(g.signs[side], factor, row, begin, end, g.n, static_cast<S*>(g.grads[side]));
        }
      }
    }
  });
}

}  // namespace
}  // namespace fastgan::FASTGAN_ISA
