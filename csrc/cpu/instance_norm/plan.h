// How the work of a pass is cut: groups, slabs, chunks, rows; and loops over vectors.
#pragma once

#include <type_traits>

#include "common/simd.h"
#include "common/threads.h"
#include "cpu/instance_norm.h"

namespace fastgan::FASTGAN_ISA {
namespace {

#define FASTGAN_HERE __attribute__((always_inline))  // the body of a loop

constexpr int64_t kChunkElements = 8192;  // channels first; 64 accumulators (AVX-512, float) of 128 elements each
constexpr int64_t kChunkPixels = 128;     // channels last
constexpr int64_t kPieceElements = 64;    // channels first: pieces of a row begin at multiples, where vectors do
constexpr int64_t kSeedElements = 256;    // what a slab's first center is taken from
constexpr int64_t kSeedPixels = 16;
constexpr int64_t kSlabElements = 64 << 10;  // below this a slab is not worth another
constexpr int64_t kEvenSlabs = 4;            // slabs come in multiples, so that two or four threads get as many
constexpr int64_t kMaxSlabs = 64;
constexpr int64_t kThreadElements = 16 << 10;  // below this a thread is not worth waking
constexpr int64_t kPageBytes = 4 << 10;        // scratch that lies nearer is prefetched into the other core's cache
constexpr int64_t kL2Bytes = 768 << 10;        // what of a group may be expected to stay in a core's own cache

// The tensors of a pass; absent ones have a null address.
struct Tensors {
  Strided grad, x, residual, u, v_residual;
  Strided padded, plain, extra;
};

// Rows [row0, row1) of a group, a row being one (d, h); columns [w0, w1) of each. `first`: of a slab.
struct Chunk {
  int64_t row0, row1, w0, w1;
  bool first;

  // About its first `pixels` pixels.
  FASTGAN_INLINE Chunk seed(int64_t pixels) const {
    return {row0, least(row1, row0 + most(1, pixels / (w1 - w0))), w0, least(w1, w0 + pixels), true};
  }
};

// A plane (n, c), or with channels last a sample n, whose first channel is c = 0.
struct Group {
  int64_t n, c;
};

struct Plan {
  int64_t N, C, D, H, W, pad_d, pad_h, pad_w;
  int64_t groups, slabs, chunks, rows_per_chunk, pieces, piece;
  bool channels_last, together;
  int threads;

  FASTGAN_INLINE Group group(int64_t i) const { return channels_last ? Group{i, 0} : Group{i / C, i % C}; }
  FASTGAN_INLINE int64_t elements() const { return N * C * D * H * W; }
  FASTGAN_INLINE bool padded() const { return pad_d + pad_h + pad_w > 0; }
  // Whether the padding repeats nothing of row (d, h) but its ends.
  FASTGAN_INLINE bool shown_once(int64_t d, int64_t h) const { return inner(d, D, pad_d) && inner(h, H, pad_h); }
  static FASTGAN_INLINE bool inner(int64_t i, int64_t size, int64_t pad) {
    return pad == 0 || ((i < 1 || i > pad) && (i < size - 1 - pad || i > size - 2));
  }
  // Small groups have one slab and one chunk, and no time for divisions.
  FASTGAN_INLINE Range chunks_of(int64_t slab) const {
    return slabs == 1 ? Range{0, chunks} : part(chunks, slab, slabs);
  }
  FASTGAN_INLINE Chunk chunk(int64_t i, bool first) const {
    if (chunks == 1) return {0, D * H, 0, W, first};
    const int64_t row = i / pieces * rows_per_chunk, w0 = i % pieces * piece;
    return {row, least(row + rows_per_chunk, D * H), w0, least(w0 + piece, W), first};
  }
};

// Walks over the rows of a chunk.
struct Rows {
  const int64_t H, end;
  int64_t row, d, h;

  FASTGAN_INLINE Rows(const Plan& plan, const Chunk& chunk)
      : H(plan.H), end(chunk.row1), row(chunk.row0), d(plan.D == 1 ? 0 : row / H), h(plan.D == 1 ? row : row % H) {}
  FASTGAN_INLINE bool more() const { return row < end; }
  FASTGAN_INLINE void next() {
    ++row;
    if (++h == H) h = 0, ++d;
  }
};

// Merges spatial dimensions that lie behind one another in every tensor: most often all of them.
template <typename... S>
void merge_dims(Plan& plan, S&... tensors) {
  const auto merge = [&](int64_t Strided::* outer, int64_t Strided::* inner, int64_t& outer_size, int64_t& inner_size) {
    if (outer_size > 1 && ((tensors.data != nullptr && tensors.*outer != inner_size * tensors.*inner) || ...)) return;
    inner_size *= outer_size;
    outer_size = 1;
    ((tensors.*outer = 0), ...);
  };
  merge(&Strided::d, &Strided::h, plan.D, plan.H);
  // What was merged into H has D = 1 behind it, so H and W can be looked at alone.
  if (plan.D == 1) merge(&Strided::h, &Strided::w, plan.H, plan.W);
}

Plan make_plan(const InstanceNorm& p, Tensors& t, int64_t element_bytes) {
  Plan plan{};
  plan.N = p.N, plan.C = p.C, plan.D = p.D, plan.H = p.H, plan.W = p.W;
  plan.pad_d = p.pad_d, plan.pad_h = p.pad_h, plan.pad_w = p.pad_w;
  plan.channels_last = p.channels_last;
  if (!plan.padded()) merge_dims(plan, t.grad, t.x, t.residual, t.u, t.v_residual, t.padded, t.plain, t.extra);

  const int64_t unit = p.channels_last ? p.C : 1;
  const int64_t chunk = p.channels_last ? kChunkPixels : kChunkElements;  // in pixels
  const int64_t unit_pixels = p.channels_last ? 1 : kPieceElements;
  // Chunks of nearly the same size, so that threads get nearly the same work.
  plan.pieces = ceil_div(plan.W, chunk);
  plan.piece = ceil_div(ceil_div(plan.W, plan.pieces), unit_pixels) * unit_pixels;
  plan.pieces = ceil_div(plan.W, plan.piece);
  const int64_t rows = plan.D * plan.H;
  plan.rows_per_chunk = plan.pieces > 1 ? 1 : ceil_div(rows, ceil_div(rows, most(1, chunk / plan.W)));
  plan.chunks = ceil_div(rows, plan.rows_per_chunk) * plan.pieces;

  const int64_t elements = plan.D * plan.H * plan.W * unit;
  plan.groups = p.channels_last ? plan.N : plan.N * plan.C;
  const int64_t slabs = most(1, elements / kSlabElements);
  plan.slabs = least(least(plan.chunks, kMaxSlabs), slabs == 1 ? 1 : ceil_div(slabs, kEvenSlabs) * kEvenSlabs);

  const int64_t threads = most(1, least(p.threads, plan.groups * most(elements, 16) / kThreadElements));
  const int64_t rounds = ceil_div(plan.groups, threads);
  const bool uneven = rounds * threads * 10 > plan.groups * 11;
  plan.together = threads > 1 && plan.slabs >= threads && (uneven || elements * element_bytes > kL2Bytes);
  plan.threads = static_cast<int>(plan.together ? threads : least(threads, plan.groups));
  return plan;
}

template <typename T>
FASTGAN_INLINE T* address(const Strided& s, int64_t n, int64_t c, int64_t d, int64_t h, int64_t w) {
  if (s.data == nullptr) return nullptr;
  return static_cast<T*>(s.data) + n * s.n + c * s.c + d * s.d + h * s.h + w * s.w;
}

// Whether the rows of a padded result, channels first, lie behind one another. Then they are put together in scratch,
// with their reflections, and written past the caches from there if they are many: stores of rows at any address, and
// of what was just written, could not be.
template <typename T>
bool stages_rows(const Plan& plan, const Strided& padded) {
  return plan.padded() && !plan.channels_last && plan.pieces == 1 && padded.w == 1 &&
         padded.h == plan.W + 2 * plan.pad_w && streams<T>(nullptr, plan.elements(), kLanes<acc_t<T>>);
}

// Calls visit(offset, lanes, which of 4 accumulators) over n elements.
template <int64_t kL, typename Visit>
FASTGAN_INLINE void for_vectors(int64_t n, const Visit& visit) {
  int64_t i = 0;
  for (; i + 4 * kL <= n; i += 4 * kL) {
    visit(i, Whole{}, 0);
    visit(i + kL, Whole{}, 1);
    visit(i + 2 * kL, Whole{}, 2);
    visit(i + 3 * kL, Whole{}, 3);
  }
  for (; i + kL <= n; i += kL) visit(i, Whole{}, 0);
  if (i < n) visit(i, n - i, 1);
}

// The same from the end on: what a pass read last is what the first cache still holds.
template <int64_t kL, typename Visit>
FASTGAN_INLINE void for_vectors_backwards(int64_t n, const Visit& visit) {
  int64_t i = n / kL * kL;
  if (i < n) visit(i, n - i);
  for (; i % (4 * kL) > 0; i -= kL) visit(i - kL, Whole{});
  for (; i > 0; i -= 4 * kL) {
    visit(i - kL, Whole{});
    visit(i - 2 * kL, Whole{});
    visit(i - 3 * kL, Whole{});
    visit(i - 4 * kL, Whole{});
  }
}

}  // namespace
}  // namespace fastgan::FASTGAN_ISA
