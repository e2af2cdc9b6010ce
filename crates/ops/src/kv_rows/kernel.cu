// Puts the keys and values of new tokens into the buffers of a cache. grid: (blocks of a row, rows of the longest sequence, sequences);
// `segments` holds first row, rows, first key and past of every sequence. Where rows keep 16 bytes together, so many at a time.
KERNEL append(const T* k, const T* v, const unsigned* segments, T* keys, T* values, int channels) {
    const unsigned* s = segments + 4 * blockIdx.z;
    if (blockIdx.y >= s[1]) return;
    size_t from = (size_t)(s[0] + blockIdx.y) * channels, to = (size_t)(s[2] + s[3] + blockIdx.y) * channels;
    const int N = Pack<T>::N;
    bool together = channels % N == 0 && on_16(k) && on_16(v) && on_16(keys) && on_16(values);
    for (int c = N * (blockIdx.x * blockDim.x + threadIdx.x); c < channels; c += N * gridDim.x * blockDim.x) {
        Pack<T> key = load_pack(k + from, c, channels, together), value = load_pack(v + from, c, channels, together);
        store_pack(keys + to, c, channels, together, key);
        store_pack(values + to, c, channels, together, value);
    }
}
