// The rows of one expert, which begin at `first` among those of all: order[first + r] is the token of its row r. Rows of `channels`.
KERNEL take(const T* x, const unsigned* order, unsigned long long first, T* y, int channels, unsigned long long n) {
    FOR_EACH(i, n) {
        size_t row = i / channels, channel = i % channels;
        y[i] = x[(size_t)order[first + row] * channels + channel];
    }
}

// Adds each row to that of its token; in one launch no token occurs twice.
KERNEL add_rows(const T* x, const unsigned* order, unsigned long long first, float* sum, int channels, unsigned long long n) {
    FOR_EACH(i, n) {
        size_t row = i / channels, channel = i % channels;
        sum[(size_t)order[first + row] * channels + channel] += to_f32(x[i]);
    }
}

// y = w x, a weight a row.
KERNEL weigh(const T* x, const float* w, T* y, int channels, unsigned long long n) {
    FOR_EACH(i, n) y[i] = Round<T>::of(to_f32(x[i]) * w[i / channels]);
}

// dw = the product of a row with another. One block a row.
KERNEL dots(const T* dy, const T* x, float* dw, int channels) {
    __shared__ float scratch[32];
    size_t at = (size_t)blockIdx.x * channels;
    float sum = 0.0f;
    for (int c = threadIdx.x; c < channels; c += blockDim.x) sum += to_f32(dy[at + c]) * to_f32(x[at + c]);
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) dw[blockIdx.x] = sum;
}
