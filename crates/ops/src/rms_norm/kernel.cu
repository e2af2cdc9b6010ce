// One block a row.

// y = w * round(x * rstd), rstd = 1 / sqrt(mean(x^2) + eps).
KERNEL forward(const T* x, const float* w, T* y, float* rstd, int c, float eps) {
    __shared__ float scratch[32];
    const T* row = x + (size_t)blockIdx.x * c;
    float sum = 0.0f;
    for (int i = threadIdx.x; i < c; i += blockDim.x) {
        float v = to_f32(row[i]);
        sum += v * v;
    }
    float r = 1.0f / sqrtf(block_sum(sum, scratch) / c + eps);
    if (threadIdx.x == 0) rstd[blockIdx.x] = r;
    for (int i = threadIdx.x; i < c; i += blockDim.x)
        y[(size_t)blockIdx.x * c + i] = Round<T>::of(w[i] * rounded<T>(to_f32(row[i]) * r));
}

// With h = x rstd and g = dy w: dx = rstd (g - h mean(g h)).
KERNEL backward(const T* x, const float* w, const float* rstd, const T* dy, T* dx, int c) {
    __shared__ float scratch[32];
    size_t at = (size_t)blockIdx.x * c;
    float r = rstd[blockIdx.x], sum = 0.0f;
    for (int i = threadIdx.x; i < c; i += blockDim.x) sum += to_f32(dy[at + i]) * w[i] * (to_f32(x[at + i]) * r);
    float mean = block_sum(sum, scratch) / c;
    for (int i = threadIdx.x; i < c; i += blockDim.x) {
        float h = to_f32(x[at + i]) * r, g = to_f32(dy[at + i]) * w[i];
        dx[at + i] = Round<T>::of(r * (g - h * mean));
    }
}

// dw = the sum over rows of dy round(h): a thread a channel, rows in order, so that the sum is the same in every run.
KERNEL weight_gradient(const T* x, const float* rstd, const T* dy, float* dw, int rows, int c) {
    FOR_EACH(i, (size_t)c) {
        float sum = 0.0f;
        for (int row = 0; row < rows; row++) {
            size_t at = (size_t)row * c + i;
            sum += to_f32(dy[at]) * rounded<T>(to_f32(x[at]) * rstd[row]);
        }
        dw[i] = sum;
    }
}
