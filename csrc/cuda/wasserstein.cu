// The driver, and the kernels that couple rows already sorted: rows too long for one block, unequal counts, weights,
// second derivatives.
//
// A row's cost is added up in two steps of fixed order: each block's part, then the parts. Gradients need no atomics:
// an atom's partners are consecutive, and one thread (or one warp, for many) adds over them.
#include <algorithm>
#include <cub/block/block_scan.cuh>

#include "cuda/check.h"
#include "cuda/coupling.cuh"
#include "cuda/power.cuh"
#include "cuda/sort.h"
#include "cuda/value.cuh"
#include "cuda/wasserstein.h"
#include "cuda/workspace.h"

namespace fastgan::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kBlocksPerSm = 4;  // leaves enough registers; left to itself the compiler aims for more blocks and spills
constexpr int kAtomsPerBlock = 4 * kThreads;
constexpr int kRowsPerBlock = kThreads / 32;  // where a warp serves a row
constexpr int64_t kChunk = int64_t{1} << 26;  // values of a side that are worked on at a time
using Group = BlockGroup<kThreads>;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
unsigned blocks_for(int64_t count, int64_t per_block) { return static_cast<unsigned>(ceil_div(count, per_block)); }

// One side of the rows at work: sorted values and where they came from.
template <typename T>
struct Sorted {
  const T* values;        // [rows, n]
  const uint32_t* index;  // [rows, n]
  int64_t n;
  void* grad;             // [rows, n] of the elements' dtype, or null
  const void* cotangent;  // likewise
};

// The block's row, its first atom, and what comes after its last one of n.
struct Place {
  int64_t row, part, first, last;
  __device__ Place(unsigned parts, int64_t n)
      : row(blockIdx.x / parts),
        part(blockIdx.x % parts),
        first(part * kAtomsPerBlock),
        last(n - first < kAtomsPerBlock ? n : first + kAtomsPerBlock) {}
};

// None for an atom beyond the last; all lanes look them up, so that the warp does not part.
template <typename Coupling>
__device__ __forceinline__ Partners partners_of(const Coupling& coupling, int64_t row, int64_t i, int64_t n) {
  const Partners partners = coupling.partners(row, i < n ? i : n - 1);
  return {partners.first, i < n ? partners.last : partners.first};
}

template <typename T>
__device__ bool has_nan(const Sorted<T>& side, int64_t row) {
  return isnan(side.values[row * side.n + side.n - 1]);
}

// --- the largest |d| ---------------------------------------------------------------------------------------------

template <typename T, typename Coupling>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm)
    largest_kernel(Sorted<T> x, Sorted<T> y, Coupling coupling, int64_t parts, Largest* partial /* [rows, parts] */) {
  const Place place(static_cast<unsigned>(parts), x.n);
  const T *xs = x.values + place.row * x.n, *ys = y.values + place.row * y.n;
  const int lane = threadIdx.x % 32;
  Largest largest{-1, 0};
  for (int64_t i = place.first + threadIdx.x; i - lane < place.last; i += kThreads) {  // whole warps
    const Partners partners = partners_of(coupling, place.row, i, x.n);
    largest += reduce_partners(partners, i, Largest{-1, 0}, [&](int64_t atom, int64_t j) {
      const double d = fabs(static_cast<double>(difference(xs[atom], ys[j])));
      return Largest{coupling.mass(place.row, atom, j) > 0 ? d : -1, atom};
    });
  }
  largest = Group::largest(largest);
  if (threadIdx.x == 0) partial[blockIdx.x] = largest;
}

template <typename T>
__device__ void fill(void* grad, DType dtype, int64_t first, int64_t n, T value) {
  for (int64_t i = threadIdx.x % 32; i < n; i += 32) store_value(grad, dtype, first + i, value);
}

// A warp per row. For finite p the scale; for p = inf also the cost, and the gradients, which are one pair's alone.
template <typename T, typename Coupling>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm)
    finish_largest_kernel(Sorted<T> x, Sorted<T> y, Coupling coupling, DType dtype, int64_t rows, int64_t parts,
                          const Largest* partial, double p, double* cost, double* scale) {
  const int64_t row = int64_t{blockIdx.x} * kRowsPerBlock + threadIdx.x / 32;
  if (row >= rows) return;
  const int lane = threadIdx.x % 32;
  Largest largest{-1, 0};
  for (int64_t k = lane; k < parts; k += 32) largest += partial[row * parts + k];
  largest = warp_largest(largest);
  const bool maximum = isinf(p);
  if (lane == 0) scale[row] = maximum ? 1 : scale_of(largest.size);
  if (!maximum) return;

  const bool bad = has_nan(x, row) || has_nan(y, row) || isnan(coupling.inverse_total(row));
  if (lane == 0) cost[row] = bad ? static_cast<double>(NAN) : largest.size;
  if (x.grad != nullptr) fill(x.grad, dtype, row * x.n, x.n, bad ? static_cast<T>(NAN) : T(0));
  if (y.grad != nullptr) fill(y.grad, dtype, row * y.n, y.n, bad ? static_cast<T>(NAN) : T(0));
  __syncwarp();
  if (bad || lane != 0) return;
  const int64_t i = largest.at;
  const Partners partners = coupling.partners(row, i);
  for (int64_t j = partners.first; j < partners.last; ++j) {
    const T d = difference(x.values[row * x.n + i], y.values[row * y.n + j]);
    if (fabs(static_cast<double>(d)) != largest.size || !(coupling.mass(row, i, j) > 0)) continue;
    const T sign = d > 0 ? T(1) : d < 0 ? T(-1) : T(0);
    if (x.grad != nullptr) store_value(x.grad, dtype, row * x.n + x.index[row * x.n + i], sign * x.n);
    if (y.grad != nullptr) store_value(y.grad, dtype, row * y.n + y.index[row * y.n + j], -sign * y.n);
    return;
  }
}

// --- cost and gradients, finite p --------------------------------------------------------------------------------

// Equal counts, uniform weights: pairs.
template <typename T>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm)
    pairs_kernel(Sorted<T> x, Sorted<T> y, DType dtype, T p, const double* scale, int64_t parts,
                 double* partial /* [rows, parts] */) {
  const Place place(static_cast<unsigned>(parts), x.n);
  const int64_t n = x.n, base = place.row * n;
  const double inverse_scale = scale == nullptr ? 1 : inverse_of_scale(scale[place.row]);
  const T factor = has_nan(x, place.row) || has_nan(y, place.row) ? static_cast<T>(NAN) : T(1);
  double sum = 0;
  for (int64_t k = place.first + threadIdx.x; k < place.last; k += kThreads) {
    T cost, slope;
    power(difference(x.values[base + k], y.values[base + k]), p, inverse_scale, cost, slope);
    sum += cost;
    if (x.grad != nullptr) store_value(x.grad, dtype, base + x.index[base + k], factor * slope);
    if (y.grad != nullptr) store_value(y.grad, dtype, base + y.index[base + k], -factor * slope);
  }
  sum = Group::sum(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum / n;
}

// One side's atoms against the other's: its unit gradient, and the row's cost if `partial` is given.
template <typename T, typename Coupling>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm)
    atoms_kernel(Sorted<T> own, Sorted<T> other, Coupling coupling, DType dtype, T p, const double* scale,
                 int64_t parts, double* partial) {
  const Place place(static_cast<unsigned>(parts), own.n);
  const T *values = own.values + place.row * own.n, *others = other.values + place.row * other.n;
  const double inverse_scale = scale == nullptr ? 1 : inverse_of_scale(scale[place.row]);
  const bool bad = has_nan(own, place.row) || has_nan(other, place.row);
  const double unit = (bad ? static_cast<double>(NAN) : 1.0) * coupling.inverse_total(place.row);
  const int lane = threadIdx.x % 32;
  double sum = 0;
  for (int64_t i = place.first + threadIdx.x; i - lane < place.last; i += kThreads) {  // whole warps
    const Partners partners = partners_of(coupling, place.row, i, own.n);
    const CostAndSlope sums = reduce_partners(partners, i, CostAndSlope{0, 0}, [&](int64_t atom, int64_t j) {
      const double mass = coupling.mass(place.row, atom, j);
      T cost, slope;
      power(difference(values[atom], others[j]), p, inverse_scale, cost, slope);
      return mass > 0 ? CostAndSlope{mass * cost, mass * slope} : CostAndSlope{0, 0};
    });
    sum += sums.cost;
    if (own.grad != nullptr && i < own.n) {
      const int64_t at = place.row * own.n;
      store_value(own.grad, dtype, at + own.index[at + i], static_cast<T>(sums.slope * unit * own.n));
    }
  }
  if (partial == nullptr) return;
  sum = Group::sum(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum * unit;
}

// A warp per row: its parts, and the scale 1 where there was no other.
template <typename T>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm)
    finish_kernel(Sorted<T> x, Sorted<T> y, int64_t rows, int64_t parts, const double* partial, double* cost,
                  double* new_scale) {
  const int64_t row = int64_t{blockIdx.x} * kRowsPerBlock + threadIdx.x / 32;
  if (row >= rows) return;
  double sum = 0;
  for (int64_t k = threadIdx.x % 32; k < parts; k += 32) sum += partial[row * parts + k];
  sum = warp_sum(sum);
  if (threadIdx.x % 32 != 0) return;
  cost[row] = has_nan(x, row) || has_nan(y, row) ? static_cast<double>(NAN) : sum;
  if (new_scale != nullptr) new_scale[row] = 1;
}

// One side's atoms: the second derivative of the cost, contracted with both cotangents.
template <typename T, typename Coupling>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm)
    second_kernel(Sorted<T> own, Sorted<T> other, Coupling coupling, DType dtype, T p, const double* scale,
                  const double* grad, int64_t parts) {
  const Place place(static_cast<unsigned>(parts), own.n);
  const int64_t base = place.row * own.n, other_base = place.row * other.n;
  const double inverse_scale = inverse_of_scale(scale[place.row]);
  const bool bad = has_nan(own, place.row) || has_nan(other, place.row);
  const double factor = (bad ? static_cast<double>(NAN) : grad[place.row]) * coupling.inverse_total(place.row) *
                        inverse_scale * inverse_scale;
  const auto moved = [&](const Sorted<T>& side, int64_t first, int64_t at) {
    return side.cotangent == nullptr ? 0 : load_value<double>(side.cotangent, dtype, first + side.index[first + at]);
  };
  const int lane = threadIdx.x % 32;
  for (int64_t i = place.first + threadIdx.x; i - lane < place.last; i += kThreads) {  // whole warps
    const Partners partners = partners_of(coupling, place.row, i, own.n);
    const double sum = reduce_partners(partners, i, 0.0, [&](int64_t atom, int64_t j) {
      const double mass = coupling.mass(place.row, atom, j);
      const T d = difference(own.values[base + atom], other.values[other_base + j]);
      const double change = moved(own, base, atom) - moved(other, other_base, j);
      return mass > 0 ? mass * curvature(d, p, inverse_scale) * change : 0;
    });
    if (i < own.n) store_value(own.grad, dtype, base + own.index[base + i], static_cast<T>(sum * factor));
  }
}

// --- cuts --------------------------------------------------------------------------------------------------------

constexpr int kItems = 8;
constexpr int kTile = kThreads * kItems;
using Scan = cub::BlockScan<double, kThreads>;

// Weights in the order of the sorted values, and their cumulative sums within each tile. The sum of a tile with a
// negative weight or a NaN is NaN.
__global__ void __launch_bounds__(kThreads, kBlocksPerSm)
    scan_tiles_kernel(const double* weights, int64_t stride, const uint32_t* index, int64_t n, int64_t tiles,
                      double* sorted /* [rows, n] */, double* cuts /* [rows, n] */, double* sums /* [rows, tiles] */) {
  __shared__ typename Scan::TempStorage temporary;
  const int64_t row = blockIdx.x / tiles, tile = blockIdx.x % tiles;
  const int64_t first = tile * kTile + threadIdx.x * kItems;
  double items[kItems];
  bool bad = false;
#pragma unroll
  for (int k = 0; k < kItems; ++k) {
    const int64_t i = first + k;
    items[k] = i < n ? weights[row * stride + index[row * n + i]] : 0;
    bad = bad || !(items[k] >= 0);
    if (i < n) sorted[row * n + i] = items[k];
  }
  double total;
  Scan(temporary).InclusiveSum(items, items, total);
  bad = __syncthreads_or(bad);
#pragma unroll
  for (int k = 0; k < kItems; ++k) {
    if (first + k < n) cuts[row * n + first + k] = items[k];
  }
  if (threadIdx.x == 0) sums[blockIdx.x] = bad ? static_cast<double>(NAN) : total;
}

// A warp per row: sums become what comes before each tile, totals (if wanted) the sum of all.
__global__ void __launch_bounds__(kThreads, kBlocksPerSm)
    scan_sums_kernel(int64_t rows, int64_t tiles, double* sums, double* totals) {
  const int64_t row = int64_t{blockIdx.x} * kRowsPerBlock + threadIdx.x / 32;
  if (row >= rows) return;
  const int lane = threadIdx.x % 32;
  double before = 0;
  for (int64_t first = 0; first < tiles; first += 32) {
    double inclusive = first + lane < tiles ? sums[row * tiles + first + lane] : 0;
#pragma unroll
    for (int offset = 1; offset < 32; offset *= 2) {
      const double left = __shfl_up_sync(~0u, inclusive, offset);
      if (lane >= offset) inclusive += left;
    }
    const double left = __shfl_up_sync(~0u, inclusive, 1);
    if (first + lane < tiles) sums[row * tiles + first + lane] = lane == 0 ? before : before + left;
    before += __shfl_sync(~0u, inclusive, 31);
  }
  if (lane == 0 && totals != nullptr) totals[row] = before;
}

// A total as a number in [1/2, 1) times a power of two, exactly; NaN unless positive and finite.
__device__ __forceinline__ double mantissa(double total, int& exponent) {
  exponent = 0;
  return total > 0 && isfinite(total) ? frexp(total, &exponent) : static_cast<double>(NAN);
}

// cuts[i] = (own cumulative weight) * (other total), scaled by powers of two so that nothing overflows: cuts of both
// sides then compare without division, exactly for integer weights. A uniform side (totals null) has the weights 1.
__global__ void __launch_bounds__(kThreads, kBlocksPerSm)
    cross_kernel(int64_t n, int64_t count, int64_t tiles, const double* sums, const double* totals,
                 const double* other_totals, int64_t other_n, double* cuts, double* inverse_totals) {
  const int64_t at = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (at >= count) return;
  const int64_t row = at / n, i = at % n;
  int exponent, other_exponent;
  const double own = mantissa(totals != nullptr ? totals[row] : static_cast<double>(n), exponent);
  const double other =
      mantissa(other_totals != nullptr ? other_totals[row] : static_cast<double>(other_n), other_exponent);
  double cumulative = static_cast<double>(i + 1);
  if (totals != nullptr) cumulative = i == n - 1 ? totals[row] : cuts[at] + sums[row * tiles + i / kTile];
  cumulative =
      ldexp(ldexp(cumulative, -(exponent / 2)), exponent / 2 - exponent);  // in two steps: 2^-exponent may not be
  cuts[at] = isnan(own) ? own : (cumulative < own ? cumulative : own) * other;
  if (i == 0) inverse_totals[row] = 1 / (own * other);
}

// Each of y's cuts [rows, m] that is one with a cut of x becomes it (common/quantile.h).
__global__ void __launch_bounds__(kThreads, kBlocksPerSm)
    tie_kernel(int64_t n, int64_t m, int64_t count, const double* x_cuts, double* y_cuts) {
  const int64_t at = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (at >= count) return;
  const int64_t row = at / m;
  y_cuts[at] = tied(y_cuts[at], x_cuts + row * n, n, x_cuts[row * n + n - 1]);
}

struct SideCuts {
  double *cuts, *weights, *sums, *totals;  // [rows, n], [rows, n], [rows, tiles], [rows]; uniform: cuts only
  double* inverse_totals;                  // [rows]
  int64_t tiles;
};

SideCuts take_cuts(const WassersteinSide& side, int64_t rows, Workspace& workspace) {
  const int64_t tiles = ceil_div(side.n, kTile);
  SideCuts taken{};
  taken.tiles = tiles;
  taken.cuts = workspace.take<double>(rows * side.n);
  taken.inverse_totals = workspace.take<double>(rows);
  if (side.weights == nullptr) return taken;
  taken.weights = workspace.take<double>(rows * side.n);
  taken.sums = workspace.take<double>(rows * tiles);
  taken.totals = workspace.take<double>(rows);
  return taken;
}

void launch_scan(const WassersteinSide& side, const uint32_t* index, int64_t rows, const SideCuts& to,
                 cudaStream_t stream) {
  if (side.weights == nullptr) return;
  scan_tiles_kernel<<<blocks_for(rows * to.tiles, 1), kThreads, 0, stream>>>(
      side.weights, side.weights_stride, index, side.n, to.tiles, to.weights, to.cuts, to.sums);
  FASTGAN_CUDA_LAUNCHED("scan_tiles_kernel");
  scan_sums_kernel<<<blocks_for(rows, kRowsPerBlock), kThreads, 0, stream>>>(rows, to.tiles, to.sums, to.totals);
  FASTGAN_CUDA_LAUNCHED("scan_sums_kernel");
}

void launch_cross(int64_t n, int64_t rows, const SideCuts& own, const SideCuts& other, int64_t other_n,
                  cudaStream_t stream) {
  cross_kernel<<<blocks_for(rows * n, kThreads), kThreads, 0, stream>>>(
      n, rows * n, own.tiles, own.sums, own.totals, other.totals, other_n, own.cuts, own.inverse_totals);
  FASTGAN_CUDA_LAUNCHED("cross_kernel");
}

void launch_tie(int64_t n, int64_t m, int64_t rows, const SideCuts& x, const SideCuts& y, cudaStream_t stream) {
  tie_kernel<<<blocks_for(rows * m, kThreads), kThreads, 0, stream>>>(n, m, rows * m, x.cuts, y.cuts);
  FASTGAN_CUDA_LAUNCHED("tie_kernel");
}

// --- gradients of the weights ------------------------------------------------------------------------------------

// With kappa_i the derivative of the cost for the cut after atom i (see the reference), the gradient for the weight of
// atom k is (the sum of kappa_i over i >= k, less that sum's mean over the mass) / (the sum of the weights).
template <typename T>
__device__ double kappa(const T* own, const T* other, const double* own_cuts, const double* other_cuts, int64_t i,
                        int64_t m, T p, double inverse_scale) {
  const int64_t below = first_at_least(other_cuts, m, own_cuts[i]), above = first_above(other_cuts, m, own_cuts[i]);
  const T y_below = other[below < m ? below : m - 1], y_above = other[above < m ? above : m - 1];
  double sum = 0;
#pragma unroll 1  // one copy of the power
  for (int corner = 0; corner < 4; ++corner) {
    T cost, slope;
    power(difference(own[i + corner / 2], corner % 2 == 0 ? y_below : y_above), p, inverse_scale, cost, slope);
    sum += corner < 2 ? cost : -cost;
  }
  return sum / 2;
}

// kappa's sums over each tile of the row in reverse, from its end; kappa * cut / total summed over each tile.
template <typename T>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm)
    kappa_kernel(Sorted<T> own, Sorted<T> other, const double* own_cuts, const double* other_cuts, T p,
                 const double* scale, int64_t tiles, double* suffix /* [rows, n] */, double* sums /* [rows, tiles] */,
                 double* means /* [rows, tiles] */) {
  __shared__ typename Scan::TempStorage temporary;
  const int64_t row = blockIdx.x / tiles, tile = blockIdx.x % tiles, n = own.n;
  const double* cuts = own_cuts + row * n;
  const double inverse_scale = is_scaled(p) ? inverse_of_scale(scale[row]) : 1;
  const int64_t last = n - 1 - (tile * kTile + threadIdx.x * kItems);
  double items[kItems], dot = 0;
#pragma unroll
  for (int k = 0; k < kItems; ++k) items[k] = 0;
#pragma unroll
  for (int k = 0; k < kItems; ++k) {
    const int64_t i = last - k;
    if (i < 0 || i >= n - 1) continue;
    items[k] = kappa(own.values + row * n, other.values + row * other.n, cuts, other_cuts + row * other.n, i, other.n,
                     p, inverse_scale);
    dot += items[k] * cuts[i];
  }
  double total;
  Scan(temporary).InclusiveSum(items, items, total);
#pragma unroll
  for (int k = 0; k < kItems; ++k) {
    if (last - k >= 0) suffix[row * n + last - k] = items[k];
  }
  dot = Group::sum(dot);
  if (threadIdx.x != 0) return;
  sums[blockIdx.x] = total;
  means[blockIdx.x] = dot / cuts[n - 1];
}

template <typename T>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm)
    weight_gradient_kernel(Sorted<T> own, Sorted<T> other, int64_t count, int64_t tiles, const double* suffix,
                           const double* sums, const double* means, const double* totals, double p, double* grad) {
  const int64_t at = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (at >= count) return;
  const int64_t row = at / own.n, i = at % own.n;
  double value = 0;
  if (!isinf(p)) value = (suffix[at] + sums[row * tiles + (own.n - 1 - i) / kTile] - means[row]) / totals[row];
  if (has_nan(own, row) || has_nan(other, row)) value = NAN;
  grad[row * own.n + own.index[at]] = value;
}

template <typename T>
void launch_weight_gradient(const WassersteinProblem& problem, const Sorted<T>& own, const Sorted<T>& other,
                            const SideCuts& own_cuts, const SideCuts& other_cuts, double* grad, Workspace& workspace,
                            cudaStream_t stream) {
  if (grad == nullptr) return;
  const int64_t rows = problem.rows, tiles = own_cuts.tiles;
  double* suffix = workspace.take<double>(rows * own.n);
  double* sums = workspace.take<double>(rows * tiles);
  double* tile_means = workspace.take<double>(rows * tiles);
  double* means = workspace.take<double>(rows);
  if (workspace.measures()) return;
  if (!std::isinf(problem.p)) {
    kappa_kernel<<<blocks_for(rows * tiles, 1), kThreads, 0, stream>>>(own, other, own_cuts.cuts, other_cuts.cuts,
                                                                       static_cast<T>(problem.p), problem.scale, tiles,
                                                                       suffix, sums, tile_means);
    FASTGAN_CUDA_LAUNCHED("kappa_kernel");
    for (auto [parts, totals] : {std::pair{sums, static_cast<double*>(nullptr)}, std::pair{tile_means, means}}) {
      scan_sums_kernel<<<blocks_for(rows, kRowsPerBlock), kThreads, 0, stream>>>(rows, tiles, parts, totals);
      FASTGAN_CUDA_LAUNCHED("scan_sums_kernel");
    }
  }
  weight_gradient_kernel<<<blocks_for(rows * own.n, kThreads), kThreads, 0, stream>>>(
      own, other, rows * own.n, tiles, suffix, sums, means, own_cuts.totals, problem.p, grad);
  FASTGAN_CUDA_LAUNCHED("weight_gradient_kernel");
}

// --- driver ------------------------------------------------------------------------------------------------------

template <typename T, typename Coupling>
void couple(const WassersteinProblem& problem, const Sorted<T>& x, const Sorted<T>& y, const Coupling& coupling,
            Workspace& workspace, cudaStream_t stream) {
  const int64_t rows = problem.rows;
  const bool scaled = is_scaled(problem.p);
  const int64_t x_parts = ceil_div(x.n, kAtomsPerBlock), y_parts = ceil_div(y.n, kAtomsPerBlock);
  Largest* largest = scaled ? workspace.take<Largest>(rows * x_parts) : nullptr;
  double* partial = workspace.take<double>(rows * x_parts);
  if (workspace.measures()) return;
  const unsigned x_blocks = blocks_for(rows * x_parts, 1), y_blocks = blocks_for(rows * y_parts, 1);
  const unsigned row_blocks = blocks_for(rows, kRowsPerBlock);
  const T p = static_cast<T>(problem.p);
  if (problem.grad != nullptr) {
    if (x.grad != nullptr) {
      second_kernel<<<x_blocks, kThreads, 0, stream>>>(x, y, coupling, problem.dtype, p, problem.scale, problem.grad,
                                                       x_parts);
      FASTGAN_CUDA_LAUNCHED("second_kernel");
    }
    if (y.grad != nullptr) {
      second_kernel<<<y_blocks, kThreads, 0, stream>>>(y, x, coupling.transposed(), problem.dtype, p, problem.scale,
                                                       problem.grad, y_parts);
      FASTGAN_CUDA_LAUNCHED("second_kernel");
    }
    return;
  }
  if (scaled) {
    largest_kernel<<<x_blocks, kThreads, 0, stream>>>(x, y, coupling, x_parts, largest);
    FASTGAN_CUDA_LAUNCHED("largest_kernel");
    finish_largest_kernel<<<row_blocks, kThreads, 0, stream>>>(x, y, coupling, problem.dtype, rows, x_parts, largest,
                                                               problem.p, problem.cost, problem.scale);
    FASTGAN_CUDA_LAUNCHED("finish_largest_kernel");
    if (std::isinf(problem.p)) return;
  }
  const double* scale = scaled ? problem.scale : nullptr;
  if (std::is_same_v<Coupling, UniformCoupling> && x.n == y.n) {
    pairs_kernel<<<x_blocks, kThreads, 0, stream>>>(x, y, problem.dtype, p, scale, x_parts, partial);
    FASTGAN_CUDA_LAUNCHED("pairs_kernel");
  } else {
    double* none = nullptr;
    atoms_kernel<<<x_blocks, kThreads, 0, stream>>>(x, y, coupling, problem.dtype, p, scale, x_parts, partial);
    FASTGAN_CUDA_LAUNCHED("atoms_kernel");
    if (y.grad != nullptr) {
      atoms_kernel<<<y_blocks, kThreads, 0, stream>>>(y, x, coupling.transposed(), problem.dtype, p, scale, y_parts,
                                                      none);
      FASTGAN_CUDA_LAUNCHED("atoms_kernel");
    }
  }
  finish_kernel<<<row_blocks, kThreads, 0, stream>>>(x, y, rows, x_parts, partial, problem.cost,
                                                     scaled ? nullptr : problem.scale);
  FASTGAN_CUDA_LAUNCHED("finish_kernel");
}

// The second derivative looks cotangents up on both sides.
bool keeps_index(const WassersteinProblem& problem, const WassersteinSide& side) {
  return side.grad != nullptr || side.weights != nullptr || problem.grad != nullptr;
}

template <typename T>
Sorted<T> sort_side(const WassersteinProblem& problem, const WassersteinSide& side, Workspace& workspace,
                    cudaStream_t stream) {
  const SortedRows<T> sorted = sort_device_wide<T>(problem.dtype, side.values, problem.rows, side.n,
                                                   keeps_index(problem, side), workspace, stream);
  return {sorted.values, sorted.index, side.n, side.grad, side.cotangent};
}

// Both sides by one launch on chip, for float and 16-bit values.
void sort_on_chip(const WassersteinProblem& problem, Sorted<float>& x, Sorted<float>& y, Workspace& workspace,
                  cudaStream_t stream) {
  RowArguments arguments{};
  Sorted<float>* results[2] = {&x, &y};
  for (int s = 0; s < 2; ++s) {
    const WassersteinSide& side = s == 0 ? problem.x : problem.y;
    const bool keep_index = keeps_index(problem, side);
    float* sorted = workspace.take<float>(problem.rows * side.n);
    uint32_t* index = keep_index ? workspace.take<uint32_t>(problem.rows * side.n) : nullptr;
    arguments.side[s] = {side.values, static_cast<int>(side.n), keep_index, nullptr, sorted, index};
    *results[s] = {sorted, index, side.n, side.grad, side.cotangent};
  }
  arguments.rows = problem.rows;
  arguments.infinity = infinity_bits(problem.dtype);
  if (!workspace.measures()) launch_rows(problem.dtype, arguments, stream);
}

template <typename T>
void run_chunk(const WassersteinProblem& problem, Workspace& workspace, cudaStream_t stream) {
  const WassersteinSide &from_x = problem.x, &from_y = problem.y;
  Sorted<T> x{}, y{};
  bool on_chip = false;
  if constexpr (std::is_same_v<T, float>) {
    on_chip = std::max(from_x.n, from_y.n) <= longest_row_on_chip();
    if (on_chip) sort_on_chip(problem, x, y, workspace, stream);
  }
  if (!on_chip) {
    x = sort_side<T>(problem, from_x, workspace, stream);
    y = sort_side<T>(problem, from_y, workspace, stream);
  }
  if (from_x.weights == nullptr && from_y.weights == nullptr) {
    return couple(problem, x, y, UniformCoupling{x.n, y.n, 1.0 / static_cast<double>(x.n * y.n)}, workspace, stream);
  }
  const SideCuts x_cuts = take_cuts(from_x, problem.rows, workspace);
  const SideCuts y_cuts = take_cuts(from_y, problem.rows, workspace);
  if (!workspace.measures()) {
    launch_scan(from_x, x.index, problem.rows, x_cuts, stream);
    launch_scan(from_y, y.index, problem.rows, y_cuts, stream);
    launch_cross(x.n, problem.rows, x_cuts, y_cuts, y.n, stream);
    launch_cross(y.n, problem.rows, y_cuts, x_cuts, x.n, stream);
    if (is_scaled(problem.p)) launch_tie(x.n, y.n, problem.rows, x_cuts, y_cuts, stream);
  }
  couple(problem, x, y,
         WeightedCoupling{x.n, y.n, x_cuts.cuts, y_cuts.cuts, x_cuts.weights, y_cuts.weights, x_cuts.inverse_totals},
         workspace, stream);
  launch_weight_gradient(problem, x, y, x_cuts, y_cuts, from_x.grad_weights, workspace, stream);
  launch_weight_gradient(problem, y, x, y_cuts, x_cuts, from_y.grad_weights, workspace, stream);
}

void run_chunk(const WassersteinProblem& problem, Workspace& workspace, cudaStream_t stream) {
  problem.dtype == DType::f64 ? run_chunk<double>(problem, workspace, stream)
                              : run_chunk<float>(problem, workspace, stream);
}

// Whether one kernel does everything, without workspace.
bool is_fused(const WassersteinProblem& problem) {
  return problem.dtype != DType::f64 && problem.x.n == problem.y.n && problem.x.n <= longest_row_on_chip() &&
         problem.x.weights == nullptr && problem.y.weights == nullptr && problem.grad == nullptr;
}

void run_fused(const WassersteinProblem& problem, cudaStream_t stream) {
  RowArguments arguments{};
  for (int s = 0; s < 2; ++s) {
    const WassersteinSide& side = s == 0 ? problem.x : problem.y;
    arguments.side[s] = {side.values, static_cast<int>(side.n), side.grad != nullptr, side.grad, nullptr, nullptr};
  }
  arguments.rows = problem.rows;
  arguments.infinity = infinity_bits(problem.dtype);
  arguments.p = static_cast<float>(problem.p);
  arguments.cost = problem.cost;
  arguments.scale = problem.scale;
  launch_rows(problem.dtype, arguments, stream);
}

// Rows that are worked on at a time: kChunk values, and no more rows than a 16-bit key leaves room for in 32 bits.
int64_t rows_per_chunk(const WassersteinProblem& problem) {
  const int64_t fitting = std::max<int64_t>(1, kChunk / std::max(problem.x.n, problem.y.n));
  return std::min({fitting, problem.rows, int64_t{1} << 16});
}

template <typename T>
T* skip(T* pointer, int64_t bytes) {
  return pointer == nullptr ? nullptr : reinterpret_cast<T*>(reinterpret_cast<uintptr_t>(pointer) + bytes);
}

WassersteinSide chunk_of(const WassersteinSide& side, DType dtype, int64_t first) {
  const int64_t item = dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2;
  WassersteinSide chunk = side;
  chunk.values = skip(side.values, first * side.n * item);
  chunk.weights = skip(side.weights, first * side.weights_stride * 8);
  chunk.grad = skip(side.grad, first * side.n * item);
  chunk.grad_weights = skip(side.grad_weights, first * side.n * 8);
  chunk.cotangent = skip(side.cotangent, first * side.n * item);
  return chunk;
}

}  // namespace

std::string why_no_kernels() {
  cudaFuncAttributes attributes;
  const cudaError_t status = cudaFuncGetAttributes(&attributes, scan_sums_kernel);
  if (status == cudaSuccess) return "";
  cudaGetLastError();  // answered: not to be found by the next call
  return cudaGetErrorString(status);
}

size_t wasserstein_workspace(const WassersteinProblem& problem) {
  if (problem.rows == 0 || is_fused(problem)) return 0;
  WassersteinProblem chunk = problem;
  chunk.rows = rows_per_chunk(problem);
  Workspace workspace(nullptr);
  run_chunk(chunk, workspace, nullptr);
  return workspace.bytes();
}

void wasserstein(const WassersteinProblem& problem, void* workspace, cudaStream_t stream) {
  if (problem.rows == 0) return;
  if (is_fused(problem)) return run_fused(problem, stream);
  const int64_t step = rows_per_chunk(problem);
  for (int64_t first = 0; first < problem.rows; first += step) {
    WassersteinProblem chunk = problem;
    chunk.rows = std::min(step, problem.rows - first);
    chunk.x = chunk_of(problem.x, problem.dtype, first);
    chunk.y = chunk_of(problem.y, problem.dtype, first);
    chunk.cost = skip(problem.cost, first * 8);
    chunk.scale = skip(problem.scale, first * 8);
    chunk.grad = skip(problem.grad, first * 8);
    Workspace own(workspace);  // every chunk begins at its start
    run_chunk(chunk, own, stream);
  }
}

}  // namespace fastgan::cuda
