// Activations in 8 bits a row, but for the columns that hold outliers. Values are rounded to f16 first.
#define THRESHOLD 6.0f
__device__ __forceinline__ float half_of(T x) { return rounded<f16>(to_f32(x)); }
// NaN goes the way that keeps it: a code could not hold it.
__device__ __forceinline__ bool is_outlier(float v) { return !(fabsf(v) < THRESHOLD); }

// flags[c] = whether column c holds an outlier, and *any whether one does. A thread a column.
KERNEL find_outliers(const T* x, int* flags, int* any, int rows, int cols) {
    FOR_EACH(c, (size_t)cols) {
        int found = 0;
        for (int i = 0; i < rows; i++) found |= is_outlier(half_of(x[(size_t)i * cols + c]));
        flags[c] = found;
        if (found) *any = 1;
    }
}

// codes = the other columns as whole numbers in -127..=127, rest = the outlier columns, both zero elsewhere; absmax = the largest
// magnitude of each row that is no outlier. One block a row.
KERNEL quantise(const T* x, const int* flags, f16* codes, f16* rest, float* absmax, int cols) {
    __shared__ float scratch[32];
    size_t at = (size_t)blockIdx.x * cols;
    float largest = 0.0f;
    for (int c = threadIdx.x; c < cols; c += blockDim.x) {
        float v = half_of(x[at + c]);
        if (!is_outlier(v)) largest = fmaxf(largest, fabsf(v));
    }
    largest = block_max(largest, scratch);
    if (threadIdx.x == 0) absmax[blockIdx.x] = largest;
    float scale = largest > 0.0f ? 127.0f * (1.0f / largest) : 0.0f;
    for (int c = threadIdx.x; c < cols; c += blockDim.x) {
        float v = half_of(x[at + c]);
        codes[at + c] = Round<f16>::of(flags[c] ? 0.0f : rintf(v * scale));
        rest[at + c] = Round<f16>::of(flags[c] ? v : 0.0f);
    }
}

// y[i][j] *= rows[i] cols[j] / 127^2.
KERNEL rescale(float* y, const float* rows, const float* cols, int n, unsigned long long count) {
    FOR_EACH(i, count) y[i] *= rows[i / n] * cols[i % n] * (1.0f / (127.0f * 127.0f));
}
