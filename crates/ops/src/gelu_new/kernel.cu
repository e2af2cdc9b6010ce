// x sigmoid(v) with v = 2 sqrt(2 / pi) (x + 0.044715 x^3), which is 0.5 x (1 + tanh(v / 2)).
__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }
#define SLOPE 1.5957692f
#define CUBIC 0.044715f

KERNEL forward(const T* x, T* y, unsigned long long n) {
    pointwise<T, 1, 1>({x}, {y}, n, [](const float(&x)[1], float(&out)[1]) {
        float v = x[0];
        out[0] = v * sigmoid(SLOPE * (v + CUBIC * v * v * v));
    });
}

// With s = sigmoid(v(x)): dx = dy s (1 + x (1 - s) v'(x)).
KERNEL backward(const T* dy, const T* x, T* dx, unsigned long long n) {
    pointwise<T, 2, 1>({dy, x}, {dx}, n, [](const float(&x)[2], float(&out)[1]) {
        float v = x[1], s = sigmoid(SLOPE * (v + CUBIC * v * v * v));
        float slope = SLOPE * (1.0f + 3.0f * CUBIC * v * v);
        out[0] = x[0] * s * (1.0f + v * (1.0f - s) * slope);
    });
}
