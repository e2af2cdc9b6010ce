// What the files of attention know of heads and sequences.

struct Shape {
    int heads, kv_heads, dim;
    int window;  // 0 for none
    float scale;
};
// A sequence: rows of the batch, the row of its first key, and the position of its first row, as the layout has them.
struct Segment {
    unsigned first, count, first_key, past;
};
#define AS_SHAPE {heads, kv_heads, dim, window, scale}

__device__ __forceinline__ int first_key(const Shape& s, int position) {
    return s.window > 0 && position - s.window + 1 > 0 ? position - s.window + 1 : 0;
}
