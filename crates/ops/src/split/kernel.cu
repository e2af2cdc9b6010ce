// Columns of a matrix of `cols`: `count` runs of `width`, the first at `first`, `stride` apart; `n` elements in all, whose rows lie one
// behind the other where they are alone. By packs where runs keep them together.
template <bool PUT>
__device__ __forceinline__ void move_columns(const T* from, T* to, int cols, int first, int width, int stride, int count, size_t n) {
    const int N = Pack<T>::N;
    bool together = cols % N == 0 && first % N == 0 && width % N == 0 && stride % N == 0 && on_16(from) && on_16(to);
    unsigned step = together ? N : 1, packs = width / step;
    size_t all = n / step;
    FOR_EACH(p, all) {
        // Divisions of 64 bits take as long as all the rest.
        size_t run = all >> 32 ? p / packs : (unsigned)p / packs, c = (p - run * packs) * step;
        size_t row = all >> 32 ? run / count : (unsigned)run / (unsigned)count, i = run - row * count;
        size_t part = run * width + c, whole = row * cols + first + i * stride + c;
        size_t out = PUT ? whole : part, in = PUT ? part : whole;
        if (together) *(Pack<T>*)(to + out) = *(const Pack<T>*)(from + in);
        else to[out] = from[in];
    }
}

KERNEL take(const T* x, T* y, int cols, int first, int width, int stride, int count, unsigned long long n) {
    move_columns<false>(x, y, cols, first, width, stride, count, n);
}

KERNEL put(const T* dy, T* dx, int cols, int first, int width, int stride, int count, unsigned long long n) {
    move_columns<true>(dy, dx, cols, first, width, stride, count, n);
}
