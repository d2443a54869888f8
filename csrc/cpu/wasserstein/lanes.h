// Costs and slopes of a group of sorted rows, a row a lane; all rows are coupled alike, so that no lane waits.
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/sorting_network.h"
#include "cpu/wasserstein/cost.h"
#include "cpu/wasserstein/staircase.h"

namespace fastgan::FASTGAN_ISA {
namespace {

using Lanes = Vec<float>;
constexpr int kWide = kGroup / 2;

// Adds the float lanes to doubles.
FASTGAN_INLINE void add_lanes(double* sums, Lanes part) {
  for (int l = 0; l < kGroup; ++l) sums[l] += static_cast<double>(part[l]);
}

template <Order kOrder>
FASTGAN_INLINE Lanes lane_cost(Lanes d) {
  if constexpr (kOrder == Order::one) return (Lanes)((Vec<int32_t>)d & 0x7fffffff);
  return d * d;
}
template <Order kOrder>
FASTGAN_INLINE Lanes lane_slope(Lanes d) {
  if constexpr (kOrder == Order::one) {
    const Lanes one = broadcast(1.0f);
    return d > 0 ? one : d < 0 ? -one : Lanes{};
  }
  return d + d;
}
FASTGAN_INLINE Lanes lane_difference(network::Keys x, network::Keys y) {
  const Lanes a = network::signed_values(x), b = network::signed_values(y);
  return a == b ? Lanes{} : a - b;
}

struct Group {
  const network::Keys *x, *y;         // of the sorted values [n], [m]
  Lanes *x_slopes, *y_slopes;         // [n], [m]: unit gradients in sorted order; null where not wanted
  network::Signs *x_signs, *y_signs;  // the same, where those are signs
  int64_t n, m;
  FASTGAN_INLINE Lanes difference(int64_t i, int64_t j) const { return lane_difference(x[i], y[j]); }
};

// Costs of n = m alone: the last pass of y's sort hands its blocks over in registers, and nothing is stored.
template <Order kOrder>
struct LaneCosts {
  const network::Keys* x;  // sorted [n]
  int64_t n;
  double* costs;
  FASTGAN_INLINE void store(int64_t first, const network::Keys* wires) const {
    constexpr int kBlock = network::kBlock;
    Lanes part = {};
    if (n - first >= kBlock) {
#pragma GCC unroll 16
      for (int w = 0; w < kBlock; ++w) part += lane_cost<kOrder>(lane_difference(x[first + w], wires[w]));
    } else {
#pragma GCC unroll 16
      for (int w = 0; w < kBlock; ++w) {
        if (first + w < n) part += lane_cost<kOrder>(lane_difference(x[first + w], wires[w]));
      }
    }
    add_lanes(costs, part);
  }
};

// The costs of every lane for n = m and p = 1, and the signs of both sides' slopes.
void solve_signs(const Group& g, double* costs) {
  using network::Decision;
  constexpr int kBlock = network::kBlock;
  for (int l = 0; l < kGroup; ++l) costs[l] = 0;
  for (int64_t begin = 0; begin < g.n; begin += kBlock) {
    const int64_t count = begin + kBlock < g.n ? kBlock : g.n - begin;
    Decision positive[kBlock] = {}, negative[kBlock] = {};
    Lanes part = {};
    for (int64_t k = 0; k < count; ++k) {
      const network::Keys a = g.x[begin + k], b = g.y[begin + k];
      const Lanes d = g.difference(begin + k, begin + k);
      part += lane_cost<Order::one>(d);
      positive[k] = network::larger(a, b);
      negative[k] = network::larger(b, a);
    }
    add_lanes(costs, part);
    const auto put = [&](network::Signs* to, const Decision* first, const Decision* second) {
      if (to == nullptr) return;
      std::memcpy(to + begin / kBlock, first, sizeof positive);
      std::memcpy(reinterpret_cast<char*>(to + begin / kBlock) + sizeof positive, second, sizeof positive);
    };
    put(g.x_signs, positive, negative);
    put(g.y_signs, negative, positive);
  }
  for (int l = 0; l < kGroup; ++l) costs[l] /= static_cast<double>(g.n);
}

// Cost of every lane, and slopes; uniform weights.
template <Order kOrder>
void solve_lanes(const Group& g, double* costs) {
  for (int l = 0; l < kGroup; ++l) costs[l] = 0;
  if (g.n == g.m) {
    constexpr int kBlock = network::kBlock;  // sums are those of LaneCosts
    for (int64_t begin = 0; begin < g.n; begin += kBlock) {
      const int64_t end = begin + kBlock < g.n ? begin + kBlock : g.n;
      Lanes part = {};
      for (int64_t k = begin; k < end; ++k) {
        const Lanes d = g.difference(k, k);
        part += lane_cost<kOrder>(d);
        const Lanes slope = lane_slope<kOrder>(d);
        if (g.x_slopes != nullptr) g.x_slopes[k] = slope;
        if (g.y_slopes != nullptr) g.y_slopes[k] = -slope;
      }
      add_lanes(costs, part);
    }
    for (int l = 0; l < kGroup; ++l) costs[l] /= static_cast<double>(g.n);
    return;
  }
  for (int64_t i = 0; g.x_slopes != nullptr && i < g.n; ++i) g.x_slopes[i] = Lanes{};
  for (int64_t j = 0; g.y_slopes != nullptr && j < g.m; ++j) g.y_slopes[j] = Lanes{};
  const float x_unit = 1 / static_cast<float>(g.m), y_unit = 1 / static_cast<float>(g.n);
  int64_t cells = 0;
  Lanes part = {};
  walk(0, g.n, UniformCuts{g.m}, UniformCuts{g.n}, g.m, 0, [&](int64_t i, int64_t j, double overlap) {
    const Lanes d = g.difference(i, j);
    const float mass = static_cast<float>(overlap);
    part += lane_cost<kOrder>(d) * mass;
    if (++cells % 16 == 0) {
      add_lanes(costs, part);
      part = Lanes{};
    }
    const Lanes slope = lane_slope<kOrder>(d);
    if (g.x_slopes != nullptr) g.x_slopes[i] += slope * (mass * x_unit);
    if (g.y_slopes != nullptr) g.y_slopes[j] -= slope * (mass * y_unit);
  });
  add_lanes(costs, part);
  const double mass = 1 / (static_cast<double>(g.n) * static_cast<double>(g.m));
  for (int l = 0; l < kGroup; ++l) costs[l] *= mass;
}

template <typename G>
void scatter(const Lanes* slopes, const uint32_t* order, int64_t rows, int64_t n, G* grad) {
  const float* from = reinterpret_cast<const float*>(slopes);
  for (int64_t k = 0; k < n; ++k) {
    for (int64_t l = 0; l < rows; ++l) store(grad[l * n + order[k * kGroup + l]], from[k * kGroup + l]);
  }
}

FASTGAN_INLINE bool any_lane(network::Keys mask) {
  int32_t any = 0;
  for (int l = 0; l < kGroup; ++l) any |= mask[l];
  return any != 0;
}

// Whether any lane has equal values, which random ones seldom are.
FASTGAN_INLINE bool has_equal(const network::Keys* keys, int64_t n) {
  network::Keys found = {};
  for (int64_t k = 1; k < n; ++k) found |= keys[k] == keys[k - 1];
  return any_lane(found);
}

// Whether equal values have different slopes, so that it matters which of them comes first.
FASTGAN_INLINE bool order_matters(const network::Keys* keys, const Lanes* slopes, int64_t n) {
  if (!has_equal(keys, n)) return false;
  network::Keys found = {};
  for (int64_t k = 1; k < n; ++k) found |= (keys[k] == keys[k - 1]) & (slopes[k] != slopes[k - 1]);
  return any_lane(found);
}

FASTGAN_INLINE bool order_matters(const network::Keys* keys, const network::Signs* signs, int64_t n) {
  if (!has_equal(keys, n)) return false;
  using network::Decision;
  constexpr int kBlock = network::kBlock;
  Decision before[2] = {}, found = 0;
  for (int64_t k = 0; k < n; ++k) {
    const Decision* const block = reinterpret_cast<const Decision*>(signs + k / kBlock) + k % kBlock;
    const Decision changed = (block[0] ^ before[0]) | (block[kBlock] ^ before[1]);
    if (k > 0) found |= changed & network::equal(keys[k], keys[k - 1]);
    before[0] = block[0];
    before[1] = block[kBlock];
  }
  return found != 0;
}

// Puts signs where their samples came from.
void scatter(const network::Signs* signs, const uint32_t* order, int64_t rows, int64_t n, uint32_t* words) {
  constexpr int kBlock = network::kBlock;
  std::memset(words, 0, rows * sign_words(n) * sizeof(uint32_t));
  for (int64_t k = 0; k < n; ++k) {
    const network::Decision* const block = reinterpret_cast<const network::Decision*>(signs + k / kBlock) + k % kBlock;
    for (int64_t l = 0; l < rows; ++l) {
      const uint32_t i = order[k * kGroup + l], positive = block[0] >> l & 1, negative = block[kBlock] >> l & 1;
      words[l * sign_words(n) + i / 16] |= (positive | negative << 16) << i % 16;
    }
  }
}

}  // namespace
}  // namespace fastgan::FASTGAN_ISA
