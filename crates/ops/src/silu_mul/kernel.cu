// y = round(silu(gate)) * up.
__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

KERNEL forward(const T* gate, const T* up, T* y, unsigned long long n) {
    pointwise<T, 2, 1>({gate, up}, {y}, n, [](const float(&x)[2], float(&out)[1]) {
        out[0] = rounded<T>(x[0] * sigmoid(x[0])) * x[1];
    });
}

// With s = sigmoid(g): du = dy g s, dg = dy u s (1 + g (1 - s)).
KERNEL backward(const T* dy, const T* gate, const T* up, T* dg, T* du, unsigned long long n) {
    pointwise<T, 3, 2>({dy, gate, up}, {dg, du}, n, [](const float(&x)[3], float(&out)[2]) {
        float d = x[0], g = x[1], u = x[2], s = sigmoid(g);
        out[0] = d * u * s * (1.0f + g * (1.0f - s));
        out[1] = d * g * s;
    });
}
