// Attention on tensor cores over the pages of a cache, `keys` elements behind a page's beginning and the values behind all its keys.

// grid: (heads, ceil(longest / ROWS), sequences); for wide heads, too, whose `forward_of` is another one.
KERNEL forward_paged(const T* q, const unsigned* segments, unsigned long long keys, T* y, int y_stride, float* lse,
                     int heads, int kv_heads, int dim, int window, float scale, float cap, const float* sinks) {
#if T_KIND > 0
    const Shape s = AS_SHAPE;
    const Segment of = ((const Segment*)segments)[blockIdx.z];
    SHARED_ARRAY(T, shared);
    const Pages pages(segments, gridDim.z, of.first_key);
    const InPages k = {pages, keys, q}, v = {pages, keys + (size_t)PAGE * kv_heads * dim, q};
    BY_SHAPE(forward_of, shared, q, k, v, of, y, y_stride, lse, sinks, s);
#endif
}
