// Puts the keys and values of new tokens into the buffers of a cache. grid: (rows of the longest sequence, sequences); `segments`
// holds first row, rows, first key and past of every sequence.
KERNEL append(const T* k, const T* v, const unsigned* segments, T* keys, T* values, int channels) {
    const unsigned* s = segments + 4 * blockIdx.y;
    if (blockIdx.x >= s[1]) return;
    size_t from = (size_t)(s[0] + blockIdx.x) * channels, to = (size_t)(s[2] + s[3] + blockIdx.x) * channels;
    for (int c = threadIdx.x; c < channels; c += blockDim.x) {
        keys[to + c] = k[from + c];
        values[to + c] = v[from + c];
    }
}
