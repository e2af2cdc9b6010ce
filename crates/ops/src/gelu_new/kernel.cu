// x sigmoid(v) with v = 2 sqrt(2 / pi) (x + 0.044715 x^3), which is 0.5 x (1 + tanh(v / 2)).
__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }
#define SLOPE 1.5957692f
#define CUBIC 0.044715f

KERNEL forward(const T* x, T* y, unsigned long long n) {
    FOR_EACH(i, n) {
        float v = to_f32(x[i]);
        y[i] = Round<T>::of(v * sigmoid(SLOPE * (v + CUBIC * v * v * v)));
    }
}

// With s = sigmoid(v(x)): dx = dy s (1 + x (1 - s) v'(x)).
KERNEL backward(const T* dy, const T* x, T* dx, unsigned long long n) {
    FOR_EACH(i, n) {
        float v = to_f32(x[i]), s = sigmoid(SLOPE * (v + CUBIC * v * v * v));
        float slope = SLOPE * (1.0f + 3.0f * CUBIC * v * v);
        dx[i] = Round<T>::of(to_f32(dy[i]) * s * (1.0f + v * (1.0f - s) * slope));
    }
}
