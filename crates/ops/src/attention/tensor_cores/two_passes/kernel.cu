// The gradients of attention on tensor cores, for each of which scores are multiplied again: that of queries, whose rows meet tiles of keys,
// and those of keys and values, whose rows meet tiles of queries.

#define QUERIES 64  // a tile, for the gradients of keys and values

#if T_KIND > 0

template <int DIM, int M, bool BY_WGMMA>
__device__ __forceinline__ void query_gradient_of(T* shared, const T* q, const T* k, const T* v, const T* dy, const float* lse,
                                                  const float* d, const Segment& of, T* dq, int dq_stride, const Shape& s) {
    constexpr int KEYS = FEW_KEYS_OF(M), THREADS = 256 / M;
    // Products with a tile of keys run on while the next two are loaded.
    constexpr int TURNS = M == 1 ? 3 : 2;
    T *rows = shared, *grads = rows + ROWS * DIM, *keys = grads + ROWS * DIM, *values = keys + TURNS * KEYS * DIM;
    int lane = threadIdx.x & 31, g = lane / 4, t = lane & 3, own = threadIdx.x / 32 * 16 * M, head = blockIdx.x;
    int kv_head = head / (s.heads / s.kv_heads), q_stride = s.heads * s.dim, kv_stride = s.kv_heads * s.dim;
    int length = of.count, first = (gridDim.y - 1 - blockIdx.y) * ROWS;
    if (first >= length) return;
    auto load = [&](T* to, const T* x, int tile) {
        load_rows<DIM, KEYS, THREADS>(to, x + kv_head * s.dim, of.first, tile, length, kv_stride, s.dim);
    };
    const float unit = s.scale * LOG2_E;
    const Bend bend(s);
    int end = min(first + ROWS, length), tile = first_key(s, first) / KEYS * KEYS, lowest = first + own, highest = lowest + 16 * M - 1;
    int group = first + group_start<M, BY_WGMMA>();
    load_rows<DIM, ROWS, THREADS>(rows, q + head * s.dim, of.first, first, length, q_stride, s.dim);
    load_rows<DIM, ROWS, THREADS>(grads, dy + head * s.dim, of.first, first, length, q_stride, s.dim);
    load(keys, k, tile);
    load(values, v, tile);
    float acc[M][DIM / 8][4] = {}, measure[M][2], along[M][2];
    for (int m = 0; m < M; m++)
        for (int half = 0; half < 2; half++) {
            int row = lowest + 16 * m + 8 * half + g;
            size_t at = (size_t)s.heads * of.first + (size_t)head * length + row;
            measure[m][half] = row < length ? lse[at] * LOG2_E : 0.0f;
            along[m][half] = row < length ? d[at] : 0.0f;
        }
    unsigned weights[KEYS / 16][M][4];
    // There is a tile: the loop is entered, and the compiler sees it.
    int i = 0;
    do {
        wait_for_copies();
        __syncthreads();
        if (tile + KEYS < end) {
            load(keys + (i + 1) % TURNS * KEYS * DIM, k, tile + KEYS);
            load(values + (i + 1) % 2 * KEYS * DIM, v, tile + KEYS);
        }
        // Some row of the products sees a key of the tile.
        if (tile < group + group_rows<M, BY_WGMMA>() && tile + KEYS > first_key(s, group)) {
            const T* keys_now = keys + i % TURNS * KEYS * DIM;
            float p[M][KEYS / 8][4], slope[M][KEYS / 8][4];
            begin_products();
            multiply_rows<DIM, ROWS, BY_WGMMA>(p, rows, own, keys_now);
            end_products();
            multiply_rows<DIM, ROWS, BY_WGMMA>(slope, grads, own, values + i % 2 * KEYS * DIM);
            end_products();
            wait_for<1>(p);
            bend(p);
            bool all_seen = tile + KEYS - 1 <= lowest && tile >= first_key(s, highest);
            if (!all_seen)
#pragma unroll
                for (int m = 0; m < M; m++)
#pragma unroll
                    for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                        for (int i = 0; i < 4; i++)
                            if (!sees(s, lowest + 16 * m + 8 * (i / 2) + g, tile + 8 * n + 2 * t + i % 2)) p[m][n][i] = -INF;
#pragma unroll
            for (int m = 0; m < M; m++)
#pragma unroll
                for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                    for (int i = 0; i < 4; i++)
                        p[m][n][i] = two_to(p[m][n][i] * unit - measure[m][i / 2]) * bend.change(p[m][n][i]);
            wait_for<0>(slope);
#pragma unroll
            for (int m = 0; m < M; m++)
#pragma unroll
                for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                    for (int i = 0; i < 4; i++) slope[m][n][i] = p[m][n][i] * (slope[m][n][i] - along[m][i / 2]);
            as_left(weights, slope);
            begin_products();
            add_weighted<DIM, BY_WGMMA>(acc, weights, keys_now);
            end_products();
        } else {
            wait_for_products<0>();
        }
        tile += KEYS;
        i++;
    } while (tile < end);
    wait_for<0>(acc);
    float factor[M][2];
    for (int m = 0; m < M; m++) factor[m][0] = factor[m][1] = s.scale;
    __syncthreads();
    store<DIM>(dq + head * s.dim, acc, factor, rows, own, of.first, first, length, dq_stride, s.dim);
}

// Rows are keys, tiles queries.
template <int DIM, bool BY_WGMMA>
__device__ __forceinline__ void key_value_gradient_of(T* shared, const T* q, const T* k, const T* v, const T* dy, const float* lse,
                                                      const float* d, const Segment& of, T* dk, int dk_stride, T* dv, int dv_stride, int turns,
                                                      const Shape& s) {
    if (BY_WGMMA) turns = 3;
    T *keys = shared, *values = keys + ROWS * DIM, *tiles = values + ROWS * DIM;
    float* numbers = (float*)(tiles + turns * 2 * QUERIES * DIM);
    int own = threadIdx.x / 32 * 16, kv_head = blockIdx.x;
    int group = s.heads / s.kv_heads, kv_stride = s.kv_heads * s.dim;
    int length = of.count, first = blockIdx.y * ROWS;
    if (first >= length) return;
    int last = s.window > 0 ? min(first + ROWS - 1 + s.window, length) : length;
    int tiles_a_head = (last - first + QUERIES - 1) / QUERIES, lowest = first + own;
    int group_first = first + group_start<1, BY_WGMMA>(), group_last = group_first + group_rows<1, BY_WGMMA>() - 1;
    auto load = [&](int i) {
        int head = kv_head * group + i / tiles_a_head, tile = first + i % tiles_a_head * QUERIES, turn = i % turns;
        load_queries<DIM, QUERIES>(tiles + turn * 2 * QUERIES * DIM, numbers + turn * 2 * QUERIES, q, dy, lse, d, of, head, tile, s);
    };
    const float unit = s.scale * LOG2_E;
    const Bend bend(s);
    float key_acc[1][DIM / 8][4] = {}, value_acc[1][DIM / 8][4] = {};
    load_rows<DIM, ROWS, 256>(keys, k + kv_head * s.dim, of.first, first, length, kv_stride, s.dim);
    load_rows<DIM, ROWS, 256>(values, v + kv_head * s.dim, of.first, first, length, kv_stride, s.dim);
    unsigned weights[QUERIES / 16][1][4], slopes[QUERIES / 16][1][4];
    int count = group * tiles_a_head;
    load(0);
    for (int i = 0; i < count; i++) {
        wait_for_copies();
        __syncthreads();
        if (turns > 1 && i + 1 < count) load(i + 1);
        int tile = first + i % tiles_a_head * QUERIES, turn = i % turns;
        // Some query of the tile sees a key of the products.
        if (tile + QUERIES > group_first && (s.window == 0 || tile < group_last + s.window)) {
            const T* queries = tiles + turn * 2 * QUERIES * DIM;
            const T* grads = queries + QUERIES * DIM;
            const float *measure = numbers + turn * 2 * QUERIES, *along = measure + QUERIES;
            float p[1][QUERIES / 8][4], slope[1][QUERIES / 8][4];
            begin_products();
            multiply_rows<DIM, ROWS, BY_WGMMA>(p, keys, own, queries);
            end_products();
            multiply_rows<DIM, ROWS, BY_WGMMA>(slope, values, own, grads);
            end_products();
            wait_for<1>(p);
            bend(p);
            hide<true>(s, p, lowest, tile);
            if (Bend::BENDS) {
                wait_for<0>(slope);
                bend_slopes(slope, p, bend, along);
            }
            to_probabilities(p, unit, measure);
            as_left(weights, p);
            begin_products();
            add_weighted<DIM, BY_WGMMA>(value_acc, weights, grads);
            end_products();
            wait_for<1>(slope);
            to_slopes(slope, p, along);
            as_left(slopes, slope);
            begin_products();
            add_weighted<DIM, BY_WGMMA>(key_acc, slopes, queries);
            end_products();
        } else {
            wait_for_products<0>();
        }
        if (turns == 1 && i + 1 < count) {
            __syncthreads();
            load(i + 1);
        }
    }
    wait_for<0>(value_acc);
    wait_for<0>(key_acc);
    const float whole[1][2] = {{1.0f, 1.0f}}, factor[1][2] = {{s.scale, s.scale}};
    __syncthreads();
    if (dv) store<DIM>(dv + kv_head * s.dim, value_acc, whole, values, own, of.first, first, length, dv_stride, s.dim);
    if (dk) store<DIM>(dk + kv_head * s.dim, key_acc, factor, keys, own, of.first, first, length, dk_stride, s.dim);
}
#endif

// grid and block as forward.
KERNEL along(const T* dy, const T* y, int y_stride, const unsigned* segments, float* d, int heads, int dim) {
#if T_KIND > 0
    sums_along<16>(dy, y, y_stride, ((const Segment*)segments)[blockIdx.z], d, heads, dim);
#endif
}

// grid and block as forward.
KERNEL query_gradient(const T* q, const T* k, const T* v, const T* dy, const float* lse, const float* d,
                      const unsigned* segments, T* dq, int dq_stride,
                      int heads, int kv_heads, int dim, int window, float scale, float cap) {
#if T_KIND > 0
    const Shape s = AS_SHAPE;
    const Segment of = ((const Segment*)segments)[blockIdx.z];
    SHARED_ARRAY(T, shared);
    BY_SHAPE(query_gradient_of, shared, q, k, v, dy, lse, d, of, dq, dq_stride, s);
#endif
}

// grid: (kv_heads, ceil(longest / ROWS), sequences); eight warps a block, of 16 rows each. `turns`: tiles of queries that shared
// memory holds at a time: 2 for copies that run ahead, 3 on Hopper, where products run on.
KERNEL key_value_gradient(const T* q, const T* k, const T* v, const T* dy, const float* lse, const float* d,
                          const unsigned* segments, T* dk, int dk_stride, T* dv, int dv_stride,
                          int heads, int kv_heads, int dim, int window, float scale, float cap, int turns) {
#if T_KIND > 0
    const Shape s = AS_SHAPE;
    const Segment of = ((const Segment*)segments)[blockIdx.z];
    SHARED_ARRAY(T, shared);
#if defined(WGMMA_TWIN)
#define BY_TURNS(dim, ...) (turns == 3 ? key_value_gradient_of<dim, true>(__VA_ARGS__) : key_value_gradient_of<dim, false>(__VA_ARGS__))
#else
#define BY_TURNS(dim, ...) key_value_gradient_of<dim, WGMMA>(__VA_ARGS__)
#endif
    if (dim <= 64) BY_TURNS(64, shared, q, k, v, dy, lse, d, of, dk, dk_stride, dv, dv_stride, turns, s);
    else BY_TURNS(128, shared, q, k, v, dy, lse, d, of, dk, dk_stride, dv, dv_stride, turns, s);
#endif
}
