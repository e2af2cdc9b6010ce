// Attention over keys and values that lie in rows, and its gradients.

// grid: (ceil(longest / ROWS), heads, sequences).
// lse holds, for each sequence, the numbers of one head after the other.
KERNEL forward(const T* q, const T* k, const T* v, const unsigned* segments, T* y, float* lse,
               int heads, int kv_heads, int dim, int window, float scale, float cap, const float* sinks) {
    const Shape s = AS_SHAPE;
    const Segment of = ((const Segment*)segments)[blockIdx.z];
    SHARED_ARRAY(float, shared);
    int stride = kv_heads * dim;
    auto in = [&](const T* x) { return [=](int key) { return x + ((size_t)of.first_key + key) * stride; }; };
    forward_of(shared, q, in(k), in(v), of, y, lse, sinks, s);
}

// The sum over channels of dy y, for every row and head. A warp each; grid: (ceil(longest / 8), heads, sequences).
KERNEL products(const T* dy, const T* y, const unsigned* segments, float* d, int heads, int dim) {
    const Segment of = ((const Segment*)segments)[blockIdx.z];
    int row = blockIdx.x * (blockDim.x / 32) + (threadIdx.x >> 5), lane = threadIdx.x & 31, head = blockIdx.y;
    if (row >= (int)of.count) return;
    size_t base = ((size_t)of.first + row) * heads * dim + (size_t)head * dim;
    float sum = 0.0f;
    for (int c = lane; c < dim; c += 32) sum += to_f32(dy[base + c]) * to_f32(y[base + c]);
    sum = warp_sum(sum);
    if (lane == 0) d[(size_t)heads * of.first + (size_t)head * of.count + row] = sum;
}

// dq = scale * the sum over keys of p (dp - d) k, with p = exp(score - lse) and dp = dy v; with a cap, times the slope of the score. The grid is that of `forward`.
KERNEL query_gradient(const T* q, const T* k, const T* v, const T* dy, const float* lse, const float* d,
                      const unsigned* segments, T* dq,
                      int heads, int kv_heads, int dim, int window, float scale, float cap) {
    const Shape s = AS_SHAPE;
    SHARED_ARRAY(float, shared);
    float* keys = shared;
    float* values = keys + TILE * (s.dim + 1);
    float* rows = values + TILE * (s.dim + 1);
    float* grads = rows + ROWS * s.dim;
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, head = blockIdx.y;
    int kv_head = head / (s.heads / s.kv_heads), q_stride = s.heads * s.dim, kv_stride = s.kv_heads * s.dim;
    const Segment of = ((const Segment*)segments)[blockIdx.z];
    int length = of.count, first = blockIdx.x * ROWS;
    if (first >= length) return;
    size_t base = of.first, numbers = (size_t)s.heads * of.first + (size_t)head * length;
    for (int i = threadIdx.x; i < ROWS * s.dim; i += blockDim.x) {
        int row = first + i / s.dim;
        size_t at = (base + row) * q_stride + head * s.dim + i % s.dim;
        rows[i] = row < length ? to_f32(q[at]) * s.scale : 0.0f;
        grads[i] = row < length ? to_f32(dy[at]) : 0.0f;
    }
    float acc[ROWS / WARPS][SHARE];
    for (int r = 0; r < ROWS / WARPS; r++)
        for (int i = 0; i < SHARE; i++) acc[r][i] = 0.0f;
    int end = first + ROWS < length ? first + ROWS : length;
    for (int tile = first_key(s, first) / TILE * TILE; tile < end; tile += TILE) {
        __syncthreads();
        load_tile(keys, k + kv_head * s.dim, base, tile, end, kv_stride, s.dim);
        load_tile(values, v + kv_head * s.dim, base, tile, end, kv_stride, s.dim);
        __syncthreads();
        for (int r = 0; r < ROWS / WARPS; r++) {
            int row = warp * (ROWS / WARPS) + r, position = first + row, key = tile + lane;
            bool visible = position < length && key <= position && key >= first_key(s, position);
            float ds = 0.0f;
            if (visible) {
                float score = capped(s, row_dot(rows + row * s.dim, keys, s.dim));
                float p = expf(score - lse[numbers + position]);
                ds = p * (row_dot(grads + row * s.dim, values, s.dim) - d[numbers + position]) * slope(s, score);
            }
            __syncwarp(0xffffffffu);
            add_weighted(acc[r], ds, keys, s.dim);
        }
    }
    for (int r = 0; r < ROWS / WARPS; r++) {
        int row = first + warp * (ROWS / WARPS) + r;
        for (int i = 0; i < SHARE; i++) {
            int c = lane + 32 * i;
            if (row < length && c < s.dim) dq[(base + row) * q_stride + head * s.dim + c] = Round<T>::of(acc[r][i] * s.scale);
        }
    }
}

// dv = the sum over queries of p dy, dk = scale * that of p (dp - d) q; over all query heads that share the key's. Rows are keys here,
// tiles queries. grid: (ceil(longest / ROWS), kv_heads, sequences).
KERNEL key_value_gradient(const T* q, const T* k, const T* v, const T* dy, const float* lse, const float* d,
                          const unsigned* segments, T* dk, T* dv,
                          int heads, int kv_heads, int dim, int window, float scale, float cap) {
    const Shape s = AS_SHAPE;
    SHARED_ARRAY(float, shared);
    float* queries = shared;
    float* grads = queries + TILE * (s.dim + 1);
    float* keys = grads + TILE * (s.dim + 1);
    float* values = keys + ROWS * s.dim;
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, kv_head = blockIdx.y;
    int group = s.heads / s.kv_heads, q_stride = s.heads * s.dim, kv_stride = s.kv_heads * s.dim;
    const Segment of = ((const Segment*)segments)[blockIdx.z];
    int length = of.count, first = blockIdx.x * ROWS;
    if (first >= length) return;
    size_t base = of.first;
    for (int i = threadIdx.x; i < ROWS * s.dim; i += blockDim.x) {
        int row = first + i / s.dim;
        size_t at = (base + row) * kv_stride + kv_head * s.dim + i % s.dim;
        keys[i] = row < length ? to_f32(k[at]) : 0.0f;
        values[i] = row < length ? to_f32(v[at]) : 0.0f;
    }
    float key_acc[ROWS / WARPS][SHARE], value_acc[ROWS / WARPS][SHARE];
    for (int r = 0; r < ROWS / WARPS; r++)
        for (int i = 0; i < SHARE; i++) key_acc[r][i] = value_acc[r][i] = 0.0f;
    // The last query that sees any of these keys.
    int last = s.window > 0 && first + ROWS - 1 + s.window < length ? first + ROWS - 1 + s.window : length;
    for (int head = kv_head * group; head < (kv_head + 1) * group; head++) {
        size_t numbers = (size_t)s.heads * of.first + (size_t)head * length;
        for (int tile = first / TILE * TILE; tile < last; tile += TILE) {
            __syncthreads();
            load_tile(queries, q + head * s.dim, base, tile, length, q_stride, s.dim);
            load_tile(grads, dy + head * s.dim, base, tile, length, q_stride, s.dim);
            __syncthreads();
            for (int r = 0; r < ROWS / WARPS; r++) {
                int row = warp * (ROWS / WARPS) + r, key = first + row, position = tile + lane;
                bool visible = key < length && position < length && key <= position && key >= first_key(s, position);
                float p = 0.0f, ds = 0.0f;
                if (visible) {
                    float score = capped(s, row_dot(keys + row * s.dim, queries, s.dim) * s.scale);
                    p = expf(score - lse[numbers + position]);
                    ds = p * (row_dot(values + row * s.dim, grads, s.dim) - d[numbers + position]) * slope(s, score);
                }
                __syncwarp(0xffffffffu);
                add_weighted(value_acc[r], p, grads, s.dim);
                add_weighted(key_acc[r], ds, queries, s.dim);
            }
        }
    }
    for (int r = 0; r < ROWS / WARPS; r++) {
        int row = first + warp * (ROWS / WARPS) + r;
        for (int i = 0; i < SHARE; i++) {
            int c = lane + 32 * i;
            if (row >= length || c >= s.dim) continue;
            size_t at = (base + row) * kv_stride + kv_head * s.dim + c;
            if (dk) dk[at] = Round<T>::of(key_acc[r][i] * s.scale);
            if (dv) dv[at] = Round<T>::of(value_acc[r][i]);
        }
    }
}
