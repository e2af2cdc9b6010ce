// wgmma on a processor, for 16-bit operands in rows of 128 bytes whose pieces of 16 are swizzled, the one layout that kernels use.
//
// Products are done when they are waited for, by what shared memory and registers hold then: so an operand that is overwritten too early
// and a result that is read too early are wrong here, too. What fences order is not seen.
#pragma once

// Where something lies in shared memory.
inline size_t __cvta_generic_to_shared(const void* p) { return static_cast<const unsigned char*>(p) - cpu::block->dynamic; }

namespace cpu {

inline float number(uint16_t bits, bool f16) { return f16 ? half_to_float(bits) : __int_as_float(int(uint32_t(bits) << 16)); }

// Sixteen elements of the operand that a descriptor names, which a sum goes along, of a row or column of the result.
UNCOUNTED inline void operand(float (&x)[16], uint64_t told, bool columns, int outer, bool f16) {
    auto bytes = [&](int bit) { return size_t(told >> bit & 0x3fff) << 4; };
    size_t first = bytes(0), leading = bytes(16), stride = bytes(32);
    first += columns ? outer / 64 * leading + outer % 64 * 2 : outer / 8 * stride + outer % 8 * 128;
    for (int k = 0; k < 16; k++) {
        size_t at = first + (columns ? k / 8 * stride + k % 8 * 128 : k * 2);
        // The swizzle goes by the address: a row's number within 1024 bytes turns its pieces.
        at ^= (at >> 7 & 7) << 4;
        if (told >> 62 != 1 || at + 2 > block->shared) fail("wgmma is told of an operand that is not there");
        uint16_t bits;
        memcpy(&bits, block->dynamic + at, 2);
        x[k] = number(bits, f16);
    }
}

// Rows g and g + 8 of a warp's 16, as a fragment has them, of the left operand.
UNCOUNTED inline void left_rows(float (&a)[2][16], const Multiplication& it) {
    int g = fiber->lane / 4, first = fiber->thread.x / 32 % 4 * 16 + g;
    if (!it.fragment) {
        operand(a[0], it.left, it.left_columns, first, it.f16);
        operand(a[1], it.left, it.left_columns, first + 8, it.f16);
        return;
    }
    struct Held {
        unsigned x[4];
    } held;
    memcpy(held.x, it.fragment, sizeof(held.x));
    auto of = lanes(held);
    for (int half = 0; half < 2; half++)
        for (int k = 0; k < 16; k++)
            a[half][k] = number(uint16_t(of(g * 4 + k % 8 / 2).x[k / 8 * 2 + half] >> k % 2 * 16), it.f16);
}

UNCOUNTED inline void multiply(const Multiplication& it) {
    float a[2][16], b[16];
    left_rows(a, it);
    for (int n = 0; n < it.eights; n++)
        for (int j = 0; j < 2; j++) {
            operand(b, it.right, it.right_columns, 8 * n + 2 * (fiber->lane & 3) + j, it.f16);
            float sum[2] = {};
            for (int k = 0; k < 16; k++) sum[0] += a[0][k] * b[k], sum[1] += a[1][k] * b[k];
            for (int half = 0; half < 2; half++) {
                float& c = it.c[n][2 * half + j];
                c = (it.more ? c : 0.0f) + sum[half];
            }
        }
}

inline void multiply_later(const Multiplication& it) { fiber->products.push_back(it); }
inline void end_products() {
    size_t in_groups = 0;
    for (size_t count : fiber->groups) in_groups += count;
    fiber->groups.push_back(fiber->products.size() - in_groups);
}
// Until so many groups are left. Lanes of a warp come here together.
inline void wait_for_products(size_t left) {
    Fiber* f = fiber;
    while (f->groups.size() > left) {
        for (size_t i = 0; i < f->groups[0]; i++) multiply(f->products[i]);
        f->products.erase(f->products.begin(), f->products.begin() + f->groups[0]);
        f->groups.erase(f->groups.begin());
    }
}

}  // namespace cpu
