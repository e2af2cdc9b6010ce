// y = round(silu(gate)) * up.
__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

KERNEL forward(const T* gate, const T* up, T* y, unsigned long long n) {
    FOR_EACH(i, n) {
        float g = to_f32(gate[i]);
        y[i] = Round<T>::of(rounded<T>(g * sigmoid(g)) * to_f32(up[i]));
    }
}

// With s = sigmoid(g): du = dy g s, dg = dy u s (1 + g (1 - s)).
KERNEL backward(const T* dy, const T* gate, const T* up, T* dg, T* du, unsigned long long n) {
    FOR_EACH(i, n) {
        float d = to_f32(dy[i]), g = to_f32(gate[i]), u = to_f32(up[i]), s = sigmoid(g);
        du[i] = Round<T>::of(d * g * s);
        dg[i] = Round<T>::of(d * u * s * (1.0f + g * (1.0f - s)));
    }
}
