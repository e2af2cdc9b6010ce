// out[i] = table[ids[i]], rows of `channels`; the table may be of another type.
KERNEL gather(const void* table, int kind, const unsigned* ids, T* out, int channels, unsigned long long n) {
    FOR_EACH(i, n) {
        size_t row = i / channels, channel = i % channels;
        out[i] = Round<T>::of(load_any(table, kind, (size_t)ids[row] * channels + channel));
    }
}

// sums[row][...] = the sum of dy over the tokens order[starts[row] .. starts[row + 1]], in their order; the row of the table
// is ids[row]. One block a row that occurs, so that no two add to the same place.
KERNEL scatter_add(const T* dy, const unsigned* order, const unsigned* starts, const unsigned* ids, float* table,
                   int channels) {
    unsigned from = starts[blockIdx.x], to = starts[blockIdx.x + 1];
    for (int c = threadIdx.x; c < channels; c += blockDim.x) {
        float sum = 0.0f;
        for (unsigned i = from; i < to; i++) sum += to_f32(dy[(size_t)order[i] * channels + c]);
        table[(size_t)ids[blockIdx.x] * channels + c] = sum;
    }
}
