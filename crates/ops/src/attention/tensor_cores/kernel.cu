// The same attention with tensor cores, for bf16 and f16 and heads of a multiple of 16 channels, at most 128.
//
// Products are mma.m16n8k16: a fragment of the left operand holds rows g and g + 8, one of the right column g, and a result columns
// 2t and 2t + 1 of rows g and g + 8, where g = lane / 4 and t = lane % 4. Results of two neighbouring products are the left fragment
// of the next one, so that probabilities never leave the registers.
//
// Tiles lie in shared memory, 16 bytes a piece, each row's pieces in an order of their own, so that the eight rows that ldmatrix
// reads at a time meet different banks. The copies of the next tile run while this one is multiplied.
//
// A warp takes M times 16 rows, and a block 128: with M of 2 a fragment of the tile serves twice. Hopper multiplies by wgmma instead,
// for four warps at a time and from shared memory, and needs no more than M of 1. There, products of 64 rows have a fragment of 16 rows
// in each warp, so that all but the products is the same.
//
// Heads are padded with zeros to DIM channels, 64 or 128. In f32 the kernels are empty: nobody calls them.

#define ROWS 128     // that a block takes
#define QUERIES 64   // a tile, for the gradients of keys and values
#define LOG2_E 1.44269504f
// Keys a tile, forward and for the gradient of queries.
#define KEYS_OF(M) ((M) == 1 ? 128 : 64)
#define FEW_KEYS_OF(M) ((M) == 1 ? 64 : 32)
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define HOPPER
#endif

struct Shape {
    int heads, kv_heads, dim;
    int window;  // 0 for none
    float scale;
};
// A sequence: rows of the batch, the row of its first key, and the position of its first row, as the layout has them.
struct Segment {
    unsigned first, count, first_key, past;
};
#define AS_SHAPE {heads, kv_heads, dim, window, scale}

#if T_KIND > 0

__device__ __forceinline__ int first_key(const Shape& s, int position) {
    return s.window > 0 && position - s.window + 1 > 0 ? position - s.window + 1 : 0;
}
__device__ __forceinline__ bool sees(const Shape& s, int position, int key) {
    return key <= position && key >= first_key(s, position);
}

// c (16, 8) += a (16, 16) b (16, 8).
__device__ __forceinline__ void mma(float* c, const unsigned* a, const unsigned* b) {
#if defined(CUDA_ON_CPU)
    struct Held {
        unsigned a[4], b[2];
    };
    auto of = cpu::lanes(Held{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}});
    int g = (threadIdx.x & 31) / 4, t = threadIdx.x & 3;
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 2; j++) {
            // Lane i of the row's four holds k = 2i, 2i + 1 and 2i + 8, 2i + 9.
            const Held &left = of(g * 4 + i), &right = of((2 * t + j) * 4 + i);
            for (int half = 0; half < 2; half++)
                for (int row = 0; row < 2; row++) {
                    unsigned l = left.a[2 * half + row], r = right.b[half];
                    T x[2], y[2];
                    x[0].bits = (uint16_t)l, x[1].bits = (uint16_t)(l >> 16);
                    y[0].bits = (uint16_t)r, y[1].bits = (uint16_t)(r >> 16);
                    c[2 * row + j] += to_f32(x[0]) * to_f32(y[0]) + to_f32(x[1]) * to_f32(y[1]);
                }
        }
#elif T_KIND == 1
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

__device__ __forceinline__ unsigned pack(float low, float high) {
#if defined(CUDA_ON_CPU)
    return Round<T>::of(low).bits | ((unsigned)Round<T>::of(high).bits << 16);
#else
    unsigned y;
#if T_KIND == 1
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
#else
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
#endif
    return y;
#endif
}

__device__ __forceinline__ float two_to(float x) {
#if defined(CUDA_ON_CPU)
    return exp2f(x);
#else
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#endif
}

// Four matrices of eight rows of 16 bytes, whose rows' places lanes 8i .. 8i + 8 name for matrix i: lane l gets elements 2t and
// 2t + 1 of row g of each or, transposed, elements g of rows 2t and 2t + 1.
template <bool TRANSPOSED> __device__ __forceinline__ void load_matrices(unsigned* x, const T* row) {
#if defined(CUDA_ON_CPU)
    auto of = cpu::lanes(row);
    int g = (threadIdx.x & 31) / 4, t = threadIdx.x & 3;
    for (int i = 0; i < 4; i++) {
        T low = TRANSPOSED ? of(8 * i + 2 * t)[g] : of(8 * i + g)[2 * t];
        T high = TRANSPOSED ? of(8 * i + 2 * t + 1)[g] : of(8 * i + g)[2 * t + 1];
        x[i] = low.bits | ((unsigned)high.bits << 16);
    }
#else
    unsigned at = (unsigned)__cvta_generic_to_shared(row);
    if (TRANSPOSED)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3]) : "r"(at) : "memory");
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3]) : "r"(at) : "memory");
#endif
}

// BYTES, 4 or 16, to shared memory, there when the copies are waited for; zeros, and nothing read, where there is nothing to copy.
template <int BYTES> __device__ __forceinline__ void copy_later(void* to, const void* from, bool there) {
#if defined(CUDA_ON_CPU)
    cpu::copy_later(to, from, BYTES, there);
#else
    unsigned at = (unsigned)__cvta_generic_to_shared(to);
    if (BYTES == 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(from), "r"(there ? 16 : 0) : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(at), "l"(from), "r"(there ? 4 : 0) : "memory");
#endif
}
// Those of this thread; a barrier behind it makes it those of all.
__device__ __forceinline__ void wait_for_copies() {
#if defined(CUDA_ON_CPU)
    cpu::wait_for_copies();
#else
    asm volatile("cp.async.wait_all;" ::: "memory");
#if defined(HOPPER)
    // wgmma reads by another way than these copies write.
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
#endif
}

// Where a piece of eight channels lies in a tile of so many rows: 64 channels of all rows before the next 64.
template <int COUNT> __device__ __forceinline__ int place(int row, int piece) {
    return (piece / 8 * COUNT + row) * 64 + (((piece ^ row) & 7) << 3);
}

// COUNT rows from `first` on of a head's channels, by THREADS threads; rows from `limit` on are zero.
template <int DIM, int COUNT, int THREADS>
__device__ __forceinline__ void load_rows(T* tile, const T* x, size_t base, int first, int limit, int stride, const Shape& s) {
    // A thread's rows are a multiple of eight apart, so that its piece is at the same place in each.
    constexpr int STEP = THREADS / (DIM / 8);
    static_assert(STEP % 8 == 0 && COUNT % STEP == 0, "whole steps");
    int row = threadIdx.x / (DIM / 8), piece = threadIdx.x % (DIM / 8);
    const T* from = x + (base + first + row) * stride + 8 * piece;
    T* to = tile + place<COUNT>(row, piece);
    int rows = 8 * piece < s.dim ? limit - first - row : 0;
#pragma unroll
    for (int j = 0; j < COUNT / STEP; j++, from += STEP * stride)
        copy_later<16>(to + j * STEP * 64, j * STEP < rows ? from : x, j * STEP < rows);
}

#if defined(HOPPER)
// N eights of columns, for the 64 rows of four warps: c += a b, or c = a b where `more` is 0.
template <int N> struct Products;

#define SUMS(x, n) "+f"(x[n][0]), "+f"(x[n][1]), "+f"(x[n][2]), "+f"(x[n][3])
#define SUMS8(x, n) SUMS(x, n), SUMS(x, n + 1), SUMS(x, n + 2), SUMS(x, n + 3), SUMS(x, n + 4), SUMS(x, n + 5), SUMS(x, n + 6), SUMS(x, n + 7)
#define FIRST_32                                                                                                            \
    "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define NEXT_32                                                                                                             \
    ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60," \
    "%61,%62,%63"
#if T_KIND == 1
#define WGMMA(n) "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.bf16.bf16 "
#else
#define WGMMA(n) "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.f16.f16 "
#endif

template <> struct Products<8> {
    static __device__ __forceinline__ void of_rows(float (*c)[4], uint64_t a, uint64_t b, int more) {
        asm volatile("{.reg .pred p; setp.ne.b32 p, %34, 0; " WGMMA(64) "{" FIRST_32 "}, %32, %33, p, 1, 1, 0, 0;}"
                     : SUMS8(c, 0) : "l"(a), "l"(b), "r"(more));
    }
    static __device__ __forceinline__ void of_columns(float (*c)[4], const unsigned* a, uint64_t b) {
        asm volatile("{.reg .pred p; setp.eq.b32 p, 0, 0; " WGMMA(64) "{" FIRST_32 "}, {%32,%33,%34,%35}, %36, p, 1, 1, 1;}"
                     : SUMS8(c, 0) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
    }
};
template <> struct Products<16> {
    static __device__ __forceinline__ void of_rows(float (*c)[4], uint64_t a, uint64_t b, int more) {
        asm volatile("{.reg .pred p; setp.ne.b32 p, %66, 0; " WGMMA(128) "{" FIRST_32 NEXT_32 "}, %64, %65, p, 1, 1, 0, 0;}"
                     : SUMS8(c, 0), SUMS8(c, 8) : "l"(a), "l"(b), "r"(more));
    }
    static __device__ __forceinline__ void of_columns(float (*c)[4], const unsigned* a, uint64_t b) {
        asm volatile("{.reg .pred p; setp.eq.b32 p, 0, 0; " WGMMA(128) "{" FIRST_32 NEXT_32 "}, {%64,%65,%66,%67}, %68, p, 1, 1, 1;}"
                     : SUMS8(c, 0), SUMS8(c, 8) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
    }
};

// What wgmma is told of a tile: where it begins, how far apart its halves of 64 channels are (of a tile whose rows are the product's),
// eight rows in 1024 bytes, pieces in the order of `place`.
__device__ __forceinline__ uint64_t describe(const T* tile, int between_halves) {
    uint64_t at = (unsigned)__cvta_generic_to_shared(tile);
    return (at & 0x3ffff) >> 4 | (uint64_t)(between_halves >> 4) << 16 | (uint64_t)(1024 >> 4) << 32 | 1ull << 62;
}
#endif

// Around products: their operands in registers are ready, and then their results are.
__device__ __forceinline__ void begin_products() {
#if defined(HOPPER)
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}
__device__ __forceinline__ void end_products() {
#if defined(HOPPER)
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
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

// scores (16 M, 8 N) = the warp's rows of the block's, from `row` on, times the tile's.
template <int DIM, int M, int N>
__device__ __forceinline__ void multiply_rows(float (&scores)[M][N][4], const T* rows, int row, const T* tile) {
#if defined(HOPPER)
#pragma unroll
    for (int k = 0; k < DIM; k += 16)
        Products<N>::of_rows(scores[0], describe(rows + (k / 64 * ROWS + row / 64 * 64) * 64 + k % 64, 0),
                             describe(tile + k / 64 * 8 * N * 64 + k % 64, 0), k > 0);
#else
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
        for (int m = 0; m < M; m++) left_of<ROWS>(a[m], rows, row + 16 * m, k);
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
#endif
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
template <int DIM, int M, int K>
__device__ __forceinline__ void add_weighted(float (&acc)[M][DIM / 8][4], const unsigned (&a)[K][M][4], const T* tile) {
#if defined(HOPPER)
#pragma unroll
    for (int k = 0; k < K; k++) Products<DIM / 8>::of_columns(acc[0], a[k][0], describe(tile + 16 * k * 64, 16 * K * 128));
#else
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
#endif
}

// Over the four lanes that share a row.
__device__ __forceinline__ float row_sum(float v) {
    v += __shfl_xor_sync(0xffffffffu, v, 1);
    return v + __shfl_xor_sync(0xffffffffu, v, 2);
}
__device__ __forceinline__ float row_max(float v) {
    v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, 1));
    return fmaxf(v, __shfl_xor_sync(0xffffffffu, v, 2));
}

struct alignas(16) Piece {
    unsigned of[4];
};

// A warp's 16 M rows of results, each times its factor, to memory by way of its rows of a tile that nobody reads any more.
template <int DIM, int M>
__device__ __forceinline__ void store(T* out, const float (&acc)[M][DIM / 8][4], const float (&factor)[M][2], T* rows, int own,
                                      size_t base, int first, int limit, int stride, const Shape& s) {
    int lane = threadIdx.x & 31, g = lane / 4, t = lane & 3;
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < DIM / 8; n++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float low = acc[m][n][2 * half] * factor[m][half], high = acc[m][n][2 * half + 1] * factor[m][half];
                *(unsigned*)(rows + place<ROWS>(own + 16 * m + 8 * half + g, n) + 2 * t) = pack(low, high);
            }
    __syncwarp();
#pragma unroll
    for (int j = 0; j < M * DIM / 16; j++) {
        int i = lane + 32 * j, row = i / (DIM / 8), piece = i % (DIM / 8);
        if (first + own + row < limit && 8 * piece < s.dim)
            *(Piece*)(out + (base + first + own + row) * stride + 8 * piece) = *(const Piece*)(rows + place<ROWS>(own + row, piece));
    }
}

// Of rows whose products are one, the warp's or on Hopper those of four warps: how many, and how many of the block's are before them.
#if defined(HOPPER)
template <int M> __device__ __forceinline__ int group_rows() { return 64; }
// The exchange says that lanes agree.
template <int M> __device__ __forceinline__ int group_start() { return __shfl_sync(0xffffffffu, threadIdx.x / 128, 0) * 64; }
#else
template <int M> __device__ __forceinline__ int group_rows() { return 16 * M; }
template <int M> __device__ __forceinline__ int group_start() { return threadIdx.x / 32 * 16 * M; }
#endif

template <int DIM, int M>
__device__ __forceinline__ void forward_of(T* shared, const T* q, const T* k, const T* v, const Segment& of, T* y, float* lse, const Shape& s) {
    constexpr int KEYS = KEYS_OF(M), THREADS = 256 / M;
    T *rows = shared, *tiles = shared + ROWS * DIM;
    int lane = threadIdx.x & 31, g = lane / 4, t = lane & 3, own = threadIdx.x / 32 * 16 * M, head = blockIdx.x;
    int kv_head = head / (s.heads / s.kv_heads), q_stride = s.heads * s.dim, kv_stride = s.kv_heads * s.dim;
    // Blocks with the most keys begin first, so that the last to end are short.
    int length = of.count, start = of.past, first = (gridDim.y - 1 - blockIdx.y) * ROWS;
    if (first >= length) return;
    auto load = [&](int tile, int turn) {
        T* to = tiles + turn * 2 * KEYS * DIM;
        int end = start + length;
        load_rows<DIM, KEYS, THREADS>(to, k + kv_head * s.dim, of.first_key, tile, end, kv_stride, s);
        load_rows<DIM, KEYS, THREADS>(to + KEYS * DIM, v + kv_head * s.dim, of.first_key, tile, end, kv_stride, s);
    };
    float acc[M][DIM / 8][4] = {}, largest[M][2], sum[M][2] = {};
    for (int m = 0; m < M; m++) largest[m][0] = largest[m][1] = -INF;
    const float unit = s.scale * LOG2_E;
    int end = start + min(first + ROWS, length), tile = first_key(s, start + first) / KEYS * KEYS;
    int lowest = start + first + own, highest = lowest + 16 * M - 1, group = start + first + group_start<M>();
    load_rows<DIM, ROWS, THREADS>(rows, q + head * s.dim, of.first, first, length, q_stride, s);
    load(tile, 0);
    for (int turn = 0; tile < end; tile += KEYS, turn ^= 1) {
        wait_for_copies();
        __syncthreads();
        if (tile + KEYS < end) load(tile + KEYS, turn ^ 1);
        // No row of the products sees a key of the tile.
        if (tile >= group + group_rows<M>() || tile + KEYS <= first_key(s, group)) continue;
        const T* keys = tiles + turn * 2 * KEYS * DIM;
        float p[M][KEYS / 8][4];
        begin_products();
        multiply_rows<DIM>(p, rows, own, keys);
        end_products();
        bool all_seen = tile + KEYS - 1 <= lowest && tile >= first_key(s, highest);
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int position = lowest + 16 * m + 8 * half + g;
                float most = largest[m][half], added = 0.0f;
                if (!all_seen)
#pragma unroll
                    for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                        for (int j = 0; j < 2; j++)
                            if (!sees(s, position, tile + 8 * n + 2 * t + j)) p[m][n][2 * half + j] = -INF;
#pragma unroll
                for (int n = 0; n < KEYS / 8; n++) most = fmaxf(most, fmaxf(p[m][n][2 * half], p[m][n][2 * half + 1]));
                most = row_max(most);
                // A row that has seen no key yet has nothing to shrink; the difference of infinities would be no number.
                float measure = most == -INF ? 0.0f : most * unit, shrink = two_to(largest[m][half] * unit - measure);
#pragma unroll
                for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                    for (int j = 0; j < 2; j++) {
                        float& x = p[m][n][2 * half + j];
                        x = two_to(x * unit - measure);
                        added += x;
                    }
                sum[m][half] = sum[m][half] * shrink + added;
                largest[m][half] = most;
#pragma unroll
                for (int n = 0; n < DIM / 8; n++) {
                    acc[m][n][2 * half] *= shrink;
                    acc[m][n][2 * half + 1] *= shrink;
                }
            }
        unsigned weights[KEYS / 16][M][4];
        as_left(weights, p);
        begin_products();
        add_weighted<DIM>(acc, weights, keys + KEYS * DIM);
        end_products();
    }
    float factor[M][2];
    for (int m = 0; m < M; m++)
        for (int half = 0; half < 2; half++) {
            int row = first + own + 16 * m + 8 * half + g;
            float whole = row_sum(sum[m][half]);
            factor[m][half] = row < length ? 1.0f / whole : 0.0f;
            if (t == 0 && row < length)
                lse[(size_t)s.heads * of.first + (size_t)head * length + row] = largest[m][half] * s.scale + logf(whole);
        }
    __syncthreads();
    store<DIM>(y + head * s.dim, acc, factor, rows, own, of.first, first, length, q_stride, s);
}

template <int DIM, int M>
__device__ __forceinline__ void query_gradient_of(T* shared, const T* q, const T* k, const T* v, const T* dy, const float* lse,
                                                  const float* d, const Segment& of, T* dq, const Shape& s) {
    constexpr int KEYS = FEW_KEYS_OF(M), THREADS = 256 / M;
    T *rows = shared, *grads = rows + ROWS * DIM, *tiles = grads + ROWS * DIM;
    int lane = threadIdx.x & 31, g = lane / 4, t = lane & 3, own = threadIdx.x / 32 * 16 * M, head = blockIdx.x;
    int kv_head = head / (s.heads / s.kv_heads), q_stride = s.heads * s.dim, kv_stride = s.kv_heads * s.dim;
    int length = of.count, first = (gridDim.y - 1 - blockIdx.y) * ROWS;
    if (first >= length) return;
    auto load = [&](int tile, int turn) {
        T* to = tiles + turn * 2 * KEYS * DIM;
        load_rows<DIM, KEYS, THREADS>(to, k + kv_head * s.dim, of.first, tile, length, kv_stride, s);
        load_rows<DIM, KEYS, THREADS>(to + KEYS * DIM, v + kv_head * s.dim, of.first, tile, length, kv_stride, s);
    };
    const float unit = s.scale * LOG2_E;
    int end = min(first + ROWS, length), tile = first_key(s, first) / KEYS * KEYS, lowest = first + own, highest = lowest + 16 * M - 1;
    int group = first + group_start<M>();
    load_rows<DIM, ROWS, THREADS>(rows, q + head * s.dim, of.first, first, length, q_stride, s);
    load_rows<DIM, ROWS, THREADS>(grads, dy + head * s.dim, of.first, first, length, q_stride, s);
    load(tile, 0);
    float acc[M][DIM / 8][4] = {}, measure[M][2], along[M][2];
    for (int m = 0; m < M; m++)
        for (int half = 0; half < 2; half++) {
            int row = lowest + 16 * m + 8 * half + g;
            size_t at = (size_t)s.heads * of.first + (size_t)head * length + row;
            measure[m][half] = row < length ? lse[at] * LOG2_E : 0.0f;
            along[m][half] = row < length ? d[at] : 0.0f;
        }
    for (int turn = 0; tile < end; tile += KEYS, turn ^= 1) {
        wait_for_copies();
        __syncthreads();
        if (tile + KEYS < end) load(tile + KEYS, turn ^ 1);
        if (tile >= group + group_rows<M>() || tile + KEYS <= first_key(s, group)) continue;
        const T* keys = tiles + turn * 2 * KEYS * DIM;
        float p[M][KEYS / 8][4], slope[M][KEYS / 8][4];
        begin_products();
        multiply_rows<DIM>(p, rows, own, keys);
        multiply_rows<DIM>(slope, grads, own, keys + KEYS * DIM);
        end_products();
        bool all_seen = tile + KEYS - 1 <= lowest && tile >= first_key(s, highest);
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    float x = two_to(p[m][n][i] * unit - measure[m][i / 2]) * (slope[m][n][i] - along[m][i / 2]);
                    bool seen = all_seen || sees(s, lowest + 16 * m + 8 * (i / 2) + g, tile + 8 * n + 2 * t + i % 2);
                    slope[m][n][i] = seen ? x : 0.0f;
                }
        unsigned weights[KEYS / 16][M][4];
        as_left(weights, slope);
        begin_products();
        add_weighted<DIM>(acc, weights, keys);
        end_products();
    }
    float factor[M][2];
    for (int m = 0; m < M; m++) factor[m][0] = factor[m][1] = s.scale;
    __syncthreads();
    store<DIM>(dq + head * s.dim, acc, factor, rows, own, of.first, first, length, q_stride, s);
}

// Rows are keys, tiles queries.
template <int DIM>
__device__ __forceinline__ void key_value_gradient_of(T* shared, const T* q, const T* k, const T* v, const T* dy, const float* lse,
                                                      const float* d, const Segment& of, T* dk, T* dv, int turns, const Shape& s) {
#if defined(HOPPER)
    turns = 2;
#endif
    T *keys = shared, *values = keys + ROWS * DIM, *tiles = values + ROWS * DIM;
    float* numbers = (float*)(tiles + turns * 2 * QUERIES * DIM);
    int lane = threadIdx.x & 31, g = lane / 4, t = lane & 3, own = threadIdx.x / 32 * 16, kv_head = blockIdx.x;
    int group = s.heads / s.kv_heads, q_stride = s.heads * s.dim, kv_stride = s.kv_heads * s.dim;
    int length = of.count, first = blockIdx.y * ROWS;
    if (first >= length) return;
    int last = s.window > 0 ? min(first + ROWS - 1 + s.window, length) : length;
    int tiles_a_head = (last - first + QUERIES - 1) / QUERIES, lowest = first + own, highest = lowest + 15;
    int group_first = first + group_start<1>(), group_last = group_first + group_rows<1>() - 1;
    auto load = [&](int i) {
        int head = kv_head * group + i / tiles_a_head, tile = first + i % tiles_a_head * QUERIES, turn = i % turns;
        T* to = tiles + turn * 2 * QUERIES * DIM;
        load_rows<DIM, QUERIES, 256>(to, q + head * s.dim, of.first, tile, length, q_stride, s);
        load_rows<DIM, QUERIES, 256>(to + QUERIES * DIM, dy + head * s.dim, of.first, tile, length, q_stride, s);
        // A query that is not there has zeros for everything, and adds nothing.
        int row = tile + threadIdx.x % QUERIES;
        const float* from = threadIdx.x < QUERIES ? lse : d;
        size_t at = (size_t)s.heads * of.first + (size_t)head * length + row;
        if (threadIdx.x < 2 * QUERIES)
            copy_later<4>(numbers + turn * 2 * QUERIES + threadIdx.x, row < length ? from + at : from, row < length);
    };
    const float unit = s.scale * LOG2_E;
    float key_acc[1][DIM / 8][4] = {}, value_acc[1][DIM / 8][4] = {};
    load_rows<DIM, ROWS, 256>(keys, k + kv_head * s.dim, of.first, first, length, kv_stride, s);
    load_rows<DIM, ROWS, 256>(values, v + kv_head * s.dim, of.first, first, length, kv_stride, s);
    int count = group * tiles_a_head;
    load(0);
    for (int i = 0; i < count; i++) {
        wait_for_copies();
        __syncthreads();
        if (turns == 2 && i + 1 < count) load(i + 1);
        int tile = first + i % tiles_a_head * QUERIES, turn = i % turns;
        // Some query of the tile sees a key of the products.
        if (tile + QUERIES > group_first && (s.window == 0 || tile < group_last + s.window)) {
            const T* queries = tiles + turn * 2 * QUERIES * DIM;
            const T* grads = queries + QUERIES * DIM;
            const float *measure = numbers + turn * 2 * QUERIES, *along = measure + QUERIES;
            float p[1][QUERIES / 8][4], slope[1][QUERIES / 8][4];
            begin_products();
            multiply_rows<DIM>(p, keys, own, queries);
            multiply_rows<DIM>(slope, values, own, grads);
            end_products();
            bool all_seen = tile >= highest && lowest >= first_key(s, tile + QUERIES - 1);
#pragma unroll
            for (int n = 0; n < QUERIES / 8; n++)
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    int query = 8 * n + 2 * t + j % 2;
                    bool seen = all_seen || sees(s, tile + query, lowest + 8 * (j / 2) + g);
                    float& x = p[0][n][j];
                    x = seen ? two_to(x * unit - measure[query] * LOG2_E) : 0.0f;
                    slope[0][n][j] = x * (slope[0][n][j] - along[query]);
                }
            unsigned weights[QUERIES / 16][1][4], slopes[QUERIES / 16][1][4];
            as_left(weights, p);
            as_left(slopes, slope);
            begin_products();
            add_weighted<DIM>(value_acc, weights, grads);
            add_weighted<DIM>(key_acc, slopes, queries);
            end_products();
        }
        if (turns == 1 && i + 1 < count) {
            __syncthreads();
            load(i + 1);
        }
    }
    const float whole[1][2] = {{1.0f, 1.0f}}, factor[1][2] = {{s.scale, s.scale}};
    __syncthreads();
    if (dv) store<DIM>(dv + kv_head * s.dim, value_acc, whole, values, own, of.first, first, length, kv_stride, s);
    if (dk) store<DIM>(dk + kv_head * s.dim, key_acc, factor, keys, own, of.first, first, length, kv_stride, s);
}

// The function for the padded head and, by the block's threads, the warp's rows. Hopper has M of 1, others 2.
#if defined(CUDA_ON_CPU)
#define BY_WARP(f, dim, ...) (blockDim.x == 256 ? f<dim, 1>(__VA_ARGS__) : f<dim, 2>(__VA_ARGS__))
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ / 10 == 90
#define BY_WARP(f, dim, ...) f<dim, 1>(__VA_ARGS__)
#else
#define BY_WARP(f, dim, ...) f<dim, 2>(__VA_ARGS__)
#endif
#define BY_SHAPE(f, ...) (s.dim <= 64 ? BY_WARP(f, 64, __VA_ARGS__) : BY_WARP(f, 128, __VA_ARGS__))
#endif

// grid: (heads, ceil(longest / ROWS), sequences); 256 threads a block on Hopper, else 128.
KERNEL forward(const T* q, const T* k, const T* v, const unsigned* segments, T* y, float* lse,
               int heads, int kv_heads, int dim, int window, float scale) {
#if T_KIND > 0
    const Shape s = AS_SHAPE;
    const Segment of = ((const Segment*)segments)[blockIdx.z];
    SHARED_ARRAY(T, shared);
    BY_SHAPE(forward_of, shared, q, k, v, of, y, lse, s);
#endif
}

// D = rowsum(dy y), for every row and head. grid and block as forward.
KERNEL along(const T* dy, const T* y, const unsigned* segments, float* d, int heads, int dim) {
#if T_KIND > 0
    const Segment of = ((const Segment*)segments)[blockIdx.z];
    int head = blockIdx.x, length = of.count, first = blockIdx.y * ROWS, limit = min(ROWS, length - first);
    // Sixteen lanes a row, of eight channels each.
    int piece = threadIdx.x % 16;
    for (int j = 0; j < ROWS; j += blockDim.x / 16) {
        int row = j + threadIdx.x / 16;
        size_t at = (of.first + (size_t)first + row) * heads * dim + head * dim + 8 * piece;
        float sum = 0.0f;
        if (row < limit && 8 * piece < dim) {
            struct alignas(16) Eight {
                T of[8];
            };
            const Eight a = *(const Eight*)(dy + at), b = *(const Eight*)(y + at);
#pragma unroll
            for (int i = 0; i < 8; i++) sum += to_f32(a.of[i]) * to_f32(b.of[i]);
        }
#pragma unroll
        for (int o = 8; o > 0; o >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, o);
        if (piece == 0 && row < limit) d[(size_t)heads * of.first + (size_t)head * length + first + row] = sum;
    }
#endif
}

// grid and block as forward.
KERNEL query_gradient(const T* q, const T* k, const T* v, const T* dy, const float* lse, const float* d,
                      const unsigned* segments, T* dq,
                      int heads, int kv_heads, int dim, int window, float scale) {
#if T_KIND > 0
    const Shape s = AS_SHAPE;
    const Segment of = ((const Segment*)segments)[blockIdx.z];
    SHARED_ARRAY(T, shared);
    BY_SHAPE(query_gradient_of, shared, q, k, v, dy, lse, d, of, dq, s);
#endif
}

// grid: (kv_heads, ceil(longest / ROWS), sequences); eight warps a block, of 16 rows each. `turns`: tiles of queries that shared
// memory holds at a time, 2 for copies that run ahead.
KERNEL key_value_gradient(const T* q, const T* k, const T* v, const T* dy, const float* lse, const float* d,
                          const unsigned* segments, T* dk, T* dv,
                          int heads, int kv_heads, int dim, int window, float scale, int turns) {
#if T_KIND > 0
    const Shape s = AS_SHAPE;
    const Segment of = ((const Segment*)segments)[blockIdx.z];
    SHARED_ARRAY(T, shared);
    if (dim <= 64) key_value_gradient_of<64>(shared, q, k, v, dy, lse, d, of, dk, dv, turns, s);
    else key_value_gradient_of<128>(shared, q, k, v, dy, lse, d, of, dk, dv, turns, s);
#endif
}
