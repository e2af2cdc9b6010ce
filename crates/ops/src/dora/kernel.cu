// y = x * magnitude / norm + shift, a factor and perhaps a shift a column.
KERNEL scale_columns(const T* x, const float* magnitude, const float* norm, const void* shift, int kind, T* y, int cols,
                     unsigned long long n) {
    FOR_EACH(i, n) {
        int j = i % cols;
        float factor = magnitude[j] / norm[j];
        y[i] = Round<T>::of(to_f32(x[i]) * factor + (shift ? load_any(shift, kind, j) : 0.0f));
    }
}

// sums[j] = the sum over rows of a b / norm[j]; a thread a column, rows in order.
KERNEL sum_of_products(const T* a, const T* b, const float* norm, float* sums, int rows, int cols) {
    FOR_EACH(j, (size_t)cols) {
        float sum = 0.0f;
        for (int i = 0; i < rows; i++) {
            size_t at = (size_t)i * cols + j;
            sum += to_f32(a[at]) * to_f32(b[at]);
        }
        sums[j] = sum / norm[j];
    }
}

// The norm of every row; one block a row.
KERNEL row_norms(const T* x, float* norms, int cols) {
    __shared__ float scratch[32];
    float sum = 0.0f;
    for (int i = threadIdx.x; i < cols; i += blockDim.x) {
        float v = to_f32(x[(size_t)blockIdx.x * cols + i]);
        sum += v * v;
    }
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) norms[blockIdx.x] = sqrtf(sum);
}
