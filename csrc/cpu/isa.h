// Which instruction set serves a call, decided once at run time.
//
// A kernel file is compiled once per instruction set, each time into the namespace fastgan::FASTGAN_ISA. Its header
// declares the entry points with FASTGAN_PER_ISA, and callers go through FASTGAN_CALL.
#pragma once

#if defined(__x86_64__) || defined(_M_X64)
#define FASTGAN_X86 1
#else
#define FASTGAN_X86 0
#endif

namespace fastgan {

// avx512_bf16 is served by the kernels of avx512, which ask for it where they round to bfloat16.
enum class Isa { baseline = 0, avx2 = 1, avx512 = 2, avx512_bf16 = 3 };

// The best set that this processor has; the environment variable FASTGAN_CPU_ISA (baseline, avx2, avx512,
// avx512_bf16) lowers it. Throws std::invalid_argument if it is anything else.
Isa cpu_isa();
const char* isa_name(Isa isa);

}  // namespace fastgan

#if FASTGAN_X86
#define FASTGAN_PER_ISA(...) \
  namespace baseline {       \
  __VA_ARGS__                \
  }                          \
  namespace avx2 {           \
  __VA_ARGS__                \
  }                          \
  namespace avx512 {         \
  __VA_ARGS__                \
  }
#define FASTGAN_CALL(function, ...)                                                          \
  (::fastgan::cpu_isa() >= ::fastgan::Isa::avx512 ? ::fastgan::avx512::function(__VA_ARGS__) \
   : ::fastgan::cpu_isa() == ::fastgan::Isa::avx2 ? ::fastgan::avx2::function(__VA_ARGS__)   \
                                                  : ::fastgan::baseline::function(__VA_ARGS__))
#else
#define FASTGAN_PER_ISA(...) \
  namespace baseline {       \
  __VA_ARGS__                \
  }
#define FASTGAN_CALL(function, ...) ::fastgan::baseline::function(__VA_ARGS__)
#endif
