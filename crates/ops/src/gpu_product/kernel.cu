// What surrounds the products of cuBLASLt: operands put side by side, biases and their gradients.

struct alignas(16) Sixteen {
    T v[16 / sizeof(T)];
};

// Columns left.. of rows that lie `apart` elements from each other become right (lines, columns): what both kernels below do on the side,
// where rows_of is not null.
__device__ __forceinline__ void put_beside(T* rows_of, const T* right, int left, int apart, int lines, int columns) {
    if (!rows_of) return;
    int first = blockIdx.x * blockDim.x + threadIdx.x, step = gridDim.x * blockDim.x;
    for (int row = blockIdx.y * blockDim.y + threadIdx.y; row < lines; row += gridDim.y * blockDim.y)
        for (int c = first; c < columns; c += step) rows_of[(size_t)row * apart + left + c] = right[(size_t)row * columns + c];
}

// Writes scale * src (rows, cols) into columns before.. of a window of `width` columns, and zeros into the others. The window's rows
// lie `stride` apart from element `start` of out on. Where nothing changes, 16 bytes at a time.
KERNEL put(const void* src, int kind, float scale, int cols, int before, T* out, unsigned long long start, int stride,
           int rows, int width, T* rows_of, const T* right, int left, int apart, int lines, int columns) {
    put_beside(rows_of, right, left, apart, lines, columns);
    const int some = 16 / sizeof(T);
    bool plain = kind == T_KIND && scale == 1.0f && cols == width;
    bool copies = plain && cols % some == 0 && stride % some == 0 && start % some == 0;
    int thread = blockIdx.x * blockDim.x + threadIdx.x, threads = gridDim.x * blockDim.x;
    for (int row = blockIdx.y * blockDim.y + threadIdx.y; row < rows; row += gridDim.y * blockDim.y) {
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

// Up to three matrices below each other, each to its end and zeros where it is null, and zeros below them: in a window as above.
KERNEL stack(const void* a, int a_kind, int a_end, const void* b, int b_kind, int b_end, const void* c, int c_kind, int c_end,
             T* out, unsigned long long start, int stride, int rows, int width, T* rows_of, const T* right, int left, int apart,
             int lines, int columns) {
    put_beside(rows_of, right, left, apart, lines, columns);
    int thread = blockIdx.x * blockDim.x + threadIdx.x, threads = gridDim.x * blockDim.x;
    for (int row = blockIdx.y * blockDim.y + threadIdx.y; row < rows; row += gridDim.y * blockDim.y) {
        const void* from = row < a_end ? a : row < b_end ? b : row < c_end ? c : 0;
        int kind = row < a_end ? a_kind : row < b_end ? b_kind : c_kind, first = row < a_end ? 0 : row < b_end ? a_end : b_end;
        size_t at = (size_t)(row - first) * width;
        T* to = out + start + (size_t)row * stride;
        for (int i = thread; i < width; i += threads) to[i] = Round<T>::of(from ? load_any(from, kind, at + i) : 0.0f);
    }
}

// out = [left | right], rows of k and of width elements; where they keep 16 bytes together, so many at a time.
KERNEL side_by_side(const T* left, const T* right, T* out, int rows, int k, int width) {
    const int some = 16 / sizeof(T);
    int thread = blockIdx.x * blockDim.x + threadIdx.x, threads = gridDim.x * blockDim.x, all = k + width;
    bool together = k % some == 0 && width % some == 0;
    for (int row = blockIdx.y; row < rows; row += gridDim.y) {
        const T *first = left + (size_t)row * k, *second = right + (size_t)row * width;
        T* to = out + (size_t)row * all;
        if (together) {
            for (int c = some * thread; c < all; c += some * threads)
                *(Sixteen*)(to + c) = *(const Sixteen*)(c < k ? first + c : second + (c - k));
        } else {
            for (int c = thread; c < all; c += threads) to[c] = c < k ? first[c] : second[c - k];
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
