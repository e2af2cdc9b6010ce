// What decides a kernel's speed on a device, counted where its text runs on a processor: hooks that runtime.hpp calls, which do nothing
// unless CUDA_ON_CPU_COUNTS is defined, and the interface for whoever wants to know (counts.cpp).
//
// The kernels are then compiled with -fsanitize=thread, which calls __tsan_read4 and the like before every access; these are ours. Accesses
// of the lanes of a warp are one where the same instruction made them the same number of times since the lanes were last together, at a
// barrier or an exchange.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

struct dim3;

namespace counts {

#ifdef CUDA_ON_CPU_COUNTS

// Of what calls no hooks: atomics would become calls that nobody defines.
#define UNCOUNTED __attribute__((no_sanitize("thread")))

// A launch begins, on a device whose memory lies there; and ends.
void begin(const std::string& kernel, const dim3& grid, const dim3& block, unsigned shared,
           std::vector<std::pair<uintptr_t, uintptr_t>> memory);
void end();
// A thread of the processor takes up blocks of it, with stacks and dynamic shared memory of its own; and has done its part.
void enter(const char* stacks, size_t stack_bytes, const unsigned char* dynamic, size_t shared, size_t warps);
void leave();
// The warps of the block have met, or are done.
void block_meets();
void block_ends();
// The lanes of a warp are at one place.
void warp_meets(size_t warp);

// A lane takes part in an exchange, by a mask; in a product; names a row of ldmatrix; asks for a copy to shared memory; adds in memory.
void exchange(uint32_t mask);
void mma();
void matrix_row(const void* row);
void copy(const void* to, const void* from, size_t bytes, bool there);
void atomic(const void* at, size_t bytes);

#else

#define UNCOUNTED
inline void enter(const char*, size_t, const unsigned char*, size_t, size_t) {}
inline void leave() {}
inline void block_meets() {}
inline void block_ends() {}
inline void warp_meets(size_t) {}
inline void exchange(uint32_t) {}
inline void mma() {}
inline void matrix_row(const void*) {}
inline void copy(const void*, const void*, size_t, bool) {}
inline void atomic(const void*, size_t) {}

#endif

}  // namespace counts
