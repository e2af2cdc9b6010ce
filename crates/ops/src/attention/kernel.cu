// Flash attention: an online softmax over tiles of 32 keys or queries; no time x time matrix.
//
// A block has four warps and takes ROWS rows of one head and sequence, ROWS / 4 a warp; a lane is a row of the tile in products,
// and a share of the channels (c = lane, lane + 32, ...) in sums. Everything inside is f32.

#define TILE 32
#define WARPS 4
#define ROWS 16
// Channels of a head that a lane sums: heads have at most 256.
#define SHARE 8

// Rows first .. first + TILE of a (rows, stride) matrix, a head's channels of them, into a tile whose rows are padded by one so that lanes
// meet no common bank; rows from `limit` on are zero.
__device__ __forceinline__ void load_tile(float* tile, const T* x, size_t base, int first, int limit, int stride, int dim) {
    for (int i = threadIdx.x; i < TILE * dim; i += blockDim.x) {
        int row = i / dim, c = i % dim;
        tile[row * (dim + 1) + c] = first + row < limit ? to_f32(x[(base + first + row) * stride + c]) : 0.0f;
    }
}

__device__ __forceinline__ float row_dot(const float* row, const float* tile, int dim) {
    const float* other = tile + (threadIdx.x & 31) * (dim + 1);
    float sum = 0.0f;
    for (int c = 0; c < dim; c++) sum += row[c] * other[c];
    return sum;
}

// acc[c] += the sum over lanes of weight * tile[lane][c].
__device__ __forceinline__ void add_weighted(float* acc, float weight, const float* tile, int dim) {
    int lane = threadIdx.x & 31;
    for (int j = 0; j < TILE; j++) {
        float w = __shfl_sync(0xffffffffu, weight, j);
        for (int s = 0; s < SHARE; s++) {
            int c = lane + 32 * s;
            if (c < dim) acc[s] += w * tile[j * (dim + 1) + c];
        }
    }
}

// grid: (ceil(longest / ROWS), heads, sequences).
// lse holds, for each sequence, the numbers of one head after the other.
KERNEL forward(const T* q, const T* k, const T* v, const unsigned* segments, T* y, float* lse,
               int heads, int kv_heads, int dim, int window, float scale, float cap, const float* sinks) {
    const Shape s = AS_SHAPE;
    SHARED_ARRAY(float, shared);
    float* keys = shared;
    float* values = keys + TILE * (s.dim + 1);
    float* rows = values + TILE * (s.dim + 1);
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, head = blockIdx.y;
    int kv_head = head / (s.heads / s.kv_heads), q_stride = s.heads * s.dim, kv_stride = s.kv_heads * s.dim;
    const Segment of = ((const Segment*)segments)[blockIdx.z];
    int length = of.count, start = of.past, first = blockIdx.x * ROWS;
    if (first >= length) return;
    size_t q_base = of.first, kv_base = of.first_key, numbers = (size_t)s.heads * of.first + (size_t)head * length;
    for (int i = threadIdx.x; i < ROWS * s.dim; i += blockDim.x) {
        int row = first + i / s.dim, c = i % s.dim;
        rows[i] = row < length ? to_f32(q[(q_base + row) * q_stride + head * s.dim + c]) * s.scale : 0.0f;
    }
    float acc[ROWS / WARPS][SHARE], largest[ROWS / WARPS], sum[ROWS / WARPS];
    for (int r = 0; r < ROWS / WARPS; r++) {
        // A sink is a score that weighs nothing.
        largest[r] = sinks ? sinks[head] : -INF;
        sum[r] = sinks ? 1.0f : 0.0f;
        for (int i = 0; i < SHARE; i++) acc[r][i] = 0.0f;
    }
    int last_row = first + ROWS < length ? first + ROWS : length;
    int end = start + last_row;
    int begin = first_key(s, start + first) / TILE * TILE;
    for (int tile = begin; tile < end; tile += TILE) {
        __syncthreads();
        load_tile(keys, k + kv_head * s.dim, kv_base, tile, end, kv_stride, s.dim);
        load_tile(values, v + kv_head * s.dim, kv_base, tile, end, kv_stride, s.dim);
        __syncthreads();
        for (int r = 0; r < ROWS / WARPS; r++) {
            int row = warp * (ROWS / WARPS) + r, position = start + first + row, key = tile + lane;
            bool visible = first + row < length && key <= position && key >= first_key(s, position);
            float score = visible ? capped(s, row_dot(rows + row * s.dim, keys, s.dim)) : -INF;
            float most = fmaxf(largest[r], warp_max(score));
            if (most == -INF) continue;  // The same in all lanes.
            float p = visible ? expf(score - most) : 0.0f, shrink = expf(largest[r] - most);
            sum[r] = sum[r] * shrink + warp_sum(p);
            largest[r] = most;
            for (int i = 0; i < SHARE; i++) acc[r][i] *= shrink;
            add_weighted(acc[r], p, values, s.dim);
        }
    }
    for (int r = 0; r < ROWS / WARPS; r++) {
        int row = first + warp * (ROWS / WARPS) + r;
        if (row >= length) continue;
        float inverse = 1.0f / sum[r];
        for (int i = 0; i < SHARE; i++) {
            int c = lane + 32 * i;
            if (c < s.dim) y[(q_base + row) * q_stride + head * s.dim + c] = Round<T>::of(acc[r][i] * inverse);
        }
        if (lane == 0) lse[numbers + row] = largest[r] + logf(sum[r]);
    }
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
