// The gradients of attention on tensor cores in one pass over the scores: rows are keys, tiles queries. Behind `scores.cuh`.
//
// A block has the gradients of its keys and of their values in registers. That of a tile's queries is a sum over blocks of keys: they add to it
// in turn, in f32 in memory, beginning with the block on the diagonal and ending with the one of the first keys that the tile sees, which
// writes the result. So its order is that of the shape. Whoever waits for its turn waits for a block of a lower number, and blocks begin in the order
// of their numbers; nobody is late, since a block that began with another comes to a tile one round later than the one before it did.
//
// What a block has for a tile's queries is multiplied one round later than the rest, while the next tile's scores are weighed: their slopes
// are in shared memory then, and need no barrier of their own.

// Queries a tile: so many that their gradient is twice 64 rows of 64 channels, four warps each.
#define QUERIES_OF(DIM) ((DIM) == 64 ? 128 : 64)

#if T_KIND > 0

constexpr int BLOCK = 256, WARPS = BLOCK / 32;

// Which of the two parts of a tile's gradient is the warp's.
__device__ __forceinline__ int part_of_warp() { return __shfl_sync(0xffffffffu, threadIdx.x / 128, 0); }
template <int DIM> __device__ __forceinline__ int part_row(int part) { return DIM == 64 ? 64 * part : 0; }
template <int DIM> __device__ __forceinline__ int part_channel(int part) { return DIM == 64 ? 0 : 64 * part; }

// c (16 a warp, 64 channels) = the warp's part of slopesᵀ keys; both tiles have ROWS rows.
template <int DIM, bool BY_WGMMA>
__device__ __forceinline__ void multiply_columns(float (&c)[1][8][4], const T* slopes, const T* keys, int part) {
    int row = part_row<DIM>(part), channel = part_channel<DIM>(part);
#if defined(WGMMA_IS_KNOWN)
    if constexpr (BY_WGMMA) {
#pragma unroll
        for (int k = 0; k < ROWS; k += 16)
            Products<8>::of_both_columns(c[0], describe(slopes + (row * ROWS + k * 64), 0), describe(keys + (channel * ROWS + k * 64), 0), k > 0);
    } else
#endif
    {
        int lane = threadIdx.x & 31;
        row += threadIdx.x / 32 % 4 * 16;
#pragma unroll
        for (int n = 0; n < 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) c[0][n][i] = 0.0f;
#pragma unroll
        for (int k = 0; k < ROWS; k += 16) {
            unsigned a[4], b[4];
            load_matrices<true>(a, slopes + place<ROWS>(k + (lane & 7) + ((lane & 16) >> 1), row / 8 + ((lane >> 3) & 1)));
#pragma unroll
            for (int n = 0; n < 8; n += 2) {
                right_of_columns<ROWS>(b, keys, k, channel + 8 * n);
                mma(c[0][n], a, b);
                mma(c[0][n + 1], a, b + 2);
            }
        }
    }
}

// Until the word is there that says so many blocks have added; then what they added may be read.
__device__ __forceinline__ void wait_for_turn(const unsigned* added, unsigned blocks) {
    if ((threadIdx.x & 31) == 0) {
#if defined(CUDA_ON_CPU)
        cpu::wait_until(added, blocks);
#else
        unsigned seen;
        do asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(added) : "memory");
        while (seen < blocks);
#endif
    }
    __syncwarp();
}
// What the warp wrote is there for whoever sees the word.
__device__ __forceinline__ void end_turn(unsigned* added, unsigned blocks) {
    __syncwarp();
    if ((threadIdx.x & 31) == 0) {
#if defined(CUDA_ON_CPU)
        cpu::publish(added, blocks);
#else
        asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(added), "r"(blocks) : "memory");
#endif
    }
}
// Past the first cache, which does not know what other multiprocessors write.
__device__ __forceinline__ Pack<float> load_fresh(const Pack<float>* from) {
#if defined(CUDA_ON_CPU)
    return *from;
#else
    Pack<float> x;
    asm volatile("ld.global.cg.v4.f32 {%0,%1,%2,%3}, [%4];" : "=f"(x.v[0]), "=f"(x.v[1]), "=f"(x.v[2]), "=f"(x.v[3]) : "l"(from) : "memory");
    return x;
#endif
}

// A warp's 16 rows of 64 channels, each number times a factor, to memory by 16 bytes: lanes of a row exchange pieces of eight channels.
__device__ __forceinline__ void store_rows(T* out, const float (&c)[1][8][4], float factor, int rows, int channels, int stride) {
    int lane = threadIdx.x & 31, g = lane / 4, t = lane & 3;
#pragma unroll
    for (int half = 0; half < 2; half++)
#pragma unroll
        for (int n = 0; n < 8; n += 4) {
            unsigned mine[4];
            uint4 piece;
#pragma unroll
            for (int j = 0; j < 4; j++) mine[j] = pack(c[0][n + j][2 * half] * factor, c[0][n + j][2 * half + 1] * factor);
            // Round r swaps with the lane r away: it gets its part of the piece that is this lane's, and this lane likewise.
            unsigned got[4];
#pragma unroll
            for (int r = 0; r < 4; r++) {
                int other = t ^ r;
                unsigned theirs = other == 0 ? mine[0] : other == 1 ? mine[1] : other == 2 ? mine[2] : mine[3];
                got[r] = r == 0 ? theirs : __shfl_xor_sync(0xffffffffu, theirs, r);
            }
            // got[r] is of channels 2 (t ^ r).
            auto of = [&](int i) { return t == i ? got[0] : (t ^ 1) == i ? got[1] : (t ^ 2) == i ? got[2] : got[3]; };
            piece.x = of(0), piece.y = of(1), piece.z = of(2), piece.w = of(3);
            int row = g + 8 * half;
            if (row < rows && 8 * (n + t) < channels) *(uint4*)(out + (size_t)row * stride + 8 * (n + t)) = piece;
        }
}

template <int DIM, bool BY_WGMMA>
__device__ __forceinline__ void gradients_of(T* shared, const T* q, const T* k, const T* v, const T* dy, const float* lse, const float* d,
                                             const Segment& of, float* sums, unsigned* added, int first_kv_head, T* dq, int dq_stride, T* dk,
                                             int dk_stride, T* dv, int dv_stride, const Shape& s) {
    constexpr int QUERIES = QUERIES_OF(DIM), TURNS = BY_WGMMA ? 3 : 2, TILE = QUERIES * DIM;
    T *keys = shared, *values = keys + ROWS * DIM, *tiles = values + ROWS * DIM, *slope_tiles = tiles + TURNS * 2 * TILE;
    float* numbers = (float*)(slope_tiles + 2 * ROWS * QUERIES);
    int lane = threadIdx.x & 31, g = lane / 4, t = lane & 3, warp = threadIdx.x / 32, own = warp * 16, part = part_of_warp();
    int kv_head = first_kv_head + blockIdx.x, group = s.heads / s.kv_heads, kv_stride = s.kv_heads * s.dim;
    // The last keys first: whoever adds before this block has a lower number.
    int length = of.count, first = (gridDim.y - 1 - blockIdx.y) * ROWS;
    if (first >= length) return;
    int last = s.window > 0 ? min(first + ROWS - 1 + s.window, length) : length;
    int tiles_a_head = (last - first + QUERIES - 1) / QUERIES, lowest = first + own, highest = lowest + 15;
    int group_first = BY_WGMMA ? first + 64 * part : lowest, group_last = BY_WGMMA ? group_first + 63 : highest;
    // A round has a tile of a query head.
    struct Round {
        int head, tile;
    };
    auto following = [&](Round it) { return it.tile + QUERIES < last ? Round{it.head, it.tile + QUERIES} : Round{it.head + 1, first}; };
    auto load = [&](Round it, int turn) {
        load_queries<DIM, QUERIES>(tiles + turn * 2 * TILE, numbers + turn * 2 * QUERIES, q, dy, lse, d, of, it.head, it.tile, s);
    };
    // The block's place among those that add to its tile, whether it is the last, where the sums and the word of the warp are.
    auto place_of = [&](Round it) { return it.tile / ROWS - first / ROWS; };
    auto is_last = [&](Round it) { return first_key(s, it.tile) / ROWS == first / ROWS; };
    // Tiles of the sequences before: each has less than one that is not whole.
    auto number_of = [&](Round it) { return of.first / QUERIES + blockIdx.z + it.tile / QUERIES; };
    auto word_of = [&](Round it) { return added + ((size_t)number_of(it) * s.heads + it.head) * WARPS + warp; };
    auto sums_of = [&](Round it) {
        size_t strip = (size_t)number_of(it) * (gridDim.x * group) + (it.head - first_kv_head * group);
        return (Pack<float>*)(sums + strip * TILE) + threadIdx.x;
    };
    const float unit = s.scale * LOG2_E;
    const Bend bend(s);
    float key_acc[1][DIM / 8][4] = {}, value_acc[1][DIM / 8][4] = {}, c[1][8][4];
    Pack<float> before[8];
    auto take_turn = [&](Round it) {
        int place = place_of(it);
        if (place > 0) wait_for_turn(word_of(it), place);
        const Pack<float>* from = sums_of(it);
#pragma unroll
        for (int n = 0; n < 8; n++) before[n] = place > 0 ? load_fresh(from + n * BLOCK) : Pack<float>{};
    };
    auto add_queries = [&](Round it) {
        wait_for<0>(c);
#pragma unroll
        for (int n = 0; n < 8; n++)
#pragma unroll
            for (int j = 0; j < 4; j++) c[0][n][j] = before[n].v[j] += c[0][n][j];
        if (is_last(it)) {
            int row = it.tile + part_row<DIM>(part) + warp % 4 * 16, channel = part_channel<DIM>(part);
            T* out = dq + it.head * s.dim + ((size_t)of.first + row) * dq_stride + channel;
            store_rows(out, c, s.scale, length - row, s.dim - channel, dq_stride);
        } else {
            Pack<float>* to = sums_of(it);
#pragma unroll
            for (int n = 0; n < 8; n++) to[n * BLOCK] = before[n];
        }
    };
    auto give_turn = [&](Round it) {
        if (!is_last(it)) end_turn(word_of(it), place_of(it) + 1);
    };
    load_rows<DIM, ROWS, BLOCK>(keys, k + kv_head * s.dim, of.first, first, length, kv_stride, s.dim);
    load_rows<DIM, ROWS, BLOCK>(values, v + kv_head * s.dim, of.first, first, length, kv_stride, s.dim);
    unsigned weights[QUERIES / 16][1][4], slopes[QUERIES / 16][1][4];
    int count = group * tiles_a_head, turn = 0;
    Round now{kv_head * group, first}, before_now = now, next = following(now);
    load(now, 0);
    for (int i = 0; i < count; i++) {
        wait_for_copies();
        __syncthreads();
        int next_turn = turn + 1 < TURNS ? turn + 1 : 0, tile = now.tile;
        if (i + 1 < count) load(next, next_turn);
        const T* queries = tiles + turn * 2 * TILE;
        const T* grads = queries + TILE;
        const float *measure = numbers + turn * 2 * QUERIES, *along = measure + QUERIES;
        float p[1][QUERIES / 8][4], slope[1][QUERIES / 8][4];
        // Some query of the tile sees a key of the products.
        bool seen = tile + QUERIES > group_first && (s.window == 0 || tile < group_last + s.window);
        begin_products();
        if (seen) multiply_rows<DIM, ROWS, BY_WGMMA>(p, keys, own, queries);
        end_products();
        if (i > 0) multiply_columns<DIM, BY_WGMMA>(c, slope_tiles + (i + 1) % 2 * ROWS * QUERIES, keys, part);
        end_products();
        if (seen) {
            wait_for<1>(p);
            bend(p);
            hide<true>(s, p, lowest, tile);
            if (!Bend::BENDS) to_probabilities(p, unit, measure);
        }
        if (i > 0) take_turn(before_now), add_queries(before_now);
        T* slope_tile = slope_tiles + i % 2 * ROWS * QUERIES;
        if (seen) {
            begin_products();
            multiply_rows<DIM, ROWS, BY_WGMMA>(slope, values, own, grads);
            end_products();
            if (Bend::BENDS) {
                wait_for<0>(slope);
                bend_slopes(slope, p, bend, along);
                to_probabilities(p, unit, measure);
            }
            as_left(weights, p);
            begin_products();
            add_weighted<DIM, BY_WGMMA>(value_acc, weights, grads);
            end_products();
            wait_for<1>(slope);
            to_slopes(slope, p, along);
            as_left(slopes, slope);
            begin_products();
            add_weighted<DIM, BY_WGMMA>(key_acc, slopes, queries);
            end_products();
        }
        if (i > 0) give_turn(before_now);
#pragma unroll
        for (int n = 0; n < QUERIES / 8; n++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                unsigned pair = seen ? slopes[n / 2][0][n % 2 * 2 + half] : 0u;
                *(unsigned*)(slope_tile + place<ROWS>(own + 8 * half + g, n) + 2 * t) = pair;
            }
        before_now = now, now = next, next = following(next), turn = next_turn;
    }
    wait_for_copies();
    __syncthreads();
    begin_products();
    multiply_columns<DIM, BY_WGMMA>(c, slope_tiles + (count + 1) % 2 * ROWS * QUERIES, keys, part);
    end_products();
    take_turn(before_now);
    add_queries(before_now);
    give_turn(before_now);
    wait_for<0>(value_acc);
    wait_for<0>(key_acc);
    const float whole[1][2] = {{1.0f, 1.0f}}, factor[1][2] = {{s.scale, s.scale}};
    __syncthreads();
    store<DIM>(dv + kv_head * s.dim, value_acc, whole, values, own, of.first, first, length, dv_stride, s.dim);
    store<DIM>(dk + kv_head * s.dim, key_acc, factor, keys, own, of.first, first, length, dk_stride, s.dim);
}
#endif

// grid: (heads, ceil(longest / ROWS), sequences). Nobody has added to the gradient of the block's queries yet: a word a tile, head and warp.
KERNEL along(const T* dy, const T* y, int y_stride, const unsigned* segments, float* d, unsigned* added, int heads, int dim) {
#if T_KIND > 0
    const Segment of = ((const Segment*)segments)[blockIdx.z];
    sums_along<16>(dy, y, y_stride, of, d, heads, dim);
    int queries = dim <= 64 ? QUERIES_OF(64) : QUERIES_OF(128), first = blockIdx.y * ROWS;
    int tile = first + threadIdx.x / WARPS * queries;
    if (tile < min(first + ROWS, (int)of.count))
        added[((size_t)(of.first / queries + blockIdx.z + tile / queries) * heads + blockIdx.x) * WARPS + threadIdx.x % WARPS] = 0;
#endif
}

// grid: (kv_heads from the first on, ceil(longest / ROWS), sequences); eight warps a block, of 16 rows each. `sums`: QUERIES_OF(DIM) rows of DIM
// channels for each tile and each of these heads' query heads, in an order of their own; `added` as `along` leaves it. `turns`: tiles of queries that
// shared memory holds at a time: 3 on Hopper, where products run on, else 2.
KERNEL gradients(const T* q, const T* k, const T* v, const T* dy, const float* lse, const float* d, const unsigned* segments, float* sums,
                 unsigned* added, int first_kv_head, T* dq, int dq_stride, T* dk, int dk_stride, T* dv, int dv_stride,
                 int heads, int kv_heads, int dim, int window, float scale, float cap, int turns) {
#if T_KIND > 0
    const Shape s = AS_SHAPE;
    const Segment of = ((const Segment*)segments)[blockIdx.z];
    SHARED_ARRAY(T, shared);
#if defined(WGMMA_TWIN)
#define BY_TURNS(dim, ...) (turns == 3 ? gradients_of<dim, true>(__VA_ARGS__) : gradients_of<dim, false>(__VA_ARGS__))
#else
#define BY_TURNS(dim, ...) gradients_of<dim, WGMMA>(__VA_ARGS__)
#endif
#define ALL shared, q, k, v, dy, lse, d, of, sums, added, first_kv_head, dq, dq_stride, dk, dk_stride, dv, dv_stride, s
    if (dim <= 64) BY_TURNS(64, ALL);
    else BY_TURNS(128, ALL);
#endif
}
