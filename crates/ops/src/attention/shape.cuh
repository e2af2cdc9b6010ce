// What the files of attention know of heads and sequences.

struct Shape {
    int heads, kv_heads, dim;
    int window;  // 0 for none
    float scale;
    float cap;  // that scores stay below in size, 0 for none
};
// A sequence: rows of the batch, the row of its first key, and the position of its first row, as the layout has them.
struct Segment {
    unsigned first, count, first_key, past;
};
#define AS_SHAPE {heads, kv_heads, dim, window, scale, cap}

__device__ __forceinline__ int first_key(const Shape& s, int position) {
    return s.window > 0 && position - s.window + 1 > 0 ? position - s.window + 1 : 0;
}

// A score that met the scale already, and how it changes with what it was before its cap.
__device__ __forceinline__ float capped(const Shape& s, float score) { return s.cap > 0.0f ? s.cap * tanhf(score / s.cap) : score; }
__device__ __forceinline__ float slope(const Shape& s, float score) {
    return s.cap > 0.0f ? 1.0f - score / s.cap * (score / s.cap) : 1.0f;
}
