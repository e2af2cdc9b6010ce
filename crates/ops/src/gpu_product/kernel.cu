// What surrounds the products of cuBLASLt: weights decoded into a workspace, biases and their gradients.

// Element i of a flat, row-major 4-bit weight: code[nibble] * absmax[i / block], elements 2k in the high nibble of byte k.
// The absmax of a block is plain, or map[codes[b]] * nested[b / 256] + offset. A thread decodes two elements.
KERNEL decode_4bit(const unsigned char* packed, const float* code, const float* absmax, const unsigned char* codes,
                   const float* map, const float* nested, float offset, int block, T* w, unsigned long long n) {
    FOR_EACH(pair, (n + 1) / 2) {
        unsigned byte = packed[pair];
        size_t i = 2 * pair, b = i / block;
        float scale = absmax ? absmax[b] : map[codes[b]] * nested[b / 256] + offset;
        w[i] = Round<T>::of(code[byte >> 4] * scale);
        // Blocks are even, so both elements of a byte belong to one.
        if (i + 1 < n) w[i + 1] = Round<T>::of(code[byte & 15] * scale);
    }
}

// Element (row, col) of an 8-bit weight: code * absmax[row] / 127.
KERNEL decode_8bit(const signed char* codes, const float* absmax, int cols, T* w, unsigned long long n) {
    FOR_EACH(i, n) w[i] = Round<T>::of((float)codes[i] * absmax[i / cols] * 7.874016e-3f);
}

KERNEL add_bias(T* y, const void* bias, int type, int cols, unsigned long long n) {
    FOR_EACH(i, n) y[i] = Round<T>::of(to_f32(y[i]) + load_any(bias, type, i % cols));
}

// The sums of the columns, rows in order; a thread a column.
KERNEL column_sums(const T* x, float* sums, int rows, int cols) {
    FOR_EACH(j, (size_t)cols) {
        float sum = 0.0f;
        for (int i = 0; i < rows; i++) sum += to_f32(x[(size_t)i * cols + j]);
        sums[j] = sum;
    }
}
