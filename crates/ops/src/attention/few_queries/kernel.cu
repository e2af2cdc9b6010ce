// Attention of few queries over many keys, as in generation: what it costs is reading the keys and values, so each is read once for all
// query heads that share it, by blocks that have a part of the keys each. Their results, relative to their own largest score, are put
// together in the order of the parts.
//
// A lane has eight channels of a key; LANES lanes, a power of two, have them all.

#define WARPS 4
#define LOG2_E 1.44269504f

struct alignas(16) Eight {
    T of[8];
};

// The sum over the lanes of a key.
__device__ __forceinline__ float key_sum(float v, int lanes) {
    for (int o = lanes / 2; o > 0; o >>= 1) v += __shfl_xor_sync(0xffffffffu, v, o);
    return v;
}

// What is known of a softmax over some of the keys: the largest score, the sum of powers relative to it, and the weighted values.
template <int HEADS> struct Part {
    float largest[HEADS], sum[HEADS], acc[HEADS][8];
};

// Keys first, first + step, ... before `end`, for HEADS query heads from q on. All lanes of a warp come along, for the exchanges.
template <int HEADS>
__device__ __forceinline__ void attend(Part<HEADS>& part, const T* q, const T* k, const T* v, int first, int end, int step, int count,
                                       int heads, int lanes, const Shape& s) {
    int channel = threadIdx.x % lanes * 8, stride = s.kv_heads * s.dim;
    bool there = channel < s.dim;
    float query[HEADS][8];
#pragma unroll
    for (int h = 0; h < HEADS; h++) {
        part.largest[h] = -INF;
        part.sum[h] = 0.0f;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            part.acc[h][i] = 0.0f;
            query[h][i] = there && h < heads ? to_f32(q[h * s.dim + channel + i]) * s.scale * LOG2_E : 0.0f;
        }
    }
    for (int n = 0, key = first; n < count; n++, key += step) {
        Eight keys, values;
        bool seen = there && key < end;
        if (seen) {
            keys = *(const Eight*)(k + (size_t)key * stride + channel);
            values = *(const Eight*)(v + (size_t)key * stride + channel);
        }
#pragma unroll
        for (int h = 0; h < HEADS; h++) {
            float score = 0.0f;
            if (seen)
#pragma unroll
                for (int i = 0; i < 8; i++) score += query[h][i] * to_f32(keys.of[i]);
            score = key_sum(score, lanes);
            if (s.cap > 0.0f) score = LOG2_E * capped(s, score / LOG2_E);
            if (key >= end) continue;
            float most = fmaxf(part.largest[h], score);
            float shrink = exp2f(part.largest[h] - most), weight = exp2f(score - most);
            part.largest[h] = most;
            part.sum[h] = part.sum[h] * shrink + weight;
            if (there)
#pragma unroll
                for (int i = 0; i < 8; i++) part.acc[h][i] = part.acc[h][i] * shrink + weight * to_f32(values.of[i]);
        }
    }
}

template <int HEADS>
__device__ __forceinline__ void few_queries(float* shared, const T* q, const T* k, const T* v, const Segment& of, float* parts, T* y,
                                            int keys_a_part, int number, int lanes, const float* sinks, const Shape& s) {
    int group = s.heads / s.kv_heads, kv_head = blockIdx.x / number, which = blockIdx.x % number;
    int position = of.past + blockIdx.y, row = of.first + blockIdx.y;
    int begin = max(first_key(s, position), which * keys_a_part), end = min(position + 1, (which + 1) * keys_a_part);
    int at_a_time = WARPS * 32 / lanes, own = threadIdx.x / lanes, count = end > begin ? (end - begin + at_a_time - 1) / at_a_time : 0;
    const T* keys = k + (size_t)of.first_key * s.kv_heads * s.dim + kv_head * s.dim;
    const T* values = v + (size_t)of.first_key * s.kv_heads * s.dim + kv_head * s.dim;
    for (int done = 0; done < group; done += HEADS) {
        int head = kv_head * group + done, heads = min(HEADS, group - done);
        Part<HEADS> part;
        attend<HEADS>(part, q + ((size_t)row * s.heads + head) * s.dim, keys, values, begin + own, end, at_a_time, count, heads, lanes, s);
        // One after the other in shared memory: for each head all sums of channels, then the largest score and the sum of weights.
        __syncthreads();
        int channel = threadIdx.x % lanes * 8, width = s.dim + 2;
#pragma unroll
        for (int h = 0; h < HEADS; h++) {
            float* to = shared + (own * HEADS + h) * width;
#pragma unroll
            for (int i = 0; i < 8; i++)
                if (channel < s.dim) to[channel + i] = part.acc[h][i];
            if (channel == 0) {
                to[s.dim] = part.largest[h];
                to[s.dim + 1] = part.sum[h];
            }
        }
        __syncthreads();
        for (int i = threadIdx.x; i < heads * s.dim; i += blockDim.x) {
            int h = i / s.dim, c = i % s.dim;
            // A sink is a score that weighs nothing, and joins once.
            bool sink = sinks && number == 1;
            float most = sink ? sinks[head + h] * LOG2_E : -INF, sum = 0.0f, value = 0.0f;
            for (int n = 0; n < at_a_time; n++) most = fmaxf(most, shared[(n * HEADS + h) * width + s.dim]);
            for (int n = 0; n < at_a_time && most > -INF; n++) {
                const float* from = shared + (n * HEADS + h) * width;
                float weight = exp2f(from[s.dim] - most);
                sum += weight * from[s.dim + 1];
                value += weight * from[c];
            }
            if (number == 1) {
                if (sink) sum += exp2f(sinks[head + h] * LOG2_E - most);
                y[((size_t)row * s.heads + head + h) * s.dim + c] = Round<T>::of(value / sum);
            } else {
                float* to = parts + (((size_t)row * s.heads + head + h) * number + which) * width;
                to[c] = value;
                if (c == 0) {
                    to[s.dim] = most;
                    to[s.dim + 1] = sum;
                }
            }
        }
    }
}

// grid: (kv_heads * number, longest, sequences); WARPS warps a block. `number` parts of keys_a_part keys reach over every sequence; with
// one part `y` is written, else `parts`, (rows, heads, number, dim + 2). Shared memory holds dim + 2 floats for each head and key at a time.
KERNEL attend_parts(const T* q, const T* k, const T* v, const unsigned* segments, float* parts, T* y, int heads, int kv_heads, int dim,
                    int window, float scale, float cap, int keys_a_part, int number, int lanes, const float* sinks) {
    const Shape s = AS_SHAPE;
    const Segment of = ((const Segment*)segments)[blockIdx.z];
    if (blockIdx.y >= of.count) return;
    SHARED_ARRAY(float, shared);
    if (heads == kv_heads) few_queries<1>(shared, q, k, v, of, parts, y, keys_a_part, number, lanes, sinks, s);
    else few_queries<4>(shared, q, k, v, of, parts, y, keys_a_part, number, lanes, sinks, s);
}

// grid: (heads, rows), a thread a channel.
KERNEL join_parts(const float* parts, T* y, int heads, int dim, int number, const float* sinks) {
    size_t at = (size_t)blockIdx.y * heads + blockIdx.x;
    const float* of = parts + at * number * (dim + 2);
    for (int c = threadIdx.x; c < dim; c += blockDim.x) {
        float sink = sinks ? sinks[blockIdx.x] * LOG2_E : -INF;
        float most = sink, sum = 0.0f, value = 0.0f;
        for (int n = 0; n < number; n++) most = fmaxf(most, of[n * (dim + 2) + dim]);
        if (sinks) sum += exp2f(sink - most);
        for (int n = 0; n < number; n++) {
            float weight = exp2f(of[n * (dim + 2) + dim] - most);
            sum += weight * of[n * (dim + 2) + dim + 1];
            value += weight * of[n * (dim + 2) + c];
        }
        y[at * dim + c] = Round<T>::of(value / sum);
    }
}
