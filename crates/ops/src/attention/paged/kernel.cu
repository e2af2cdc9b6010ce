// Attention over the pages of a cache, `keys` elements behind a page's beginning and the values behind all its keys.

// grid: (ceil(longest / ROWS), heads, sequences).
KERNEL forward_paged(const T* q, const unsigned* segments, unsigned long long keys, T* y, float* lse,
                     int heads, int kv_heads, int dim, int window, float scale, float cap, const float* sinks) {
    const Shape s = AS_SHAPE;
    const Segment of = ((const Segment*)segments)[blockIdx.z];
    SHARED_ARRAY(float, shared);
    int stride = kv_heads * dim;
    const Pages pages(segments, gridDim.z, of.first_key);
    auto at = [&](size_t offset) { return [=](int key) { return pages.row(key, offset, stride); }; };
    forward_of(shared, q, at(keys), at(keys + (size_t)PAGE * stride), of, y, lse, sinks, s);
}
