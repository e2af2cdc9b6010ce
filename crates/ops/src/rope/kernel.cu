// (a, b) -> (a cos - b sin, b cos + a sin) for the halves a and b of every head; the sine times `direction`.
// `table` holds (length, half) cosines and then as many sines. A thread a pair.
KERNEL rotate(const T* x, const float* table, const unsigned* positions, T* y, int heads, int half, int length,
              float direction, unsigned long long pairs) {
    FOR_EACH(p, pairs) {
        int i = p % half;
        size_t head = p / half, row = head / heads;
        size_t angle = (size_t)positions[row] * half + i;
        float c = rounded<T>(table[angle]), s = direction * rounded<T>(table[(size_t)length * half + angle]);
        size_t at = head * 2 * half + i;
        float a = to_f32(x[at]), b = to_f32(x[at + half]);
        y[at] = Round<T>::of(rounded<T>(a * c) - rounded<T>(b * s));
        y[at + half] = Round<T>::of(rounded<T>(b * c) + rounded<T>(a * s));
    }
}
