// For tests of what counts accesses: kernels of one warp, or of two, whose answers are known.

// y[i] = x[first + stride i], an element a lane.
KERNEL read_apart(const float* x, float* y, int first, int stride) {
    y[threadIdx.x] = x[first + stride * threadIdx.x];
}

// Sixteen bytes a lane, by one access each.
KERNEL copy_packs(const float* x, float* y, int stride) {
    Pack<float> own = ((const Pack<float>*)x)[stride * threadIdx.x];
    own.v[0] += 1.0f;
    ((Pack<float>*)y)[threadIdx.x] = own;
}

// All lanes the same element, and those below `few` another each, in a loop of as many rounds as a lane has.
KERNEL read_unevenly(const float* x, float* y, int few) {
    float sum = x[0];
    if (threadIdx.x < few)
        for (int i = 0; i < 3; i++) sum += x[32 * (i + 1) + threadIdx.x];
    y[threadIdx.x] = sum;
}

// Columns of a tile of 32 rows of `width` elements in shared memory, a row a lane; 64 threads.
KERNEL read_columns(const float* x, float* y, int width) {
    __shared__ float tile[32 * 64];
    int lane = threadIdx.x & 31, half = threadIdx.x / 32;
    for (int row = half; row < 32; row += 2) tile[row * width + lane] = x[32 * row + lane];
    __syncthreads();
    float sum = 0.0f;
    for (int c = 0; c < 32; c++) sum += tile[lane * width + c];
    y[threadIdx.x] = warp_sum(sum);
}

// Packs that lie `stride` packs apart in shared memory.
KERNEL read_shared_packs(float* y, int stride) {
    SHARED_ARRAY(Pack<float>, packs);
    Pack<float> own = {1.0f, 2.0f, 3.0f, (float)threadIdx.x};
    packs[stride * threadIdx.x] = own;
    __syncwarp();
    own = packs[stride * (threadIdx.x ^ 1)];
    y[threadIdx.x] = own.v[3];
}

// A tile of 16 rows of 64 elements, whose pieces of eight lie in an order of their own in each row if `swizzled`: copied to shared memory
// and read as fragments, whose product with the first one's right half is y.
KERNEL read_fragments(const T* x, float* y, int swizzled) {
#if T_KIND > 0
    SHARED_ARRAY(T, tile);
    int lane = threadIdx.x & 31;
    for (int i = lane; i < 16 * 8; i += 32) {
        int row = i / 8, piece = i % 8;
        copy_later<16>(tile + row * 64 + (swizzled ? piece ^ (row & 7) : piece) * 8, x + row * 64 + piece * 8, true);
    }
    wait_for_copies();
    __syncwarp();
    float c[4] = {};
#pragma unroll 1
    for (int k = 0; k < 4; k++) {
        unsigned a[4];
        int row = lane & 15, piece = 2 * k + (lane >> 4);
        load_matrices<false>(a, tile + row * 64 + (swizzled ? piece ^ (row & 7) : piece) * 8);
        mma(c, a, a + 2);
    }
    for (int i = 0; i < 4; i++) y[4 * lane + i] = c[i];
#endif
}
