// Instance norm + affine + residual + activation + reflection padding, its backward and its double backward.
//
// The formulas are those of fastgan/reference/instance_norm.py. Each of the three is a pass that reduces over a
// plane (sums of what the formulas need), a few scalars per plane, and a pass that writes; the second pass finds in
// cache what the first one read. Two layouts:
//
//   channels first   a group is one plane [D, H, W]; vectors run along W (along the whole plane where it is dense)
//   channels last    a group is one sample [D, H, W, C]; vectors run along C
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
#include "cpu/instance_norm.h"

#include <type_traits>

#include "cpu/instance_norm/plane_blocks.h"
#include "cpu/instance_norm/slabs.h"

namespace fastgan::FASTGAN_ISA {
namespace {

template <typename T, typename Op>
void run(const InstanceNorm& p, Tensors& tensors, const Op& op) {
  if (p.N * p.C * p.D * p.H * p.W == 0) return;
  const Plan plan = make_plan(p, tensors, sizeof(T));
  if (!plan.channels_last && plan.chunks == 1) {
    const PlaneBlocks<Op, T> planes(op, plan, tensors, p.slope);
    return parallel(static_cast<int>(least(plan.threads, planes.blocks())),
                    [&](int thread, int threads) { planes.run(thread, threads); });
  }
  const Slabs<Op, T> slabs(op, plan, tensors, p.slope);
  parallel(plan.threads, [&](int thread, int threads) { slabs.run(thread, threads); });
}

// Calls body with a null pointer to the element type.
template <typename Body>
void for_dtype(DType dtype, const Body& body) {
  switch (dtype) {
    case DType::f32: return body(static_cast<float*>(nullptr));
    case DType::f64: return body(static_cast<double*>(nullptr));
    case DType::f16: return body(static_cast<f16_t*>(nullptr));
    case DType::bf16:
#if defined(FASTGAN_ISA_avx512)
      if (cpu_isa() == Isa::avx512_bf16) return body(static_cast<native_bf16_t*>(nullptr));
#endif
      return body(static_cast<bf16_t*>(nullptr));
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

void sum_over_samples(DType dtype, int64_t N, int64_t C, const void* mean, double elements, void* total) {
  for_dtype(dtype, [&](auto* type) {
    using A = acc_t<std::remove_pointer_t<decltype(type)>>;
    constexpr int64_t kBlock = 64;
    double sums[kBlock];
    for (int64_t c0 = 0; c0 < C; c0 += kBlock) {
      const int64_t width = least(kBlock, C - c0);
      for (int64_t c = 0; c < width; ++c) sums[c] = 0;
      for (int64_t n = 0; n < N; ++n) {
        const A* row = static_cast<const A*>(mean) + n * C + c0;
        for (int64_t c = 0; c < width; ++c) sums[c] += static_cast<double>(row[c]);
      }
      for (int64_t c = 0; c < width; ++c) static_cast<A*>(total)[c0 + c] = static_cast<A>(elements * sums[c]);
    }
  });
}

}  // namespace fastgan::FASTGAN_ISA
