// The same attention with tensor cores, for bf16 and f16 and heads of a multiple of 16 channels, at most 128.
//
// A warp takes 16 rows; a block has four. Products are mma.m16n8k16: a fragment of the left operand holds rows g and g + 8, one of the right
// column g, and a result columns 2t and 2t + 1 of rows g and g + 8, where g = lane / 4 and t = lane % 4. Results of two neighbouring
// products are the left fragment of the next one, so that probabilities never leave the registers.
//
// In f32 the kernels are empty: nobody calls them.

#define TILE 32
#define ROWS 64
#define CHANNEL_TILES 16

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
    int g = (threadIdx.x & 31) / 4, t = threadIdx.x & 3;
    uint4 left = {a[0], a[1], a[2], a[3]}, right = {b[0], b[1], 0, 0};
    for (int i = 0; i < 4; i++) {
        // Lane i of the row's four holds k = 2i, 2i + 1 and 2i + 8, 2i + 9.
        uint4 l = __shfl_sync(0xffffffffu, left, g * 4 + i);
        for (int j = 0; j < 2; j++) {
            uint4 r = __shfl_sync(0xffffffffu, right, (2 * t + j) * 4 + i);
            unsigned rows[2][2] = {{l.x, l.z}, {l.y, l.w}}, cols[2] = {r.x, r.y};
            for (int half = 0; half < 2; half++)
                for (int row = 0; row < 2; row++) {
                    T x[2], y[2];
                    x[0].bits = (uint16_t)rows[row][half], x[1].bits = (uint16_t)(rows[row][half] >> 16);
                    y[0].bits = (uint16_t)cols[half], y[1].bits = (uint16_t)(cols[half] >> 16);
                    c[2 * row + j] += to_f32(x[0]) * to_f32(y[0]) + to_f32(x[1]) * to_f32(y[1]);
                }
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

__device__ __forceinline__ unsigned pair(T low, T high) { return low.bits | ((unsigned)high.bits << 16); }
// At an even place, so that a single load does it.
__device__ __forceinline__ unsigned pair_at(const T* x) {
#if defined(CUDA_ON_CPU)
    return pair(x[0], x[1]);
#else
    return *(const unsigned*)x;
#endif
}

// Rows of a tile are padded by eight elements, so that the lanes of a fragment meet different banks.
__device__ __forceinline__ int stride_of(const Shape& s) { return s.dim + 8; }

// Columns k .. k + 16 of the 16 rows from `row` on.
__device__ __forceinline__ void left_of(unsigned* a, const T* tile, int stride, int row, int k) {
    int g = (threadIdx.x & 31) / 4, t = threadIdx.x & 3;
    const T* x = tile + (row + g) * stride + k + 2 * t;
    a[0] = pair_at(x);
    a[1] = pair_at(x + 8 * stride);
    a[2] = pair_at(x + 8);
    a[3] = pair_at(x + 8 * stride + 8);
}
// The same of a result: products n and n + 1 of a row of eight columns each.
__device__ __forceinline__ void left_of_result(unsigned* a, const float (*c)[4], int n) {
    a[0] = pair(Round<T>::of(c[n][0]), Round<T>::of(c[n][1]));
    a[1] = pair(Round<T>::of(c[n][2]), Round<T>::of(c[n][3]));
    a[2] = pair(Round<T>::of(c[n + 1][0]), Round<T>::of(c[n + 1][1]));
    a[3] = pair(Round<T>::of(c[n + 1][2]), Round<T>::of(c[n + 1][3]));
}
// The right operand whose columns are the tile's rows n .. n + 8, over channels k .. k + 16.
__device__ __forceinline__ void right_of_rows(unsigned* b, const T* tile, int stride, int n, int k) {
    int g = (threadIdx.x & 31) / 4, t = threadIdx.x & 3;
    const T* x = tile + (n + g) * stride + k + 2 * t;
    b[0] = pair_at(x);
    b[1] = pair_at(x + 8);
}
// The right operand whose rows are the tile's rows k .. k + 16, over channels n .. n + 8.
__device__ __forceinline__ void right_of_columns(unsigned* b, const T* tile, int stride, int k, int n) {
    int g = (threadIdx.x & 31) / 4, t = threadIdx.x & 3;
    const T* x = tile + (k + 2 * t) * stride + n + g;
    b[0] = pair(x[0], x[stride]);
    b[1] = pair(x[8 * stride], x[9 * stride]);
}

// What a thread moves at a time: 16 bytes. Heads, and padded rows of a tile, are whole numbers of it.
struct alignas(16) Eight {
    T of[8];
};

// `count` rows from `first` on of a head's channels; rows from `limit` on are zero.
__device__ __forceinline__ void load_rows(T* tile, const T* x, size_t base, int first, int count, int limit, int stride, const Shape& s) {
    Eight zero;
    for (int i = 0; i < 8; i++) zero.of[i].bits = 0;
    for (int i = threadIdx.x, pieces = s.dim / 8; i < count * pieces; i += blockDim.x) {
        int row = i / pieces, c = i % pieces * 8;
        Eight* to = (Eight*)(tile + row * stride_of(s) + c);
        *to = first + row < limit ? *(const Eight*)(x + (base + first + row) * stride + c) : zero;
    }
}

// scores (16, TILE) of the warp's rows of `rows` and the tile's.
__device__ __forceinline__ void multiply_rows(float (*scores)[4], const T* rows, int row, const T* tile, const Shape& s) {
#pragma unroll
    for (int n = 0; n < TILE / 8; n++)
        for (int i = 0; i < 4; i++) scores[n][i] = 0.0f;
    for (int k = 0; k < s.dim; k += 16) {
        unsigned a[4], b[2];
        left_of(a, rows, stride_of(s), row, k);
#pragma unroll
        for (int n = 0; n < TILE / 8; n++) {
            right_of_rows(b, tile, stride_of(s), 8 * n, k);
            mma(scores[n], a, b);
        }
    }
}
// acc (16, dim) += weights (16, TILE) tile (TILE, dim).
__device__ __forceinline__ void add_weighted(float (*acc)[4], const float (*weights)[4], const T* tile, const Shape& s) {
#pragma unroll
    for (int k = 0; k < TILE / 16; k++) {
        unsigned a[4], b[2];
        left_of_result(a, weights, 2 * k);
#pragma unroll
        for (int n = 0; n < CHANNEL_TILES; n++) {
            if (8 * n >= s.dim) break;
            right_of_columns(b, tile, stride_of(s), 16 * k, 8 * n);
            mma(acc[n], a, b);
        }
    }
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
// A warp's 16 rows of results, times `factor` of each half, to memory.
__device__ __forceinline__ void store(T* out, const float (*acc)[4], size_t base, int first, int limit, int stride,
                                      const float* factor, const Shape& s) {
    int g = (threadIdx.x & 31) / 4, t = threadIdx.x & 3;
#pragma unroll
    for (int n = 0; n < CHANNEL_TILES; n++) {
        if (8 * n >= s.dim) break;
        for (int half = 0; half < 2; half++) {
            int row = first + g + 8 * half;
            if (row >= limit) continue;
            T* x = out + (base + row) * stride + 8 * n + 2 * t;
            x[0] = Round<T>::of(acc[n][2 * half] * factor[half]);
            x[1] = Round<T>::of(acc[n][2 * half + 1] * factor[half]);
        }
    }
}
#endif

// grid: (ceil(longest / ROWS), heads, sequences), four warps a block; as in the plain kernel.
KERNEL forward(const T* q, const T* k, const T* v, const unsigned* segments, T* y, float* lse,
               int heads, int kv_heads, int dim, int window, float scale) {
#if T_KIND > 0
    const Shape s = AS_SHAPE;
    SHARED_ARRAY(T, shared);
    T* rows = shared;
    T* keys_tile = rows + ROWS * stride_of(s);
    T* values_tile = keys_tile + TILE * stride_of(s);
    int g = (threadIdx.x & 31) / 4, t = threadIdx.x & 3, warp = threadIdx.x >> 5, head = blockIdx.y;
    int kv_head = head / (s.heads / s.kv_heads), q_stride = s.heads * s.dim, kv_stride = s.kv_heads * s.dim;
    const Segment of = ((const Segment*)segments)[blockIdx.z];
    int length = of.count, start = of.past, first = blockIdx.x * ROWS;
    if (first >= length) return;
    size_t q_base = of.first, kv_base = of.first_key, numbers = (size_t)s.heads * of.first + (size_t)head * length;
    load_rows(rows, q + head * s.dim, q_base, first, ROWS, length, q_stride, s);
    float acc[CHANNEL_TILES][4] = {}, largest[2] = {-INF, -INF}, sum[2] = {0.0f, 0.0f};
    int end = start + (first + ROWS < length ? first + ROWS : length);
    for (int tile = first_key(s, start + first) / TILE * TILE; tile < end; tile += TILE) {
        __syncthreads();
        load_rows(keys_tile, k + kv_head * s.dim, kv_base, tile, TILE, end, kv_stride, s);
        load_rows(values_tile, v + kv_head * s.dim, kv_base, tile, TILE, end, kv_stride, s);
        __syncthreads();
        float p[TILE / 8][4];
        multiply_rows(p, rows, 16 * warp, keys_tile, s);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int row = first + 16 * warp + g + 8 * half;
            float most = largest[half];
#pragma unroll
            for (int n = 0; n < TILE / 8; n++)
                for (int j = 0; j < 2; j++) {
                    float& x = p[n][2 * half + j];
                    x = row < length && sees(s, start + row, tile + 8 * n + 2 * t + j) ? x * s.scale : -INF;
                    most = fmaxf(most, x);
                }
            most = row_max(most);
            // A row that has seen no key yet has nothing to shrink; the difference of infinities would be no number.
            float measure = most == -INF ? 0.0f : most, shrink = expf(largest[half] - measure), added = 0.0f;
#pragma unroll
            for (int n = 0; n < TILE / 8; n++)
                for (int j = 0; j < 2; j++) {
                    float& x = p[n][2 * half + j];
                    x = expf(x - measure);
                    added += x;
                }
            sum[half] = sum[half] * shrink + row_sum(added);
            largest[half] = most;
#pragma unroll
            for (int n = 0; n < CHANNEL_TILES; n++) {
                acc[n][2 * half] *= shrink;
                acc[n][2 * half + 1] *= shrink;
            }
        }
        add_weighted(acc, p, values_tile, s);
    }
    float factor[2];
    for (int half = 0; half < 2; half++) {
        int row = first + 16 * warp + g + 8 * half;
        factor[half] = row < length ? 1.0f / sum[half] : 0.0f;
        if (t == 0 && row < length) lse[numbers + row] = largest[half] + logf(sum[half]);
    }
    store(y + head * s.dim, acc, q_base, first + 16 * warp, length, q_stride, factor, s);
#endif
}

KERNEL query_gradient(const T* q, const T* k, const T* v, const T* dy, const float* lse, const float* d,
                      const unsigned* segments, T* dq,
                      int heads, int kv_heads, int dim, int window, float scale) {
#if T_KIND > 0
    const Shape s = AS_SHAPE;
    SHARED_ARRAY(T, shared);
    T* rows = shared;
    T* grads = rows + ROWS * stride_of(s);
    T* keys_tile = grads + ROWS * stride_of(s);
    T* values_tile = keys_tile + TILE * stride_of(s);
    int g = (threadIdx.x & 31) / 4, t = threadIdx.x & 3, warp = threadIdx.x >> 5, head = blockIdx.y;
    int kv_head = head / (s.heads / s.kv_heads), q_stride = s.heads * s.dim, kv_stride = s.kv_heads * s.dim;
    const Segment of = ((const Segment*)segments)[blockIdx.z];
    int length = of.count, first = blockIdx.x * ROWS;
    if (first >= length) return;
    size_t base = of.first, numbers = (size_t)s.heads * of.first + (size_t)head * length;
    load_rows(rows, q + head * s.dim, base, first, ROWS, length, q_stride, s);
    load_rows(grads, dy + head * s.dim, base, first, ROWS, length, q_stride, s);
    float acc[CHANNEL_TILES][4] = {};
    int end = first + ROWS < length ? first + ROWS : length;
    for (int tile = first_key(s, first) / TILE * TILE; tile < end; tile += TILE) {
        __syncthreads();
        load_rows(keys_tile, k + kv_head * s.dim, base, tile, TILE, end, kv_stride, s);
        load_rows(values_tile, v + kv_head * s.dim, base, tile, TILE, end, kv_stride, s);
        __syncthreads();
        float p[TILE / 8][4], dp[TILE / 8][4];
        multiply_rows(p, rows, 16 * warp, keys_tile, s);
        multiply_rows(dp, grads, 16 * warp, values_tile, s);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int row = first + 16 * warp + g + 8 * half;
            float measure = row < length ? lse[numbers + row] : 0.0f, own = row < length ? d[numbers + row] : 0.0f;
#pragma unroll
            for (int n = 0; n < TILE / 8; n++)
                for (int j = 0; j < 2; j++) {
                    bool visible = row < length && sees(s, row, tile + 8 * n + 2 * t + j);
                    float& x = p[n][2 * half + j];
                    x = visible ? expf(x * s.scale - measure) * (dp[n][2 * half + j] - own) : 0.0f;
                }
        }
        add_weighted(acc, p, keys_tile, s);
    }
    float factor[2] = {s.scale, s.scale};
    store(dq + head * s.dim, acc, base, first + 16 * warp, length, q_stride, factor, s);
#endif
}

// Rows are keys, tiles queries. grid: (ceil(longest / ROWS), kv_heads, sequences).
KERNEL key_value_gradient(const T* q, const T* k, const T* v, const T* dy, const float* lse, const float* d,
                          const unsigned* segments, T* dk, T* dv,
                          int heads, int kv_heads, int dim, int window, float scale) {
#if T_KIND > 0
    const Shape s = AS_SHAPE;
    SHARED_ARRAY(T, shared);
    T* keys = shared;
    T* values = keys + ROWS * stride_of(s);
    T* queries_tile = values + ROWS * stride_of(s);
    T* grads_tile = queries_tile + TILE * stride_of(s);
    int g = (threadIdx.x & 31) / 4, t = threadIdx.x & 3, warp = threadIdx.x >> 5, kv_head = blockIdx.y;
    int group = s.heads / s.kv_heads, q_stride = s.heads * s.dim, kv_stride = s.kv_heads * s.dim;
    const Segment of = ((const Segment*)segments)[blockIdx.z];
    int length = of.count, first = blockIdx.x * ROWS;
    if (first >= length) return;
    size_t base = of.first;
    load_rows(keys, k + kv_head * s.dim, base, first, ROWS, length, kv_stride, s);
    load_rows(values, v + kv_head * s.dim, base, first, ROWS, length, kv_stride, s);
    float key_acc[CHANNEL_TILES][4] = {}, value_acc[CHANNEL_TILES][4] = {};
    int last = s.window > 0 && first + ROWS - 1 + s.window < length ? first + ROWS - 1 + s.window : length;
    for (int head = kv_head * group; head < (kv_head + 1) * group; head++) {
        size_t numbers = (size_t)s.heads * of.first + (size_t)head * length;
        for (int tile = first / TILE * TILE; tile < last; tile += TILE) {
            __syncthreads();
            load_rows(queries_tile, q + head * s.dim, base, tile, TILE, length, q_stride, s);
            load_rows(grads_tile, dy + head * s.dim, base, tile, TILE, length, q_stride, s);
            __syncthreads();
            float p[TILE / 8][4], ds[TILE / 8][4];
            multiply_rows(p, keys, 16 * warp, queries_tile, s);
            multiply_rows(ds, values, 16 * warp, grads_tile, s);
#pragma unroll
            for (int n = 0; n < TILE / 8; n++)
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    int key = first + 16 * warp + g + 8 * (i / 2), position = tile + 8 * n + 2 * t + i % 2;
                    bool visible = key < length && position < length && sees(s, position, key);
                    float x = visible ? expf(p[n][i] * s.scale - lse[numbers + position]) : 0.0f;
                    ds[n][i] = visible ? x * (ds[n][i] - d[numbers + position]) : 0.0f;
                    p[n][i] = x;
                }
            add_weighted(value_acc, p, grads_tile, s);
            add_weighted(key_acc, ds, queries_tile, s);
        }
    }
    float whole[2] = {1.0f, 1.0f}, factor[2] = {s.scale, s.scale};
    if (dv) store(dv + kv_head * s.dim, value_acc, base, first + 16 * warp, length, kv_stride, whole, s);
    if (dk) store(dk + kv_head * s.dim, key_acc, base, first + 16 * warp, length, kv_stride, factor, s);
#endif
}
