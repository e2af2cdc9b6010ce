// CUDA C++ on a processor: a fiber for every thread of a block, an operating-system thread for every block at a time.
//
// Threads of a block run one warp after another, each as far as its next barrier, in an order that CUDA_ON_CPU_ORDER chooses
// (forward, reverse, rotate): a missing barrier then shows as a wrong result in one of them. A barrier that not all threads
// reach ends the process with the thread's place.
#pragma once

#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <thread>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "counts.hpp"

#define CUDA_ON_CPU 1
#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __restrict__
// A block owns an operating-system thread while it runs.
#define __shared__ static thread_local
#define SHARED_ARRAY(T, name) T* name = reinterpret_cast<T*>(cpu::block->dynamic)

struct dim3 {
    unsigned x, y, z;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(8) uint2 {
    unsigned x, y;
};
// Of common.cuh.
template <class E> struct Three;

namespace cpu {

constexpr size_t STACK = 64 << 10;
enum class State : uint8_t { Runs, AtBlockBarrier, AtWarpBarrier, Done };

struct Warp {
    uint32_t alive = 0, arrived = 0, mask = 0;
    unsigned generation = 0;
    // Two slots a lane, used in turn, so that a fast lane does not overwrite what a slow one has yet to read.
    alignas(16) unsigned char slots[2][32][32];
};

// What cp.async does, as late as it may: when it is waited for.
struct Copy {
    void* to;
    const void* from;
    size_t bytes;
    bool there;
};

// What wgmma does to this lane's part of a result, as late as it may: when its group is waited for.
struct Multiplication {
    float (*c)[4];
    int eights;
    // The left operand: registers, or else shared memory as a descriptor has it, like the right one.
    const unsigned* fragment;
    uint64_t left, right;
    // Whether what is summed over goes along an operand's rows of 128 bytes, or from one to the next.
    bool left_columns, right_columns, more, f16;
};

struct Fiber {
    std::vector<Copy> copies;
    std::vector<Multiplication> products;
    // How many products each group has that is not waited for yet.
    std::vector<size_t> groups;
    void* stack_pointer = nullptr;
    State state = State::Done;
    dim3 thread{};
    unsigned lane = 0, waits_for = 0;
    Warp* warp = nullptr;
};

struct Block {
    dim3 grid{}, size{}, index{};
    std::vector<Fiber> fibers;
    std::vector<Warp> warps;
    char* stacks = nullptr;
    unsigned char* dynamic = nullptr;
    size_t shared = 0;
    void* scheduler = nullptr;
    const std::function<void()>* body = nullptr;
    // Where it says that it is done, or waits for another, if somebody asks.
    char* halts = nullptr;
    unsigned at_barrier = 0, alive = 0;
};

inline thread_local Block* block = nullptr;
inline thread_local Fiber* fiber = nullptr;

// Saves the callee-saved registers on the old stack and takes them from the new one.
extern "C" void cuda_on_cpu_switch(void** save, void* load);
#if defined(__x86_64__)
asm(R"(
.text
.weak cuda_on_cpu_switch
cuda_on_cpu_switch:
    push %rbp
    push %rbx
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, (%rdi)
    mov %rsi, %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbx
    pop %rbp
    ret
)");
#elif defined(__aarch64__)
asm(R"(
.text
.weak cuda_on_cpu_switch
cuda_on_cpu_switch:
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
)");
#else
#error "fibers are written for x86-64 and AArch64"
#endif

inline void to_scheduler() { cuda_on_cpu_switch(&fiber->stack_pointer, block->scheduler); }

inline void run(Fiber& f) {
    fiber = &f;
    cuda_on_cpu_switch(&block->scheduler, f.stack_pointer);
}

[[noreturn]] void fail(const char* what);

inline void begin() {
    (*block->body)();
    if (!fiber->copies.empty()) fail("a copy to shared memory is never waited for");
    if (!fiber->products.empty()) fail("a product of wgmma is never waited for");
    fiber->state = State::Done;
    fiber->warp->alive &= ~(1u << fiber->lane);
    block->alive--;
    to_scheduler();
    abort();
}

inline void fail(const char* what) {
    fprintf(stderr, "CUDA on the CPU: %s, in block (%u, %u, %u), thread (%u, %u, %u)\n", what, block->index.x,
            block->index.y, block->index.z, fiber ? fiber->thread.x : 0, fiber ? fiber->thread.y : 0,
            fiber ? fiber->thread.z : 0);
    abort();
}

inline void prepare(Fiber& f, char* stack) {
    f.state = State::Runs;
    auto top = (reinterpret_cast<uintptr_t>(stack) + STACK) & ~uintptr_t(15);
#if defined(__x86_64__)
    auto slots = reinterpret_cast<void**>(top) - 8;
    memset(slots, 0, 8 * sizeof(void*));
    slots[6] = reinterpret_cast<void*>(begin);
    f.stack_pointer = slots;
#else
    auto frame = reinterpret_cast<char*>(top) - 160;
    memset(frame, 0, 160);
    reinterpret_cast<void**>(frame)[11] = reinterpret_cast<void*>(begin);
    f.stack_pointer = frame;
#endif
}

enum class Order { Forward, Reverse, Rotate };
inline Order order() {
    const char* name = getenv("CUDA_ON_CPU_ORDER");
    if (!name) return Order::Forward;
    return *name == 'r' && name[1] == 'e' ? Order::Reverse : *name == 'r' ? Order::Rotate : Order::Forward;
}

inline void run_block(Block& b, Order how) {
    unsigned n = b.fibers.size(), warps = b.warps.size();
    block = &b;
    b.alive = n;
    b.at_barrier = 0;
    for (auto& warp : b.warps) warp = Warp{};
    for (unsigned i = 0; i < n; i++) {
        Fiber& f = b.fibers[i];
        f.thread = {i % b.size.x, i / b.size.x % b.size.y, i / (b.size.x * b.size.y)};
        f.lane = i % 32;
        f.warp = &b.warps[i / 32];
        f.warp->alive |= 1u << f.lane;
        prepare(f, b.stacks + i * STACK);
    }
    unsigned shift = how == Order::Rotate ? (b.index.x * 7919u + 13u) % warps : 0;
    while (b.alive) {
        bool moved = false;
        for (unsigned k = 0; k < warps; k++) {
            unsigned w = how == Order::Reverse ? warps - 1 - k : (k + shift) % warps;
            unsigned first = w * 32, lanes = n - first < 32 ? n - first : 32;
            for (bool again = true; again;) {
                again = false;
                for (unsigned l = 0; l < lanes; l++) {
                    Fiber& f = b.fibers[first + (how == Order::Reverse ? lanes - 1 - l : l)];
                    if (f.state == State::AtWarpBarrier && f.warp->generation != f.waits_for) f.state = State::Runs;
                    if (f.state != State::Runs) continue;
                    again = moved = true;
                    run(f);
                }
            }
        }
        if (b.alive && b.at_barrier == b.alive) {
            for (auto& f : b.fibers)
                if (f.state == State::AtBlockBarrier) f.state = State::Runs;
            b.at_barrier = 0;
            moved = true;
            counts::block_meets();
        }
        if (!moved) fail("threads wait for a barrier that others never reach");
    }
    counts::block_ends();
    block = nullptr;
    fiber = nullptr;
}

UNCOUNTED inline void halt(char* it) { __atomic_store_n(it, 1, __ATOMIC_RELEASE); }
UNCOUNTED inline bool has_halted(const char* it) { return __atomic_load_n(it, __ATOMIC_ACQUIRE); }

inline void launch(dim3 grid, dim3 size, size_t shared, const std::function<void()>& body) {
    unsigned threads = size.x * size.y * size.z;
    uint64_t blocks = uint64_t(grid.x) * grid.y * grid.z;
    std::atomic<uint64_t> next{0};
    Order how = order();
    unsigned cores = std::thread::hardware_concurrency();
    if (cores > blocks) cores = unsigned(blocks);
    // Reversed, of two blocks the second goes as far as it can before the first begins.
    std::vector<char> halts(how == Order::Reverse && cores > 1 ? blocks : 0);
    auto work = [&] {
        static thread_local std::vector<char> stacks;
        if (stacks.size() < threads * STACK) stacks.resize(threads * STACK);
        std::vector<unsigned char> dynamic(shared + 64);
        Block b;
        b.grid = grid;
        b.size = size;
        b.fibers.resize(threads);
        b.warps.resize((threads + 31) / 32);
        b.stacks = stacks.data();
        b.dynamic = reinterpret_cast<unsigned char*>((reinterpret_cast<uintptr_t>(dynamic.data()) + 63) & ~uintptr_t(63));
        b.shared = shared;
        b.body = &body;
        counts::enter(b.stacks, threads * STACK, b.dynamic, shared, b.warps.size());
        for (uint64_t i; (i = next.fetch_add(1)) < blocks;) {
            b.index = {unsigned(i % grid.x), unsigned(i / grid.x % grid.y), unsigned(i / (uint64_t(grid.x) * grid.y))};
            // Shared memory holds anything at first.
            memset(b.dynamic, 0xCD, shared);
            if (!halts.empty() && i % 2 == 0 && i + 1 < blocks)
                while (!has_halted(&halts[i + 1])) std::this_thread::yield();
            if (!halts.empty()) b.halts = &halts[i];
            run_block(b, how);
            if (!halts.empty()) halt(&halts[i]);
        }
        counts::leave();
    };
    std::vector<std::thread> others;
    for (unsigned t = 1; t < cores; t++) others.emplace_back(work);
    work();
    for (auto& t : others) t.join();
}

inline void warp_barrier(uint32_t mask) {
    Fiber* f = fiber;
    Warp* w = f->warp;
    if (!(mask >> f->lane & 1)) fail("a lane is not in its own mask");
    mask &= w->alive;
    if (w->arrived == 0) w->mask = mask;
    if (w->mask != mask) fail("lanes of a warp name different masks");
    w->arrived |= 1u << f->lane;
    if (w->arrived == w->mask) {
        w->arrived = 0;
        w->generation++;
        if (w->mask == w->alive) counts::warp_meets(w - block->warps.data());
        return;
    }
    f->waits_for = w->generation;
    f->state = State::AtWarpBarrier;
    to_scheduler();
}

// What each lane of the warp holds, by lane; until this lane asks again.
template <class T> auto lanes(const T& value, uint32_t mask = ~0u) {
    static_assert(sizeof(T) <= 32);
    Warp* w = fiber->warp;
    auto slots = w->slots[w->generation & 1];
    memcpy(slots[fiber->lane], &value, sizeof(T));
    warp_barrier(mask);
    return [slots](unsigned lane) -> const T& { return *reinterpret_cast<const T*>(slots[lane]); };
}

template <class T> T exchange(uint32_t mask, T value, unsigned from) {
    counts::exchange(mask);
    return lanes(value, mask)(from);
}

UNCOUNTED inline unsigned bits_of(const void* row, int element) {
    uint16_t bits;
    memcpy(&bits, static_cast<const char*>(row) + 2 * element, 2);
    return bits;
}
// Of four matrices of eight rows of eight 16-bit elements, whose rows' places lanes name: what ldmatrix gives this lane.
UNCOUNTED inline void matrices(unsigned* x, const void* row, bool transposed) {
    auto of = lanes(row);
    int g = fiber->lane / 4, t = fiber->lane & 3;
    for (int i = 0; i < 4; i++) {
        unsigned low = transposed ? bits_of(of(8 * i + 2 * t), g) : bits_of(of(8 * i + g), 2 * t);
        unsigned high = transposed ? bits_of(of(8 * i + 2 * t + 1), g) : bits_of(of(8 * i + g), 2 * t + 1);
        x[i] = low | high << 16;
    }
}

inline void remember_copy(void* to, const void* from, size_t bytes, bool there) {
    if (reinterpret_cast<uintptr_t>(to) % bytes || (there && reinterpret_cast<uintptr_t>(from) % bytes))
        fail("a copy to shared memory is not aligned");
    fiber->copies.push_back({to, from, bytes, there});
}
__forceinline__ void copy_later(void* to, const void* from, size_t bytes, bool there) {
    counts::copy(to, from, bytes, there);
    remember_copy(to, from, bytes, there);
}
inline void wait_for_copies() {
    for (const Copy& it : fiber->copies) it.there ? memcpy(it.to, it.from, it.bytes) : memset(it.to, 0, it.bytes);
    fiber->copies.clear();
}

// Words by which blocks tell each other what is there. A block that waits for one of a higher number may wait for ever.
UNCOUNTED inline void wait_until(const unsigned* word, unsigned least) {
    for (int rounds = 0; __atomic_load_n(word, __ATOMIC_ACQUIRE) < least; std::this_thread::yield()) {
        if (block->halts) halt(block->halts);
        if (++rounds > 1000000000) fail("a block waits for another that never comes");
    }
}
UNCOUNTED inline void publish(unsigned* word, unsigned value) { __atomic_store_n(word, value, __ATOMIC_RELEASE); }

// A kernel: what copies its arguments, as a launch does, and gives what runs one thread; and which of them are pointers, with the
// alignment of what they point to.
struct Pointer {
    // The argument, the bytes before it there, and the alignment.
    size_t index, before, alignment;
};
struct Kernel {
    std::function<std::function<void()>(void**)> bind;
    std::vector<Pointer> pointers;
};
// By name.
inline std::map<std::string, Kernel>& kernels() {
    static std::map<std::string, Kernel> all;
    return all;
}
template <class T> constexpr size_t alignment() {
    if constexpr (std::is_void_v<T>) return 1;
    else return alignof(T);
}
template <class A> struct Argument {
    static void note(std::vector<Pointer>&, size_t) {}
};
template <class E> struct Argument<E*> {
    static void note(std::vector<Pointer>& all, size_t index) { all.push_back({index, 0, alignment<E>()}); }
};
template <class E> struct Argument<Three<E*>> {
    static void note(std::vector<Pointer>& all, size_t index) {
        for (size_t i = 0; i < 3; i++) all.push_back({index, i * sizeof(E*), alignment<E>()});
    }
};
template <class... A> Kernel kernel(void (*f)(A...)) {
    Kernel it;
    size_t index = 0;
    (Argument<std::remove_cv_t<A>>::note(it.pointers, index++), ...);
    it.bind = [f](void** args) -> std::function<void()> {
        return [&]<size_t... I>(std::index_sequence<I...>) -> std::function<void()> {
            auto copies = std::make_tuple(*static_cast<std::remove_cv_t<A>*>(args[I])...);
            return [f, copies] { std::apply(f, copies); };
        }(std::index_sequence_for<A...>{});
    };
    return it;
}

}  // namespace cpu

#define threadIdx (cpu::fiber->thread)
#define blockIdx (cpu::block->index)
#define blockDim (cpu::block->size)
#define gridDim (cpu::block->grid)

inline void __syncthreads() {
    cpu::block->at_barrier++;
    cpu::fiber->state = cpu::State::AtBlockBarrier;
    cpu::to_scheduler();
}
inline void __syncwarp(unsigned mask = ~0u) { cpu::warp_barrier(mask); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
template <class T> T __shfl_sync(unsigned mask, T v, int from) { return cpu::exchange(mask, v, from & 31); }
template <class T> T __shfl_xor_sync(unsigned mask, T v, int x) { return cpu::exchange(mask, v, cpu::fiber->lane ^ x); }
template <class T> T __shfl_down_sync(unsigned mask, T v, unsigned d) {
    unsigned from = cpu::fiber->lane + d;
    return cpu::exchange(mask, v, from < 32 ? from : cpu::fiber->lane);
}
UNCOUNTED inline float atomicAdd(float* p, float v) {
    counts::atomic(p, 4);
    uint32_t old = __atomic_load_n(reinterpret_cast<uint32_t*>(p), __ATOMIC_RELAXED), next;
    float sum;
    do {
        memcpy(&sum, &old, 4);
        float added = sum + v;
        memcpy(&next, &added, 4);
    } while (!__atomic_compare_exchange_n(reinterpret_cast<uint32_t*>(p), &old, next, true, __ATOMIC_RELAXED,
                                          __ATOMIC_RELAXED));
    return sum;
}
UNCOUNTED inline int atomicAdd(int* p, int v) {
    counts::atomic(p, 4);
    return __atomic_fetch_add(p, v, __ATOMIC_RELAXED);
}
UNCOUNTED inline unsigned atomicAdd(unsigned* p, unsigned v) {
    counts::atomic(p, 4);
    return __atomic_fetch_add(p, v, __ATOMIC_RELAXED);
}
UNCOUNTED inline int atomicOr(int* p, int v) {
    counts::atomic(p, 4);
    return __atomic_fetch_or(p, v, __ATOMIC_RELAXED);
}

inline float __int_as_float(int i) {
    float f;
    memcpy(&f, &i, 4);
    return f;
}
inline int __float_as_int(float f) {
    int i;
    memcpy(&i, &f, 4);
    return i;
}
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned(uint64_t(a) * b >> 32); }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline float half_to_float(uint16_t bits) {
    _Float16 h;
    memcpy(&h, &bits, 2);
    return float(h);
}
inline uint16_t float_to_half(float x) {
    auto h = static_cast<_Float16>(x);
    uint16_t bits;
    memcpy(&bits, &h, 2);
    return bits;
}

#include "wgmma.hpp"
