// Puts the keys and values of new tokens into the pages of a cache, `keys` elements behind a page's beginning and the values behind all its
// keys. grid: (blocks of a row, rows of the longest sequence, sequences). Where rows keep 16 bytes together, so many at a time.
KERNEL append(const T* k, const T* v, const unsigned* segments, unsigned long long keys, int channels) {
    const unsigned* s = segments + 4 * blockIdx.z;
    if (blockIdx.y >= s[1]) return;
    size_t from = (size_t)(s[0] + blockIdx.y) * channels;
    T* to = Pages(segments, gridDim.z, s[2]).row(s[3] + blockIdx.y, keys, channels);
    const int N = Pack<T>::N;
    bool together = channels % N == 0 && on_16(k) && on_16(v) && on_16(to);
    for (int c = N * (blockIdx.x * blockDim.x + threadIdx.x); c < channels; c += N * gridDim.x * blockDim.x) {
        Pack<T> key = load_pack(k + from, c, channels, together), value = load_pack(v + from, c, channels, together);
        store_pack(to, c, channels, together, key);
        store_pack(to + (size_t)PAGE * channels, c, channels, together, value);
    }
}
