// What every file of kernels begins with. No header is included, so that nothing but the compiler is needed.
//
// Behind this follow `typedef ... T`, the element type (float, bf16 or f16), and T_KIND (0, 1 or 2), and then the file, which is compiled once for each.

#ifdef CUDA_ON_CPU
#define KERNEL static void
#else
#define KERNEL extern "C" __global__ void
typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
typedef unsigned int uint32_t;
typedef unsigned long long uint64_t;
#define SHARED_ARRAY(T, name) extern __shared__ __align__(1024) unsigned char name##_bytes[]; T* name = (T*)name##_bytes
#endif

// Put at the beginning of every kernel, unless that begins with WAITS_LATER and calls it by itself, before it writes anything or reads what
// a kernel may have written: its blocks may be started while the last ones of the kernel before run out, and wait here until
// those are done and what they wrote is there.
__device__ __forceinline__ void after_the_one_before() {
#if !defined(CUDA_ON_CPU) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

#define WAITS_LATER

#define INF __int_as_float(0x7f800000)

// The upper half of an f32, rounded to nearest even; a NaN stays a NaN.
struct bf16 {
    uint16_t bits;
};
struct f16 {
    uint16_t bits;
};

__device__ __forceinline__ float to_f32(float x) { return x; }
__device__ __forceinline__ float to_f32(bf16 x) { return __int_as_float((int)((uint32_t)x.bits << 16)); }
__device__ __forceinline__ float to_f32(f16 x) {
#ifdef CUDA_ON_CPU
    return half_to_float(x.bits);
#else
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
#endif
}

template <class T> struct Round;
template <> struct Round<float> {
    static __device__ __forceinline__ float of(float x) { return x; }
};
template <> struct Round<bf16> {
    static __device__ __forceinline__ bf16 of(float x) {
        bf16 y;
#if !defined(CUDA_ON_CPU) && __CUDA_ARCH__ >= 800
        // A NaN has another payload than below.
        asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
#else
        uint32_t bits = (uint32_t)__float_as_int(x);
        y.bits = (bits & 0x7fffffffu) > 0x7f800000u ? (uint16_t)((bits >> 16) | 0x40u)
                                                     : (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
#endif
        return y;
    }
};
template <> struct Round<f16> {
    static __device__ __forceinline__ f16 of(float x) {
        f16 y;
#ifdef CUDA_ON_CPU
        y.bits = float_to_half(x);
#else
        asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
#endif
        return y;
    }
};
// Rounded as the type would, but still an f32.
template <class T> __device__ __forceinline__ float rounded(float x) { return to_f32(Round<T>::of(x)); }

// An element of an array whose type is known at run time: 0 for f32, 1 for bf16, 2 for f16.
__device__ __forceinline__ float load_any(const void* x, int type, size_t i) {
    return type == 0 ? ((const float*)x)[i] : type == 1 ? to_f32(((const bf16*)x)[i]) : to_f32(((const f16*)x)[i]);
}

// A parameter of which a launch has up to three, as of the matrices that it multiplies with.
template <class E> struct Three {
    E of[3];
};

// Elements i = first, first + stride, ... of a kernel that has a thread an element.
#define FOR_EACH(i, n) \
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < (n); i += (size_t)gridDim.x * blockDim.x)

// As many elements as a lane reads or writes at once.
template <class E> struct alignas(16) Pack {
    static const int N = 16 / sizeof(E);
    E v[N];
};
__device__ __forceinline__ bool on_16(const void* p) { return ((size_t)p & 15) == 0; }

// f(arguments, results) for every element of `in` and `out`, in f32. Of a kernel that has a thread for every pack of elements: it goes by
// packs where all arrays begin on 16 bytes, and single through what is left.
template <class E, int IN, int OUT, class F>
__device__ __forceinline__ void pointwise(const E* const (&in)[IN], E* const (&out)[OUT], size_t n, F f) {
    bool together = true;
    for (int k = 0; k < IN; k++) together = together && on_16(in[k]);
    for (int k = 0; k < OUT; k++) together = together && on_16(out[k]);
    size_t packs = together ? n / Pack<E>::N : 0;
    FOR_EACH(p, packs) {
        Pack<E> from[IN], to[OUT];
#pragma unroll
        for (int k = 0; k < IN; k++) from[k] = ((const Pack<E>*)in[k])[p];
#pragma unroll
        for (int j = 0; j < Pack<E>::N; j++) {
            float x[IN], y[OUT];
#pragma unroll
            for (int k = 0; k < IN; k++) x[k] = to_f32(from[k].v[j]);
            f(x, y);
#pragma unroll
            for (int k = 0; k < OUT; k++) to[k].v[j] = Round<E>::of(y[k]);
        }
#pragma unroll
        for (int k = 0; k < OUT; k++) ((Pack<E>*)out[k])[p] = to[k];
    }
    FOR_EACH(left, n - packs * Pack<E>::N) {
        size_t i = packs * Pack<E>::N + left;
        float x[IN], y[OUT];
#pragma unroll
        for (int k = 0; k < IN; k++) x[k] = to_f32(in[k][i]);
        f(x, y);
#pragma unroll
        for (int k = 0; k < OUT; k++) out[k][i] = Round<E>::of(y[k]);
    }
}

// Elements i.. of a row of n, as many as a pack has: at once where rows keep them together, else those that there are, and zeros.
template <class E> __device__ __forceinline__ Pack<E> load_pack(const E* row, int i, int n, bool together) {
    if (together) return *(const Pack<E>*)(row + i);
    Pack<E> pack;
#pragma unroll
    for (int j = 0; j < Pack<E>::N; j++) pack.v[j] = i + j < n ? row[i + j] : Round<E>::of(0.0f);
    return pack;
}
template <class E>
__device__ __forceinline__ void store_pack(E* row, int i, int n, bool together, const Pack<E>& pack) {
    if (together) {
        *(Pack<E>*)(row + i) = pack;
        return;
    }
#pragma unroll
    for (int j = 0; j < Pack<E>::N; j++)
        if (i + j < n) row[i + j] = pack.v[j];
}
// As load_pack, for M floats that go with a pack of another type.
template <int M>
__device__ __forceinline__ void load_floats(const float* row, int i, int n, bool together, float (&to)[M]) {
#pragma unroll
    for (int j = 0; j < M; j += 4) {
        Pack<float> four = load_pack(row, i + j, n, together);
#pragma unroll
        for (int l = 0; l < 4; l++) to[j + l] = four.v[l];
    }
}
// f(i, k) for the packs of a row of n elements that are this thread's, from element i on: k counts the first KEPT of them, which may stay
// in registers between passes over the row, and is KEPT for all that follow.
template <class E, int KEPT, class F> __device__ __forceinline__ void for_packs(int n, F f) {
    int step = Pack<E>::N * blockDim.x, i = Pack<E>::N * threadIdx.x;
#pragma unroll
    for (int k = 0; k < KEPT; k++, i += step)
        if (i < n) f(i, k);
    for (; i < n; i += step) f(i, KEPT);
}

// The sum of what belongs to a pack, by halves, whose roundings stay smallest. Overwrites it.
template <int M> __device__ __forceinline__ float sum_of(float (&v)[M]) {
#pragma unroll
    for (int half = M / 2; half > 0; half /= 2)
#pragma unroll
        for (int j = 0; j < half; j++) v[j] += v[j + half];
    return v[0];
}

__device__ __forceinline__ float warp_sum(float v) {
    for (int o = 16; o > 0; o >>= 1) v += __shfl_xor_sync(0xffffffffu, v, o);
    return v;
}
__device__ __forceinline__ float warp_max(float v) {
    for (int o = 16; o > 0; o >>= 1) v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, o));
    return v;
}

// Over all threads of a block (a multiple of 32), the same result in each. `scratch` has 32 floats.
__device__ __forceinline__ float block_sum(float v, float* scratch) {
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    v = warp_sum(v);
    __syncthreads();
    if (lane == 0) scratch[warp] = v;
    __syncthreads();
    return warp_sum(lane < warps ? scratch[lane] : 0.0f);
}
__device__ __forceinline__ float block_max(float v, float* scratch) {
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    v = warp_max(v);
    __syncthreads();
    if (lane == 0) scratch[warp] = v;
    __syncthreads();
    return warp_max(lane < warps ? scratch[lane] : -INF);
}
