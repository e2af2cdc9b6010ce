// AdamW in f32, whatever T is; the formula is in update.rs.

// What a launch works on: a row for every part of a parameter, blockIdx.y of which a block has one.
struct Span {
    float* value;
    const float* grad;
    // The moments, as numbers or codes, and for codes the largest of each block.
    void* first;
    void* second;
    float* first_absmax;
    float* second_absmax;
    uint64_t n;
    uint64_t decays;
};

KERNEL adamw(const unsigned long long* spans, float scale, float keep, float mix1, float beta2, float mix2, float step_size,
             float correction2, float eps) {
    const Span s = ((const Span*)spans)[blockIdx.y];
    float* first = (float*)s.first;
    float* second = (float*)s.second;
    float kept = s.decays ? keep : 1.0f;
    FOR_EACH(i, s.n) {
        float g = s.grad[i] * scale, m = first[i], v = second[i];
        m += (g - m) * mix1;
        v = v * beta2 + mix2 * g * g;
        s.value[i] = s.value[i] * kept - step_size * m / (sqrtf(v) / correction2 + eps);
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

// bitsandbytes' AdamW on 8-bit moments; the formula is in update8.rs. Blocks of 256 threads take the 256 elements of a block of
// codes one after the other; `maps` are the signed one and the unsigned one.
KERNEL adamw_blockwise8(const unsigned long long* spans, const float* maps, float scale, float keep, float beta1, float mix1,
                        float beta2, float mix2, float step_size, float eps) {
    __shared__ float first_map[256];
    __shared__ float second_map[256];
    __shared__ float scratch[32];
    first_map[threadIdx.x] = maps[threadIdx.x];
    second_map[threadIdx.x] = maps[256 + threadIdx.x];
    __syncthreads();
    const Span s = ((const Span*)spans)[blockIdx.y];
    unsigned char* first = (unsigned char*)s.first;
    unsigned char* second = (unsigned char*)s.second;
    float kept = s.decays ? keep : 1.0f;
    for (size_t block = blockIdx.x; block * 256 < s.n; block += gridDim.x) {
        size_t i = block * 256 + threadIdx.x;
        float m = 0.0f, v = 0.0f;
        if (i < s.n) {
            float g = s.grad[i] * scale;
            if (fabsf(g) < INF) {
                m = first_map[first[i]] * s.first_absmax[block];
                v = second_map[second[i]] * s.second_absmax[block];
                m = m * beta1 + mix1 * g;
                v = v * beta2 + mix2 * g * g;
                s.value[i] = (s.value[i] + step_size * (m / (sqrtf(v) + eps))) * kept;
            }
        }
        // Everybody has read the old ones when the first of these is known.
        float m_max = block_max(fabsf(m), scratch);
        float v_max = block_max(v, scratch);
        if (threadIdx.x == 0) {
            s.first_absmax[block] = m_max;
            s.second_absmax[block] = v_max;
        }
        if (i < s.n) {
            int code = nearest(first_map, m * (1.0f / m_max));
            // A rounding that changes the sign, or makes it zero, gives way to the neighbour on the right side.
            if ((__float_as_int(first_map[code]) ^ __float_as_int(m)) < 0) code += m > 0.0f ? 1 : -1;
            first[i] = (unsigned char)code;
            second[i] = (unsigned char)nearest(second_map, v * (1.0f / v_max));
        }
    }
}

// Arrays in rows of an address and a length. sums[array][block] = the sum of squares of the block's share, in f64. Blocks of 256
// threads; the shares do not depend on the device.
KERNEL sums_of_squares(const unsigned long long* arrays, double* sums) {
    __shared__ double parts[256];
    const float* x = (const float*)arrays[2 * blockIdx.y];
    size_t n = arrays[2 * blockIdx.y + 1];
    double sum = 0.0;
    FOR_EACH(i, n) sum += (double)x[i] * x[i];
    parts[threadIdx.x] = sum;
    for (int half = 128; half > 0; half >>= 1) {
        __syncthreads();
        if (threadIdx.x < half) parts[threadIdx.x] += parts[threadIdx.x + half];
    }
    if (threadIdx.x == 0) sums[blockIdx.y * gridDim.x + blockIdx.x] = parts[0];
}
