// One block a row; `stats` holds (mean, 1 / sqrt(var + eps)) of each.

KERNEL forward(const T* x, const float* w, const float* b, T* y, float* stats, int c, float eps) {
    __shared__ float scratch[32];
    size_t at = (size_t)blockIdx.x * c;
    float sum = 0.0f;
    for (int i = threadIdx.x; i < c; i += blockDim.x) sum += to_f32(x[at + i]);
    float mean = block_sum(sum, scratch) / c;
    float squares = 0.0f;
    for (int i = threadIdx.x; i < c; i += blockDim.x) {
        float v = to_f32(x[at + i]) - mean;
        squares += v * v;
    }
    float r = 1.0f / sqrtf(block_sum(squares, scratch) / c + eps);
    if (threadIdx.x == 0) {
        stats[2 * blockIdx.x] = mean;
        stats[2 * blockIdx.x + 1] = r;
    }
    for (int i = threadIdx.x; i < c; i += blockDim.x)
        y[at + i] = Round<T>::of((to_f32(x[at + i]) - mean) * r * w[i] + b[i]);
}

// With h = (x - mean) rstd and g = dy w: dx = rstd (g - mean(g) - h mean(g h)).
KERNEL backward(const T* x, const float* w, const float* stats, const T* dy, T* dx, int c) {
    __shared__ float scratch[32];
    size_t at = (size_t)blockIdx.x * c;
    float mean = stats[2 * blockIdx.x], r = stats[2 * blockIdx.x + 1], level = 0.0f, along = 0.0f;
    for (int i = threadIdx.x; i < c; i += blockDim.x) {
        float h = (to_f32(x[at + i]) - mean) * r, g = to_f32(dy[at + i]) * w[i];
        level += g;
        along += g * h;
    }
    level = block_sum(level, scratch) / c;
    along = block_sum(along, scratch) / c;
    for (int i = threadIdx.x; i < c; i += blockDim.x) {
        float h = (to_f32(x[at + i]) - mean) * r, g = to_f32(dy[at + i]) * w[i];
        dx[at + i] = Round<T>::of(r * (g - level - h * along));
    }
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
