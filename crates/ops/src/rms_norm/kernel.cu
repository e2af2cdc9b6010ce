// One block a row, whose packs stay in registers between the passes over it, as many as are kept.
#define KEPT 2
#define N Pack<T>::N

// Weights i.. of a row, of any type, as many as a pack has.
__device__ __forceinline__ void load_weights(const void* w, int kind, int i, int c, bool together, float (&to)[N]) {
    if (kind == 0) {
        load_floats((const float*)w, i, c, together, to);
    } else if (kind == T_KIND) {
        Pack<T> pack = load_pack((const T*)w, i, c, together);
#pragma unroll
        for (int j = 0; j < N; j++) to[j] = to_f32(pack.v[j]);
    } else {
#pragma unroll
        for (int j = 0; j < N; j++) to[j] = i + j < c ? load_any(w, kind, i + j) : 0.0f;
    }
}

// Rows of y lie `stride` apart. y = (w + offset) * round(x * rstd), rstd = 1 / sqrt(mean(x^2) + eps); with `rounds_last` only the product is rounded.
KERNEL forward(const T* x, const void* w, int w_kind, T* y, float* rstd, int c, int stride, float eps, float offset, int rounds_last) {
    __shared__ float scratch[32];
    const T* row = x + (size_t)blockIdx.x * c;
    T* to = y + (size_t)blockIdx.x * stride;
    bool together = c % N == 0 && stride % N == 0 && on_16(x) && on_16(y) && on_16(w);
    Pack<T> kept[KEPT + 1];
    float sum = 0.0f;
    for_packs<T, KEPT>(c, [&](int i, int k) {
        kept[k] = load_pack(row, i, c, together);
        float terms[N];
#pragma unroll
        for (int j = 0; j < N; j++) {
            float v = to_f32(kept[k].v[j]);
            terms[j] = v * v;
        }
        sum += sum_of(terms);
    });
    float r = 1.0f / sqrtf(block_sum(sum, scratch) / c + eps);
    if (threadIdx.x == 0) rstd[blockIdx.x] = r;
    for_packs<T, KEPT>(c, [&](int i, int k) {
        if (k == KEPT) kept[k] = load_pack(row, i, c, together);
        float weights[N];
        load_weights(w, w_kind, i, c, together, weights);
        Pack<T> out;
#pragma unroll
        for (int j = 0; j < N; j++) {
            float h = to_f32(kept[k].v[j]) * r;
            out.v[j] = Round<T>::of((weights[j] + offset) * (rounds_last ? h : rounded<T>(h)));
        }
        store_pack(to, i, c, together, out);
    });
}

// Rows of what is there lie `there_stride` apart, those of dx `stride`. With h = x rstd and g = dy (w + offset): dx = rstd (g - h mean(g h)), added to what is there, if anything is.
KERNEL backward(const T* x, const void* w, int w_kind, const float* rstd, const T* dy, const T* there, int there_stride, T* dx, int stride,
                int c, float offset) {
    __shared__ float scratch[32];
    size_t at = (size_t)blockIdx.x * c;
    bool together = c % N == 0 && stride % N == 0 && there_stride % N == 0 && on_16(x) && on_16(dy) && on_16(dx) && on_16(w) && on_16(there);
    Pack<T> xs[KEPT + 1], dys[KEPT + 1];
    float r = rstd[blockIdx.x], sum = 0.0f, weights[N];
    for_packs<T, KEPT>(c, [&](int i, int k) {
        xs[k] = load_pack(x + at, i, c, together);
        dys[k] = load_pack(dy + at, i, c, together);
        load_weights(w, w_kind, i, c, together, weights);
        float terms[N];
#pragma unroll
        for (int j = 0; j < N; j++) terms[j] = to_f32(dys[k].v[j]) * (weights[j] + offset) * (to_f32(xs[k].v[j]) * r);
        sum += sum_of(terms);
    });
    float mean = block_sum(sum, scratch) / c;
    for_packs<T, KEPT>(c, [&](int i, int k) {
        if (k == KEPT) {
            xs[k] = load_pack(x + at, i, c, together);
            dys[k] = load_pack(dy + at, i, c, together);
        }
        load_weights(w, w_kind, i, c, together, weights);
        Pack<T> out, sum;
        if (there) sum = load_pack(there + (size_t)blockIdx.x * there_stride, i, c, together);
#pragma unroll
        for (int j = 0; j < N; j++) {
            float h = to_f32(xs[k].v[j]) * r, g = to_f32(dys[k].v[j]) * (weights[j] + offset);
            out.v[j] = Round<T>::of(r * (g - h * mean));
            if (there) out.v[j] = Round<T>::of(to_f32(sum.v[j]) + to_f32(out.v[j]));
        }
        store_pack(dx + (size_t)blockIdx.x * stride, i, c, together, out);
    });
}

// dw = the sum over rows of dy round(h), or of dy h with `rounds_last`: a thread a channel, rows in order, so that the sum is the same in every run.
KERNEL weight_gradient(const T* x, const float* rstd, const T* dy, float* dw, int rows, int c, int rounds_last) {
    FOR_EACH(i, (size_t)c) {
        float sum = 0.0f;
        for (int row = 0; row < rows; row++) {
            size_t at = (size_t)row * c + i;
            float h = to_f32(x[at]) * rstd[row];
            sum += to_f32(dy[at]) * (rounds_last ? h : rounded<T>(h));
        }
        dw[i] = sum;
    }
}
