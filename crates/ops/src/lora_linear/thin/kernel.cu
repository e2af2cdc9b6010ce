// The two thin products with the gradient of a layer's results, dh = dy (s B) and dB = s dyᵀ h, in one pass over dy, which is all that
// they cost: a block takes TILE rows by TILE columns of dy at a time and multiplies each tile by both. Its sums are parts: of dh over
// the columns that the block has, of dB over its rows. `join_gradients` adds parts in their order.
//
// Only on tensor cores, in bf16 and f16, for ranks up to 32, whose sums leave registers for two blocks a multiprocessor; in f32 the kernels are empty, and nobody calls them.

#define TILE 128
#define CHUNKS 2   // tiles of columns a block
#define WARPS 8    // each has 16 rows of a tile for dh, and 16 columns for dB

#if T_KIND > 0

// Where eight columns of a tile of dy lie: 64 columns of all rows before the next 64, each row's pieces in an order of their own, so that
// ldmatrix finds eight rows in different banks.
__device__ __forceinline__ int place(int row, int piece) { return (piece / 8 * TILE + row) * 64 + (((piece ^ row) & 7) << 3); }

// A tile of dy; zeros beyond its rows and columns.
__device__ __forceinline__ void load_tile(T* tile, const T* dy, int stride, int row, int col, int rows, int cols) {
    // Unrolled, its addresses would take the registers of the second block.
#pragma unroll 1
    for (int j = 0; j < TILE * TILE / 8 / (32 * WARPS); j++) {
        int i = threadIdx.x + 32 * WARPS * j, r = i / (TILE / 8), piece = i % (TILE / 8), c = col + 8 * piece;
        bool there = row + r < rows && c < cols;
        copy_later<16>(tile + place(r, piece), there ? dy + (size_t)(row + r) * stride + c : dy, there);
    }
}

// Columns first.. of TILE rows of h, up to the rank, and zeros beyond: on their way with the tiles where 16 bytes stay together.
template <int RANK>
__device__ __forceinline__ void load_projections(T* hs, const T* h, int row, int rows, int rank, int width, int first) {
    bool together = rank % 8 == 0 && width % 8 == 0 && first % 8 == 0 && on_16(h);
    if (together) {
        for (int i = threadIdx.x; i < TILE * RANK / 8; i += 32 * WARPS) {
            int r = i / (RANK / 8), k = i % (RANK / 8) * 8;
            bool there = row + r < rows && k < rank;
            copy_later<16>(hs + r * (RANK + 8) + k, there ? h + (size_t)(row + r) * width + first + k : h, there);
        }
    } else {
        for (int i = threadIdx.x; i < TILE * RANK; i += 32 * WARPS) {
            int r = i / RANK, k = i % RANK;
            bool there = row + r < rows && k < rank;
            hs[r * (RANK + 8) + k] = there ? h[(size_t)(row + r) * width + first + k] : Round<T>::of(0.0f);
        }
    }
}

// Elements k and k + 1 of a row of sums, k even: at once where the row has an even number, so that lanes fill sectors together.
struct alignas(8) Two {
    float v[2];
};
__device__ __forceinline__ void store_two(float* row, int k, int rank, const float* sums) {
    if (rank % 2 == 0) {
        const Two two = {{sums[0], sums[1]}};
        if (k < rank) *(Two*)(row + k) = two;
    } else {
        if (k < rank) row[k] = sums[0];
        if (k + 1 < rank) row[k + 1] = sums[1];
    }
}

// RANK is the rank, rounded up to 16 or 32; rows of factors are eight elements longer in shared memory, for ldmatrix.
template <int RANK>
__device__ __forceinline__ void gradients_of(T* shared, const T* dy, int dy_stride, const void* b, int b_kind, const T* h, float scaling, float* dh,
                                             float* db, int rows, int cols, int rank, int width, int first, int tiles) {
    constexpr int STRIDE = RANK + 8, N = RANK / 8;
    T *dys = shared, *bs = dys + 2 * TILE * TILE, *hs = bs + CHUNKS * TILE * STRIDE;
    int lane = threadIdx.x & 31, warp = threadIdx.x / 32, g = lane / 4, t = lane & 3;
    int col = blockIdx.x * CHUNKS * TILE, row = blockIdx.y * tiles * TILE;
    int last = min(rows, row + tiles * TILE), steps = (last - row + TILE - 1) / TILE * CHUNKS;
    load_tile(dys, dy, dy_stride, row, col, rows, cols);
    if (h) load_projections<RANK>(hs, h, row, rows, rank, width, first);
    if (b) {
        // All of a thread's are asked for before any is used.
        constexpr int EACH = CHUNKS * TILE * RANK / (32 * WARPS);
        float own[EACH];
#pragma unroll
        for (int j = 0; j < EACH; j++) {
            int i = threadIdx.x + 32 * WARPS * j, c = i / RANK, k = i % RANK;
            bool there = col + c < cols && k < rank;
            size_t at = there ? (size_t)(col + c) * rank + k : 0;
            own[j] = there ? b_kind == 0 ? ((const float*)b)[at] : load_any(b, b_kind, at) : 0.0f;
        }
#pragma unroll
        for (int j = 0; j < EACH; j++) {
            int i = threadIdx.x + 32 * WARPS * j;
            bs[i / RANK * STRIDE + i % RANK] = Round<T>::of(scaling * own[j]);
        }
    }
    float to_a[N][4], to_b[CHUNKS][N][4] = {};
    int turn = 0;
    for (int step = 0; step < steps; step += CHUNKS, turn ^= 1) {
        int from = row + step / CHUNKS * TILE;
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) to_a[n][i] = 0.0f;
#pragma unroll
        for (int chunk = 0; chunk < CHUNKS; chunk++) {
            T* tile = dys + chunk % 2 * TILE * TILE;
            wait_for_copies();
            __syncthreads();
            if (step + chunk + 1 < steps) {
                int next = chunk + 1 < CHUNKS ? chunk + 1 : 0;
                load_tile(dys + (chunk + 1) % 2 * TILE * TILE, dy, dy_stride, next ? from : from + TILE, col + next * TILE, rows, cols);
                if (!next && h) load_projections<RANK>(hs + (turn ^ 1) * TILE * STRIDE, h, from + TILE, rows, rank, width, first);
            }
#pragma unroll 4
            for (int k = 0; k < TILE; k += 16) {
                unsigned left[4], right[4];
                if (b) {
                    load_matrices<false>(left, tile + place(16 * warp + (lane & 15), k / 8 + (lane >> 4)));
#pragma unroll
                    for (int n = 0; n < N; n += 2) {
                        load_matrices<true>(right, bs + (chunk * TILE + k + (lane & 15)) * STRIDE + 8 * (n + (lane >> 4)));
                        mma(to_a[n], left, right);
                        mma(to_a[n + 1], left, right + 2);
                    }
                }
                if (h) {
                    // The tile turned over: its columns are the rows of the product.
                    load_matrices<true>(left, tile + place(k + (lane & 7) + ((lane & 16) >> 1), 2 * warp + ((lane >> 3) & 1)));
#pragma unroll
                    for (int n = 0; n < N; n += 2) {
                        load_matrices<true>(right, hs + (turn * TILE + k + (lane & 15)) * STRIDE + 8 * (n + (lane >> 4)));
                        mma(to_b[chunk][n], left, right);
                        mma(to_b[chunk][n + 1], left, right + 2);
                    }
                }
            }
        }
        if (b) {
            float* to = dh + (size_t)blockIdx.x * rows * rank;
#pragma unroll
            for (int n = 0; n < N; n++)
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    int r = from + 16 * warp + g + 8 * half;
                    if (r < rows) store_two(to + (size_t)r * rank, 8 * n + 2 * t, rank, to_a[n] + 2 * half);
                }
        }
    }
    if (!h) return;
    float* to = db + (size_t)blockIdx.y * cols * rank;
#pragma unroll
    for (int chunk = 0; chunk < CHUNKS; chunk++)
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int c = col + chunk * TILE + 16 * warp + g + 8 * half;
                if (c < cols) store_two(to + (size_t)c * rank, 8 * n + 2 * t, rank, to_b[chunk][n] + 2 * half);
            }
}
#endif

template <class E> __device__ __forceinline__ E pick(const Three<E>& all, int which) {
    return which == 0 ? all.of[0] : which == 1 ? all.of[1] : all.of[2];
}

// Up to three layers with as many rows, one each along z: dy (rows, cols), cols and dy_stride, from row to row, multiples of eight; B (cols,
// rank), of any type; columns first.. of h (rows, width). A block has CHUNKS tiles of columns and `tiles` tiles of rows. Parts of dh are (rows,
// rank) for each block along x that has columns, of dB (cols, rank) for each along y, without the scaling. Where B is null its dh is left
// alone, where db is null that.
KERNEL thin_gradients(Three<const T*> dy, Three<int> dy_stride, Three<const void*> b, Three<int> b_kind, const T* h, Three<float> scaling,
                      Three<float*> dh, Three<float*> db, int rows, Three<int> cols, Three<int> rank, int width, Three<int> first,
                      int tiles) {
#if T_KIND > 0
    SHARED_ARRAY(T, shared);
    int z = blockIdx.z, own_cols = pick(cols, z), own_rank = pick(rank, z);
    if (blockIdx.x * CHUNKS * TILE >= own_cols) return;
    float* to_b = pick(db, z);
    const T* own_h = to_b ? h : 0;
    if (own_rank <= 16)
        gradients_of<16>(shared, pick(dy, z), pick(dy_stride, z), pick(b, z), pick(b_kind, z), own_h, pick(scaling, z), pick(dh, z), to_b,
                         rows, own_cols, own_rank, width, pick(first, z), tiles);
    else
        gradients_of<32>(shared, pick(dy, z), pick(dy_stride, z), pick(b, z), pick(b_kind, z), own_h, pick(scaling, z), pick(dh, z), to_b,
                         rows, own_cols, own_rank, width, pick(first, z), tiles);
#endif
}

// The sums of parts, of n elements each, of the same layers, one each along y: of dh to columns first.. of `to_a` (rows, width), where it has
// parts, of dB times the scaling to `to_b` (cols, rank), where that is not null.
KERNEL join_gradients(Three<const float*> dh, Three<const float*> db, Three<int> dh_parts, int db_parts, Three<float> scaling, T* to_a,
                      Three<float*> to_b, int rows, Three<int> cols, Three<int> rank, int width, Three<int> first) {
    int z = blockIdx.y, own_rank = pick(rank, z), parts_a = pick(dh_parts, z);
    float* own_b = pick(to_b, z);
    size_t all_a = parts_a ? (size_t)rows * own_rank : 0, all_b = own_b ? (size_t)pick(cols, z) * own_rank : 0;
    FOR_EACH(i, all_a + all_b) {
        bool a = i < all_a;
        size_t at = a ? i : i - all_a, n = a ? all_a : all_b;
        const float* parts = (a ? pick(dh, z) : pick(db, z)) + at;
        int count = a ? parts_a : db_parts;
        float sum = 0.0f;
#pragma unroll 8
        for (int p = 0; p < count; p++) sum += parts[(size_t)p * n];
        unsigned row = (unsigned)at / (unsigned)own_rank;
        if (a) to_a[(size_t)row * width + pick(first, z) + ((unsigned)at - row * own_rank)] = Round<T>::of(sum);
        else own_b[at] = pick(scaling, z) * sum;
    }
}
