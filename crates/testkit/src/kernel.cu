// For tests of the device itself.

KERNEL fill(float* x, float value, unsigned long long n) {
    FOR_EACH(i, n) x[i] = value;
}

// A block: the sum of n numbers that lie in dynamic shared memory, each of them `value`.
KERNEL sum_in_shared(float* sum, float value, int n) {
    SHARED_ARRAY(float, x);
    for (int i = threadIdx.x; i < n; i += blockDim.x) x[i] = value;
    __syncthreads();
    if (threadIdx.x == 0) {
        float total = 0.0f;
        for (int i = 0; i < n; i++) total += x[i];
        *sum = total;
    }
}
