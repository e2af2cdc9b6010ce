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

#define FEW 8      // rows of x at most
#define WARPS 8    // a block
#define PIECE 1024 // elements of a row that a warp takes at once, 32 a lane

// Where element c of a piece of x lies: eight elements together, and what the lanes read at the same time side by side.
__device__ __forceinline__ int place(int c) { return (c / 8 % 4 * 32 + c / 32) * 8 + c % 8; }

// The codes of a lane's 32 elements of R rows of the weight, and what their scales are made of.
template <int R> struct Codes {
    uint4 sixteen[R];
    uint32_t scale[R];
    float nested[R];

    __device__ __forceinline__ void load(const unsigned char* codes, const Scales& s, int shift, int row, int n, int k, int c) {
#pragma unroll
        for (int r = 0; r < R; r++) {
            scale[r] = 0, nested[r] = 0.0f;
            if (row + r >= n || c >= k) continue;
            size_t at = (size_t)(row + r) * k + c, block = at >> shift;
            sixteen[r] = *(const uint4*)(codes + at / 2);
            if (s.absmax) nested[r] = s.absmax[block];
            else if (s.codes) scale[r] = s.codes[block], nested[r] = s.nested[block >> 8];
        }
    }
    __device__ __forceinline__ float by(const Scales& s, const float* map, int r) const {
        return s.absmax ? nested[r] : s.codes ? __fadd_rn(__fmul_rn(map[scale[r]], nested[r]), s.offset) : 1.0f;
    }
};

// The sums of one lane over its elements of M rows of x with R rows of codes, and then over the lanes, in an order that only the
// shape decides.
template <int M, int R>
__device__ __forceinline__ void dots(const T* x, T* xs, const float* tables, float* values, const unsigned char* codes,
                                     const Scales& scales, int shift, T* y, int m, int n, int k) {
    int lane = threadIdx.x & 31, row = (blockIdx.x * WARPS + (threadIdx.x >> 5)) * R;
    bool whole = k % 32 == 0;
    Codes<R> now, next;
    if (whole) now.load(codes, scales, shift, row, n, k, 32 * lane);
    for (int i = threadIdx.x; i < 16 + 256; i += blockDim.x)
        if (i < 16 || scales.codes) values[i] = tables[i];
    float sums[R][M] = {};
    for (int from = 0; from < k; from += PIECE) {
        int c = from + 32 * lane;
        if (whole) next.load(codes, scales, shift, row, n, k, c + PIECE);
        if (from) __syncthreads();
        bool together = k % 8 == 0 && on_16(x);
        for (int e = 8 * threadIdx.x; e < M * PIECE; e += 8 * blockDim.x) {
            int i = e / PIECE, at = from + e % PIECE;
#pragma unroll
            for (int j = 0; j < 8; j += Pack<T>::N)
                *(Pack<T>*)(xs + i * PIECE + place(e % PIECE) + j) =
                    load_pack(x + (size_t)i * k, at + j, i < m ? k : 0, together && i < m && at + j < k);
        }
        __syncthreads();
        if (row >= n || c >= k) continue;
        if (whole) {
            float parts[R][M] = {};
#pragma unroll
            for (int w = 0; w < 4; w++) {
                float decoded[R][8];
#pragma unroll
                for (int r = 0; r < R; r++) {
                    uint4 all = now.sixteen[r];
                    uint32_t word = w == 0 ? all.x : w == 1 ? all.y : w == 2 ? all.z : all.w;
#pragma unroll
                    for (int j = 0; j < 8; j++) decoded[r][j] = values[nibble(word, j)];
                }
#pragma unroll
                for (int i = 0; i < M; i++) {
                    Eight eight = ((const Eight*)xs)[i * (PIECE / 8) + w * 32 + lane];
#pragma unroll
                    for (int j = 0; j < 8; j++)
#pragma unroll
                        for (int r = 0; r < R; r++) parts[r][i] += decoded[r][j] * to_f32(eight.v[j]);
                }
            }
#pragma unroll
            for (int r = 0; r < R; r++) {
                float by = now.by(scales, values + 16, r);
#pragma unroll
                for (int i = 0; i < M; i++) sums[r][i] += by * parts[r][i];
            }
        } else {
#pragma unroll
            for (int r = 0; r < R; r++)
                for (int j = 0; j < 32 && row + r < n && c + j < k; j++) {
                    size_t e = (size_t)(row + r) * k + c + j;
                    float w = values[e & 1 ? codes[e / 2] & 15 : codes[e / 2] >> 4] * scale_of(scales, e >> shift);
                    for (int i = 0; i < M; i++) sums[r][i] += w * to_f32(xs[i * PIECE + place(32 * lane + j)]);
                }
        }
        now = next;
    }
#pragma unroll
    for (int r = 0; r < R; r++)
#pragma unroll
        for (int i = 0; i < M; i++) {
            float sum = warp_sum(sums[r][i]);
            if (lane == 0 && row + r < n && i < m) y[(size_t)i * n + row + r] = Round<T>::of(sum);
        }
}

// y (m, n) = x (m, k) Wᵀ for m of at most 8 and W (n, k) of 4-bit codes in blocks of at least 32: a warp a row of W, 16 bytes of its
// codes a lane.
KERNEL multiply_few(const T* x, const unsigned char* codes, const float* tables, const float* absmax,
                    const unsigned char* scale_codes, const float* nested, float offset, int shift, T* y, int m, int n, int k) {
    __shared__ float values[16 + 256];
    __shared__ Eight xs[FEW * PIECE / 8];
    Scales scales = {absmax, scale_codes, tables + 16, nested, offset};
    if (m == 2) dots<2, 1>(x, (T*)xs, tables, values, codes, scales, shift, y, m, n, k);
    else if (m <= 4) dots<4, 1>(x, (T*)xs, tables, values, codes, scales, shift, y, m, n, k);
    else dots<8, 1>(x, (T*)xs, tables, values, codes, scales, shift, y, m, n, k);
}

// The same for one row, a warp two rows of W: by itself, since it needs fewer registers.
KERNEL multiply_one(const T* x, const unsigned char* codes, const float* tables, const float* absmax,
                    const unsigned char* scale_codes, const float* nested, float offset, int shift, T* y, int n, int k) {
    __shared__ float values[16 + 256];
    __shared__ Eight xs[PIECE / 8];
    Scales scales = {absmax, scale_codes, tables + 16, nested, offset};
    dots<1, 2>(x, (T*)xs, tables, values, codes, scales, shift, y, 1, n, k);
}
