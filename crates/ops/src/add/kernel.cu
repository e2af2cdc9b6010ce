KERNEL add_scaled(const T* a, const T* b, float scale, T* y, unsigned long long n) {
    FOR_EACH(i, n) y[i] = Round<T>::of(to_f32(a[i]) + scale * to_f32(b[i]));
}

KERNEL scale(const T* x, float factor, T* y, unsigned long long n) {
    FOR_EACH(i, n) y[i] = Round<T>::of(factor * to_f32(x[i]));
}
