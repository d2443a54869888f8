// The exact 1-D Wasserstein cost of batched rows and its derivatives; fastgan/reference/wasserstein.py has the
// formulas.
//
// Both sides are sorted, then coupled by quantiles. Many short rows (groups.h) go through a sorting network, a row a
// lane; others (rows.h) through a radix sort each, and then through the coupling that fits: atom by atom (equal.h),
// by integer masses (unequal.h) or by cumulative weights (weighted.h). The longest (long.h) are coupled bucket by
// bucket.
#include "cpu/wasserstein.h"

#include <type_traits>

#include "cpu/wasserstein/groups.h"
#include "cpu/wasserstein/long.h"
#include "cpu/wasserstein/rows.h"
#include "cpu/wasserstein/signs.h"

namespace fastgan::FASTGAN_ISA {
namespace {

template <typename S>
void run(const WassersteinProblem& problem, int most) {
  const int64_t longest = problem.x.n > problem.y.n ? problem.x.n : problem.y.n;
  const int64_t samples = problem.rows * (problem.x.n + problem.y.n);
  const int threads = useful_threads(samples, most);
  if constexpr (!std::is_same_v<S, double>) {
    // Measured: where a network that sorts kGroup rows at once beats a radix sort of each.
    const bool signs = problem.x.signs != nullptr || problem.y.signs != nullptr;
    const bool indexed = needs_order(problem, problem.x) || needs_order(problem, problem.y);
    if (longest <= 64 || (longest <= (indexed && !signs ? 8192 : 32768) && problem.rows >= kGroup / 2)) {
      const int64_t groups = ceil_div(problem.rows, kGroup);
      run_groups<S>(problem, threads < groups ? threads : static_cast<int>(groups));
      return;
    }
  }
  const int outer = problem.rows >= threads ? threads : 1, inner = problem.rows >= threads ? 1 : threads;
  if constexpr (!std::is_same_v<S, double>) {
    if (is_long(problem)) {
      with_bool(problem.x.signs != nullptr || problem.y.signs != nullptr,
                [&](auto signs) { run_long<S, signs.value>(problem, outer, inner); });
      return;
    }
  }
  run_rows<S>(problem, outer, inner);
}

}  // namespace

void wasserstein(const WassersteinProblem& problem, int threads) {
  switch (problem.dtype) {
    case DType::f32: return run<float>(problem, threads);
    case DType::f64: return run<double>(problem, threads);
    case DType::f16: return run<f16_t>(problem, threads);
    case DType::bf16: return run<bf16_t>(problem, threads);
  }
}

void scale_signs(const SignGradients& problem, int threads) {
  switch (problem.dtype) {
    case DType::f32: return scale_rows<float>(problem, threads);
    case DType::f64: return scale_rows<double>(problem, threads);
    case DType::f16: return scale_rows<f16_t>(problem, threads);
    case DType::bf16: return scale_rows<bf16_t>(problem, threads);
  }
}

}  // namespace fastgan::FASTGAN_ISA
