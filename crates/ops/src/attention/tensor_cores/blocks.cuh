// How blocks of attention on tensor cores divide the work: of `forward.cuh` and `two_passes`, behind `scores.cuh`.
// Heads are padded with zeros to DIM channels, 64 or 128, and are a multiple of 16. In f32 the kernels are empty: nobody calls them.

// Keys a tile, forward and for the gradient of queries.
#define KEYS_OF(M) ((M) == 1 ? 128 : 32)
#define FEW_KEYS_OF(M) ((M) == 1 ? 64 : 32)

#if T_KIND > 0

// Of rows whose products are one, the warp's or by wgmma those of four warps: how many, and how many of the block's are before them.
template <int M, bool BY_WGMMA> __device__ __forceinline__ int group_rows() { return BY_WGMMA ? 64 : 16 * M; }
template <int M, bool BY_WGMMA> __device__ __forceinline__ int group_start() {
    // The exchange says that lanes agree.
    return BY_WGMMA ? __shfl_sync(0xffffffffu, threadIdx.x / 128, 0) * 64 : threadIdx.x / 32 * 16 * M;
}

// The function for the padded head and, by the block's threads, the warp's rows. Hopper has M of 1, others 2.
#if defined(WGMMA_TWIN)
#define BY_WARP(f, dim, ...) (blockDim.x == 256 ? f<dim, 1, true>(__VA_ARGS__) : f<dim, 2, false>(__VA_ARGS__))
#elif defined(CUDA_ON_CPU)
#define BY_WARP(f, dim, ...) (blockDim.x == 256 ? f<dim, 1, false>(__VA_ARGS__) : f<dim, 2, false>(__VA_ARGS__))
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ / 10 == 90
#define BY_WARP(f, dim, ...) f<dim, 1, WGMMA>(__VA_ARGS__)
#else
#define BY_WARP(f, dim, ...) f<dim, 2, false>(__VA_ARGS__)
#endif
#define BY_SHAPE(f, ...) (s.dim <= 64 ? BY_WARP(f, 64, __VA_ARGS__) : BY_WARP(f, 128, __VA_ARGS__))
#endif
