// What surrounds the products of cuBLASLt: operands put side by side, biases and their gradients.

struct alignas(16) Sixteen {
    T v[16 / sizeof(T)];
};

// Writes scale * src (rows, cols) into columns before.. of a window of `width` columns, and zeros into the others. The window's rows
// lie `stride` apart from element `start` of out on. Where nothing changes, 16 bytes at a time.
KERNEL put(const void* src, int kind, float scale, int cols, int before, T* out, unsigned long long start, int stride,
           int rows, int width) {
    const int some = 16 / sizeof(T);
    bool plain = kind == T_KIND && scale == 1.0f && cols == width;
    bool copies = plain && cols % some == 0 && stride % some == 0 && start % some == 0;
    int thread = blockIdx.x * blockDim.x + threadIdx.x, threads = gridDim.x * blockDim.x;
    for (int row = blockIdx.y; row < rows; row += gridDim.y) {
        T* to = out + start + (size_t)row * stride;
        size_t from = (size_t)row * cols;
        if (copies) {
            for (int c = some * thread; c < width; c += some * threads)
                *(Sixteen*)(to + c) = *(const Sixteen*)((const T*)src + from + c);
        } else {
            for (int c = thread; c < width; c += threads) {
                int j = c - before;
                to[c] = Round<T>::of(j >= 0 && j < cols ? scale * load_any(src, kind, from + j) : 0.0f);
            }
        }
    }
}

KERNEL add_bias(T* y, const void* bias, int kind, int cols, unsigned long long n) {
    FOR_EACH(i, n) y[i] = Round<T>::of(to_f32(y[i]) + load_any(bias, kind, i % cols));
}

// The sums of the columns, rows in order; a thread a column.
KERNEL column_sums(const T* x, float* sums, int rows, int cols) {
    FOR_EACH(j, (size_t)cols) {
        float sum = 0.0f;
        for (int i = 0; i < rows; i++) sum += to_f32(x[(size_t)i * cols + j]);
        sums[j] = sum;
    }
}
