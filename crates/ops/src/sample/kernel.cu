// Logits of what occurred, made less probable: seen[first + i] is a row and seen[first + n + i] an id, each pair once.
KERNEL penalise(float* logits, const unsigned* seen, int first, int n, int cols, float penalty) {
    FOR_EACH(i, (size_t)n) {
        float* logit = logits + (size_t)seen[first + i] * cols + seen[first + n + i];
        *logit = *logit < 0.0f ? *logit * penalty : *logit / penalty;
    }
}

typedef unsigned long long Mass;

// Of two keys the larger is that of the larger number.
__device__ __forceinline__ unsigned key_of(float x) {
    unsigned bits = (unsigned)__float_as_int(x);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float of_key(unsigned key) { return __int_as_float((int)(key >> 31 ? key & 0x7fffffffu : ~key)); }

// A row of logits, of which each weighs exp(logit - largest) in units of 2^-40, rounded: whole numbers have the same sum in any order.
struct Row {
    const float* logits;
    int vocab;
    float temperature, largest;

    __device__ __forceinline__ float at(int i) const { return logits[i] / temperature; }
    __device__ __forceinline__ Mass weight(float x) const {
        if (x == largest) return (Mass)1 << 40;
        double below = (double)x - (double)largest;
        // Beyond that it is less than half a unit.
        return below > -30.0 ? (Mass)(exp(below) * 1099511627776.0 + 0.5) : 0;
    }
};

// Sums over all threads of a block, the same in each. `scratch` has N numbers a warp.
template <int N> __device__ __forceinline__ void block_sums(Mass (&v)[N], Mass* scratch) {
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
#pragma unroll
    for (int k = 0; k < N; k++)
        for (int o = 16; o > 0; o >>= 1) v[k] += __shfl_xor_sync(0xffffffffu, v[k], o);
    __syncthreads();
    if (lane == 0)
        for (int k = 0; k < N; k++) scratch[warp * N + k] = v[k];
    __syncthreads();
#pragma unroll
    for (int k = 0; k < N; k++) {
        v[k] = 0;
        for (int w = 0; w < warps; w++) v[k] += scratch[w * N + k];
    }
}
__device__ __forceinline__ Mass block_largest(Mass v, Mass* scratch) {
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    for (int o = 16; o > 0; o >>= 1) {
        Mass other = __shfl_xor_sync(0xffffffffu, v, o);
        v = other > v ? other : v;
    }
    __syncthreads();
    if (lane == 0) scratch[warp] = v;
    __syncthreads();
    v = scratch[0];
    for (int w = 1; w < warps; w++) v = scratch[w] > v ? scratch[w] : v;
    return v;
}

// The first token, by falling logit and of equal ones by id, with which those up to it come to `target` (at least 1, at most all), and to
// how much they come. Tokens count by weight, or each as 1.
struct Found {
    unsigned key, id;
    Mass through;
};
template <bool WEIGHED> __device__ Found find(const Row& row, Mass target, Mass* scratch) {
    // Two bits of the key after the other, from the top: what is above it is known, and is not met again.
    unsigned key = 0;
    Mass above = 0;
    for (int shift = 30; shift >= 0; shift -= 2) {
        Mass sums[3] = {0, 0, 0};
        for (int i = threadIdx.x; i < row.vocab; i += blockDim.x) {
            float x = row.at(i);
            unsigned mine = key_of(x);
            if (shift < 30 && (mine ^ key) >> (shift + 2)) continue;
            Mass mass = WEIGHED ? row.weight(x) : 1;
            unsigned digit = mine >> shift & 3;
#pragma unroll
            for (int k = 0; k < 3; k++) sums[k] += digit == 3 - k ? mass : 0;
        }
        block_sums(sums, scratch);
        unsigned digit = 3;
        while (digit > 0 && above + sums[3 - digit] < target) above += sums[3 - digit--];
        key |= digit << shift;
    }
    // Of those with this key, all of which weigh the same, one after the other counts.
    Mass each = WEIGHED ? row.weight(of_key(key)) : 1, nth = (target - above + each - 1) / each;
    unsigned id = 0;
    Mass before = 0;
    int top = 0;
    while (row.vocab >> (top + 2)) top += 2;
    for (int shift = top; shift >= 0; shift -= 2) {
        Mass counts[3] = {0, 0, 0};
        for (int i = threadIdx.x; i < row.vocab; i += blockDim.x) {
            if (key_of(row.at(i)) != key || (shift < top && ((unsigned)i ^ id) >> (shift + 2))) continue;
            unsigned digit = (unsigned)i >> shift & 3;
#pragma unroll
            for (int k = 0; k < 3; k++) counts[k] += digit == k ? 1 : 0;
        }
        block_sums(counts, scratch);
        unsigned digit = 0;
        while (digit < 3 && before + counts[digit] < nth) before += counts[digit++];
        id |= digit << shift;
    }
    return {key, id, above + nth * each};
}

// ids = a token for each row of `cols` logits, among the first `vocab`: the most probable where the temperature is 0, else as drawn by
// the upper 24 of its bits; of a row that holds NaN or infinity, none. One block a row.
KERNEL sample(const float* logits, const unsigned* bits, unsigned* ids, int cols, int vocab, float temperature, int top_k, float top_p) {
    __shared__ Mass scratch[3 * 32];
    const float* all = logits + (size_t)blockIdx.x * cols;
    bool greedy = temperature <= 0.0f;
    Row row = {all, vocab, greedy ? 1.0f : temperature, 0.0f};
    // Key and id in one, the first of equal numbers as the largest; both zeros are equal, and no number has the key of all ones.
    Mass best = 0;
    for (int i = threadIdx.x; i < cols; i += blockDim.x) {
        bool finite = fabsf(all[i]) < INF;
        Mass mine = !finite ? ~(Mass)0 : i < vocab ? (Mass)key_of(row.at(i) + 0.0f) << 32 | (0xffffffffu - (unsigned)i) : 0;
        best = mine > best ? mine : best;
    }
    best = block_largest(best, scratch);
    unsigned id = 0xffffffffu - (unsigned)best;
    if (best == ~(Mass)0) id = 0xffffffffu;
    else if (!greedy) {
        row.largest = of_key((unsigned)(best >> 32));
        Found last = {0, 0xffffffffu, 0};
        if (top_k > 0) last = find<false>(row, (Mass)top_k, scratch);
        Mass sums[1] = {0};
        for (int i = threadIdx.x; i < vocab; i += blockDim.x) {
            float x = row.at(i);
            unsigned mine = key_of(x);
            if (mine > last.key || (mine == last.key && (unsigned)i <= last.id)) sums[0] += row.weight(x);
        }
        block_sums(sums, scratch);
        Mass whole = sums[0];
        if (top_p < 1.0f) {
            double wanted = ceil((double)top_p * (double)whole);
            whole = find<true>(row, wanted < 1.0 ? 1 : wanted < (double)whole ? (Mass)wanted : whole, scratch).through;
        }
        Mass part = bits[blockIdx.x] >> 8;
        Mass drawn = (whole >> 24) * part + ((whole & 0xffffff) * part >> 24);
        id = find<true>(row, drawn + 1, scratch).id;
    }
    if (threadIdx.x == 0) ids[blockIdx.x] = id;
}
