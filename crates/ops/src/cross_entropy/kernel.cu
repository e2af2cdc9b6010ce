// out[i] = x[rows[first + i]], rows of `cols`.
KERNEL gather_rows(const T* x, const unsigned* rows, T* out, int cols, int first, unsigned long long n) {
    FOR_EACH(i, n) out[i] = x[(size_t)rows[first + i / cols] * cols + i % cols];
}

// out[rows[first + i]] = x[i].
KERNEL scatter_rows(const T* x, const unsigned* rows, T* out, int cols, int first, unsigned long long n) {
    FOR_EACH(i, n) out[(size_t)rows[first + i / cols] * cols + i % cols] = x[i];
}

// One block a row of logits, the first of which is row `first` of targets and losses: losses[row] = log(sum exp(l)) - l[target], and, if wanted, grad = scale * (softmax - onehot), rounded.
KERNEL softmax_loss(const float* logits, const unsigned* targets, float* losses, T* grad, int vocab, int first,
                    float scale) {
    __shared__ float scratch[32];
    const float* row = logits + (size_t)blockIdx.x * vocab;
    int target = (int)targets[first + blockIdx.x];
    float largest = -INF;
    for (int j = threadIdx.x; j < vocab; j += blockDim.x) largest = fmaxf(largest, row[j]);
    largest = block_max(largest, scratch);
    float sum = 0.0f;
    for (int j = threadIdx.x; j < vocab; j += blockDim.x) sum += expf(row[j] - largest);
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) losses[first + blockIdx.x] = largest + logf(sum) - row[target];
    if (!grad) return;
    float inverse = 1.0f / sum;
    for (int j = threadIdx.x; j < vocab; j += blockDim.x) {
        float p = expf(row[j] - largest) * inverse;
        grad[(size_t)blockIdx.x * vocab + j] = Round<T>::of(scale * (j == target ? p - 1.0f : p));
    }
}

// mean = the sum of all losses / denominator, summed in double: each of the 256 threads its share, then theirs in order. One block.
KERNEL mean_loss(const float* losses, float* mean, int n, float denominator) {
    __shared__ double sums[256];
    double sum = 0.0;
    for (int i = threadIdx.x; i < n; i += blockDim.x) sum += (double)losses[i];
    sums[threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.x > 0) return;
    for (int i = 1; i < (int)blockDim.x; i++) sum += sums[i];
    mean[0] = (float)(sum / (double)denominator);
}
