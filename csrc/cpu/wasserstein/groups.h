// Many short rows: a group of them, a row a lane, is sorted by a network, coupled, and its slopes go back through it.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "cpu/sorting_network.h"
#include "cpu/wasserstein/lanes.h"
#include "cpu/wasserstein/rows.h"

namespace fastgan::FASTGAN_ISA {
namespace {

// Sorts a group of rows. Its slopes go back through the network; only where that, which is not stable, would not give
// equal values their gradients in index order, is the group sorted again with indices.
template <typename S>
class GroupSorter {
 public:
  GroupSorter(const WassersteinProblem& problem, const WassersteinSide& side, bool in_lanes)
      : side_(side),
        indexed_(!in_lanes && needs_order(problem, side)),
        with_slopes_(in_lanes && side.grad != nullptr),
        with_signs_(in_lanes && side.signs != nullptr),
        keys_(padded_size(side.n)),
        values_(in_lanes ? 0 : side.n * kGroup),
        slopes_(with_slopes_ ? padded_size(side.n) : 0),
        signs_(with_signs_ ? padded_size(side.n) / network::kBlock : 0),
        decisions_(with_slopes_ || with_signs_ ? network::comparators(side.n) : 0),
        order_(indexed_ || with_slopes_ || with_signs_ ? padded_size(side.n) * kGroup : 0),
        pairs_(indexed_ || with_slopes_ || with_signs_ ? padded_size(side.n) * kWide : 0) {}
  void sort(int64_t row, int64_t rows) {
    if (indexed_ || ties_) {
      sort_indexed(row, rows);
    } else {
      decisions_end_ =
          sort_group<S>(values_of(row), side_.values_stride, rows, side_.n, keys_,
                        with_slopes_ || with_signs_ ? static_cast<network::Decision*>(decisions_) : nullptr);
    }
  }
  // Hands the sorted keys on and keeps none.
  template <typename Out>
  void sort_into(int64_t row, int64_t rows, const Out& out) {
    sort_group_into<S>(values_of(row), side_.values_stride, rows, side_.n, keys_, out);
  }
  const network::Keys* keys() const { return keys_; }
  Lanes* slopes() const { return with_slopes_ ? static_cast<Lanes*>(slopes_) : nullptr; }
  network::Signs* signs() const { return with_signs_ ? static_cast<network::Signs*>(signs_) : nullptr; }
  // The slopes become the rows' gradients.
  void finish(int64_t row, int64_t rows, const double* costs) {
    const int64_t n = side_.n, words = sign_words(n);
    if (side_.signs != nullptr) {
      uint32_t* const to = side_.signs + row * words;
      const network::SignWords ends = {to, rows, words, padded_size(n) / network::kBlock};
      take_back<network::UndoSigns>(row, rows, static_cast<network::Signs*>(signs_), ends, to);
    } else if (side_.grad != nullptr) {
      S* const grad = static_cast<S*>(side_.grad) + row * n;
      const network::RowValues<S> ends = {grad, rows, n};
      take_back<network::Undo>(row, rows, static_cast<Lanes*>(slopes_), ends, grad);
      for (int64_t l = 0; l < rows; ++l) {
        if (std::isnan(costs[l])) fill(grad + l * side_.n, side_.n, std::numeric_limits<float>::quiet_NaN());
      }
    }
  }
  // Brings the sorted values, and indices, from lanes back into rows.
  void to_rows() const {
    using namespace network;
    const int64_t n = side_.n;
    Keys* const keys = keys_;
    for (int64_t k = 0; k < n; ++k) keys[k] = (Keys)signed_values(keys[k]);
    lanes_to_rows(keys, n, static_cast<int32_t*>(values_));
    if (indexed_) {
      lanes_to_rows(reinterpret_cast<const Keys*>(static_cast<uint32_t*>(order_)), n,
                    reinterpret_cast<int32_t*>(static_cast<double*>(pairs_)));
    }
  }
  Sorted<float> sorted(int64_t lane) const {
    const float* values = reinterpret_cast<const float*>(static_cast<int32_t*>(values_));
    const uint32_t* order = reinterpret_cast<const uint32_t*>(static_cast<double*>(pairs_));
    return {values + lane * side_.n, order + lane * side_.n};
  }

 private:
  const S* values_of(int64_t row) const { return static_cast<const S*>(side_.values) + row * side_.values_stride; }
  template <typename Step, typename V, typename Ends, typename G>
  void take_back(int64_t row, int64_t rows, V* slopes, const Ends& ends, G* grad) {
    const bool matters = order_matters(keys_, slopes, side_.n);
    if (matters && !ties_) sort_indexed(row, rows);
    if (matters || ties_) {
      scatter(slopes, order_, rows, side_.n, grad);
    } else {
      Step step = {decisions_end_};
      sort_columns(step, ends, slopes, 0, padded_size(side_.n));
    }
    ties_ = matters;  // a good guess of the next group's
  }
  void sort_indexed(int64_t row, int64_t rows) {
    sort_group_indexed<S>(values_of(row), side_.values_stride, rows, side_.n, keys_, order_, pairs_);
  }

  const WassersteinSide& side_;
  const bool indexed_, with_slopes_, with_signs_;
  bool ties_ = false;
  Scratch<network::Keys> keys_;
  Scratch<int32_t> values_;
  Scratch<Lanes> slopes_;
  Scratch<network::Signs> signs_;
  Scratch<network::Decision> decisions_;
  network::Decision* decisions_end_ = nullptr;
  Scratch<uint32_t> order_;
  Scratch<double> pairs_;
};

// Costs alone, of n = m.
template <Order kOrder, typename S>
FASTGAN_INLINE void sort_and_compare(GroupSorter<S>& x, GroupSorter<S>& y, int64_t row, int64_t rows, int64_t n,
                                     double* costs) {
  x.sort(row, rows);
  for (int l = 0; l < kGroup; ++l) costs[l] = 0;
  y.sort_into(row, rows, LaneCosts<kOrder>{x.keys(), n, costs});
  for (int l = 0; l < kGroup; ++l) costs[l] /= static_cast<double>(n);
}

template <typename S>
void run_groups(const WassersteinProblem& problem, int threads) {
  const int64_t groups = ceil_div(problem.rows, kGroup), n = problem.x.n, m = problem.y.n;
  const bool weighted = has_weights(problem);
  // An atom's float sum in a lane has few terms; others are summed in double.
  const bool alike = n <= 32 * m && m <= 32 * n;
  const bool in_lanes = !weighted && alike && problem.grad == nullptr && (problem.p == 1 || problem.p == 2);
  const bool signs = problem.x.signs != nullptr || problem.y.signs != nullptr;
  const bool costs_alone = in_lanes && n == m && !signs && problem.x.grad == nullptr && problem.y.grad == nullptr;
  Shares shares(groups, threads);
  parallel(threads, [&](int, int) {
    GroupSorter<S> x(problem, problem.x, in_lanes), y(problem, problem.y, in_lanes);
    const MergedScratch scratch(problem);
    const Merged* const merged = scratch.get();
    for (Range range = shares.next(); range.begin < range.end; range = shares.next()) {
      for (int64_t row = range.begin * kGroup; row < range.end * kGroup && row < problem.rows; row += kGroup) {
        const int64_t rows = problem.rows - row < kGroup ? problem.rows - row : kGroup;
        double costs[kGroup];
        if (costs_alone) {
          if (problem.p == 1) {
            sort_and_compare<Order::one>(x, y, row, rows, n, costs);
          } else {
            sort_and_compare<Order::two>(x, y, row, rows, n, costs);
          }
        } else {
          x.sort(row, rows);
          y.sort(row, rows);
        }
        if (!in_lanes) {
          x.to_rows();
          y.to_rows();
          for (int64_t l = 0; l < rows; ++l) {
            Side<S> a = side_of_row<S>(problem.x, row + l, x.sorted(l), merged == nullptr ? nullptr : merged->x_ends);
            Side<S> b = side_of_row<S>(problem.y, row + l, y.sorted(l), merged == nullptr ? nullptr : merged->y_ends);
            solve_row(problem, row + l, a, b, merged, 1);
          }
          continue;
        }
        if (!costs_alone) {
          const Group g = {x.keys(), y.keys(), x.slopes(), y.slopes(), x.signs(), y.signs(), n, m};
          if (signs) {
            solve_signs(g, costs);
          } else if (problem.p == 1) {
            solve_lanes<Order::one>(g, costs);
          } else {
            solve_lanes<Order::two>(g, costs);
          }
        }
        for (int64_t l = 0; l < rows; ++l) {
          problem.cost[row + l] = costs[l];
          problem.scale[row + l] = signs && std::isnan(costs[l]) ? costs[l] : 1;
        }
        x.finish(row, rows, costs);
        y.finish(row, rows, costs);
      }
    }
  });
}

}  // namespace
}  // namespace fastgan::FASTGAN_ISA
