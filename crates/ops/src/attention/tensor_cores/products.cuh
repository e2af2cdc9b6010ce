// What attention is made of on tensor cores, in bf16 and f16: tiles in shared memory, and products of whole tiles.
//
// Results of two neighbouring products are the left fragment of the next one, so that probabilities never leave the registers.
//
// Tiles lie in shared memory, 16 bytes a piece, each row's pieces in an order of their own, so that the eight rows that ldmatrix
// reads at a time meet different banks. The copies of the next tile run while this one is multiplied.
//
// A warp takes M times 16 rows, and a block 128: with M of 2 a fragment of the tile serves twice. Hopper multiplies by wgmma instead,
// for four warps at a time and from shared memory, and needs no more than M of 1. There, products of 64 rows have a fragment of 16 rows
// in each warp, so that all but the products is the same. Functions are told by BY_WGMMA; the CPU in the guise of a GPU runs both kinds.

#define ROWS 128  // that a block takes

#if T_KIND > 0

// What this device multiplies by.
#if defined(HOPPER)
constexpr bool WGMMA = true;
#else
constexpr bool WGMMA = false;
#endif
#if defined(CUDA_ON_CPU) && !defined(CUDA_ON_CPU_COUNTS)
#define WGMMA_TWIN
#endif
#if defined(HOPPER) || defined(WGMMA_TWIN)
#define WGMMA_IS_KNOWN
#endif

__device__ __forceinline__ float two_to(float x) {
#if defined(CUDA_ON_CPU)
    return exp2f(x);
#else
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#endif
}

__device__ __forceinline__ float inverse(float x) {
#if defined(CUDA_ON_CPU)
    return 1.0f / x;
#else
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#endif
}

// Where a piece of eight channels lies in a tile of so many rows: 64 channels of all rows before the next 64.
template <int COUNT> __device__ __forceinline__ int place(int row, int piece) {
    return (piece / 8 * COUNT + row) * 64 + (((piece ^ row) & 7) << 3);
}

// COUNT rows from `first` on of a head's channels, by THREADS threads; rows from `limit` on are zero.
template <int DIM, int COUNT, int THREADS>
__device__ __forceinline__ void load_rows(T* tile, const T* x, size_t base, int first, int limit, int stride, int dim) {
    // A thread's rows are a multiple of eight apart, so that its piece is at the same place in each.
    constexpr int STEP = THREADS / (DIM / 8);
    static_assert(STEP % 8 == 0 && COUNT % STEP == 0, "whole steps");
    int row = threadIdx.x / (DIM / 8), piece = threadIdx.x % (DIM / 8);
    const T* from = x + (base + first + row) * stride + 8 * piece;
    T* to = tile + place<COUNT>(row, piece);
    int rows = 8 * piece < dim ? limit - first - row : 0;
#pragma unroll
    for (int j = 0; j < COUNT / STEP; j++, from += STEP * stride)
        copy_later<16>(to + j * STEP * 64, j * STEP < rows ? from : x, j * STEP < rows);
}

// Keys or values of a sequence, in rows from `first` on.
struct InRows {
    const T* x;
    size_t first;
};
// As `load_rows`, COUNT of them from key `first` on: of each the channels from column `column` on.
template <int DIM, int COUNT, int THREADS>
__device__ __forceinline__ void load_keys(T* tile, const InRows& x, int column, int first, int limit, int stride, int dim) {
    load_rows<DIM, COUNT, THREADS>(tile, x.x + column, x.first, first, limit, stride, dim);
}

// N eights of columns, for the 64 rows of four warps: c += a b, or c = a b where `more` is 0. `of_rows`: both operands are tiles whose
// rows are the result's; `of_columns`: what is summed over goes from row to row of the right one; `of_both_columns`: of both.
#if defined(HOPPER)
template <int N> struct Products;

#define SUMS(x, n) "+f"(x[n][0]), "+f"(x[n][1]), "+f"(x[n][2]), "+f"(x[n][3])
#define SUMS8(x, n) SUMS(x, n), SUMS(x, n + 1), SUMS(x, n + 2), SUMS(x, n + 3), SUMS(x, n + 4), SUMS(x, n + 5), SUMS(x, n + 6), SUMS(x, n + 7)
#define FIRST_32                                                                                                            \
    "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define NEXT_32                                                                                                             \
    ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60," \
    "%61,%62,%63"
#if T_KIND == 1
#define INSTRUCTION(n) "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.bf16.bf16 "
#else
#define INSTRUCTION(n) "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.f16.f16 "
#endif

template <> struct Products<8> {
    static __device__ __forceinline__ void of_rows(float (*c)[4], uint64_t a, uint64_t b, int more) {
        asm volatile("{.reg .pred p; setp.ne.b32 p, %34, 0; " INSTRUCTION(64) "{" FIRST_32 "}, %32, %33, p, 1, 1, 0, 0;}"
                     : SUMS8(c, 0) : "l"(a), "l"(b), "r"(more));
    }
    static __device__ __forceinline__ void of_columns(float (*c)[4], const unsigned* a, uint64_t b) {
        asm volatile("{.reg .pred p; setp.eq.b32 p, 0, 0; " INSTRUCTION(64) "{" FIRST_32 "}, {%32,%33,%34,%35}, %36, p, 1, 1, 1;}"
                     : SUMS8(c, 0) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
    }
    static __device__ __forceinline__ void of_both_columns(float (*c)[4], uint64_t a, uint64_t b, int more) {
        asm volatile("{.reg .pred p; setp.ne.b32 p, %34, 0; " INSTRUCTION(64) "{" FIRST_32 "}, %32, %33, p, 1, 1, 1, 1;}"
                     : SUMS8(c, 0) : "l"(a), "l"(b), "r"(more));
    }
};
template <> struct Products<16> {
    static __device__ __forceinline__ void of_rows(float (*c)[4], uint64_t a, uint64_t b, int more) {
        asm volatile("{.reg .pred p; setp.ne.b32 p, %66, 0; " INSTRUCTION(128) "{" FIRST_32 NEXT_32 "}, %64, %65, p, 1, 1, 0, 0;}"
                     : SUMS8(c, 0), SUMS8(c, 8) : "l"(a), "l"(b), "r"(more));
    }
    static __device__ __forceinline__ void of_columns(float (*c)[4], const unsigned* a, uint64_t b) {
        asm volatile("{.reg .pred p; setp.eq.b32 p, 0, 0; " INSTRUCTION(128) "{" FIRST_32 NEXT_32 "}, {%64,%65,%66,%67}, %68, p, 1, 1, 1;}"
                     : SUMS8(c, 0), SUMS8(c, 8) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
    }
};

#elif defined(WGMMA_TWIN)
template <int N> struct Products {
    static void of_rows(float (*c)[4], uint64_t a, uint64_t b, int more) {
        cpu::multiply_later({c, N, nullptr, a, b, false, false, more != 0, T_KIND == 2});
    }
    static void of_columns(float (*c)[4], const unsigned* a, uint64_t b) {
        cpu::multiply_later({c, N, a, 0, b, false, true, true, T_KIND == 2});
    }
    static void of_both_columns(float (*c)[4], uint64_t a, uint64_t b, int more) {
        cpu::multiply_later({c, N, nullptr, a, b, true, true, more != 0, T_KIND == 2});
    }
};
#endif

#if defined(WGMMA_IS_KNOWN)
// What wgmma is told of a tile: where it begins, how far apart its halves of 64 channels are (of a tile whose rows are the product's),
// eight rows in 1024 bytes, pieces in the order of `place`.
__device__ __forceinline__ uint64_t describe(const T* tile, int between_halves) {
    uint64_t at = (unsigned)__cvta_generic_to_shared(tile);
    return (at & 0x3ffff) >> 4 | (uint64_t)(between_halves >> 4) << 16 | (uint64_t)(1024 >> 4) << 32 | 1ull << 62;
}
#endif

// Hopper's products run on while the warp goes on. Before them: their operands in registers are ready.
__device__ __forceinline__ void begin_products() {
#if defined(HOPPER)
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}
// Behind those that are waited for together.
__device__ __forceinline__ void end_products() {
#if defined(HOPPER)
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#elif defined(WGMMA_TWIN)
    cpu::end_products();
#endif
}
// Until all but the last so many groups of products are done.
template <int LEFT> __device__ __forceinline__ void wait_for_products() {
#if defined(HOPPER)
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory");
#elif defined(WGMMA_TWIN)
    cpu::wait_for_products(LEFT);
#endif
}
// Until then too, and from now on these results may be read.
template <int LEFT, int M, int N> __device__ __forceinline__ void wait_for(float (&x)[M][N][4]) {
    wait_for_products<LEFT>();
#if defined(HOPPER)
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) asm volatile("" : "+f"(x[0][n][i])::"memory");
#endif
}

// Columns k .. k + 16 of the 16 rows from `row` on, of a tile of COUNT rows.
template <int COUNT> __device__ __forceinline__ void left_of(unsigned* a, const T* tile, int row, int k) {
    int lane = threadIdx.x & 31;
    load_matrices<false>(a, tile + place<COUNT>(row + (lane & 15), k / 8 + (lane >> 4)));
}
// Two right operands, whose columns are the tile's rows n .. n + 8 and n + 8 .. n + 16, over channels k .. k + 16.
template <int COUNT> __device__ __forceinline__ void right_of_rows(unsigned* b, const T* tile, int n, int k) {
    int lane = threadIdx.x & 31;
    load_matrices<false>(b, tile + place<COUNT>(n + (lane & 7) + ((lane & 16) >> 1), k / 8 + ((lane >> 3) & 1)));
}
// Two right operands, whose rows are the tile's rows k .. k + 16, over channels n .. n + 8 and n + 8 .. n + 16.
template <int COUNT> __device__ __forceinline__ void right_of_columns(unsigned* b, const T* tile, int k, int n) {
    int lane = threadIdx.x & 31;
    load_matrices<true>(b, tile + place<COUNT>(k + (lane & 15), n / 8 + (lane >> 4)));
}

// scores (16 M, 8 N) = the warp's rows of the block's COUNT, from `row` on, times the tile's.
template <int DIM, int COUNT = ROWS, bool BY_WGMMA = WGMMA, int M, int N>
__device__ __forceinline__ void multiply_rows(float (&scores)[M][N][4], const T* rows, int row, const T* tile) {
#if defined(WGMMA_IS_KNOWN)
    if constexpr (BY_WGMMA) {
#pragma unroll
        for (int k = 0; k < DIM; k += 16)
            Products<N>::of_rows(scores[0], describe(rows + (k / 64 * COUNT + row / 64 * 64) * 64 + k % 64, 0),
                                 describe(tile + k / 64 * 8 * N * 64 + k % 64, 0), k > 0);
    } else
#endif
    {
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int n = 0; n < N; n++)
#pragma unroll
                for (int i = 0; i < 4; i++) scores[m][n][i] = 0.0f;
#pragma unroll
        for (int k = 0; k < DIM; k += 16) {
            unsigned a[M][4], b[4];
#pragma unroll
            for (int m = 0; m < M; m++) left_of<COUNT>(a[m], rows, row + 16 * m, k);
#pragma unroll
            for (int n = 0; n < N; n += 2) {
                right_of_rows<8 * N>(b, tile, 8 * n, k);
#pragma unroll
                for (int m = 0; m < M; m++) {
                    mma(scores[m][n], a[m], b);
                    mma(scores[m][n + 1], a[m], b + 2);
                }
            }
        }
    }
}
// Weights (16 M, 8 N) as left fragments.
template <int M, int N> __device__ __forceinline__ void as_left(unsigned (&a)[N / 2][M][4], const float (&weights)[M][N][4]) {
#pragma unroll
    for (int k = 0; k < N; k += 2)
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                a[k / 2][m][i] = pack(weights[m][k + i / 2][i % 2 * 2], weights[m][k + i / 2][i % 2 * 2 + 1]);
}
// acc (16 M, DIM) += a (16 M, 16 K) tile (16 K, DIM).
template <int DIM, bool BY_WGMMA = WGMMA, int M, int K>
__device__ __forceinline__ void add_weighted(float (&acc)[M][DIM / 8][4], const unsigned (&a)[K][M][4], const T* tile) {
#if defined(WGMMA_IS_KNOWN)
    if constexpr (BY_WGMMA) {
#pragma unroll
        for (int k = 0; k < K; k++) Products<DIM / 8>::of_columns(acc[0], a[k][0], describe(tile + 16 * k * 64, 16 * K * 128));
    } else
#endif
    {
#pragma unroll
        for (int k = 0; k < K; k++) {
            unsigned b[4];
#pragma unroll
            for (int n = 0; n < DIM / 8; n += 2) {
                right_of_columns<16 * K>(b, tile, 16 * k, 8 * n);
#pragma unroll
                for (int m = 0; m < M; m++) {
                    mma(acc[m][n], a[k][m], b);
                    mma(acc[m][n + 1], a[k][m], b + 2);
                }
            }
        }
    }
}
#endif
