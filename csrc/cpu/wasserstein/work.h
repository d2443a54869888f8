// How work is cut: whole rows, then chunks of atoms, whose sums do not depend on the number of threads.
#pragma once

#include <cstdint>

#include "common/threads.h"

namespace fastgan::FASTGAN_ISA {
namespace {

constexpr int64_t kChunk = 4096;             // atoms whose sums are formed at a time
constexpr int64_t kSamplesPerThread = 8192;  // fewer are not worth a thread

// Calls body(index) for every index < count, on as many threads.
template <typename Body>
FASTGAN_INLINE void for_each(int threads, int64_t count, const Body& body) {
  if (threads > count) threads = static_cast<int>(count);
  Shares shares(count, threads);
  parallel(threads, [&](int, int) {
    for (Range range = shares.next(); range.begin < range.end; range = shares.next()) {
      for (int64_t i = range.begin; i < range.end; ++i) body(i);
    }
  });
}

int useful_threads(int64_t samples, int most) {
  const int64_t threads = samples / kSamplesPerThread < most ? samples / kSamplesPerThread : most;
  return threads < 1 ? 1 : static_cast<int>(threads);
}

}  // namespace
}  // namespace fastgan::FASTGAN_ISA
