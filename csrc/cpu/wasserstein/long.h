// n = m without weights, p = 1, rows that the caches do not hold: both sides are dealt to buckets, and each bucket is
// sorted and coupled while it is in the cache. Sorted rows are never stored, and any number of threads shares a row.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "cpu/radix_sort.h"
#include "cpu/wasserstein/cost.h"
#include "cpu/wasserstein/rows.h"
#include "cpu/wasserstein/side.h"
#include "cpu/wasserstein/work.h"

namespace fastgan::FASTGAN_ISA {
namespace {

constexpr int64_t kLongRow = 1 << 19;  // samples, at least
constexpr int kLongDigit = 9;
constexpr int64_t kLongBuckets = radix::kBuckets<kLongDigit>;

// One row of a problem that is_long().
template <typename S>
WassersteinProblem row_of(WassersteinProblem problem, int64_t row) {
  for (WassersteinSide* side : {&problem.x, &problem.y}) {
    side->values = static_cast<const S*>(side->values) + row * side->values_stride;
    if (side->signs != nullptr) side->signs += row * sign_words(side->n);
  }
  problem.cost += row;
  problem.scale += row;
  problem.rows = 1;
  return problem;
}

bool is_long(const WassersteinProblem& problem) {
  return problem.p == 1 && problem.x.n == problem.y.n && problem.x.n >= kLongRow && !has_weights(problem) &&
         problem.grad == nullptr && problem.x.grad == nullptr && problem.y.grad == nullptr;
}

// One side of a row, dealt.
template <typename I>
struct Dealt {
  const I* items;
  const uint32_t* ends;  // of the buckets
  I* sorted;             // the atoms of one bucket, [begin, end)
  int64_t bucket, begin, end;
  FASTGAN_INLINE int64_t bucket_of(int64_t k) const {
    int64_t low = 0, high = kLongBuckets - 1;  // the first bucket that ends behind k
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (ends[middle] > k) {
        high = middle;
      } else {
        low = middle + 1;
      }
    }
    return low;
  }
  FASTGAN_INLINE void start_before(int64_t k) {
    bucket = bucket_of(k) - 1;
    end = bucket < 0 ? 0 : ends[bucket];
  }
  FASTGAN_INLINE void next(I* scratch) {
    for (begin = end; end == begin;) end = ends[++bucket];
    radix::sort_bucket<kLongDigit>(items + begin, end - begin, scratch, sorted);
  }
};

template <typename S, bool kSigns>
class LongRow {
  using I = radix::Item<uint32_t, kSigns>;
  static constexpr int64_t kParts = 16;  // of a row; threads take one at a time

 public:
  LongRow(const WassersteinProblem& problem, int threads)
      : problem_(problem),
        n_(problem.x.n),
        words_(sign_words(n_)),
        threads_(threads),
        deals_(threads > 1 ? 4 : 1),
        items_(2 * n_),
        next_(2 * deals_ * kLongBuckets),
        signs_(kSigns ? 2 * words_ * threads : 0) {}

  // Returns false, and has done nothing, where too many samples are in one bucket.
  bool solve(int64_t row) {
    for (int side = 0; side < 2; ++side) bucket_[side] = {0, 2 * kLongDigit};
    count(row);
    if (most_ > n_ / kParts) {
      for (int side = 0; side < 2; ++side) bucket_[side] = finer(first_[side], last_[side]);
      count(row);
      if (most_ > n_ / kParts) return false;
    }
    couple(row);
    return true;
  }

 private:
  uint32_t* next(int64_t side, int64_t deal) const { return next_ + (side * deals_ + deal) * kLongBuckets; }

  // Calls use(side, samples, those of them that are dealt together).
  template <typename Use>
  void for_each_deal(int64_t row, const Use& use) {
    for_each(threads_, 2 * deals_, [&](int64_t k) {
      const int64_t side = k / deals_, deal = k % deals_;
      const WassersteinSide& s = side == 0 ? problem_.x : problem_.y;
      use(side, deal, static_cast<const S*>(s.values) + row * s.values_stride, part(n_, deal, deals_));
    });
  }

  // Finds where the samples of each deal go in each bucket.
  void count(int64_t row) {
    for_each_deal(row, [&](int64_t side, int64_t deal, const S* from, Range range) {
      radix::count_buckets<kLongDigit>(from, range.begin, range.end, bucket_[side], next(side, deal));
    });
    uint32_t largest[2] = {};
    for_each(threads_, 2, [&](int64_t side) {
      uint32_t sum = 0;
      for (uint32_t d = 0; d < kLongBuckets; ++d) {
        const uint32_t before = sum;
        for (int64_t deal = 0; deal < deals_; ++deal) {
          const uint32_t count = next(side, deal)[d];
          next(side, deal)[d] = sum;
          sum += count;
        }
        if (before == 0 && sum > 0) first_[side] = d;
        if (before < sum) last_[side] = d;
        if (sum - before > largest[side]) largest[side] = sum - before;
      }
    });
    most_ = largest[0] > largest[1] ? largest[0] : largest[1];
  }

  // For samples far from zero, which are in few buckets: some 500 that share what those from first to last have.
  static radix::BucketOf finer(uint32_t first, uint32_t last) {
    const uint64_t keys = uint64_t{last - first + 1} << 2 * kLongDigit;
    int shift = 0;
    while (shift < 2 * kLongDigit && keys >> shift > 512) ++shift;
    return {first << 2 * kLongDigit, shift};
  }

  // Cost and signs of a row that is counted.
  void couple(int64_t row) {
    for_each_deal(row, [&](int64_t side, int64_t deal, const S* from, Range range) {
      radix::deal<S, kSigns>(from, range.begin, range.end, bucket_[side], next(side, deal), items_ + side * n_);
    });
    // Whether medians, and with them most signs, are those of x above y: such signs are not sent to their samples.
    const auto median = [&](int side) {
      const auto bucket = Dealt<I>{nullptr, next(side, deals_ - 1), nullptr, 0, 0, 0}.bucket_of(n_ / 2);
      return bucket_[side].least + (static_cast<uint32_t>(bucket) << bucket_[side].shift);
    };
    const bool expected = median(0) > median(1);
    double costs[kParts];
    Scratch<I> buckets(3 * most_ * threads_);
    int workers = 1;
    Shares shares(kParts, threads_);
    parallel(threads_, [&](int thread, int threads) {
      if (thread == 0) workers = threads;
      uint32_t* const signs = signs_ + 2 * words_ * thread;
      if (kSigns) std::memset(signs, 0, 2 * words_ * sizeof(uint32_t));
      I* const scratch = buckets + 3 * most_ * thread;
      for (Range range = shares.next(); range.begin < range.end; range = shares.next()) {
        for (int64_t k = range.begin; k < range.end; ++k) {
          Dealt<I> x = {items_, next(0, deals_ - 1), scratch + most_, 0, 0, 0};
          Dealt<I> y = {items_ + n_, next(1, deals_ - 1), scratch + 2 * most_, 0, 0, 0};
          costs[k] = couple(x, y, part(n_, k, kParts), scratch, expected, signs);
        }
      }
    });

    double cost = 0;
    for (const double part : costs) cost += part;
    cost /= static_cast<double>(n_);
    problem_.cost[row] = cost;
    const bool good = !std::isnan(cost);  // no sample is a NaN
    problem_.scale[row] = good || !kSigns ? 1 : cost;
    if (kSigns) {
      for_each(threads_, 2, [&](int64_t side) {
        uint32_t* const to = (side == 0 ? problem_.x : problem_.y).signs;
        const uint32_t usual = (side == 0) == expected ? 0xffff : 0xffff0000;
        for (int64_t w = 0; to != nullptr && w < words_; ++w) {
          uint32_t word = 16 * w + 16 <= n_ ? usual : usual & ((1u << n_ % 16) - 1) * 0x10001u;
          for (int64_t k = 0; k < workers; ++k) word ^= signs_[(2 * k + side) * words_ + w];
          to[row * words_ + w] = good ? word : 0;
        }
      });
    }
  }

  // The cost of atoms, and in which bits their signs are not the expected one. Buckets that other parts share are
  // sorted for each of them.
  double couple(Dealt<I>& x, Dealt<I>& y, Range atoms, I* scratch, bool expected, uint32_t* signs) const {
    x.start_before(atoms.begin);
    y.start_before(atoms.begin);
    double cost = 0;
    for (int64_t k = atoms.begin; k < atoms.end;) {
      while (x.end <= k) x.next(scratch);
      while (y.end <= k) y.next(scratch);
      int64_t next = k + 256 < atoms.end ? k + 256 : atoms.end;
      next = x.end < next ? x.end : next;
      next = y.end < next ? y.end : next;
      const int64_t count = next - k;
      const I *const a = x.sorted + (k - x.begin), *const b = y.sorted + (k - y.begin);
      float part = 0;
#pragma omp simd reduction(+ : part)
      for (int64_t i = 0; i < count; ++i) {
        part += std::fabs(difference(value_of_key(a[i].key()), value_of_key(b[i].key())));
      }
      cost += part;
      if (kSigns) {
        int64_t same = 0;
        for (int64_t i = 0; i < count; ++i) same += expected ? a[i].key() > b[i].key() : a[i].key() < b[i].key();
        for (int64_t i = 0; i < count && same != count; ++i) {
          const uint32_t above = (a[i].key() > b[i].key()) ^ expected, below = (a[i].key() < b[i].key()) ^ !expected;
          const uint32_t from = a[i].index(), to = b[i].index();
          signs[from / 16] |= (above | below << 16) << from % 16;
          signs[words_ + to / 16] |= (below | above << 16) << to % 16;
        }
      }
      k = next;
    }
    return cost;
  }

  const WassersteinProblem& problem_;
  const int64_t n_, words_;
  const int threads_;
  const int64_t deals_;  // parts of a side that are dealt by threads of their own
  radix::BucketOf bucket_[2] = {};
  uint32_t first_[2] = {}, last_[2] = {};  // buckets that are not empty
  int64_t most_ = 0;                       // items in a bucket
  Scratch<I> items_;
  Scratch<uint32_t> next_, signs_;
};

template <typename S, bool kSigns>
void run_long(const WassersteinProblem& problem, int outer, int inner) {
  Shares shares(problem.rows, outer);
  parallel(outer, [&](int, int) {
    LongRow<S, kSigns> solver(problem, inner);
    for (Range rows = shares.next(); rows.begin < rows.end; rows = shares.next()) {
      for (int64_t row = rows.begin; row < rows.end; ++row) {
        if (!solver.solve(row)) run_rows<S>(row_of<S>(problem, row), 1, inner);
      }
    }
  });
}

}  // namespace
}  // namespace fastgan::FASTGAN_ISA
