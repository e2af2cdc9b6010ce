KERNEL add_scaled(const T* a, const T* b, float scale, T* y, unsigned long long n) {
    pointwise<T, 2, 1>({a, b}, {y}, n, [=](const float(&x)[2], float(&out)[1]) { out[0] = x[0] + scale * x[1]; });
}

KERNEL scale(const T* x, float factor, T* y, unsigned long long n) {
    pointwise<T, 1, 1>({x}, {y}, n, [=](const float(&x)[1], float(&out)[1]) { out[0] = factor * x[0]; });
}
