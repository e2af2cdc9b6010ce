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
#define SHARED_ARRAY(T, name) extern __shared__ __align__(16) unsigned char name##_bytes[]; T* name = (T*)name##_bytes
#endif

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
        uint32_t bits = (uint32_t)__float_as_int(x);
        bf16 y;
        y.bits = (bits & 0x7fffffffu) > 0x7f800000u ? (uint16_t)((bits >> 16) | 0x40u)
                                                     : (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
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

// Elements i = first, first + stride, ... of a kernel that has a thread an element.
#define FOR_EACH(i, n) \
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < (n); i += (size_t)gridDim.x * blockDim.x)

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
