// y = round(f(gate)) * up with f(x) = x sigmoid(v(x)): v(x) = alpha x, or that of GELU by way of tanh. With a limit (0 is none) the gate is
// at most that, and up within it on either side, plus 1.
#define SLOPE 1.5957692f
#define CUBIC 0.044715f
__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }
__device__ __forceinline__ float argument(float x, int gelu, float alpha) { return gelu ? SLOPE * (x + CUBIC * x * x * x) : alpha * x; }
__device__ __forceinline__ float argument_slope(float x, int gelu, float alpha) { return gelu ? SLOPE * (1.0f + 3.0f * CUBIC * x * x) : alpha; }
// Spelled out, since what is no number has to stay so.
__device__ __forceinline__ float at_most(float x, float limit) { return limit > 0.0f && x > limit ? limit : x; }
__device__ __forceinline__ float within(float x, float limit) {
    return limit > 0.0f ? (x > limit ? limit : x < -limit ? -limit : x) + 1.0f : x;
}

KERNEL forward(const T* gate, const T* up, int gelu, float alpha, float limit, T* y, unsigned long long n) {
    pointwise<T, 2, 1>({gate, up}, {y}, n, [=](const float(&x)[2], float(&out)[1]) {
        float g = at_most(x[0], limit);
        out[0] = rounded<T>(g * sigmoid(argument(g, gelu, alpha))) * within(x[1], limit);
    });
}

// The same where rows of y, of `cols` elements, lie `stride` apart; both are whole packs. A block for rows blockIdx.y and on.
KERNEL forward_in_rows(const T* gate, const T* up, int gelu, float alpha, float limit, T* y, int rows, int cols, int stride) {
    const int N = Pack<T>::N;
    int packs = cols / N, first = blockIdx.x * blockDim.x + threadIdx.x, step = gridDim.x * blockDim.x;
    for (int row = blockIdx.y; row < rows; row += gridDim.y)
        for (int p = first; p < packs; p += step) {
            size_t from = (size_t)row * packs + p;
            Pack<T> a = ((const Pack<T>*)gate)[from], b = ((const Pack<T>*)up)[from];
#pragma unroll
            for (int j = 0; j < N; j++) {
                float g = at_most(to_f32(a.v[j]), limit);
                a.v[j] = Round<T>::of(rounded<T>(g * sigmoid(argument(g, gelu, alpha))) * within(to_f32(b.v[j]), limit));
            }
            *(Pack<T>*)(y + (size_t)row * stride + p * N) = a;
        }
}

// With s = sigmoid(v(g)): du = dy g s, dg = dy u s (1 + g (1 - s) v'(g)); 0 where a limit holds.
__device__ __forceinline__ void gradients(float d, float gate, float up, int gelu, float alpha, float limit, float& dg, float& du) {
    float g = at_most(gate, limit), u = within(up, limit), s = sigmoid(argument(g, gelu, alpha));
    bool none = limit <= 0.0f;
    dg = none || gate <= limit ? d * u * s * (1.0f + g * (1.0f - s) * argument_slope(g, gelu, alpha)) : 0.0f;
    du = none || fabsf(up) <= limit ? d * g * s : 0.0f;
}

KERNEL backward(const T* dy, const T* gate, const T* up, int gelu, float alpha, float limit, T* dg, T* du, unsigned long long n) {
    pointwise<T, 3, 2>({dy, gate, up}, {dg, du}, n,
                       [=](const float(&x)[3], float(&out)[2]) { gradients(x[0], x[1], x[2], gelu, alpha, limit, out[0], out[1]); });
}

// The same where rows of the gradients, of `cols` elements, lie so far apart; all are whole packs. A block for rows blockIdx.y and on.
KERNEL backward_in_rows(const T* dy, const T* gate, const T* up, int gelu, float alpha, float limit, T* dg, int dg_stride, T* du,
                        int du_stride, int rows, int cols) {
    const int N = Pack<T>::N;
    int packs = cols / N, first = blockIdx.x * blockDim.x + threadIdx.x, step = gridDim.x * blockDim.x;
    for (int row = blockIdx.y; row < rows; row += gridDim.y)
        for (int p = first; p < packs; p += step) {
            size_t from = (size_t)row * packs + p;
            Pack<T> d = ((const Pack<T>*)dy)[from], a = ((const Pack<T>*)gate)[from], b = ((const Pack<T>*)up)[from];
#pragma unroll
            for (int j = 0; j < N; j++) {
                float of_gate, of_up;
                gradients(to_f32(d.v[j]), to_f32(a.v[j]), to_f32(b.v[j]), gelu, alpha, limit, of_gate, of_up);
                a.v[j] = Round<T>::of(of_gate), b.v[j] = Round<T>::of(of_up);
            }
            *(Pack<T>*)(dg + (size_t)row * dg_stride + p * N) = a;
            *(Pack<T>*)(du + (size_t)row * du_stride + p * N) = b;
        }
}

// The same over what dg holds, the gradient of the product, and over what du holds, which is up where that is not given.
KERNEL backward_over(const T* gate, const T* up, int gelu, float alpha, float limit, T* dg, int dg_stride, T* du, int du_stride, int rows,
                     int cols) {
    const int N = Pack<T>::N;
    int packs = cols / N, first = blockIdx.x * blockDim.x + threadIdx.x, step = gridDim.x * blockDim.x;
    for (int row = blockIdx.y; row < rows; row += gridDim.y)
        for (int p = first; p < packs; p += step) {
            size_t from = (size_t)row * packs + p;
            Pack<T>* of_dg = (Pack<T>*)(dg + (size_t)row * dg_stride + p * N);
            Pack<T>* of_du = (Pack<T>*)(du + (size_t)row * du_stride + p * N);
            Pack<T> d = *of_dg, a = ((const Pack<T>*)gate)[from], b = up ? ((const Pack<T>*)up)[from] : *of_du;
#pragma unroll
            for (int j = 0; j < N; j++) {
                float of_gate, of_up;
                gradients(to_f32(d.v[j]), to_f32(a.v[j]), to_f32(b.v[j]), gelu, alpha, limit, of_gate, of_up);
                a.v[j] = Round<T>::of(of_gate), b.v[j] = Round<T>::of(of_up);
            }
            *of_dg = a;
            *of_du = b;
        }
}
