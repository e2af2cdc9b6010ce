// Attention on tensor cores, of the products and copies of `products.cuh` and what `scores.cuh` knows of scores, divided as `blocks.cuh` says:
// what its kernels do, wherever keys and values lie.

#if T_KIND > 0

template <int DIM, int M, bool BY_WGMMA, class Keys>
__device__ __forceinline__ void forward_of(T* shared, const T* q, const Keys& k, const Keys& v, const Segment& of, T* y, int y_stride, float* lse,
                                           const float* sinks, const Shape& s) {
    constexpr int KEYS = KEYS_OF(M), THREADS = 256 / M;
    T *rows = shared, *keys = rows + ROWS * DIM, *values = keys + 2 * KEYS * DIM;
    int lane = threadIdx.x & 31, g = lane / 4, t = lane & 3, own = threadIdx.x / 32 * 16 * M, head = blockIdx.x;
    int kv_head = head / (s.heads / s.kv_heads), q_stride = s.heads * s.dim, kv_stride = s.kv_heads * s.dim;
    // Blocks with the most keys begin first, so that the last to end are short.
    int length = of.count, start = of.past, first = (gridDim.y - 1 - blockIdx.y) * ROWS;
    if (first >= length) return;
    auto load = [&](T* tiles, const Keys& x, int tile, int turn) {
        load_keys<DIM, KEYS, THREADS>(tiles + turn * KEYS * DIM, x, kv_head * s.dim, tile, start + length, kv_stride, s.dim);
    };
    const float unit = s.scale * LOG2_E;
    int end = start + min(first + ROWS, length), tile = first_key(s, start + first) / KEYS * KEYS;
    int lowest = start + first + own, highest = lowest + 16 * M - 1, group = start + first + group_start<M, BY_WGMMA>();
    // Whether some row of the products sees a key of a tile. Where tiles are as long as blocks, nearly always, and one that none sees does
    // no harm.
    auto is_seen = [&](int tile) { return M == 1 || (tile < group + group_rows<M, BY_WGMMA>() && tile + KEYS > first_key(s, group)); };
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
        multiply_rows<DIM, ROWS, BY_WGMMA>(p, rows, own, keys);
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
        if (next) multiply_rows<DIM, ROWS, BY_WGMMA>(p, rows, own, keys + (turn ^ 1) * KEYS * DIM);
        end_products();
        if (now) add_weighted<DIM, BY_WGMMA>(acc, weights, values + turn * KEYS * DIM);
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
        add_weighted<DIM, BY_WGMMA>(acc, weights, values + turn * KEYS * DIM);
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
#endif
