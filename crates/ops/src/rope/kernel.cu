// (a, b) -> (a cos - b sin, b cos + a sin) for the halves a and b of the first 2 half channels of every head, of `dim`; the sine times
// `direction`. The others are copied.
// `table` holds (length, half) cosines and then as many sines. A thread for as many pairs as two packs hold, of one head where heads keep
// them together.
KERNEL rotate(const T* x, const float* table, const unsigned* positions, T* y, int heads, int dim, int half, int length,
              float direction, unsigned long long pairs) {
    const int N = Pack<T>::N;
    bool together = half % N == 0 && dim % N == 0 && on_16(x) && on_16(y) && on_16(table);
    unsigned packs = (half + N - 1) / N;
    size_t all = pairs / half * packs;
    FOR_EACH(p, all) {
        // Divisions of 64 bits take as long as all the rest.
        size_t head = all >> 32 ? p / packs : (unsigned)p / packs;
        int i = N * (int)(p - head * packs);
        const float* angles = table + (size_t)positions[all >> 32 ? head / heads : (unsigned)head / (unsigned)heads] * half;
        size_t at = head * dim;
        Pack<T> a = load_pack(x + at, i, half, together), b = load_pack(x + at + half, i, half, together);
        float c[N], s[N];
        load_floats(angles, i, half, together, c);
        load_floats(angles + (size_t)length * half, i, half, together, s);
#pragma unroll
        for (int j = 0; j < N; j++) {
            float left = to_f32(a.v[j]), right = to_f32(b.v[j]);
            float cosine = rounded<T>(c[j]), sine = direction * rounded<T>(s[j]);
            a.v[j] = Round<T>::of(rounded<T>(left * cosine) - rounded<T>(right * sine));
            b.v[j] = Round<T>::of(rounded<T>(right * cosine) + rounded<T>(left * sine));
        }
        store_pack(y + at, i, half, together, a);
        store_pack(y + at + half, i, half, together, b);
    }
    int kept = dim - 2 * half;
    FOR_EACH(i, pairs / half * kept) {
        size_t at = i / kept * dim + 2 * half + i % kept;
        y[at] = x[at];
    }
}

// As `rotate`, where each even channel turns against the next one. A head has an even number of channels, `n` is half of all elements.
KERNEL rotate_neighbours(const T* x, const float* table, const unsigned* positions, T* y, int heads, int dim, int half, int length,
                         float direction, unsigned long long n) {
    FOR_EACH(p, n) {
        size_t head = p / (dim / 2);
        int i = (int)(p - head * (dim / 2));
        float a = to_f32(x[2 * p]), b = to_f32(x[2 * p + 1]);
        if (i < half) {
            const float* angles = table + (size_t)positions[head / heads] * half;
            float cosine = rounded<T>(angles[i]), sine = direction * rounded<T>(angles[(size_t)length * half + i]);
            float left = a;
            a = rounded<T>(left * cosine) - rounded<T>(b * sine);
            b = rounded<T>(b * cosine) + rounded<T>(left * sine);
        }
        y[2 * p] = Round<T>::of(a);
        y[2 * p + 1] = Round<T>::of(b);
    }
}
