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

// The nearest entry of an ascending map; a tie takes the even index, NaN the first.
__device__ __forceinline__ int nearest(const float* map, float x) {
    int low = 0;
    for (int half = 128; half > 0; half >>= 1)
        if (map[low + half] <= x) low += half;
    if (low == 255) return 255;
    float middle = (map[low] + map[low + 1]) * 0.5f;
    return x > middle || (x == middle && (low & 1)) ? low + 1 : low;
}

// bitsandbytes' AdamW on 8-bit moments; the formula is in update8.rs. A block of 256 threads for each 256 elements; `maps` are
// the signed one and the unsigned one.
KERNEL adamw_blockwise8(float* value, const float* grad, unsigned char* first, unsigned char* second, float* first_absmax,
                        float* second_absmax, const float* maps, float scale, float keep, float beta1, float mix1, float beta2,
                        float mix2, float step_size, float eps, unsigned long long n) {
    __shared__ float first_map[256];
    __shared__ float second_map[256];
    __shared__ float scratch[32];
    first_map[threadIdx.x] = maps[threadIdx.x];
    second_map[threadIdx.x] = maps[256 + threadIdx.x];
    __syncthreads();
    size_t i = (size_t)blockIdx.x * 256 + threadIdx.x;
    float m = 0.0f, v = 0.0f;
    if (i < n) {
        float g = grad[i] * scale;
        if (fabsf(g) < INF) {
            m = first_map[first[i]] * first_absmax[blockIdx.x];
            v = second_map[second[i]] * second_absmax[blockIdx.x];
            m = m * beta1 + mix1 * g;
            v = v * beta2 + mix2 * g * g;
            value[i] = (value[i] + step_size * (m / (sqrtf(v) + eps))) * keep;
        }
    }
    // Everybody has read the old ones when the first of these is known.
    float m_max = block_max(fabsf(m), scratch);
    float v_max = block_max(v, scratch);
    if (threadIdx.x == 0) {
        first_absmax[blockIdx.x] = m_max;
        second_absmax[blockIdx.x] = v_max;
    }
    if (i >= n) return;
    int code = nearest(first_map, m * (1.0f / m_max));
    // A rounding that changes the sign, or makes it zero, gives way to the neighbour on the right side.
    if ((__float_as_int(first_map[code]) ^ __float_as_int(m)) < 0) code += m > 0.0f ? 1 : -1;
    first[i] = (unsigned char)code;
    second[i] = (unsigned char)nearest(second_map, v * (1.0f / v_max));
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
