// (a, b) -> (a cos - b sin, b cos + a sin) for the halves a and b of the first 2 half channels of every head, of `dim`; the sine times
// `direction`. The others are copied.
// Rows of x lie `x_stride` apart, those of y `stride`. `table` holds (length, half) cosines and then as many sines. A thread turns the same channels of TOGETHER
// heads of a row, whose angles are the same: they are as many bytes as the channels.
#define TOGETHER 4

// Cosines and sines of channels i.. at a position, rounded; the sines times `direction`.
template <int N>
__device__ __forceinline__ void load_angles(const float* table, size_t position, int half, int length, int i, bool together, float direction,
                                            float (&c)[N], float (&s)[N]) {
    const float* angles = table + position * half;
    load_floats(angles, i, half, together, c);
    load_floats(angles + (size_t)length * half, i, half, together, s);
#pragma unroll
    for (int j = 0; j < N; j++) c[j] = rounded<T>(c[j]), s[j] = direction * rounded<T>(s[j]);
}
template <int N> __device__ __forceinline__ void turn(Pack<T>& a, Pack<T>& b, const float (&c)[N], const float (&s)[N]) {
#pragma unroll
    for (int j = 0; j < N; j++) {
        float left = to_f32(a.v[j]), right = to_f32(b.v[j]);
        a.v[j] = Round<T>::of(rounded<T>(left * c[j]) - rounded<T>(right * s[j]));
        b.v[j] = Round<T>::of(rounded<T>(right * c[j]) + rounded<T>(left * s[j]));
    }
}

// x and y may be one.
__device__ __forceinline__ void rotate_rows(const T* x, int x_stride, const float* table, const unsigned* positions, T* y, int stride, int heads,
                                            int dim, int half, int length, float direction, unsigned long long pairs) {
    const int N = Pack<T>::N;
    bool together = half % N == 0 && dim % N == 0 && x_stride % N == 0 && stride % N == 0 && on_16(x) && on_16(y) && on_16(table);
    unsigned packs = (half + N - 1) / N, groups = (heads + TOGETHER - 1) / TOGETHER;
    size_t all = pairs / half / heads * groups * packs;
    FOR_EACH(p, all) {
        // Divisions of 64 bits take as long as all the rest.
        size_t group = all >> 32 ? p / packs : (unsigned)p / packs;
        size_t row = all >> 32 ? group / groups : (unsigned)group / groups;
        int i = N * (int)(p - group * packs), first = TOGETHER * (int)(group - row * groups);
        const T* from = x + row * x_stride + first * dim;
        Pack<T> a[TOGETHER], b[TOGETHER];
#pragma unroll
        for (int h = 0; h < TOGETHER; h++) {
            if (first + h >= heads) continue;
            a[h] = load_pack(from + h * dim, i, half, together);
            b[h] = load_pack(from + h * dim + half, i, half, together);
        }
        float c[N], s[N];
        load_angles<N>(table, positions[row], half, length, i, together, direction, c, s);
#pragma unroll
        for (int h = 0; h < TOGETHER; h++) {
            if (first + h >= heads) continue;
            turn<N>(a[h], b[h], c, s);
            T* to = y + row * stride + (first + h) * dim;
            store_pack(to, i, half, together, a[h]);
            store_pack(to + half, i, half, together, b[h]);
        }
    }
    int kept = dim - 2 * half;
    if (x == y) return;
    FOR_EACH(i, pairs / half * kept) {
        size_t head = i / kept, row = head / heads;
        int c = 2 * half + (int)(i - head * kept), h = (int)(head - row * heads);
        y[row * stride + h * dim + c] = x[row * x_stride + h * dim + c];
    }
}

KERNEL rotate(const T* x, int x_stride, const float* table, const unsigned* positions, T* y, int stride, int heads, int dim, int half,
              int length, float direction, unsigned long long pairs) {
    rotate_rows(x, x_stride, table, positions, y, stride, heads, dim, half, length, direction, pairs);
}

KERNEL rotate_in_place(T* x, int stride, const float* table, const unsigned* positions, int heads, int dim, int half, int length,
                       float direction, unsigned long long pairs) {
    rotate_rows(x, stride, table, positions, x, stride, heads, dim, half, length, direction, pairs);
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

// Queries and keys of new tokens as `rotate` turns them, forwards: the queries to y, the keys with the values to the pages of a cache,
// `keys` elements behind a page's beginning and the values behind all its keys. grid: (blocks of a row, rows of the longest sequence,
// sequences); `segments` are those of the cache. A thread turns a pack of both halves of a head, or copies a pack of a head's values or of what does not
// turn, which lies at its end.
KERNEL rotate_into(const T* q, const T* k, const T* v, const float* table, const unsigned* positions, const unsigned* segments,
                   unsigned long long keys, T* y, int heads, int kv_heads, int dim, int half, int length) {
    const int N = Pack<T>::N;
    const unsigned* of = segments + 4 * blockIdx.z;
    if (blockIdx.y >= of[1]) return;
    size_t row = of[0] + blockIdx.y;
    T* to = Pages(segments, gridDim.z, of[2]).row(of[3] + blockIdx.y, keys, kv_heads * dim);
    bool together = half % N == 0 && dim % N == 0 && on_16(q) && on_16(k) && on_16(v) && on_16(y) && on_16(to) && on_16(table);
    int packs = (half + N - 1) / N, kept = dim - 2 * half, ends = (kept + N - 1) / N, whole = (dim + N - 1) / N;
    int turned = (heads + kv_heads) * packs, tails = (heads + kv_heads) * ends, all = turned + tails + kv_heads * whole;
    for (int item = blockIdx.x * blockDim.x + threadIdx.x; item < all; item += gridDim.x * blockDim.x) {
        bool turns = item < turned, copies = item >= turned + tails;
        int rest = turns ? item : copies ? item - turned - tails : item - turned, each = turns ? packs : copies ? whole : ends;
        int head = rest / each, i = rest % each * N;
        // A key's head comes behind those of the queries.
        bool query = !copies && head < heads;
        if (!copies && !query) head -= heads;
        const T* from = query ? q + (row * heads + head) * dim : (copies ? v : k) + (row * kv_heads + head) * dim;
        T* out = query ? y + (row * heads + head) * dim : to + (copies ? (size_t)PAGE * kv_heads * dim : 0) + head * dim;
        if (turns) {
            Pack<T> a = load_pack(from, i, half, together), b = load_pack(from + half, i, half, together);
            float c[N], s[N];
            load_angles<N>(table, positions[row], half, length, i, together, 1.0f, c, s);
            turn<N>(a, b, c, s);
            store_pack(out, i, half, together, a);
            store_pack(out + half, i, half, together, b);
        } else {
            int skipped = copies ? 0 : 2 * half, n = dim - skipped;
            store_pack(out + skipped, i, n, together, load_pack(from + skipped, i, n, together));
        }
    }
}
