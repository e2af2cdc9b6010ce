// Activations in 8 bits a row, but for the columns that hold outliers. Values are rounded to f16 first. Which columns these are stays on
// the device: it decides how much the last kernel does, and nobody waits to hear of it.
#define THRESHOLD 6.0f
__device__ __forceinline__ float half_of(T x) { return rounded<f16>(to_f32(x)); }
// NaN goes the way that keeps it: a code could not hold it.
__device__ __forceinline__ bool is_outlier(float v) { return !(fabsf(v) < THRESHOLD); }

// flags[c] = 1 where column c holds an outlier; they begin as zeros. A thread a column and some of the rows: whoever finds one writes the
// one number there is to write.
KERNEL find_outliers(const T* x, int* flags, int rows, int cols) {
    FOR_EACH(c, (size_t)cols) {
        bool found = false;
        for (int i = blockIdx.y; i < rows; i += gridDim.y) found |= is_outlier(half_of(x[(size_t)i * cols + c]));
        if (found) flags[c] = 1;
    }
}

#define LISTING 256 // threads of the one block that lists outliers

// outliers = the columns that hold any, in order, and *count how many they are. A thread a run of columns.
KERNEL list_outliers(const int* flags, int* outliers, int* count, int cols) {
    __shared__ int upto[LISTING];
    int me = threadIdx.x, each = (cols + LISTING - 1) / LISTING;
    int first = me * each < cols ? me * each : cols, last = first + each < cols ? first + each : cols, found = 0;
    for (int c = first; c < last; c++) found += flags[c];
    upto[me] = found;
    for (int step = 1; step < LISTING; step *= 2) {
        __syncthreads();
        int more = me >= step ? upto[me - step] : 0;
        __syncthreads();
        upto[me] += more;
    }
    int at = upto[me] - found;
    for (int c = first; c < last; c++)
        if (flags[c]) outliers[at++] = c;
    if (me == LISTING - 1) *count = at;
}

// codes = the other columns as whole numbers in -127..=127, zero in those of outliers; absmax = the largest magnitude of each row that is
// no outlier. One block a row.
KERNEL quantise(const T* x, const int* flags, f16* codes, float* absmax, int cols) {
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
    for (int c = threadIdx.x; c < cols; c += blockDim.x)
        codes[at + c] = Round<f16>::of(flags[c] ? 0.0f : rintf(half_of(x[at + c]) * scale));
}

#define TILE 64     // rows and columns of y that a block of 16 x 16 threads finishes
#define TOGETHER 16 // outliers that it takes at once

// y (m, n), the product of the codes, to its values: y *= rows[i] scales[j] / 127^2, and where there are outliers the sum over their
// columns, in order, of activations and decoded weights, both rounded to f16. W is (n, k) codes with a scale a row.
KERNEL finish(const T* x, const unsigned char* codes, const float* scales, float unit, const float* rows, const int* outliers,
              const int* count, float* y, int m, int n, int k) {
    __shared__ float xs[TOGETHER][TILE], ws[TOGETHER][TILE];
    int across = threadIdx.x % 16, down = threadIdx.x / 16, row = blockIdx.y * TILE, col = blockIdx.x * TILE, many = *count;
    float sums[4][4];
    for (int a = 0; a < 4; a++)
        for (int b = 0; b < 4; b++) sums[a][b] = 0.0f;
    for (int from = 0; from < many; from += TOGETHER) {
        int some = many - from < TOGETHER ? many - from : TOGETHER;
        __syncthreads();
        for (int e = threadIdx.x; e < some * TILE; e += blockDim.x) {
            int s = e / TILE, j = e % TILE, c = outliers[from + s];
            bool in_x = row + j < m, in_w = col + j < n;
            xs[s][j] = in_x ? half_of(x[(size_t)(row + j) * k + c]) : 0.0f;
            float code = in_w ? (float)(signed char)codes[(size_t)(col + j) * k + c] : 0.0f;
            ws[s][j] = in_w ? rounded<f16>(code * scales[col + j] * unit) : 0.0f;
        }
        __syncthreads();
        for (int s = 0; s < some; s++)
#pragma unroll
            for (int a = 0; a < 4; a++)
#pragma unroll
                for (int b = 0; b < 4; b++) sums[a][b] += xs[s][down + 16 * a] * ws[s][across + 16 * b];
    }
#pragma unroll
    for (int a = 0; a < 4; a++)
#pragma unroll
        for (int b = 0; b < 4; b++) {
            int i = row + down + 16 * a, j = col + across + 16 * b;
            if (i >= m || j >= n) continue;
            float v = y[(size_t)i * n + j] * (rows[i] * scales[j] * (1.0f / (127.0f * 127.0f)));
            y[(size_t)i * n + j] = many > 0 ? v + sums[a][b] : v;
        }
}
