// AdamW in f32, whatever T is; the formula is in update.rs.

KERNEL adamw(float* value, const float* grad, float* first, float* second, float scale, float keep, float mix1, float beta2,
             float mix2, float step_size, float correction2, float eps, unsigned long long n) {
    FOR_EACH(i, n) {
        float g = grad[i] * scale, m = first[i], v = second[i];
        m += (g - m) * mix1;
        v = v * beta2 + mix2 * g * g;
        value[i] = value[i] * keep - step_size * m / (sqrtf(v) / correction2 + eps);
        first[i] = m;
        second[i] = v;
    }
}

// sums[block] = the sum of squares of the block's share, in f64. Blocks of 256 threads; the shares do not depend on the device.
KERNEL sum_of_squares(const float* x, double* sums, unsigned long long n) {
    __shared__ double parts[256];
    double sum = 0.0;
    FOR_EACH(i, n) sum += (double)x[i] * x[i];
    parts[threadIdx.x] = sum;
    for (int half = 128; half > 0; half >>= 1) {
        __syncthreads();
        if (threadIdx.x < half) parts[threadIdx.x] += parts[threadIdx.x + half];
    }
    if (threadIdx.x == 0) sums[blockIdx.x] = parts[0];
}
