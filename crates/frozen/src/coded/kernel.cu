// Matrices of codes: element i of the flat, row-major matrix is values[code i] * scale of its block * unit. Codes have 4 bits (element
// 2k in the high nibble of byte k) or 8. `tables` holds the 2^bits values and, where scales are doubly quantised, 256 values of their
// codes. A block is 2^shift elements, or a row where shift is 0.

struct Scales {
    const float* absmax;
    const unsigned char* codes;
    const float* map;
    const float* nested;
    float offset;
};
__device__ __forceinline__ float scale_of(const Scales& s, size_t block) {
    if (s.absmax) return s.absmax[block];
    // Rounded twice, as on the CPU: left to itself the compiler makes one operation of them.
    return s.codes ? __fadd_rn(__fmul_rn(s.map[s.codes[block]], s.nested[block >> 8]), s.offset) : 1.0f;
}

// Nibble j of a word of eight codes.
__device__ __forceinline__ int nibble(uint32_t word, int j) { return word >> (j / 2 * 8 + (j & 1 ? 0 : 4)) & 15; }

#define AT_ONCE 4 // rows that a thread decodes together

// Codes of eight elements in the same columns of so many rows, from `row` on, and what their scales are made of: all on its way before
// any of it is used.
template <int BITS> struct Eights {
    uint32_t low[AT_ONCE], high[AT_ONCE], scale[AT_ONCE];
    float nested[AT_ONCE];

    __device__ __forceinline__ void load(const unsigned char* codes, const Scales& s, int shift, int row, int rows, int cols, int c) {
#pragma unroll
        for (int r = 0; r < AT_ONCE; r++) {
            if (row + r >= rows) continue;
            size_t i = (size_t)(row + r) * cols + c, block = shift ? i >> shift : row + r;
            const uint32_t* words = (const uint32_t*)codes + (BITS == 4 ? i / 8 : i / 4);
            low[r] = words[0];
            if (BITS == 8) high[r] = words[1];
            if (s.absmax) nested[r] = s.absmax[block];
            else if (s.codes) scale[r] = s.codes[block], nested[r] = s.nested[block >> 8];
        }
    }
    // A warp's values go out side by side.
    __device__ __forceinline__ void store(const float* values, const float* map, const Scales& s, float unit, T* out, int stride,
                                          int row, int rows, int c) const {
#pragma unroll
        for (int r = 0; r < AT_ONCE; r++) {
            if (row + r >= rows) continue;
            // Rounded twice, as on the CPU: left to itself the compiler makes one operation of them.
            float by = s.absmax ? nested[r] : s.codes ? __fadd_rn(__fmul_rn(map[scale[r]], nested[r]), s.offset) : 1.0f;
            Pack<T> halves[8 / Pack<T>::N];
#pragma unroll
            for (int j = 0; j < 8; j++) {
                int code = BITS == 4 ? nibble(low[r], j) : (j < 4 ? low[r] : high[r]) >> j % 4 * 8 & 255;
                float value = values[code] * by;
                halves[j / Pack<T>::N].v[j % Pack<T>::N] = Round<T>::of(unit == 1.0f ? value : value * unit);
            }
            Pack<T>* to = (Pack<T>*)(out + (size_t)(row + r) * stride + c);
#pragma unroll
            for (int j = 0; j < 8 / Pack<T>::N; j++) to[j] = halves[j];
        }
    }
};

template <int BITS>
__device__ __forceinline__ void decode_rows(const unsigned char* codes, const float* tables, float* values, const Scales& scales,
                                            int shift, float unit, T* out, int stride, int rows, int cols) {
    int c = 8 * (blockIdx.x * blockDim.x + threadIdx.x), step = 8 * gridDim.x * blockDim.x, row = AT_ONCE * blockIdx.y;
    Eights<BITS> eights;
    // The first codes are on their way while the tables are.
    bool any = c < cols && row < rows;
    if (any) eights.load(codes, scales, shift, row, rows, cols, c);
    int known = (1 << BITS) + (scales.codes ? 256 : 0);
    for (int i = threadIdx.x; i < known; i += blockDim.x) values[i] = tables[i];
    __syncthreads();
    while (any) {
        eights.store(values, values + (1 << BITS), scales, unit, out, stride, row, rows, c);
        c += step;
        if (c >= cols) c = 8 * (blockIdx.x * blockDim.x + threadIdx.x), row += AT_ONCE * gridDim.y;
        any = row < rows;
        if (any) eights.load(codes, scales, shift, row, rows, cols, c);
    }
}

// Rows of values, `stride` apart from element `start` of out on. A thread decodes eight elements of a row at a time; where rows keep
// eight together, it reads their codes and writes their values at once, with one scale, and goes through several rows together.
KERNEL decode(const unsigned char* codes, const float* tables, const float* absmax, const unsigned char* scale_codes,
              const float* nested, float offset, int shift, int bits, float unit, T* out, unsigned long long start, int stride,
              int rows, int cols) {
    __shared__ float values[512];
    Scales scales = {absmax, scale_codes, tables + (1 << bits), nested, offset};
    if (cols % 8 == 0 && stride % 8 == 0 && start % 8 == 0) {
        if (bits == 4) decode_rows<4>(codes, tables, values, scales, shift, unit, out + start, stride, rows, cols);
        else decode_rows<8>(codes, tables, values, scales, shift, unit, out + start, stride, rows, cols);
        return;
    }
    for (int row = blockIdx.y; row < rows; row += gridDim.y)
        for (int c = blockIdx.x * blockDim.x + threadIdx.x; c < cols; c += gridDim.x * blockDim.x) {
            size_t e = (size_t)row * cols + c;
            int code = bits == 8 ? codes[e] : e & 1 ? codes[e / 2] & 15 : codes[e / 2] >> 4;
            out[start + (size_t)row * stride + c] = Round<T>::of(tables[code] * scale_of(scales, shift ? e >> shift : row) * unit);
        }
}

// Subnormals to zero, as bitsandbytes' kernels are built to take them.
__device__ __forceinline__ float flushed(float x) {
    int bits = __float_as_int(x);
    return (bits & 0x7f800000) == 0 ? __int_as_float(bits & (int)0x80000000u) : x;
}

// Codes of four bits for n elements, two a byte with the first in the high nibble, and the largest size of each block of `size`: x times
// the reciprocal of that has as its rank the number of the 15 thresholds of `rule` that it exceeds, and nibble `rank` is stored. rule[15]
// takes the place of NaN. Element n, if n is odd, is 0. A warp a block.
KERNEL encode4(const T* x, const float* rule, unsigned char* codes, float* absmax, unsigned long long nibbles, int size,
               unsigned long long n) {
    int lane = threadIdx.x & 31;
    size_t blocks = (n + size - 1) / size;
    FOR_EACH(thread, blocks * 32) {
        size_t block = thread >> 5, first = block * size, end = first + size < n ? first + size : n;
        // Sizes are ordered as their bits are, and NaN is left out.
        unsigned largest = 0;
        for (size_t i = first + lane; i < end; i += 32) {
            unsigned bits = (unsigned)__float_as_int(to_f32(x[i])) & 0x7fffffffu;
            largest = bits <= 0x7f800000u && bits > largest ? bits : largest;
        }
        for (int o = 16; o > 0; o >>= 1) {
            unsigned other = __shfl_xor_sync(0xffffffffu, largest, o);
            largest = other > largest ? other : largest;
        }
        float scale = flushed(__int_as_float((int)largest)), by = flushed(1.0f / scale);
        if (lane == 0) absmax[block] = scale;
        for (size_t i = first + 2 * lane; i < end; i += 64) {
            unsigned byte = 0;
#pragma unroll
            for (int j = 0; j < 2; j++) {
                float v = flushed(i + j < end ? to_f32(x[i + j]) : 0.0f) * by;
                if (v != v) v = rule[15];
                int rank = 0;
#pragma unroll
                for (int t = 0; t < 15; t++) rank += v > rule[t];
                byte = byte << 4 | (unsigned)(nibbles >> 4 * rank & 15);
            }
            codes[i / 2] = (unsigned char)byte;
        }
    }
}
