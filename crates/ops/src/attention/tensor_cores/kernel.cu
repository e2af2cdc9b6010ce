// Attention on tensor cores, of the products and copies of `products.cuh` and what `scores.cuh` knows of scores, which are before it.
// Heads are padded with zeros to DIM channels, 64 or 128, and are a multiple of 16. In f32 the kernels are empty: nobody calls them.

#define QUERIES 64  // a tile, for the gradients of keys and values
// Keys a tile, forward and for the gradient of queries.
#define KEYS_OF(M) ((M) == 1 ? 128 : 32)
#define FEW_KEYS_OF(M) ((M) == 1 ? 64 : 32)

#if T_KIND > 0

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
__device__ __forceinline__ void forward_of(T* shared, const T* q, const T* k, const T* v, const Segment& of, T* y, int y_stride, float* lse,
                                           const float* sinks, const Shape& s) {
    constexpr int KEYS = KEYS_OF(M), THREADS = 256 / M;
    T *rows = shared, *keys = rows + ROWS * DIM, *values = keys + 2 * KEYS * DIM;
    int lane = threadIdx.x & 31, g = lane / 4, t = lane & 3, own = threadIdx.x / 32 * 16 * M, head = blockIdx.x;
    int kv_head = head / (s.heads / s.kv_heads), q_stride = s.heads * s.dim, kv_stride = s.kv_heads * s.dim;
    // Blocks with the most keys begin first, so that the last to end are short.
    int length = of.count, start = of.past, first = (gridDim.y - 1 - blockIdx.y) * ROWS;
    if (first >= length) return;
    auto load = [&](T* tiles, const T* x, int tile, int turn) {
        load_rows<DIM, KEYS, THREADS>(tiles + turn * KEYS * DIM, x + kv_head * s.dim, of.first_key, tile, start + length, kv_stride, s.dim);
    };
    const float unit = s.scale * LOG2_E;
    int end = start + min(first + ROWS, length), tile = first_key(s, start + first) / KEYS * KEYS;
    int lowest = start + first + own, highest = lowest + 16 * M - 1, group = start + first + group_start<M>();
    // Whether some row of the products sees a key of a tile. Where tiles are as long as blocks, nearly always, and one that none sees does
    // no harm.
    auto is_seen = [&](int tile) { return M == 1 || (tile < group + group_rows<M>() && tile + KEYS > first_key(s, group)); };
    float acc[M][DIM / 8][4] = {}, largest[M][2], sum[M][2] = {}, shrink[M][2], p[M][KEYS / 8][4];
    for (int m = 0; m < M; m++) largest[m][0] = largest[m][1] = -INF;
    // Scores to probabilities, relative to the largest so far; `shrink` is for what was relative to the one before.
    const Bend bend(s);
    auto weigh = [&](int tile) {
        bend(p);
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
                float measure = most == -INF ? 0.0f : most * unit;
                shrink[m][half] = two_to(largest[m][half] * unit - measure);
#pragma unroll
                for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                    for (int j = 0; j < 2; j++) {
                        float& x = p[m][n][2 * half + j];
                        x = two_to(x * unit - measure);
                        added += x;
                    }
                sum[m][half] = sum[m][half] * shrink[m][half] + added;
                largest[m][half] = most;
            }
    };
    unsigned weights[KEYS / 16][M][4];
    load_rows<DIM, ROWS, THREADS>(rows, q + head * s.dim, of.first, first, length, q_stride, s.dim);
    load(keys, k, tile, 0);
    wait_for_copies();
    __syncthreads();
    if (tile + KEYS < end) load(keys, k, tile + KEYS, 1);
    load(values, v, tile, 0);
    bool now = is_seen(tile);
    if (now) {
        begin_products();
        multiply_rows<DIM>(p, rows, own, keys);
        end_products();
        wait_for<0>(p);
        weigh(tile);
        as_left(weights, p);
    }
    // The scores of the next tile are multiplied before this one's values, and weighed while those are multiplied.
    int turn = 0;
    for (; tile + KEYS < end; tile += KEYS, turn ^= 1) {
        wait_for_copies();
        __syncthreads();
        if (tile + 2 * KEYS < end) load(keys, k, tile + 2 * KEYS, turn);
        load(values, v, tile + KEYS, turn ^ 1);
        bool next = is_seen(tile + KEYS);
        begin_products();
        if (next) multiply_rows<DIM>(p, rows, own, keys + (turn ^ 1) * KEYS * DIM);
        end_products();
        if (now) add_weighted<DIM>(acc, weights, values + turn * KEYS * DIM);
        end_products();
        if (next) {
            wait_for<1>(p);
            weigh(tile + KEYS);
        }
        wait_for<0>(acc);
        if (next) {
#pragma unroll
            for (int m = 0; m < M; m++)
#pragma unroll
                for (int n = 0; n < DIM / 8; n++)
#pragma unroll
                    for (int i = 0; i < 4; i++) acc[m][n][i] *= shrink[m][i / 2];
            as_left(weights, p);
        }
        now = next;
    }
    wait_for_copies();
    __syncthreads();
    if (now) {
        begin_products();
        add_weighted<DIM>(acc, weights, values + turn * KEYS * DIM);
        end_products();
        wait_for<0>(acc);
    }
    float factor[M][2];
    for (int m = 0; m < M; m++)
        for (int half = 0; half < 2; half++) {
            int row = first + own + 16 * m + 8 * half + g;
            float whole = row_sum(sum[m][half]);
            // A sink is a score that weighs nothing; one beyond all measure leaves nothing to weigh.
            if (sinks) whole += expf(sinks[head] - largest[m][half] * s.scale);
            factor[m][half] = row < length ? 1.0f / whole : 0.0f;
            if (t == 0 && row < length)
                lse[(size_t)s.heads * of.first + (size_t)head * length + row] = largest[m][half] * s.scale + logf(whole);
        }
    __syncthreads();
    store<DIM>(y + head * s.dim, acc, factor, rows, own, of.first, first, length, y_stride, s.dim);
}

template <int DIM, int M>
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
    int group = first + group_start<M>();
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
        if (tile < group + group_rows<M>() && tile + KEYS > first_key(s, group)) {
            const T* keys_now = keys + i % TURNS * KEYS * DIM;
            float p[M][KEYS / 8][4], slope[M][KEYS / 8][4];
            begin_products();
            multiply_rows<DIM>(p, rows, own, keys_now);
            end_products();
            multiply_rows<DIM>(slope, grads, own, values + i % 2 * KEYS * DIM);
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
            add_weighted<DIM>(acc, weights, keys_now);
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
template <int DIM>
__device__ __forceinline__ void key_value_gradient_of(T* shared, const T* q, const T* k, const T* v, const T* dy, const float* lse,
                                                      const float* d, const Segment& of, T* dk, int dk_stride, T* dv, int dv_stride, int turns,
                                                      const Shape& s) {
#if defined(HOPPER)
    turns = 3;
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
        load_rows<DIM, QUERIES, 256>(to, q + head * s.dim, of.first, tile, length, q_stride, s.dim);
        load_rows<DIM, QUERIES, 256>(to + QUERIES * DIM, dy + head * s.dim, of.first, tile, length, q_stride, s.dim);
        // A query that is not there has zeros for everything, and adds nothing.
        int row = tile + threadIdx.x % QUERIES;
        const float* from = threadIdx.x < QUERIES ? lse : d;
        size_t at = (size_t)s.heads * of.first + (size_t)head * length + row;
        if (threadIdx.x < 2 * QUERIES)
            copy_later<4>(numbers + turn * 2 * QUERIES + threadIdx.x, row < length ? from + at : from, row < length);
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
            multiply_rows<DIM>(p, keys, own, queries);
            end_products();
            multiply_rows<DIM>(slope, values, own, grads);
            end_products();
            wait_for<1>(p);
            bend(p);
            bool all_seen = tile >= highest && lowest >= first_key(s, tile + QUERIES - 1);
            if (!all_seen)
#pragma unroll
                for (int n = 0; n < QUERIES / 8; n++)
#pragma unroll
                    for (int j = 0; j < 4; j++)
                        if (!sees(s, tile + 8 * n + 2 * t + j % 2, lowest + 8 * (j / 2) + g)) p[0][n][j] = -INF;
            if (Bend::BENDS) {
                // How scores changed is gone when they are probabilities, and there are no registers to keep it in.
                wait_for<0>(slope);
#pragma unroll
                for (int n = 0; n < QUERIES / 8; n++)
#pragma unroll
                    for (int j = 0; j < 4; j++)
                        slope[0][n][j] = (slope[0][n][j] - along[8 * n + 2 * t + j % 2]) * bend.change(p[0][n][j]);
            }
#pragma unroll
            for (int n = 0; n < QUERIES / 8; n++)
#pragma unroll
                for (int j = 0; j < 4; j++)
                    p[0][n][j] = two_to(p[0][n][j] * unit - measure[8 * n + 2 * t + j % 2] * LOG2_E);
            as_left(weights, p);
            begin_products();
            add_weighted<DIM>(value_acc, weights, grads);
            end_products();
            wait_for<1>(slope);
#pragma unroll
            for (int n = 0; n < QUERIES / 8; n++)
#pragma unroll
                for (int j = 0; j < 4; j++)
                    slope[0][n][j] = p[0][n][j] * (Bend::BENDS ? slope[0][n][j] : slope[0][n][j] - along[8 * n + 2 * t + j % 2]);
            as_left(slopes, slope);
            begin_products();
            add_weighted<DIM>(key_acc, slopes, queries);
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
KERNEL forward(const T* q, const T* k, const T* v, const unsigned* segments, T* y, int y_stride, float* lse,
               int heads, int kv_heads, int dim, int window, float scale, float cap, const float* sinks) {
#if T_KIND > 0
    const Shape s = AS_SHAPE;
    const Segment of = ((const Segment*)segments)[blockIdx.z];
    SHARED_ARRAY(T, shared);
    BY_SHAPE(forward_of, shared, q, k, v, of, y, y_stride, lse, sinks, s);
#endif
}

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
    if (dim <= 64) key_value_gradient_of<64>(shared, q, k, v, dy, lse, d, of, dk, dk_stride, dv, dv_stride, turns, s);
    else key_value_gradient_of<128>(shared, q, k, v, dy, lse, d, of, dk, dk_stride, dv, dv_stride, turns, s);
#endif
}
