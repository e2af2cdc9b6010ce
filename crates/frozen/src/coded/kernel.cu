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

struct alignas(16) Eight {
    T v[8];
};

// Nibble j of a word of eight codes.
__device__ __forceinline__ int nibble(uint32_t word, int j) { return word >> (j / 2 * 8 + (j & 1 ? 0 : 4)) & 15; }

#define AT_ONCE 4 // rows whose codes a thread asks for before it decodes any

// Eight elements of so many rows, `step` rows apart, in the columns from c on: codes and scales of all are on their way together, and a
// warp's values go out side by side.
template <int BITS>
__device__ __forceinline__ void decode_eights(const unsigned char* codes, const float* values, const Scales& scales, int shift,
                                              float unit, T* out, int stride, int row, int step, int rows, int cols, int c) {
    uint32_t low[AT_ONCE], high[AT_ONCE];
    float scale[AT_ONCE];
#pragma unroll
    for (int r = 0; r < AT_ONCE; r++) {
        if (row + r * step >= rows) continue;
        size_t i = (size_t)(row + r * step) * cols + c;
        const uint32_t* words = (const uint32_t*)codes + (BITS == 4 ? i / 8 : i / 4);
        low[r] = words[0];
        if (BITS == 8) high[r] = words[1];
        scale[r] = scale_of(scales, shift ? i >> shift : row + r * step);
    }
#pragma unroll
    for (int r = 0; r < AT_ONCE; r++) {
        if (row + r * step >= rows) continue;
        Eight eight;
#pragma unroll
        for (int j = 0; j < 8; j++) {
            int code = BITS == 4 ? nibble(low[r], j) : (j < 4 ? low[r] : high[r]) >> j % 4 * 8 & 255;
            eight.v[j] = Round<T>::of(values[code] * scale[r] * unit);
        }
        *(Eight*)(out + (size_t)(row + r * step) * stride + c) = eight;
    }
}

// Rows of values, `stride` apart from element `start` of out on. A thread decodes eight elements of a row at a time; where rows keep
// eight together, it reads their codes and writes their values at once, with one scale, and goes through several rows together.
KERNEL decode(const unsigned char* codes, const float* tables, const float* absmax, const unsigned char* scale_codes,
              const float* nested, float offset, int shift, int bits, float unit, T* out, unsigned long long start, int stride,
              int rows, int cols) {
    __shared__ float values[256];
    for (int i = threadIdx.x; i < 1 << bits; i += blockDim.x) values[i] = tables[i];
    __syncthreads();
    Scales scales = {absmax, scale_codes, tables + (1 << bits), nested, offset};
    bool aligned = cols % 8 == 0 && stride % 8 == 0 && start % 8 == 0;
    int first = 8 * (blockIdx.x * blockDim.x + threadIdx.x), step = 8 * gridDim.x * blockDim.x;
    for (int row = blockIdx.y; row < rows; row += (aligned ? AT_ONCE : 1) * gridDim.y) {
        for (int c = first; c < cols; c += step) {
            if (aligned && bits == 4) {
                decode_eights<4>(codes, values, scales, shift, unit, out + start, stride, row, gridDim.y, rows, cols, c);
            } else if (aligned) {
                decode_eights<8>(codes, values, scales, shift, unit, out + start, stride, row, gridDim.y, rows, cols, c);
            } else {
                T* to = out + start + (size_t)row * stride + c;
                for (int j = 0; j < 8 && c + j < cols; j++) {
                    size_t e = (size_t)row * cols + c + j;
                    int code = bits == 8 ? codes[e] : e & 1 ? codes[e / 2] & 15 : codes[e / 2] >> 4;
                    to[j] = Round<T>::of(values[code] * scale_of(scales, shift ? e >> shift : row) * unit);
                }
            }
        }
    }
}

#define FEW 8      // rows of x at most
#define WARPS 8    // rows of the weight a block
#define PIECE 1024 // elements of a row that a warp takes at once, 32 a lane

// Where element c of a piece of x lies: eight elements together, and what the lanes read at the same time side by side.
__device__ __forceinline__ int place(int c) { return (c / 8 % 4 * 32 + c / 32) * 8 + c % 8; }

// The sums of one lane over its elements of M rows of x with one row of codes, and then over the lanes, in an order that only the
// shape decides.
template <int M>
__device__ __forceinline__ void dots(const T* x, T* xs, const float* values, const unsigned char* codes, const Scales& scales,
                                     int shift, T* y, int m, int n, int k) {
    int lane = threadIdx.x & 31, row = blockIdx.x * WARPS + (threadIdx.x >> 5);
    float sums[M];
    for (int i = 0; i < M; i++) sums[i] = 0.0f;
    for (int from = 0; from < k; from += PIECE) {
        __syncthreads();
        for (int e = threadIdx.x; e < M * PIECE; e += blockDim.x) {
            int i = e / PIECE, c = e % PIECE;
            bool there = i < m && from + c < k;
            xs[i * PIECE + place(c)] = there ? x[(size_t)i * k + from + c] : Round<T>::of(0.0f);
        }
        __syncthreads();
        int c = from + 32 * lane;
        if (row >= n || c >= k) continue;
        size_t at = (size_t)row * k + c;
        if (k % 32 == 0) {
            uint4 sixteen = *(const uint4*)(codes + at / 2);
            uint32_t words[4] = {sixteen.x, sixteen.y, sixteen.z, sixteen.w};
            float parts[M];
            for (int i = 0; i < M; i++) parts[i] = 0.0f;
#pragma unroll
            for (int w = 0; w < 4; w++) {
                float decoded[8];
#pragma unroll
                for (int j = 0; j < 8; j++) decoded[j] = values[nibble(words[w], j)];
#pragma unroll
                for (int i = 0; i < M; i++) {
                    Eight eight = *(const Eight*)(xs + i * PIECE + (w * 32 + lane) * 8);
#pragma unroll
                    for (int j = 0; j < 8; j++) parts[i] += decoded[j] * to_f32(eight.v[j]);
                }
            }
            float scale = scale_of(scales, at >> shift);
            for (int i = 0; i < M; i++) sums[i] += scale * parts[i];
        } else {
            for (int j = 0; j < 32 && c + j < k; j++) {
                size_t e = at + j;
                float w = values[e & 1 ? codes[e / 2] & 15 : codes[e / 2] >> 4] * scale_of(scales, e >> shift);
                for (int i = 0; i < M; i++) sums[i] += w * to_f32(xs[i * PIECE + place(32 * lane + j)]);
            }
        }
    }
    for (int i = 0; i < M; i++) {
        float sum = warp_sum(sums[i]);
        if (lane == 0 && row < n && i < m) y[(size_t)i * n + row] = Round<T>::of(sum);
    }
}

// y (m, n) = x (m, k) Wᵀ for m of at most 8 and W (n, k) of 4-bit codes in blocks of at least 32: a warp a row of W, 16 bytes of its
// codes a lane.
KERNEL multiply_few(const T* x, const unsigned char* codes, const float* tables, const float* absmax,
                    const unsigned char* scale_codes, const float* nested, float offset, int shift, T* y, int m, int n, int k) {
    __shared__ float values[16];
    __shared__ Eight xs[FEW * PIECE / 8];
    if (threadIdx.x < 16) values[threadIdx.x] = tables[threadIdx.x];
    Scales scales = {absmax, scale_codes, tables + 16, nested, offset};
    if (m == 1) dots<1>(x, (T*)xs, values, codes, scales, shift, y, m, n, k);
    else if (m == 2) dots<2>(x, (T*)xs, values, codes, scales, shift, y, m, n, k);
    else if (m <= 4) dots<4>(x, (T*)xs, values, codes, scales, shift, y, m, n, k);
    else dots<8>(x, (T*)xs, values, codes, scales, shift, y, m, n, k);
}
