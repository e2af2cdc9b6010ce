// What becomes of the products of attention on tensor cores: caps, which keys are seen, sums over a row, and results in memory.

#define LOG2_E 1.44269504f

#if T_KIND > 0

// The cap of scores that have not met the scale yet: what each is below the cap comes back in the same units, so that whatever follows
// (largest, masks, powers of two) does not know of caps. Before the scores that a row does not see are hidden, since a cap would show them.
//
// tanh(x) is 1 - 2 / (1 + e^2x), whose error of less than 2^-21 does not shrink with x: the score is off by its cap times that.
#if defined(CAPPED)
struct Bend {
    static constexpr bool BENDS = true;
    float in, out;
    __device__ __forceinline__ explicit Bend(const Shape& s) : in(s.scale / s.cap), out(s.cap / s.scale) {}
    template <int M, int N> __device__ __forceinline__ void operator()(float (&scores)[M][N][4]) const {
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int n = 0; n < N; n++)
#pragma unroll
                for (int i = 0; i < 4; i++)
                    scores[m][n][i] = (1.0f - 2.0f * inverse(1.0f + two_to(scores[m][n][i] * in * (2.0f * LOG2_E)))) * out;
    }
    // How a score that was bent changes with what it was; no number less than zero, so that a hidden one has one.
    __device__ __forceinline__ float change(float bent) const { return fmaxf(1.0f - bent * in * (bent * in), 0.0f); }
};
#else
struct Bend {
    static constexpr bool BENDS = false;
    __device__ __forceinline__ explicit Bend(const Shape&) {}
    template <int M, int N> __device__ __forceinline__ void operator()(float (&)[M][N][4]) const {}
    __device__ __forceinline__ float change(float) const { return 1.0f; }
};
#endif

__device__ __forceinline__ bool sees(const Shape& s, int position, int key) {
    return key <= position && key >= first_key(s, position);
}

// Hides what a row of scores does not see: rows from `row` on are queries or, where OF_KEYS, keys, and columns from `column` on the others.
template <bool OF_KEYS, int N>
__device__ __forceinline__ void hide(const Shape& s, float (&p)[1][N][4], int row, int column) {
    int lane = threadIdx.x & 31, g = lane / 4, t = lane & 3;
    int query = OF_KEYS ? column : row, queries = OF_KEYS ? 8 * N : 16, key = OF_KEYS ? row : column, keys = OF_KEYS ? 16 : 8 * N;
    if (query >= key + keys - 1 && key >= first_key(s, query + queries - 1)) return;
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
            int r = row + 8 * (j / 2) + g, c = column + 8 * n + 2 * t + j % 2;
            if (!(OF_KEYS ? sees(s, c, r) : sees(s, r, c))) p[0][n][j] = -INF;
        }
}

// Of kernels whose rows are keys and whose columns are the queries of a tile, each with two numbers: scores to probabilities by `measure`, which
// has lse, and gradients of probabilities to those of scores by `along`, which has D.
template <int N> __device__ __forceinline__ void to_probabilities(float (&p)[1][N][4], float unit, const float* measure) {
    int t = threadIdx.x & 3;
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int j = 0; j < 4; j++) p[0][n][j] = two_to(p[0][n][j] * unit - measure[8 * n + 2 * t + j % 2] * LOG2_E);
}
// Before those, where scores are bent: how they changed is gone when they are probabilities, and there are no registers to keep it in.
template <int N>
__device__ __forceinline__ void bend_slopes(float (&slope)[1][N][4], const float (&bent)[1][N][4], const Bend& bend, const float* along) {
    int t = threadIdx.x & 3;
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int j = 0; j < 4; j++)
            slope[0][n][j] = (slope[0][n][j] - along[8 * n + 2 * t + j % 2]) * bend.change(bent[0][n][j]);
}
template <int N> __device__ __forceinline__ void to_slopes(float (&slope)[1][N][4], const float (&p)[1][N][4], const float* along) {
    int t = threadIdx.x & 3;
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int j = 0; j < 4; j++)
            slope[0][n][j] = p[0][n][j] * (Bend::BENDS ? slope[0][n][j] : slope[0][n][j] - along[8 * n + 2 * t + j % 2]);
}

// A tile of a head's queries and, behind it, of the gradients of their results; and lse and D of each to `numbers`. By 256 threads. A query that
// is not there has zeros for everything, and adds nothing.
template <int DIM, int COUNT>
__device__ __forceinline__ void load_queries(T* to, float* numbers, const T* q, const T* dy, const float* lse, const float* d, const Segment& of,
                                             int head, int tile, const Shape& s) {
    int length = of.count, stride = s.heads * s.dim, row = tile + threadIdx.x % COUNT;
    load_rows<DIM, COUNT, 256>(to, q + head * s.dim, of.first, tile, length, stride, s.dim);
    load_rows<DIM, COUNT, 256>(to + COUNT * DIM, dy + head * s.dim, of.first, tile, length, stride, s.dim);
    const float* from = threadIdx.x < COUNT ? lse : d;
    size_t at = (size_t)s.heads * of.first + (size_t)head * length + row;
    if (threadIdx.x < 2 * COUNT) copy_later<4>(numbers + threadIdx.x, row < length ? from + at : from, row < length);
}

// Over the four lanes that share a row.
__device__ __forceinline__ float row_sum(float v) {
    v += __shfl_xor_sync(0xffffffffu, v, 1);
    return v + __shfl_xor_sync(0xffffffffu, v, 2);
}
__device__ __forceinline__ float row_max(float v) {
    v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, 1));
    return fmaxf(v, __shfl_xor_sync(0xffffffffu, v, 2));
}

// A warp's 16 M rows of results, each times its factor, to memory by way of its rows of a tile of COUNT that nobody reads any more.
template <int DIM, int COUNT = ROWS, int M>
__device__ __forceinline__ void store(T* out, const float (&acc)[M][DIM / 8][4], const float (&factor)[M][2], T* rows, int own,
                                      size_t base, int first, int limit, int stride, int dim) {
    int lane = threadIdx.x & 31, g = lane / 4, t = lane & 3;
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < DIM / 8; n++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float low = acc[m][n][2 * half] * factor[m][half], high = acc[m][n][2 * half + 1] * factor[m][half];
                *(unsigned*)(rows + place<COUNT>(own + 16 * m + 8 * half + g, n) + 2 * t) = pack(low, high);
            }
    __syncwarp();
#pragma unroll
    for (int j = 0; j < M * DIM / 16; j++) {
        int i = lane + 32 * j, row = i / (DIM / 8), piece = i % (DIM / 8);
        if (first + own + row < limit && 8 * piece < dim)
            *(Pack<T>*)(out + (base + first + own + row) * stride + 8 * piece) = *(const Pack<T>*)(rows + place<COUNT>(own + row, piece));
    }
}

// D = rowsum(dy y) of a block's ROWS rows of a head, LANES lanes a row, of eight channels each; rows of y lie `y_stride` apart.
template <int LANES>
__device__ __forceinline__ void sums_along(const T* dy, const T* y, int y_stride, const Segment& of, float* d, int heads, int dim) {
    int head = blockIdx.x, length = of.count, first = blockIdx.y * ROWS, limit = min(ROWS, length - first), piece = threadIdx.x % LANES;
    for (int j = 0; j < ROWS; j += blockDim.x / LANES) {
        int row = j + threadIdx.x / LANES;
        size_t all = of.first + (size_t)first + row, c = head * dim + 8 * piece;
        float sum = 0.0f;
        if (row < limit && 8 * piece < dim) {
            const Pack<T> a = *(const Pack<T>*)(dy + all * heads * dim + c), b = *(const Pack<T>*)(y + all * y_stride + c);
#pragma unroll
            for (int i = 0; i < 8; i++) sum += to_f32(a.v[i]) * to_f32(b.v[i]);
        }
#pragma unroll
        for (int o = LANES / 2; o > 0; o >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, o);
        if (piece == 0 && row < limit) d[(size_t)heads * of.first + (size_t)head * length + first + row] = sum;
    }
}
#endif
