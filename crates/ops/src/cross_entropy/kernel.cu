// Where rows keep 16 bytes together, so many at a time: whole rows are copied.
template <bool SCATTER>
__device__ __forceinline__ void move_rows(const T* x, const unsigned* rows, T* out, int cols, int first, size_t n) {
    const int N = Pack<T>::N;
    bool together = cols % N == 0 && on_16(x) && on_16(out);
    unsigned step = together ? N : 1, packs = cols / step;
    size_t all = n / step;
    FOR_EACH(p, all) {
        size_t i = all >> 32 ? p / packs : (unsigned)p / packs, c = (p - i * packs) * step;
        size_t here = i * cols + c, there = (size_t)rows[first + i] * cols + c;
        size_t from = SCATTER ? here : there, to = SCATTER ? there : here;
        if (together) *(Pack<T>*)(out + to) = *(const Pack<T>*)(x + from);
        else out[to] = x[from];
    }
}

// Four elements of a gradient, beside a pack of logits.
struct alignas(4 * sizeof(T)) Four {
    T v[4];
};

// out[i] = x[rows[first + i]], rows of `cols`.
KERNEL gather_rows(const T* x, const unsigned* rows, T* out, int cols, int first, unsigned long long n) {
    move_rows<false>(x, rows, out, cols, first, n);
}

// out[rows[first + i]] = x[i].
KERNEL scatter_rows(const T* x, const unsigned* rows, T* out, int cols, int first, unsigned long long n) {
    move_rows<true>(x, rows, out, cols, first, n);
}

// Logits stay below a cap in size, if there is one (0 is none), and change with their products by less the nearer they are to it.
__device__ __forceinline__ float capped(float x, float cap) { return cap > 0.0f ? cap * tanhf(x / cap) : x; }
__device__ __forceinline__ float slope(float logit, float cap) { return cap > 0.0f ? 1.0f - logit / cap * (logit / cap) : 1.0f; }

// y = cap tanh(factor z / cap), or factor z without a cap.
KERNEL shape_logits(const float* z, float factor, float cap, float* y, unsigned long long n) {
    pointwise<float, 1, 1>({z}, {y}, n, [=](const float(&x)[1], float(&out)[1]) { out[0] = capped(factor * x[0], cap); });
}

#define KEPT 8 // packs of a row of logits that a thread keeps in registers; what is beyond is read again

// One block a row of logits yet to be biased and capped, the first of which is row `first` of targets and losses: losses[row] =
// log(sum exp(l)) - l[target], and, if wanted, grad = scale * (softmax - onehot) * slope(l), rounded.
KERNEL softmax_loss(const float* logits, const float* bias, const unsigned* targets, float* losses, T* grad, int vocab, int first,
                    float scale, float cap) {
    __shared__ float scratch[32];
    const float* row = logits + (size_t)blockIdx.x * vocab;
    T* out = grad ? grad + (size_t)blockIdx.x * vocab : nullptr;
    int target = (int)targets[first + blockIdx.x];
    bool together = vocab % 4 == 0 && on_16(logits) && on_16(bias) && on_16(grad);
    auto products_of = [&](int i) {
        Pack<float> z = load_pack(row, i, vocab, together);
        if (bias) {
            Pack<float> b = load_pack(bias, i, vocab, together);
#pragma unroll
            for (int j = 0; j < 4; j++) z.v[j] += b.v[j];
        }
        return z;
    };
    Pack<float> kept[KEPT + 1];
    float largest = -INF, sum = 0.0f;
    for_packs<float, KEPT>(vocab, [&](int i, int k) {
        kept[k] = products_of(i);
#pragma unroll
        for (int j = 0; j < 4; j++)
            if (i + j < vocab) largest = fmaxf(largest, kept[k].v[j] = capped(kept[k].v[j], cap));
    });
    largest = block_max(largest, scratch);
    for_packs<float, KEPT>(vocab, [&](int i, int k) {
        bool again = k == KEPT;
        if (again) kept[k] = products_of(i);
#pragma unroll
        for (int j = 0; j < 4; j++) {
            kept[k].v[j] = expf((again ? capped(kept[k].v[j], cap) : kept[k].v[j]) - largest);
            if (i + j < vocab) sum += kept[k].v[j];
        }
    });
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) losses[first + blockIdx.x] = largest + logf(sum) - capped(row[target] + (bias ? bias[target] : 0.0f), cap);
    if (!grad) return;
    float inverse = 1.0f / sum;
    for_packs<float, KEPT>(vocab, [&](int i, int k) {
        if (k == KEPT) {
            kept[k] = products_of(i);
#pragma unroll
            for (int j = 0; j < 4; j++) kept[k].v[j] = expf(capped(kept[k].v[j], cap) - largest);
        }
        Pack<float> products;
        if (cap > 0.0f) products = products_of(i);
        Four four;
#pragma unroll
        for (int j = 0; j < 4; j++) {
            float p = kept[k].v[j] * inverse;
            float change = i + j == target ? p - 1.0f : p;
            if (cap > 0.0f) change *= slope(capped(products.v[j], cap), cap);
            four.v[j] = Round<T>::of(scale * change);
        }
        if (together) {
            *(Four*)(out + i) = four;
        } else {
            for (int j = 0; j < 4 && i + j < vocab; j++) out[i + j] = four.v[j];
        }
    });
}

// mean = the sum of all losses / denominator, summed in double: each of the 256 threads its share, then theirs in order. One block.
KERNEL mean_loss(const float* losses, float* mean, int n, float denominator) {
    __shared__ double sums[256];
    double sum = 0.0;
    for (int i = threadIdx.x; i < n; i += blockDim.x) sum += (double)losses[i];
    sums[threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.x > 0) return;
    for (int i = 1; i < (int)blockDim.x; i++) sum += sums[i];
    mean[0] = (float)(sum / (double)denominator);
}
