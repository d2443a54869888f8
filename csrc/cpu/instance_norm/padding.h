// Reflection padding is pushed by whoever writes a source element, and its adjoint pulled by whoever reads one.
#pragma once

#include <cstring>

#include "cpu/instance_norm/plan.h"

namespace fastgan::FASTGAN_ISA {
namespace {

// The positions of a padded dimension that show element i of [0, size): itself first. Returns how many.
FASTGAN_INLINE int images(int64_t i, int64_t size, int64_t pad, int64_t* at) {
  int count = 0;
  at[count++] = i + pad;
  if (pad > 0 && i >= 1 && i <= pad) at[count++] = pad - i;
  if (pad > 0 && i >= size - 1 - pad && i <= size - 2) at[count++] = pad + 2 * (size - 1) - i;
  return count;
}

// The rows of the padded tensor that show row (d, h).
struct RowImages {
  int64_t d[9], h[9];
  int count = 0;
  FASTGAN_INLINE RowImages(const Plan& plan, int64_t at_d, int64_t at_h) {
    int64_t ds[3], hs[3];
    const int nd = images(at_d, plan.D, plan.pad_d, ds), nh = images(at_h, plan.H, plan.pad_h, hs);
    for (int i = 0; i < nd; ++i) {
      for (int j = 0; j < nh; ++j, ++count) d[count] = ds[i], h[count] = hs[j];
    }
  }
};

// Calls visit(source column, padded column) for the columns of [w0, w1) that the padding of a row repeats.
template <typename Visit>
FASTGAN_INLINE void for_reflected_columns(const Plan& plan, int64_t w0, int64_t w1, const Visit& visit) {
  const int64_t pad = plan.pad_w, last = plan.W - 1;
  for (int64_t w = most(w0, 1); w < least(w1, pad + 1); ++w) visit(w, pad - w);
  for (int64_t w = most(w0, last - pad); w < least(w1, last); ++w) visit(w, pad + 2 * last - w);
}

// Repeats columns [w0, w1) of a row of the padded tensor, already written, on both its sides.
template <typename T>
FASTGAN_INLINE void push_columns(const Plan& plan, const Strided& to, T* row, int64_t w0, int64_t w1) {
  const int64_t unit = plan.channels_last ? plan.C : 1;
  for_reflected_columns(plan, w0, w1, [&](int64_t w, int64_t image) {
    if (unit == 1) {
      row[image * to.w] = row[(plan.pad_w + w) * to.w];
    } else {
      std::memcpy(row + image * to.w, row + (plan.pad_w + w) * to.w, static_cast<size_t>(unit) * sizeof(T));
    }
  });
}

// Repeats columns [w0, w1) of row (d, h), already written to `from` in the padded tensor, in the rows that show it.
template <typename T>
FASTGAN_INLINE void push_rows(const Plan& plan, const Strided& to, const T* from, const Group& group, int64_t d,
                              int64_t h, int64_t w0, int64_t w1) {
  if (plan.shown_once(d, h)) return;
  const int64_t unit = plan.channels_last ? plan.C : 1;
  const RowImages rows(plan, d, h);
  const int64_t begin = (plan.pad_w + w0) * to.w;
  for (int i = 1; i < rows.count; ++i) {
    T* row = address<T>(to, group.n, group.c, rows.d[i], rows.h[i], 0);
    std::memcpy(row + begin, from + begin, static_cast<size_t>((w1 - w0) * unit) * sizeof(T));
    push_columns(plan, to, row, w0, w1);
  }
}

template <typename T, typename A>
FASTGAN_INLINE void add_to(A* sum, const T* values, int64_t count, bool first) {
  int64_t i = 0;
  for (; i + kLanes<A> <= count; i += kLanes<A>) {
    const Vec<A> v = load_vector(values + i);
    store_vector(sum + i, first ? v : v + load_vector(sum + i));
  }
  for (; i < count; ++i) sum[i] = first ? load(values[i]) : sum[i] + load(values[i]);
}

// sum[w1 - w0, unit] = the gradient of all that shows columns [w0, w1) of row (d, h).
template <typename T, typename A>
void pull_reflections(const Plan& plan, const Strided& grad, int64_t n, int64_t c, int64_t d, int64_t h, int64_t w0,
                      int64_t w1, A* sum) {
  const int64_t unit = plan.channels_last ? plan.C : 1;
  const RowImages rows(plan, d, h);
  for (int i = 0; i < rows.count; ++i) {
    const T* row = address<T>(grad, n, c, rows.d[i], rows.h[i], 0);
    if (grad.w == unit) {
      add_to(sum, row + (plan.pad_w + w0) * unit, (w1 - w0) * unit, i == 0);
    } else {
      for (int64_t w = w0; w < w1; ++w) add_to(sum + (w - w0) * unit, row + (plan.pad_w + w) * grad.w, unit, i == 0);
    }
    for_reflected_columns(plan, w0, w1, [&](int64_t w, int64_t image) {
      if (unit == 1) {
        sum[w - w0] += load(row[image * grad.w]);
      } else {
        add_to(sum + (w - w0) * unit, row + image * grad.w, unit, false);
      }
    });
  }
}

// Channels first: the same of a whole chunk; most rows are shown once and have only their ends to fold.
template <typename T, typename A>
void fold_rows(const Plan& plan, const Strided& grad, const Group& group, const Chunk& chunk, A* to) {
  const int64_t w0 = chunk.w0, w1 = chunk.w1;
  for (Rows row(plan, chunk); row.more(); row.next(), to += w1 - w0) {
    if (!plan.shown_once(row.d, row.h)) {
      pull_reflections<T, A>(plan, grad, group.n, group.c, row.d, row.h, w0, w1, to);
      continue;
    }
    const T* from = address<T>(grad, group.n, group.c, row.d + plan.pad_d, row.h + plan.pad_h, 0);
    const T* inner = from + plan.pad_w + w0;
    for_vectors<kLanes<A>>(w1 - w0, [&](int64_t i, auto lanes, int)
                                        FASTGAN_HERE { store_vector(to + i, load_vector(inner + i, lanes), lanes); });
    for_reflected_columns(plan, w0, w1, [&](int64_t w, int64_t image) { to[w - w0] += load(from[image]); });
  }
}

// Of a padded dimension: the k-th position, those that are no copies first, and the element that position i shows.
FASTGAN_INLINE int64_t position(int64_t k, int64_t size, int64_t pad) {
  return k < size ? pad + k : k - size < pad ? k - size : k;
}
FASTGAN_INLINE int64_t reflected(int64_t i, int64_t size, int64_t pad) {
  return i < pad ? pad - i : i < pad + size ? i - pad : pad + 2 * (size - 1) - i;
}

// Channels first, a whole plane whose elements themselves are written: columns, then whole rows, then whole slices.
template <typename T>
void pad_plane(const Plan& plan, const Strided& to, T* plane) {
  const int64_t D = plan.D, H = plan.H, W = plan.W, pad_d = plan.pad_d, pad_h = plan.pad_h, pad_w = plan.pad_w;
  const size_t bytes = static_cast<size_t>(W + 2 * pad_w) * sizeof(T);
  for (int64_t d = pad_d; d < pad_d + D; ++d) {
    T* slice = plane + d * to.d;
    for (int64_t h = pad_h; h < pad_h + H; ++h) {
      T *first = slice + h * to.h + pad_w, *last = first + W - 1;
      for (int64_t w = 1; w <= pad_w; ++w) first[-w] = first[w], last[w] = last[-w];
    }
    for (int64_t k = H; k < H + 2 * pad_h; ++k) {
      const int64_t h = position(k, H, pad_h);
      std::memcpy(slice + h * to.h, slice + (pad_h + reflected(h, H, pad_h)) * to.h, bytes);
    }
  }
  for (int64_t k = D; k < D + 2 * pad_d; ++k) {
    const int64_t d = position(k, D, pad_d);
    const T* from = plane + (pad_d + reflected(d, D, pad_d)) * to.d;
    for (int64_t h = 0; h < H + 2 * pad_h; ++h) std::memcpy(plane + d * to.d + h * to.h, from + h * to.h, bytes);
  }
}

// Its adjoint: sum [D, H, W] = the gradient of all that shows each element.
template <typename T, typename A>
void fold_plane(const Plan& plan, const Strided& grad, const T* plane, A* sum) {
  const int64_t D = plan.D, H = plan.H, W = plan.W, pad_d = plan.pad_d, pad_h = plan.pad_h, pad_w = plan.pad_w;
  for (int64_t i = 0; i < D + 2 * pad_d; ++i) {
    const int64_t d = position(i, D, pad_d);
    const T* slice = plane + d * grad.d + pad_w;
    A* sums = sum + reflected(d, D, pad_d) * H * W;
    const T* row = slice + pad_h * grad.h;
    for (int64_t h = 0; h < H; ++h, row += grad.h) {
      A* to = sums + h * W;
      for_vectors<kLanes<A>>(W, [&](int64_t w, auto lanes, int) FASTGAN_HERE {
        const Vec<A> v = load_vector(row + w, lanes);
        store_vector(to + w, i < D ? v : v + load_vector(to + w, lanes), lanes);
      });
    }
    const auto ends = [&](const T* from, A* to) FASTGAN_HERE {
      for (int64_t w = 1; w <= pad_w; ++w) to[w] += load(from[-w]), to[W - 1 - w] += load(from[W - 1 + w]);
    };
    row = slice + pad_h * grad.h;
    for (int64_t h = 0; h < H; ++h, row += grad.h) ends(row, sums + h * W);
    for (int64_t k = H; k < H + 2 * pad_h; ++k) {
      const int64_t h = position(k, H, pad_h);
      A* to = sums + reflected(h, H, pad_h) * W;
      add_to(to, slice + h * grad.h, W, false);
      ends(slice + h * grad.h, to);
    }
  }
}

}  // namespace
}  // namespace fastgan::FASTGAN_ISA
