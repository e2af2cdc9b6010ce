// Flash attention: an online softmax over tiles of 32 keys or queries; no time x time matrix.
//
// A block has four warps and takes ROWS rows of one head and sequence, ROWS / 4 a warp; a lane is a row of the tile in products,
// and a share of the channels (c = lane, lane + 32, ...) in sums. Everything inside is f32.

#define TILE 32
#define WARPS 4
#define ROWS 16
// Channels of a head that a lane sums: heads have at most 256.
#define SHARE 8

// Rows first .. first + TILE, a head's channels of them, into a tile whose rows are padded by one so that lanes meet no common bank; rows from
// `limit` on are zero. `x` says where a row is.
template <class Rows> __device__ __forceinline__ void load_tile(float* tile, const Rows& x, int first, int limit, int dim) {
    for (int i = threadIdx.x; i < TILE * dim; i += blockDim.x) {
        int row = i / dim, c = i % dim;
        tile[row * (dim + 1) + c] = first + row < limit ? to_f32(x(first + row)[c]) : 0.0f;
    }
}
// Of a (rows, stride) matrix.
__device__ __forceinline__ void load_tile(float* tile, const T* x, size_t base, int first, int limit, int stride, int dim) {
    load_tile(tile, [=](int row) { return x + (base + row) * stride; }, first, limit, dim);
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

// `k` and `v` say where the rows of keys and values of the block's sequence are.
template <class Keys, class Values>
__device__ __forceinline__ void forward_of(float* shared, const T* q, const Keys& k, const Values& v, const Segment& of, T* y, float* lse,
                                           const float* sinks, const Shape& s) {
    float* keys = shared;
    float* values = keys + TILE * (s.dim + 1);
    float* rows = values + TILE * (s.dim + 1);
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, head = blockIdx.y;
    int kv_head = head / (s.heads / s.kv_heads), q_stride = s.heads * s.dim;
    int length = of.count, start = of.past, first = blockIdx.x * ROWS;
    if (first >= length) return;
    size_t q_base = of.first, numbers = (size_t)s.heads * of.first + (size_t)head * length;
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
        load_tile(keys, [&](int key) { return k(key) + kv_head * s.dim; }, tile, end, s.dim);
        load_tile(values, [&](int key) { return v(key) + kv_head * s.dim; }, tile, end, s.dim);
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
