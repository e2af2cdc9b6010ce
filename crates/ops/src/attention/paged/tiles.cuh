// Tiles of keys or values from the pages of a cache, behind `products.cuh` and `pages.cuh`.

#if T_KIND > 0

// Keys or values of a sequence, so many elements behind the beginnings of its pages.
struct InPages {
    Pages pages;
    size_t offset;
    const T* any;  // that may be named where nothing is read
};
// As of rows. A tile is a part of a page or whole pages, of which the first ones may be seen by no query any more: they are zero, too.
template <int DIM, int COUNT, int THREADS>
__device__ __forceinline__ void load_keys(T* tile, const InPages& x, int column, int first, int limit, int stride, int dim) {
    constexpr int STEP = THREADS / (DIM / 8), SOME = COUNT < PAGE ? COUNT : PAGE;
    static_assert(STEP % 8 == 0 && SOME % STEP == 0 && COUNT % SOME == 0 && PAGE % SOME == 0, "whole steps of whole pages");
    int row = threadIdx.x / (DIM / 8), piece = threadIdx.x % (DIM / 8);
    T* to = tile + place<COUNT>(row, piece);
    int rows = 8 * piece < dim ? limit - first - row : 0;
#pragma unroll
    for (int before = 0; before < COUNT; before += SOME) {
        const T* page = first + before < limit ? x.pages.of(first + before) : nullptr;
        const T* from = (page ? page + x.offset : x.any) + ((first + before) % PAGE + row) * stride + column + 8 * piece;
#pragma unroll
        for (int j = 0; j < SOME / STEP; j++, from += STEP * stride) {
            bool there = page && before + j * STEP < rows;
            copy_later<16>(to + (before + j * STEP) * 64, there ? from : x.any, there);
        }
    }
}
#endif
