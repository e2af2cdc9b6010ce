// Attention of few queries over many keys, as in generation: what it costs is reading the keys and values, so each is read once for all
// query heads that share it, by blocks that have a part of the keys each. Their results, relative to their own largest score, are put
// together in the order of the parts. Keys and values lie in the pages of a cache.
//
// A lane has eight channels of a key; LANES lanes, a power of two, have them all.

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

// Joins what other lanes of the warp know, `other` lanes away.
template <int HEADS> __device__ __forceinline__ void join_lanes(Part<HEADS>& part, int other) {
#pragma unroll
    for (int h = 0; h < HEADS; h++) {
        float theirs = __shfl_xor_sync(0xffffffffu, part.largest[h], other), most = fmaxf(part.largest[h], theirs);
        float own = part.largest[h] > -INF ? exp2f(part.largest[h] - most) : 0.0f, weight = theirs > -INF ? exp2f(theirs - most) : 0.0f;
        part.largest[h] = most;
        part.sum[h] = part.sum[h] * own + __shfl_xor_sync(0xffffffffu, part.sum[h], other) * weight;
#pragma unroll
        for (int i = 0; i < 8; i++)
            part.acc[h][i] = part.acc[h][i] * own + __shfl_xor_sync(0xffffffffu, part.acc[h][i], other) * weight;
    }
}

// Keys first, first + step, ... before `end`, for HEADS query heads from q on, a head's channels `offset` elements behind the beginnings of
// pages, and the values behind all keys of a page; `count` of them, some beyond `end`, at most. So many that are AT_ONCE are on their way
// together. All lanes of a warp come along, for the exchanges.
template <int HEADS, int AT_ONCE>
__device__ __forceinline__ void attend(Part<HEADS>& part, const T* q, const Pages& pages, size_t offset, int first, int end, int step,
                                       int count, int heads, int lanes, const Shape& s) {
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
    for (int n = 0, key = first; n < count; n += AT_ONCE, key += AT_ONCE * step) {
        Eight keys[AT_ONCE], values[AT_ONCE];
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++) {
            if (!there || key + j * step >= end) continue;
            const T* row = pages.row(key + j * step, offset, stride) + channel;
            keys[j] = *(const Eight*)row;
            values[j] = *(const Eight*)(row + (size_t)PAGE * stride);
        }
#pragma unroll
        for (int h = 0; h < HEADS; h++) {
            float scores[AT_ONCE], most = part.largest[h];
#pragma unroll
            for (int j = 0; j < AT_ONCE; j++) {
                bool seen = key + j * step < end;
                float score = 0.0f;
                if (there && seen)
#pragma unroll
                    for (int i = 0; i < 8; i++) score += query[h][i] * to_f32(keys[j].of[i]);
                score = key_sum(score, lanes);
                if (s.cap > 0.0f) score = LOG2_E * capped(s, score / LOG2_E);
                scores[j] = seen ? score : -INF;
                most = fmaxf(most, scores[j]);
            }
            if (key >= end) continue;
            float shrink = exp2f(part.largest[h] - most);
            part.largest[h] = most;
            part.sum[h] *= shrink;
#pragma unroll
            for (int i = 0; i < 8; i++) part.acc[h][i] *= shrink;
#pragma unroll
            for (int j = 0; j < AT_ONCE; j++) {
                if (key + j * step >= end) continue;
                float weight = exp2f(scores[j] - most);
                part.sum[h] += weight;
                if (there)
#pragma unroll
                    for (int i = 0; i < 8; i++) part.acc[h][i] += weight * to_f32(values[j].of[i]);
            }
        }
    }
    for (int other = lanes; other < 32; other *= 2) join_lanes<HEADS>(part, other);
}

template <int HEADS, int AT_ONCE>
__device__ __forceinline__ void few_queries(float* shared, const T* q, const Pages& pages, size_t keys, const Segment& of, float* parts,
                                            T* y, int keys_a_part, int number, int lanes, const float* sinks, const Shape& s) {
    int group = s.heads / s.kv_heads, kv_head = blockIdx.x / number, which = blockIdx.x % number;
    int position = of.past + blockIdx.y, row = of.first + blockIdx.y;
    // The first part begins with the first key that is seen.
    int begin = first_key(s, position) + which * keys_a_part, end = min(position + 1, begin + keys_a_part);
    int at_a_time = blockDim.x / lanes, count = end > begin ? (end - begin + at_a_time - 1) / at_a_time : 0;
    int warps = blockDim.x / 32, warp = threadIdx.x / 32;
    for (int done = 0; done < group; done += HEADS) {
        int head = kv_head * group + done, heads = min(HEADS, group - done), own = threadIdx.x / lanes;
        Part<HEADS> part;
        attend<HEADS, AT_ONCE>(part, q + ((size_t)row * s.heads + head) * s.dim, pages, keys + kv_head * s.dim, begin + own, end,
                               at_a_time, count, heads, lanes, s);
        // A warp's one after the other in shared memory: for each head all sums of channels, then the largest score and the sum of
        // weights.
        __syncthreads();
        int channel = threadIdx.x % 32 * 8, width = s.dim + 2;
#pragma unroll
        for (int h = 0; h < HEADS; h++) {
            float* to = shared + (warp * HEADS + h) * width;
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
            for (int n = 0; n < warps; n++) most = fmaxf(most, shared[(n * HEADS + h) * width + s.dim]);
            for (int n = 0; n < warps && most > -INF; n++) {
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

// grid: (kv_heads * number, longest, sequences), of any number of warps. `number` parts of keys_a_part keys reach over all that a query sees;
// with one part `y` is written, else `parts`, (rows, heads, number, dim + 2). Shared memory holds dim + 2 floats for each warp, four times
// that where heads share their keys.
KERNEL attend_parts(const T* q, const unsigned* segments, unsigned long long keys, float* parts, T* y, int heads, int kv_heads, int dim,
                    int window, float scale, float cap, int keys_a_part, int number, int lanes, const float* sinks) {
    const Shape s = AS_SHAPE;
    const Segment of = ((const Segment*)segments)[blockIdx.z];
    if (blockIdx.y >= of.count) return;
    SHARED_ARRAY(float, shared);
    const Pages pages(segments, gridDim.z, of.first_key);
    if (heads == kv_heads) few_queries<1, 8 / sizeof(T)>(shared, q, pages, keys, of, parts, y, keys_a_part, number, lanes, sinks, s);
    else few_queries<4, 4 / sizeof(T)>(shared, q, pages, keys, of, parts, y, keys_a_part, number, lanes, sinks, s);
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
