// (a, b) -> (a cos - b sin, b cos + a sin) for the halves a and b of the first 2 half channels of every head, of `dim`; the sine times
// `direction`. The others are copied.
// Rows of y lie `stride` apart. `table` holds (length, half) cosines and then as many sines. A thread turns the same channels of TOGETHER heads of a row, whose angles
// are the same: they are as many bytes as the channels.
#define TOGETHER 4
KERNEL rotate(const T* x, const float* table, const unsigned* positions, T* y, int stride, int heads, int dim, int half, int length,
              float direction, unsigned long long pairs) {
    const int N = Pack<T>::N;
    bool together = half % N == 0 && dim % N == 0 && stride % N == 0 && on_16(x) && on_16(y) && on_16(table);
    unsigned packs = (half + N - 1) / N, groups = (heads + TOGETHER - 1) / TOGETHER;
    size_t all = pairs / half / heads * groups * packs;
    FOR_EACH(p, all) {
        // Divisions of 64 bits take as long as all the rest.
        size_t group = all >> 32 ? p / packs : (unsigned)p / packs;
        size_t row = all >> 32 ? group / groups : (unsigned)group / groups;
        int i = N * (int)(p - group * packs), first = TOGETHER * (int)(group - row * groups);
        const float* angles = table + (size_t)positions[row] * half;
        size_t at = (row * heads + first) * dim;
        Pack<T> a[TOGETHER], b[TOGETHER];
#pragma unroll
        for (int h = 0; h < TOGETHER; h++) {
            if (first + h >= heads) continue;
            a[h] = load_pack(x + at + h * dim, i, half, together);
            b[h] = load_pack(x + at + h * dim + half, i, half, together);
        }
        float c[N], s[N];
        load_floats(angles, i, half, together, c);
        load_floats(angles + (size_t)length * half, i, half, together, s);
#pragma unroll
        for (int j = 0; j < N; j++) c[j] = rounded<T>(c[j]), s[j] = direction * rounded<T>(s[j]);
#pragma unroll
        for (int h = 0; h < TOGETHER; h++) {
            if (first + h >= heads) continue;
#pragma unroll
            for (int j = 0; j < N; j++) {
                float left = to_f32(a[h].v[j]), right = to_f32(b[h].v[j]);
                a[h].v[j] = Round<T>::of(rounded<T>(left * c[j]) - rounded<T>(right * s[j]));
                b[h].v[j] = Round<T>::of(rounded<T>(right * c[j]) + rounded<T>(left * s[j]));
            }
            T* to = y + row * stride + (first + h) * dim;
            store_pack(to, i, half, together, a[h]);
            store_pack(to + half, i, half, together, b[h]);
        }
    }
    int kept = dim - 2 * half;
    FOR_EACH(i, pairs / half * kept) {
        size_t head = i / kept, row = head / heads;
        int c = 2 * half + (int)(i - head * kept);
        y[row * stride + (head - row * heads) * dim + c] = x[head * dim + c];
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
