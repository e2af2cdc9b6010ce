// Products of a few rows, as in generation: what they cost is reading the weights, so those are read once, as they are stored, for all
// rows; and starting kernels, so one launch has up to three matrices of one input and does what is left to do with their outputs.
//
// A matrix is of 4-bit codes, element 2k in the high nibble of byte k: values[code] * scale of its block of 2^shift elements. `tables`
// holds the 16 values and, where scales are doubly quantised, 256 values of their codes. An output is
// y = x Wᵀ + scaling h Bᵀ + bias + onto, summed in f32 and rounded once; the factor B, times its scaling, is rounded to T before, h is T.

// A block has STRIPS times 16 rows of a matrix, for EIGHTS times eight rows of x at most.
#if defined(MORE_ROWS) && T_KIND > 0
constexpr int EIGHTS = 4, STRIPS = 2;
#else
constexpr int EIGHTS = 1, STRIPS = 1;
#endif
constexpr int FEW = 8 * EIGHTS, TILE = 16 * STRIPS;
#define WARPS 8   // of a block
#define RANK 64   // of an update, at most

template <class E> __device__ __forceinline__ E pick(const Three<E>& all, int which) {
    return which == 0 ? all.of[0] : which == 1 ? all.of[1] : all.of[2];
}

// The matrix that a block has rows of, and the first of them.
struct Matrix {
    const unsigned char* codes;
    const float *tables, *absmax;
    const unsigned char* scale_codes;
    const float* nested;
    float offset;
    int shift, n, row;

    // A scale is made of these, which are read long before.
    struct Scale {
        float nested;
        uint32_t code;
    };
    __device__ __forceinline__ Scale scale(size_t block) const {
        if (absmax) return {absmax[block], 0};
        return {nested[block >> 8], scale_codes[block]};
    }
    // Rounded twice, as on the CPU: left to itself the compiler makes one operation of them.
    __device__ __forceinline__ float value(const Scale& s, const float* map) const {
        return absmax ? s.nested : __fadd_rn(__fmul_rn(map[s.code], s.nested), offset);
    }
};

// What a block keeps for the end, when the products of its rows are known.
struct Kept {
    // Rows of each lie an odd number of elements apart, so that all are read at once. There is no room for projections of more than eight
    // rows, which the first cache has.
    float b[TILE * (RANK + 1)], h[EIGHTS > 1 ? 1 : FEW * (RANK + 1)], there[TILE * FEW];
};

// Where a warp's part of output i of row r lies: both the lanes that hold a fragment and those with an output each name 32 banks.
__device__ __forceinline__ int part_of(int r, int i) {
    int eight = r / 16 * EIGHTS + i / 8;
    r %= 16, i %= 8;
    return eight * 128 + i % 2 * 64 + r * 4 + (i / 2 ^ (r / 8 * 2 + i % 2));
}

// Which row of the block's and which of x output o of a block is: a warp's are 16 by two, as `part_of` wants it.
struct Output {
    int r, i;
    __device__ __forceinline__ Output(int o, int m) : r(o / (16 * m) * 16 + o % 16), i(o % (16 * m) / 16) {}
};

// What is added to the products.
struct Addends {
    const void *b, *bias;
    const T *h, *onto;
    int b_kind, bias_kind, rank, first, width;
    float scaling;

    // All of that for the block's rows, of which those behind the last are left out. Waits for the kernel before, which may have written
    // this and x; weights were there long before.
    __device__ __forceinline__ void fetch(Kept& kept, int row, int m, int n) const {
        after_the_one_before();
        for (int o = threadIdx.x; o < m * TILE; o += blockDim.x) {
            const Output it(o, m);
            if (row + it.r < n) kept.there[o] = there(it.i, row + it.r, n);
        }
        if (!b) return;
        for (int e = threadIdx.x; e < TILE * rank; e += blockDim.x)
            if (row + e / rank < n) kept.b[e / rank * (rank | 1) + e % rank] = rounded<T>(scaling * load_any(b, b_kind, (size_t)row * rank + e));
        for (int e = threadIdx.x; EIGHTS == 1 && e < m * rank; e += blockDim.x)
            kept.h[e / rank * (rank | 1) + e % rank] = to_f32(h[(size_t)(e / rank) * width + first + e % rank]);
    }
    // What is there of element `row` of row i already.
    __device__ __forceinline__ float there(int i, int row, int n) const {
        float sum = bias ? load_any(bias, bias_kind, row) : 0.0f;
        return onto ? sum + to_f32(onto[(size_t)i * n + row]) : sum;
    }
    __device__ __forceinline__ float update(const Kept& kept, int i, int r) const {
        float sum = 0.0f;
        if (b)
            for (int j = 0; j < rank; j++) {
                float projected = EIGHTS == 1 ? kept.h[i * (rank | 1) + j] : to_f32(h[(size_t)i * width + first + j]);
                sum += projected * kept.b[r * (rank | 1) + j];
            }
        return sum;
    }
};

#if T_KIND > 0
// On tensor cores, to which eight rows are as good as one: 16 rows of the matrix on the left, rows of x as columns on the right. The
// order in which a product's elements are summed is ours, so a lane takes what lies together: of every block of a scale so many bytes of
// codes, and as many elements of x. Every byte is two elements of a fragment. They come from a table that each lane has of its own, where
// no two lanes are in each other's way.
#define UNIT 64 // elements of a row that are multiplied at once
#define AHEAD 4 // units that are on their way together

struct alignas(16) Multiplier {
    union {
        unsigned table[256 * 32];
        // When all is multiplied.
        float parts[WARPS][TILE * FEW];
    };
    float map[256];
};

// Of rows g and g + 8 of a strip a lane's codes. BLOCKS is 1 where all elements of a unit have one scale, 2 where its halves have one each.
template <int BLOCKS> struct Ahead {
    uint2 low[AHEAD], high[AHEAD];
    Matrix::Scale scale[BLOCKS][2]; // of the two rows, in the unit whose number is the lane's

    static __device__ __forceinline__ uint2 codes(const unsigned char* of) {
        if (BLOCKS == 1) return *(const uint2*)of;
        return {*(const unsigned*)of, *(const unsigned*)(of + UNIT / 4)};
    }
    __device__ __forceinline__ void load(const Matrix& w, int strip, int unit, int end, int k) {
        int lane = threadIdx.x & 31, g = 16 * strip + lane / 4, t = lane % 4;
        // The rows behind the last are the last once more.
        size_t one = (size_t)min(w.row + g, w.n - 1) * k, two = (size_t)min(w.row + g + 8, w.n - 1) * k;
#pragma unroll
        for (int j = 0; j < AHEAD; j++) {
            if (unit + j >= end) break;
            int at = (unit + j) * UNIT + UNIT / BLOCKS / 4 * t;
            low[j] = codes(w.codes + (one + at) / 2);
            high[j] = codes(w.codes + (two + at) / 2);
        }
        if (unit + t >= end) return;
#pragma unroll
        for (int b = 0; b < BLOCKS; b++) {
            int at = (unit + t) * UNIT + UNIT / BLOCKS * b;
            scale[b][0] = w.scale((one + at) >> w.shift);
            scale[b][1] = w.scale((two + at) >> w.shift);
        }
    }
};

// Two elements of a fragment: byte i of eight.
__device__ __forceinline__ unsigned two_of(const unsigned* table, const uint2& codes, int i, unsigned lane_bytes) {
    unsigned word = i < 4 ? codes.x : codes.y, shifted = i % 4 == 0 ? word << 7 : word >> (8 * (i % 4) - 7);
    return *(const unsigned*)((const unsigned char*)table + ((shifted & 0x7f80u) | lane_bytes));
}

template <int BLOCKS>
__device__ __forceinline__ void multiply_units(float (&sums)[STRIPS][EIGHTS][4], const Multiplier& with, const Ahead<BLOCKS> (&now)[STRIPS],
                                               const Matrix& w, const T* x, int unit, int end, int m, int k) {
    int lane = threadIdx.x & 31, g = lane / 4, t = lane % 4;
    float scale[STRIPS][BLOCKS][2];
#pragma unroll
    for (int s = 0; s < STRIPS; s++)
#pragma unroll
        for (int b = 0; b < BLOCKS; b++)
#pragma unroll
            for (int r = 0; r < 2; r++) scale[s][b][r] = unit + t < end ? w.value(now[s].scale[b][r], with.map) : 0.0f;
#pragma unroll
    for (int j = 0; j < AHEAD; j++) {
        if (unit + j >= end) break;
        unsigned right[EIGHTS][8];
#pragma unroll
        for (int e = 0; e < EIGHTS; e++) {
            uint4 xs[2] = {};
            if (8 * e + g < m) {
                const T* from = x + (size_t)(8 * e + g) * k + (unit + j) * UNIT + UNIT / BLOCKS / 4 * t;
                xs[0] = *(const uint4*)from, xs[1] = *(const uint4*)(from + (BLOCKS == 1 ? 8 : UNIT / 2));
            }
            const unsigned all[8] = {xs[0].x, xs[0].y, xs[0].z, xs[0].w, xs[1].x, xs[1].y, xs[1].z, xs[1].w};
#pragma unroll
            for (int i = 0; i < 8; i++) right[e][i] = all[i];
        }
#pragma unroll
        for (int s = 0; s < STRIPS; s++)
#pragma unroll
            for (int b = 0; b < BLOCKS; b++) {
                float c[EIGHTS][4] = {};
#pragma unroll
                for (int i = 4 / BLOCKS * b; i < 4 / BLOCKS * (b + 1); i++) {
                    unsigned left[4];
#pragma unroll
                    for (int half = 0; half < 2; half++) {
                        left[2 * half] = two_of(with.table, now[s].low[j], 2 * i + half, 4 * lane);
                        left[2 * half + 1] = two_of(with.table, now[s].high[j], 2 * i + half, 4 * lane);
                    }
#pragma unroll
                    for (int e = 0; e < EIGHTS; e++)
                        if (EIGHTS == 1 || 8 * e < m) mma(c[e], left, right[e] + 2 * i);
                }
#pragma unroll
                for (int r = 0; r < 2; r++) {
                    float by = __shfl_sync(0xffffffffu, scale[s][b][r], (lane & ~3) + j);
#pragma unroll
                    for (int e = 0; e < EIGHTS; e++) sums[s][e][2 * r] += by * c[e][2 * r], sums[s][e][2 * r + 1] += by * c[e][2 * r + 1];
                }
            }
    }
}

// A warp's part of the elements.
template <int BLOCKS>
__device__ __forceinline__ void products_of(Multiplier& with, Kept& kept, const Matrix& w, const Addends& more, const T* x, int m, int k) {
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, units = k / UNIT;
    int unit = warp * units / WARPS, end = (warp + 1) * units / WARPS;
    Ahead<BLOCKS> now[STRIPS], next[STRIPS];
#pragma unroll
    for (int s = 0; s < STRIPS; s++) now[s].load(w, s, unit, end, k);
    // A thread a byte: its two values, 32 times.
    if (threadIdx.x < 256) {
        unsigned two = pack(w.tables[threadIdx.x >> 4], w.tables[threadIdx.x & 15]);
        const uint4 four = {two, two, two, two};
        for (int i = 0; i < 8; i++) *(uint4*)(with.table + threadIdx.x * 32 + (i + lane) % 8 * 4) = four;
        if (w.scale_codes) with.map[threadIdx.x] = w.tables[16 + threadIdx.x];
    }
    more.fetch(kept, w.row, m, w.n);
    __syncthreads();
    float sums[STRIPS][EIGHTS][4] = {};
    for (; unit < end; unit += AHEAD) {
#pragma unroll
        for (int s = 0; s < STRIPS; s++) next[s].load(w, s, unit + AHEAD, end, k);
        multiply_units<BLOCKS>(sums, with, now, w, x, unit, end, m, k);
#pragma unroll
        for (int s = 0; s < STRIPS; s++) now[s] = next[s];
    }
    __syncthreads();
    float* to = with.parts[warp];
#pragma unroll
    for (int s = 0; s < STRIPS; s++)
#pragma unroll
        for (int e = 0; e < EIGHTS; e++)
#pragma unroll
            for (int i = 0; i < 4; i++) to[part_of(16 * s + lane / 4 + i / 2 * 8, 8 * e + lane % 4 * 2 + i % 2)] = sums[s][e][i];
}

// The products of the block's rows, a part of the elements each warp's: how many parts.
__device__ __forceinline__ int products(Multiplier& with, Kept& kept, const Matrix& w, const Addends& more, const T* x, int m, int k) {
    if (w.shift > 5) products_of<1>(with, kept, w, more, x, m, k);
    else products_of<2>(with, kept, w, more, x, m, k);
    return WARPS;
}
#else
#define PIECE 1024 // elements of a row that a warp takes at once, 32 a lane
#define OWN (TILE / WARPS) // rows of the matrix that a warp has

struct alignas(16) Multiplier {
    float values[16], map[256];
    float x[FEW * PIECE];
    float parts[1][TILE * FEW];
};

// Where element c of a piece of x lies: four elements together, and what the lanes read at the same time side by side.
__device__ __forceinline__ int place(int c) { return (c / 4 % 8 * 32 + c / 32) * 4 + c % 4; }

template <int M>
__device__ __forceinline__ void dots(Multiplier& with, const Matrix& w, const T* x, int m, int k) {
    int lane = threadIdx.x & 31, own = (threadIdx.x >> 5) * OWN;
    float sums[OWN][M] = {};
    for (int from = 0; from < k; from += PIECE) {
        __syncthreads();
        for (int e = threadIdx.x; e < M * PIECE; e += blockDim.x) {
            int i = e / PIECE, c = e % PIECE;
            with.x[i * PIECE + place(c)] = i < m && from + c < k ? x[(size_t)i * k + from + c] : 0.0f;
        }
        __syncthreads();
        for (int r = 0; r < OWN && w.row + own + r < w.n; r++) {
            size_t row = (size_t)(w.row + own + r) * k;
            for (int j = 0; j < 32 && from + 32 * lane + j < k; j++) {
                size_t e = row + from + 32 * lane + j;
                float by = w.value(w.scale(e >> w.shift), with.map);
                float value = by * with.values[e & 1 ? w.codes[e / 2] & 15 : w.codes[e / 2] >> 4];
#pragma unroll
                for (int i = 0; i < M; i++) sums[r][i] += value * with.x[i * PIECE + place(32 * lane + j)];
            }
        }
    }
#pragma unroll
    for (int r = 0; r < OWN; r++)
#pragma unroll
        for (int i = 0; i < M; i++) {
            float sum = warp_sum(sums[r][i]);
            if (lane == 0) with.parts[0][part_of(own + r, i)] = sum;
        }
}

__device__ __forceinline__ int products(Multiplier& with, Kept& kept, const Matrix& w, const Addends& more, const T* x, int m, int k) {
    if (threadIdx.x < 16) with.values[threadIdx.x] = w.tables[threadIdx.x];
    if (w.scale_codes && threadIdx.x < 256) with.map[threadIdx.x] = w.tables[16 + threadIdx.x];
    more.fetch(kept, w.row, m, w.n);
    if (m == 1) dots<1>(with, w, x, m, k);
    else if (m <= 4) dots<4>(with, w, x, m, k);
    else dots<8>(with, w, x, m, k);
    return 1;
}
#endif

// y (m, n) of up to three matrices (n, k), whose rows the blocks share, TILE each; m is at most FEW. Where T has 16 bits, k is a multiple
// of 64. WARPS warps.
KERNEL multiply(const T* x, Three<const unsigned char*> codes, Three<const float*> tables, Three<const float*> absmax,
                Three<const unsigned char*> scale_codes, Three<const float*> nested, Three<float> offset, Three<int> shift,
                Three<const void*> b, Three<int> b_kind, Three<int> rank, Three<int> first, Three<float> scaling, const T* h, int width,
                Three<const void*> bias, Three<int> bias_kind, Three<const T*> onto, Three<T*> y, Three<int> n, int m, int k) {
    WAITS_LATER;
    __shared__ Multiplier with;
    __shared__ Kept kept;
    int block = blockIdx.x, which = 0;
    while (which < 2 && block >= (pick(n, which) + TILE - 1) / TILE) block -= (pick(n, which) + TILE - 1) / TILE, which++;
    const Matrix w = {pick(codes, which),  pick(tables, which), pick(absmax, which), pick(scale_codes, which),
                      pick(nested, which), pick(offset, which), pick(shift, which),  pick(n, which), block * TILE};
    const Addends more = {pick(b, which),    pick(bias, which), h,    pick(onto, which), pick(b_kind, which), pick(bias_kind, which),
                          pick(rank, which), pick(first, which), width, pick(scaling, which)};
    int parts = products(with, kept, w, more, x, m, k);
    __syncthreads();
    for (int o = threadIdx.x; o < m * TILE; o += blockDim.x) {
        const Output it(o, m);
        if (w.row + it.r >= w.n) continue;
        float product = 0.0f;
        for (int p = 0; p < parts; p++) product += with.parts[p][part_of(it.r, it.i)];
        pick(y, which)[(size_t)it.i * w.n + w.row + it.r] = Round<T>::of(product + more.update(kept, it.i, it.r) + kept.there[o]);
    }
}

#define AT_ONCE 8 // elements of a row of A that a thread takes

template <int M>
__device__ __forceinline__ void project_column(float (*scratch)[8], const T* x, const void* a, int kind, size_t row, T* h, int m, int k,
                                               int width) {
    float sums[M] = {};
    bool together = k % AT_ONCE == 0 && on_16(x) && on_16(a);
#pragma unroll 2
    for (int c = AT_ONCE * threadIdx.x; c < k; c += AT_ONCE * blockDim.x) {
        float own[AT_ONCE];
        if (kind == 0) load_floats((const float*)a + row, c, k, together, own);
        else if (kind == T_KIND) {
#pragma unroll
            for (int j = 0; j < AT_ONCE; j += Pack<T>::N) {
                Pack<T> pack = load_pack((const T*)a + row, c + j, k, together);
                for (int l = 0; l < Pack<T>::N; l++) own[j + l] = to_f32(pack.v[l]);
            }
        } else
            for (int j = 0; j < AT_ONCE; j++) own[j] = c + j < k ? load_any(a, kind, row + c + j) : 0.0f;
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++) own[j] = rounded<T>(own[j]);
#pragma unroll
        for (int i = 0; i < M; i++) {
            if (i >= m) continue;
#pragma unroll
            for (int j = 0; j < AT_ONCE; j += Pack<T>::N) {
                Pack<T> pack = load_pack(x + (size_t)i * k, c + j, k, together);
#pragma unroll
                for (int l = 0; l < Pack<T>::N; l++) sums[i] += own[j + l] * to_f32(pack.v[l]);
            }
        }
    }
#pragma unroll
    for (int i = 0; i < M; i++) {
        float sum = warp_sum(sums[i]);
        if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32][i] = sum;
    }
    __syncthreads();
    if (threadIdx.x >= m) return;
    float sum = 0.0f;
    for (int warp = 0; warp < blockDim.x / 32; warp++) sum += scratch[warp][threadIdx.x];
    h[(size_t)threadIdx.x * width + blockIdx.x] = Round<T>::of(sum);
}

// h (m, width) = x [A ; A' ; A'']ᵀ, each with the rows up to its end and rounded to T; zeros behind them. A block a column and eight rows
// of x, of at most 1024 threads.
KERNEL project(const T* x, Three<const void*> a, Three<int> kind, Three<int> end, T* h, int m, int k, int width) {
    __shared__ float scratch[32][8];
    x += (size_t)8 * blockIdx.y * k, h += (size_t)8 * blockIdx.y * width, m = min(m - 8 * (int)blockIdx.y, 8);
    int column = blockIdx.x, which = column < end.of[0] ? 0 : column < end.of[1] ? 1 : 2;
    if (column >= end.of[2]) {
        if (threadIdx.x < m) h[(size_t)threadIdx.x * width + column] = Round<T>::of(0.0f);
        return;
    }
    size_t row = (size_t)(column - (which == 0 ? 0 : end.of[which - 1])) * k;
    const void* of = pick(a, which);
    int is = pick(kind, which);
    if (m == 1) project_column<1>(scratch, x, of, is, row, h, m, k, width);
    else if (m <= 4) project_column<4>(scratch, x, of, is, row, h, m, k, width);
    else project_column<8>(scratch, x, of, is, row, h, m, k, width);
}

// y (m, n) = base + scaling h Bᵀ + bias + onto, for products of other matrices. A thread an output.
KERNEL add_up(const void* base, int base_kind, const void* b, int b_kind, int rank, int first, float scaling, const T* h, int width,
              const void* bias, int bias_kind, const T* onto, T* y, int m, int n) {
    FOR_EACH(e, (size_t)m * n) {
        int i = e / n, row = e % n;
        float sum = bias ? load_any(bias, bias_kind, row) : 0.0f, update = 0.0f;
        if (onto) sum += to_f32(onto[e]);
        if (b)
            for (int j = 0; j < rank; j++)
                update += to_f32(h[(size_t)i * width + first + j]) * rounded<T>(scaling * load_any(b, b_kind, (size_t)row * rank + j));
        y[e] = Round<T>::of(load_any(base, base_kind, e) + update + sum);
    }
}
