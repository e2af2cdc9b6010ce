// Attention on tensor cores over keys and values that lie in rows.

// grid: (heads, ceil(longest / ROWS), sequences); 256 threads a block on Hopper, else 128.
KERNEL forward(const T* q, const T* k, const T* v, const unsigned* segments, T* y, int y_stride, float* lse,
               int heads, int kv_heads, int dim, int window, float scale, float cap, const float* sinks) {
#if T_KIND > 0
    const Shape s = AS_SHAPE;
    const Segment of = ((const Segment*)segments)[blockIdx.z];
    SHARED_ARRAY(T, shared);
    const InRows keys = {k, of.first_key}, values = {v, of.first_key};
    BY_SHAPE(forward_of, shared, q, keys, values, of, y, y_stride, lse, sinks, s);
#endif
}
