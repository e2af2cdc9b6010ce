// Attention of wide heads over keys and values that lie in rows, and its gradients.

// grid: (heads, ceil(longest / ROWS), sequences).
KERNEL forward(const T* q, const T* k, const T* v, const unsigned* segments, T* y, int y_stride, float* lse,
               int heads, int kv_heads, int dim, int window, float scale, float cap, const float* sinks) {
#if T_KIND > 0
    const Shape s = AS_SHAPE;
    const Segment of = ((const Segment*)segments)[blockIdx.z];
    SHARED_ARRAY(T, shared);
    const InRows keys = {k, of.first_key}, values = {v, of.first_key};
    forward_of(shared, q, keys, values, of, y, y_stride, lse, sinks, s);
#endif
}

// grid as forward.
KERNEL along(const T* dy, const T* y, int y_stride, const unsigned* segments, float* d, int heads, int dim) {
#if T_KIND > 0
    sums_along<32>(dy, y, y_stride, ((const Segment*)segments)[blockIdx.z], d, heads, dim);
#endif
}

// grid: (heads, ceil(longest / HALF), sequences).
KERNEL query_gradient(const T* q, const T* k, const T* v, const T* dy, const float* lse, const float* d,
                      const unsigned* segments, T* dq, int dq_stride,
                      int heads, int kv_heads, int dim, int window, float scale, float cap) {
#if T_KIND > 0
    const Shape s = AS_SHAPE;
    const Segment of = ((const Segment*)segments)[blockIdx.z];
    SHARED_ARRAY(T, shared);
    T *rows = shared, *grads = rows + HALF * DIM, *keys = grads + HALF * DIM, *values = keys + TILE * DIM;
    int lane = threadIdx.x & 31, g = lane / 4, own = threadIdx.x / 32 % 4 * 16, part = threadIdx.x / 128, head = blockIdx.x;
    int kv_head = head / (s.heads / s.kv_heads), q_stride = s.heads * s.dim, kv_stride = s.kv_heads * s.dim;
    int length = of.count, first = (gridDim.y - 1 - blockIdx.y) * HALF;
    if (first >= length) return;
    auto load = [&](T* to, const T* x, int tile) {
        load_halves(to, x + kv_head * s.dim, of.first, tile, length, kv_stride, s.dim);
    };
    const float unit = s.scale * LOG2_E;
    const Bend bend(s);
    int end = min(first + HALF, length), lowest = first + own, tile = first_key(s, first) / TILE * TILE;
    load_rows<DIM, HALF, THREADS>(rows, q + head * s.dim, of.first, first, length, q_stride, s.dim);
    load_rows<DIM, HALF, THREADS>(grads, dy + head * s.dim, of.first, first, length, q_stride, s.dim);
    load(values, v, tile);
    float acc[1][DIM / 8][4] = {}, measure[2], along[2];
    for (int half = 0; half < 2; half++) {
        int row = lowest + 8 * half + g;
        size_t at = (size_t)s.heads * of.first + (size_t)head * length + row;
        measure[half] = row < length ? lse[at] * LOG2_E : 0.0f;
        along[half] = row < length ? d[at] : 0.0f;
    }
    const T *own_keys = keys + part * (TILE / 2) * DIM, *own_values = values + part * (TILE / 2) * DIM;
    for (; tile < end; tile += TILE) {
        float p[1][TILE / 16][4], slope[1][TILE / 16][4];
        int column = tile + part * (TILE / 2);
        bool seen = lowest < end && meets(s, lowest, 16, column, TILE / 2);
        meet();
        load(keys, k, tile);
        if (seen) multiply_rows<DIM, HALF>(slope, grads, own, own_values);
        meet();
        if (tile + TILE < end) load(values, v, tile + TILE);
        if (!seen) continue;
        multiply_rows<DIM, HALF>(p, rows, own, own_keys);
        bend(p);
        hide<false>(s, p, lowest, column);
#pragma unroll
        for (int n = 0; n < TILE / 16; n++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                slope[0][n][i] =
                    two_to(p[0][n][i] * unit - measure[i / 2]) * bend.change(p[0][n][i]) * (slope[0][n][i] - along[i / 2]);
        unsigned weights[TILE / 32][1][4];
        as_left(weights, slope);
        add_weighted<DIM>(acc, weights, own_keys);
    }
    if (!put_together(acc, (float*)rows)) return;
    const float factor[1][2] = {{s.scale, s.scale}};
    store<DIM, HALF>(dq + head * s.dim, acc, factor, keys, own, of.first, first, length, dq_stride, s.dim);
#endif
}

#if T_KIND > 0
// The tiles of queries that go by a block of keys, of all heads that share them.
struct Queries {
    int head, first, length, tiles_a_head, count;
    size_t base;
    __device__ __forceinline__ Queries(const Shape& s, const Segment& of, int kv_head, int first_row, int rows)
        : head(kv_head * (s.heads / s.kv_heads)), first(first_row), length(of.count), base((size_t)s.heads * of.first) {
        int last = s.window > 0 ? min(first + rows - 1 + s.window, length) : length;
        tiles_a_head = (last - first + TILE - 1) / TILE;
        count = s.heads / s.kv_heads * tiles_a_head;
    }
    __device__ __forceinline__ int head_of(int i) const { return head + i / tiles_a_head; }
    __device__ __forceinline__ int tile_of(int i) const { return first + i % tiles_a_head * TILE; }
    // Where the numbers of a head's queries begin.
    __device__ __forceinline__ size_t numbers_of(int i) const { return base + (size_t)head_of(i) * length; }
};
#endif

// Rows are keys, tiles queries. grid: (kv_heads, ceil(longest / ROWS), sequences).
KERNEL value_gradient(const T* q, const T* k, const T* dy, const float* lse, const unsigned* segments, T* dv,
                      int dv_stride, int heads, int kv_heads, int dim, int window, float scale, float cap) {
#if T_KIND > 0
    const Shape s = AS_SHAPE;
    const Segment of = ((const Segment*)segments)[blockIdx.z];
    SHARED_ARRAY(T, shared);
    T *keys = shared, *queries = keys + ROWS * DIM, *grads = queries + TILE * DIM;
    float* measure = (float*)(grads + TILE * DIM);
    int own = threadIdx.x / 32 * 16, kv_head = blockIdx.x;
    int q_stride = s.heads * s.dim, kv_stride = s.kv_heads * s.dim, length = of.count, first = blockIdx.y * ROWS;
    if (first >= length) return;
    const Queries all(s, of, kv_head, first, ROWS);
    auto load = [&](T* to, const T* x, int i) {
        load_tile(to, x + all.head_of(i) * s.dim, of.first, all.tile_of(i), length, q_stride, s.dim);
    };
    auto load_queries = [&](int i) {
        load(queries, q, i);
        load_numbers(measure, lse + all.numbers_of(i), all.tile_of(i), length);
    };
    const float unit = s.scale * LOG2_E;
    const Bend bend(s);
    int lowest = first + own;
    float acc[1][DIM / 8][4] = {}, p[1][TILE / 8][4];
    unsigned weights[TILE / 16][1][4];
    load_rows<DIM, ROWS, THREADS>(keys, k + kv_head * s.dim, of.first, first, length, kv_stride, s.dim);
    load_queries(0);
    meet();
    for (int i = 0; i < all.count; i++) {
        load(grads, dy, i);
        int tile = all.tile_of(i);
        bool seen = lowest < length && meets(s, tile, TILE, lowest, 16);
        if (seen) {
            multiply_rows<DIM>(p, keys, own, queries);
            bend(p);
            hide<true>(s, p, lowest, tile);
            to_probabilities(p, unit, measure);
            as_left(weights, p);
        }
        meet();
        if (i + 1 < all.count) load_queries(i + 1);
        if (seen) add_weighted<DIM>(acc, weights, grads);
        meet();
    }
    const float whole[1][2] = {{1.0f, 1.0f}};
    store<DIM>(dv + kv_head * s.dim, acc, whole, keys, own, of.first, first, length, dv_stride, s.dim);
#endif
}

// Rows are keys, tiles queries. grid: (kv_heads, ceil(longest / HALF), sequences).
KERNEL key_gradient(const T* q, const T* k, const T* v, const T* dy, const float* lse, const float* d, const unsigned* segments, T* dk,
                    int dk_stride, int heads, int kv_heads, int dim, int window, float scale, float cap) {
#if T_KIND > 0
    const Shape s = AS_SHAPE;
    const Segment of = ((const Segment*)segments)[blockIdx.z];
    SHARED_ARRAY(T, shared);
    T *keys = shared, *values = keys + HALF * DIM, *queries = values + HALF * DIM, *grads = queries + TILE * DIM;
    float *measure = (float*)(grads + TILE * DIM), *along = measure + TILE;
    int t = threadIdx.x & 3, own = threadIdx.x / 32 % 4 * 16, part = threadIdx.x / 128 * (TILE / 2), kv_head = blockIdx.x;
    int q_stride = s.heads * s.dim, kv_stride = s.kv_heads * s.dim, length = of.count, first = blockIdx.y * HALF;
    if (first >= length) return;
    const Queries all(s, of, kv_head, first, HALF);
    auto load = [&](T* to, const T* x, int i) {
        load_halves(to, x + all.head_of(i) * s.dim, of.first, all.tile_of(i), length, q_stride, s.dim);
    };
    const float unit = s.scale * LOG2_E;
    const Bend bend(s);
    int lowest = first + own;
    load_rows<DIM, HALF, THREADS>(keys, k + kv_head * s.dim, of.first, first, length, kv_stride, s.dim);
    load_rows<DIM, HALF, THREADS>(values, v + kv_head * s.dim, of.first, first, length, kv_stride, s.dim);
    load(grads, dy, 0);
    float acc[1][DIM / 8][4] = {};
    const T *own_queries = queries + part * DIM, *own_grads = grads + part * DIM;
    for (int i = 0; i < all.count; i++) {
        float p[1][TILE / 16][4], slope[1][TILE / 16][4];
        int tile = all.tile_of(i) + part;
        bool seen = lowest < length && meets(s, tile, TILE / 2, lowest, 16);
        meet();
        load(queries, q, i);
        load_numbers(measure, lse + all.numbers_of(i), all.tile_of(i), length);
        load_numbers(along, d + all.numbers_of(i), all.tile_of(i), length);
        if (seen) multiply_rows<DIM, HALF>(slope, values, own, own_grads);
        meet();
        if (i + 1 < all.count) load(grads, dy, i + 1);
        if (!seen) continue;
        multiply_rows<DIM, HALF>(p, keys, own, own_queries);
        bend(p);
        hide<true>(s, p, lowest, tile);
#pragma unroll
        for (int n = 0; n < TILE / 16; n++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                int query = part + 8 * n + 2 * t + j % 2;
                float weight = two_to(p[0][n][j] * unit - measure[query] * LOG2_E) * bend.change(p[0][n][j]);
                slope[0][n][j] = weight * (slope[0][n][j] - along[query]);
            }
        unsigned slopes[TILE / 32][1][4];
        as_left(slopes, slope);
        add_weighted<DIM>(acc, slopes, own_queries);
    }
    if (!put_together(acc, (float*)keys)) return;
    const float factor[1][2] = {{s.scale, s.scale}};
    store<DIM, HALF>(dk + kv_head * s.dim, acc, factor, queries, own, of.first, first, length, dk_stride, s.dim);
#endif
}
