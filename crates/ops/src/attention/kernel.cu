// Flash attention: an online softmax over tiles of 32 keys or queries; no time x time matrix.
//
// A block has four warps and takes ROWS rows of one head and sequence, ROWS / 4 a warp; a lane is a row of the tile in products,
// and a share of the channels (c = lane, lane + 32, ...) in sums. Everything inside is f32.

#define TILE 32
#define WARPS 4
#define ROWS 16
// Channels of a head that a lane sums: heads have at most 256.
#define SHARE 8

struct Shape {
    int heads, kv_heads, dim;
    int time;     // queries of a sequence
    int kv_time;  // rows of a sequence's keys and values
    int start;    // position of the first query
    int window;   // 0 for none
    float scale;
};
#define SHAPE int heads, int kv_heads, int dim, int time, int kv_time, int start, int window, float scale
#define AS_SHAPE {heads, kv_heads, dim, time, kv_time, start, window, scale}

__device__ __forceinline__ int first_key(const Shape& s, int position) {
    return s.window > 0 && position - s.window + 1 > 0 ? position - s.window + 1 : 0;
}

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

// grid: (ceil(time / ROWS), heads, batch). `lengths` holds the real rows of each sequence, or is null where all are.
KERNEL forward(const T* q, const T* k, const T* v, const unsigned* lengths, T* y, float* lse, SHAPE) {
    const Shape s = AS_SHAPE;
    SHARED_ARRAY(float, shared);
    float* keys = shared;
    float* values = keys + TILE * (s.dim + 1);
    float* rows = values + TILE * (s.dim + 1);
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, head = blockIdx.y, batch = blockIdx.z;
    int kv_head = head / (s.heads / s.kv_heads), q_stride = s.heads * s.dim, kv_stride = s.kv_heads * s.dim;
    int length = lengths ? (int)lengths[batch] : s.time, first = blockIdx.x * ROWS;
    size_t q_base = (size_t)batch * s.time, kv_base = (size_t)batch * s.kv_time;
    for (int i = threadIdx.x; i < ROWS * s.dim; i += blockDim.x) {
        int row = first + i / s.dim, c = i % s.dim;
        rows[i] = row < length ? to_f32(q[(q_base + row) * q_stride + head * s.dim + c]) * s.scale : 0.0f;
    }
    float acc[ROWS / WARPS][SHARE], largest[ROWS / WARPS], sum[ROWS / WARPS];
    for (int r = 0; r < ROWS / WARPS; r++) {
        largest[r] = -INF;
        sum[r] = 0.0f;
        for (int i = 0; i < SHARE; i++) acc[r][i] = 0.0f;
    }
    int last_row = first + ROWS < length ? first + ROWS : length;
    int end = s.start + last_row;
    int begin = first_key(s, s.start + first) / TILE * TILE;
    for (int tile = first < length ? begin : end; tile < end; tile += TILE) {
        __syncthreads();
        load_tile(keys, k + kv_head * s.dim, kv_base, tile, end, kv_stride, s.dim);
        load_tile(values, v + kv_head * s.dim, kv_base, tile, end, kv_stride, s.dim);
        __syncthreads();
        for (int r = 0; r < ROWS / WARPS; r++) {
            int row = warp * (ROWS / WARPS) + r, position = s.start + first + row, key = tile + lane;
            bool visible = first + row < length && key <= position && key >= first_key(s, position);
            float score = visible ? row_dot(rows + row * s.dim, keys, s.dim) : -INF;
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
        if (row >= s.time) continue;
        float inverse = row < length ? 1.0f / sum[r] : 0.0f;
        for (int i = 0; i < SHARE; i++) {
            int c = lane + 32 * i;
            if (c < s.dim) y[(q_base + row) * q_stride + head * s.dim + c] = Round<T>::of(acc[r][i] * inverse);
        }
        if (lane == 0 && lse) lse[((size_t)batch * s.heads + head) * s.time + row] = row < length ? largest[r] + logf(sum[r]) : 0.0f;
    }
}

// The sum over channels of dy y, for every row and head. A warp each.
KERNEL products(const T* dy, const T* y, float* d, int heads, int dim, int time, unsigned long long n) {
    size_t at = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) >> 5;
    int lane = threadIdx.x & 31;
    if (at >= n) return;
    // at counts (batch, head, time), as lse does.
    size_t t = at % time, head = at / time % heads, batch = at / time / heads;
    size_t base = (batch * time + t) * heads * dim + head * dim;
    float sum = 0.0f;
    for (int c = lane; c < dim; c += 32) sum += to_f32(dy[base + c]) * to_f32(y[base + c]);
    sum = warp_sum(sum);
    if (lane == 0) d[at] = sum;
}

// dq = scale * the sum over keys of p (dp - d) k, with p = exp(score - lse) and dp = dy v. The grid is that of `forward`.
KERNEL query_gradient(const T* q, const T* k, const T* v, const T* dy, const float* lse, const float* d,
                      const unsigned* lengths, T* dq, SHAPE) {
    const Shape s = AS_SHAPE;
    SHARED_ARRAY(float, shared);
    float* keys = shared;
    float* values = keys + TILE * (s.dim + 1);
    float* rows = values + TILE * (s.dim + 1);
    float* grads = rows + ROWS * s.dim;
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, head = blockIdx.y, batch = blockIdx.z;
    int kv_head = head / (s.heads / s.kv_heads), q_stride = s.heads * s.dim, kv_stride = s.kv_heads * s.dim;
    int length = lengths ? (int)lengths[batch] : s.time, first = blockIdx.x * ROWS;
    size_t base = (size_t)batch * s.time, numbers = ((size_t)batch * s.heads + head) * s.time;
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
    for (int tile = first < length ? first_key(s, first) / TILE * TILE : end; tile < end; tile += TILE) {
        __syncthreads();
        load_tile(keys, k + kv_head * s.dim, base, tile, end, kv_stride, s.dim);
        load_tile(values, v + kv_head * s.dim, base, tile, end, kv_stride, s.dim);
        __syncthreads();
        for (int r = 0; r < ROWS / WARPS; r++) {
            int row = warp * (ROWS / WARPS) + r, position = first + row, key = tile + lane;
            bool visible = position < length && key <= position && key >= first_key(s, position);
            float ds = 0.0f;
            if (visible) {
                float p = expf(row_dot(rows + row * s.dim, keys, s.dim) - lse[numbers + position]);
                ds = p * (row_dot(grads + row * s.dim, values, s.dim) - d[numbers + position]);
            }
            __syncwarp(0xffffffffu);
            add_weighted(acc[r], ds, keys, s.dim);
        }
    }
    for (int r = 0; r < ROWS / WARPS; r++) {
        int row = first + warp * (ROWS / WARPS) + r;
        for (int i = 0; i < SHARE; i++) {
            int c = lane + 32 * i;
            if (row < s.time && c < s.dim) dq[(base + row) * q_stride + head * s.dim + c] = Round<T>::of(acc[r][i] * s.scale);
        }
    }
}

// dv = the sum over queries of p dy, dk = scale * that of p (dp - d) q; over all query heads that share the key's. Rows are keys here,
// tiles queries. grid: (ceil(time / ROWS), kv_heads, batch).
KERNEL key_value_gradient(const T* q, const T* k, const T* v, const T* dy, const float* lse, const float* d,
                          const unsigned* lengths, T* dk, T* dv, SHAPE) {
    const Shape s = AS_SHAPE;
    SHARED_ARRAY(float, shared);
    float* queries = shared;
    float* grads = queries + TILE * (s.dim + 1);
    float* keys = grads + TILE * (s.dim + 1);
    float* values = keys + ROWS * s.dim;
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, kv_head = blockIdx.y, batch = blockIdx.z;
    int group = s.heads / s.kv_heads, q_stride = s.heads * s.dim, kv_stride = s.kv_heads * s.dim;
    int length = lengths ? (int)lengths[batch] : s.time, first = blockIdx.x * ROWS;
    size_t base = (size_t)batch * s.time;
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
        size_t numbers = ((size_t)batch * s.heads + head) * s.time;
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
                    p = expf(row_dot(keys + row * s.dim, queries, s.dim) * s.scale - lse[numbers + position]);
                    ds = p * (row_dot(values + row * s.dim, grads, s.dim) - d[numbers + position]);
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
            if (row >= s.time || c >= s.dim) continue;
            size_t at = (base + row) * kv_stride + kv_head * s.dim + c;
            dk[at] = Round<T>::of(key_acc[r][i] * s.scale);
            dv[at] = Round<T>::of(value_acc[r][i]);
        }
    }
}
