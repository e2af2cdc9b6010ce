// Conversions and sums that need no op of their own.

KERNEL convert(const void* x, int kind, T* y, unsigned long long n) {
    FOR_EACH(i, n) y[i] = Round<T>::of(load_any(x, kind, i));
}

KERNEL add_assign(T* sum, const void* x, int kind, unsigned long long n) {
    if (kind == T_KIND) {
        pointwise<T, 2, 1>({sum, (const T*)x}, {sum}, n, [](const float(&a)[2], float(&out)[1]) { out[0] = a[0] + a[1]; });
    } else {
        FOR_EACH(i, n) sum[i] = Round<T>::of(to_f32(sum[i]) + load_any(x, kind, i));
    }
}

// The rows of x, `stride` apart, behind each other.
KERNEL without_room(const T* x, T* y, int cols, int stride, unsigned long long n) {
    FOR_EACH(i, n) y[i] = x[i / cols * stride + i % cols];
}

// Leaves `found` at 0 unless an element is NaN or infinite.
KERNEL find_infinite(const T* x, float* found, unsigned long long n) {
    FOR_EACH(i, n) {
        if ((__float_as_int(to_f32(x[i])) & 0x7f800000) == 0x7f800000) *found = 1.0f;
    }
}
