// Attention of wide heads, behind `tiles.cuh`: what its kernels do, wherever keys and values lie.

#if T_KIND > 0

// One shape takes all heads; narrower ones have several, by the same name.
#define BY_SHAPE(f, ...) f(__VA_ARGS__)

template <class Keys>
__device__ __forceinline__ void forward_of(T* shared, const T* q, const Keys& k, const Keys& v, const Segment& of, T* y, int y_stride, float* lse,
                                           const float* sinks, const Shape& s) {
    T *rows = shared, *keys = rows + ROWS * DIM, *values = keys + TILE * DIM;
    int lane = threadIdx.x & 31, g = lane / 4, t = lane & 3, own = threadIdx.x / 32 * 16, head = blockIdx.x;
    int kv_head = head / (s.heads / s.kv_heads), q_stride = s.heads * s.dim, kv_stride = s.kv_heads * s.dim;
    // Blocks with the most keys begin first, so that the last to end are short.
    int length = of.count, start = of.past, first = (gridDim.y - 1 - blockIdx.y) * ROWS;
    if (first >= length) return;
    auto load = [&](T* to, const Keys& x, int tile) {
        load_keys<DIM, TILE, THREADS>(to, x, kv_head * s.dim, tile, start + length, kv_stride, s.dim);
    };
    const float unit = s.scale * LOG2_E;
    const Bend bend(s);
    int end = start + min(first + ROWS, length), lowest = start + first + own;
    float acc[1][DIM / 8][4] = {}, p[1][TILE / 8][4], largest[2] = {-INF, -INF}, sum[2] = {};
    unsigned weights[TILE / 16][1][4];
    int tile = first_key(s, start + first) / TILE * TILE;
    load_rows<DIM, ROWS, THREADS>(rows, q + head * s.dim, of.first, first, length, q_stride, s.dim);
    load(keys, k, tile);
    meet();
    for (; tile < end; tile += TILE) {
        load(values, v, tile);
        bool seen = lowest < end && meets(s, lowest, 16, tile, TILE);
        if (seen) {
            multiply_rows<DIM>(p, rows, own, keys);
            bend(p);
            hide<false>(s, p, lowest, tile);
            float shrink[2];
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float most = largest[half], added = 0.0f;
#pragma unroll
                for (int n = 0; n < TILE / 8; n++) most = fmaxf(most, fmaxf(p[0][n][2 * half], p[0][n][2 * half + 1]));
                most = row_max(most);
                // A row that has seen no key yet has nothing to shrink; the difference of infinities would be no number.
                float measure = most == -INF ? 0.0f : most * unit;
                shrink[half] = two_to(largest[half] * unit - measure);
#pragma unroll
                for (int n = 0; n < TILE / 8; n++)
#pragma unroll
                    for (int j = 0; j < 2; j++) {
                        float& x = p[0][n][2 * half + j];
                        x = two_to(x * unit - measure);
                        added += x;
                    }
                sum[half] = sum[half] * shrink[half] + added;
                largest[half] = most;
            }
#pragma unroll
            for (int n = 0; n < DIM / 8; n++)
#pragma unroll
                for (int i = 0; i < 4; i++) acc[0][n][i] *= shrink[i / 2];
            as_left(weights, p);
        }
        meet();
        if (tile + TILE < end) load(keys, k, tile + TILE);
        if (seen) add_weighted<DIM>(acc, weights, values);
        meet();
    }
    float factor[1][2];
    for (int half = 0; half < 2; half++) {
        int row = first + own + 8 * half + g;
        float whole = row_sum(sum[half]);
        // A sink is a score that weighs nothing; one beyond all measure leaves nothing to weigh.
        if (sinks) whole += expf(sinks[head] - largest[half] * s.scale);
        factor[0][half] = row < length ? 1.0f / whole : 0.0f;
        if (t == 0 && row < length)
            lse[(size_t)s.heads * of.first + (size_t)head * length + row] = largest[half] * s.scale + logf(whole);
    }
    store<DIM>(y + head * s.dim, acc, factor, rows, own, of.first, first, length, y_stride, s.dim);
}
#endif
