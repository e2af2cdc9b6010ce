// One block a row, whose packs stay in registers between the passes over it, as many as are kept; `stats` holds
// (mean, 1 / sqrt(var + eps)) of each.
#define KEPT 2
#define N Pack<T>::N

KERNEL forward(const T* x, const float* w, const float* b, T* y, float* stats, int c, float eps) {
    __shared__ float scratch[32];
    const T* row = x + (size_t)blockIdx.x * c;
    T* to = y + (size_t)blockIdx.x * c;
    bool together = c % N == 0 && on_16(x) && on_16(y) && on_16(w) && on_16(b);
    Pack<T> kept[KEPT + 1];
    float sum = 0.0f, squares = 0.0f;
    for_packs<T, KEPT>(c, [&](int i, int k) {
        kept[k] = load_pack(row, i, c, together);
        float terms[N];
#pragma unroll
        for (int j = 0; j < N; j++) terms[j] = to_f32(kept[k].v[j]);
        sum += sum_of(terms);
    });
    float mean = block_sum(sum, scratch) / c;
    for_packs<T, KEPT>(c, [&](int i, int k) {
        if (k == KEPT) kept[k] = load_pack(row, i, c, together);
        float terms[N];
#pragma unroll
        for (int j = 0; j < N; j++) {
            float v = i + j < c ? to_f32(kept[k].v[j]) - mean : 0.0f;
            terms[j] = v * v;
        }
        squares += sum_of(terms);
    });
    float r = 1.0f / sqrtf(block_sum(squares, scratch) / c + eps);
    if (threadIdx.x == 0) {
        stats[2 * blockIdx.x] = mean;
        stats[2 * blockIdx.x + 1] = r;
    }
    for_packs<T, KEPT>(c, [&](int i, int k) {
        if (k == KEPT) kept[k] = load_pack(row, i, c, together);
        float weights[N], biases[N];
        load_floats(w, i, c, together, weights);
        load_floats(b, i, c, together, biases);
        Pack<T> out;
#pragma unroll
        for (int j = 0; j < N; j++) out.v[j] = Round<T>::of((to_f32(kept[k].v[j]) - mean) * r * weights[j] + biases[j]);
        store_pack(to, i, c, together, out);
    });
}

// With h = (x - mean) rstd and g = dy w: dx = rstd (g - mean(g) - h mean(g h)).
KERNEL backward(const T* x, const float* w, const float* stats, const T* dy, T* dx, int c) {
    __shared__ float scratch[32];
    size_t at = (size_t)blockIdx.x * c;
    bool together = c % N == 0 && on_16(x) && on_16(dy) && on_16(dx) && on_16(w);
    Pack<T> xs[KEPT + 1], dys[KEPT + 1];
    float mean = stats[2 * blockIdx.x], r = stats[2 * blockIdx.x + 1], level = 0.0f, along = 0.0f, weights[N];
    for_packs<T, KEPT>(c, [&](int i, int k) {
        xs[k] = load_pack(x + at, i, c, together);
        dys[k] = load_pack(dy + at, i, c, together);
        load_floats(w, i, c, together, weights);
        float levels[N], alongs[N];
#pragma unroll
        for (int j = 0; j < N; j++) {
            // Zero beyond the row, as dy is there.
            float h = (to_f32(xs[k].v[j]) - mean) * r, g = to_f32(dys[k].v[j]) * weights[j];
            levels[j] = g;
            alongs[j] = g * h;
        }
        level += sum_of(levels);
        along += sum_of(alongs);
    });
    level = block_sum(level, scratch) / c;
    along = block_sum(along, scratch) / c;
    for_packs<T, KEPT>(c, [&](int i, int k) {
        if (k == KEPT) {
            xs[k] = load_pack(x + at, i, c, together);
            dys[k] = load_pack(dy + at, i, c, together);
        }
        load_floats(w, i, c, together, weights);
        Pack<T> out;
#pragma unroll
        for (int j = 0; j < N; j++) {
            float h = (to_f32(xs[k].v[j]) - mean) * r, g = to_f32(dys[k].v[j]) * weights[j];
            out.v[j] = Round<T>::of(r * (g - level - h * along));
        }
        store_pack(dx + at, i, c, together, out);
    });
}

// dw = the sum over rows of dy h, db that of dy; a thread a channel, rows in order.
KERNEL affine_gradients(const T* x, const float* stats, const T* dy, float* dw, float* db, int rows, int c) {
    FOR_EACH(i, (size_t)c) {
        float w = 0.0f, b = 0.0f;
        for (int row = 0; row < rows; row++) {
            float g = to_f32(dy[(size_t)row * c + i]);
            w += g * ((to_f32(x[(size_t)row * c + i]) - stats[2 * row]) * stats[2 * row + 1]);
            b += g;
        }
        dw[i] = w;
        db[i] = b;
    }
}
