// Attention on tensor cores for heads of more than 128 channels, a multiple of 16, padded with zeros to DIM. In f32 the kernels are empty:
// nobody calls them.
//
// Results of 16 rows are 128 registers a lane, so a warp has one kind of result for as many rows: keys and values have a kernel each for
// their gradients, and multiply their scores themselves. Of the rows that go by, a block has one tile of each operand in shared memory,
// and the one comes while the other is multiplied: so eight warps find room in 99 KiB.
//
// Where a block keeps one operand of its rows, it takes ROWS, 16 a warp. Where it keeps two, it takes HALF, and two warps have the same
// 16 rows and a half of each tile: each sums over its half, and in the end they put their sums together.

// Padded channels, rows of a block that keeps two operands, threads of a block.
constexpr int DIM = 256, HALF = 64, THREADS = 256;

#if T_KIND > 0

// A head's channels of TILE rows, for warps that take the whole tile; and for those that take a half, one half after the other.
__device__ __forceinline__ void load_tile(T* tile, const T* x, size_t base, int first, int limit, int stride, int dim) {
    load_rows<DIM, TILE, THREADS>(tile, x, base, first, limit, stride, dim);
}
__device__ __forceinline__ void load_halves(T* tile, const T* x, size_t base, int first, int limit, int stride, int dim) {
    load_rows<DIM, TILE / 2, THREADS>(tile, x, base, first, limit, stride, dim);
    load_rows<DIM, TILE / 2, THREADS>(tile + TILE / 2 * DIM, x, base, first + TILE / 2, limit, stride, dim);
}
// One number for each of TILE queries, zero for those that are not there.
__device__ __forceinline__ void load_numbers(float* to, const float* numbers, int first, int limit) {
    int row = first + threadIdx.x;
    if (threadIdx.x < TILE) copy_later<4>(to + threadIdx.x, row < limit ? numbers + row : numbers, row < limit);
}

// Until the copies that were asked for are there and nobody reads any more what the next ones overwrite.
__device__ __forceinline__ void meet() {
    wait_for_copies();
    __syncthreads();
}

// Whether some of these queries sees some of these keys.
__device__ __forceinline__ bool meets(const Shape& s, int query, int queries, int key, int keys) {
    return key < query + queries && key + keys > first_key(s, query);
}

// The sums of two warps with the same rows, by way of HALF rows of DIM floats that nobody reads any more: true in the one that has them.
__device__ __forceinline__ bool put_together(float (&acc)[1][DIM / 8][4], float* between) {
    int warp = threadIdx.x / 32, lane = threadIdx.x & 31;
    float* at = between + warp % 4 * 16 * DIM + lane;
    __syncthreads();
    if (warp >= 4)
#pragma unroll
        for (int n = 0; n < DIM / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) at[(4 * n + i) * 32] = acc[0][n][i];
    __syncthreads();
    if (warp >= 4) return false;
#pragma unroll
    for (int n = 0; n < DIM / 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) acc[0][n][i] += at[(4 * n + i) * 32];
    return true;
}
#endif
