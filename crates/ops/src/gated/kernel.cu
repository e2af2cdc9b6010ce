// y = round(f(gate)) * up with f(x) = x sigmoid(v(x)): v(x) = x, or that of GELU by way of tanh.
#define SLOPE 1.5957692f
#define CUBIC 0.044715f
__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }
__device__ __forceinline__ float argument(float x, int gelu) { return gelu ? SLOPE * (x + CUBIC * x * x * x) : x; }
__device__ __forceinline__ float argument_slope(float x, int gelu) { return gelu ? SLOPE * (1.0f + 3.0f * CUBIC * x * x) : 1.0f; }

KERNEL forward(const T* gate, const T* up, int gelu, T* y, unsigned long long n) {
    pointwise<T, 2, 1>({gate, up}, {y}, n, [=](const float(&x)[2], float(&out)[1]) {
        out[0] = rounded<T>(x[0] * sigmoid(argument(x[0], gelu))) * x[1];
    });
}

// With s = sigmoid(v(g)): du = dy g s, dg = dy u s (1 + g (1 - s) v'(g)).
KERNEL backward(const T* dy, const T* gate, const T* up, int gelu, T* dg, T* du, unsigned long long n) {
    pointwise<T, 3, 2>({dy, gate, up}, {dg, du}, n, [=](const float(&x)[3], float(&out)[2]) {
        float d = x[0], g = x[1], u = x[2], s = sigmoid(argument(g, gelu));
        out[0] = d * u * s * (1.0f + g * (1.0f - s) * argument_slope(g, gelu));
        out[1] = d * g * s;
    });
}
