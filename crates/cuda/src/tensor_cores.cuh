// Tensor cores and copies to shared memory, for 16-bit element types: behind `typedef ... T` in every file of kernels.
//
// Products are mma.m16n8k16: a fragment of the left operand holds rows g and g + 8, one of the right column g, and a result columns
// 2t and 2t + 1 of rows g and g + 8, where g = lane / 4 and t = lane % 4.

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define HOPPER
#endif

#if T_KIND > 0

// c (16, 8) += a (16, 16) b (16, 8).
__device__ __forceinline__ void mma(float* c, const unsigned* a, const unsigned* b) {
#if defined(CUDA_ON_CPU)
    counts::mma();
    struct Held {
        unsigned a[4], b[2];
    };
    auto of = cpu::lanes(Held{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}});
    int g = (threadIdx.x & 31) / 4, t = threadIdx.x & 3;
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 2; j++) {
            // Lane i of the row's four holds k = 2i, 2i + 1 and 2i + 8, 2i + 9.
            const Held &left = of(g * 4 + i), &right = of((2 * t + j) * 4 + i);
            for (int half = 0; half < 2; half++)
                for (int row = 0; row < 2; row++) {
                    unsigned l = left.a[2 * half + row], r = right.b[half];
                    T x[2], y[2];
                    x[0].bits = (uint16_t)l, x[1].bits = (uint16_t)(l >> 16);
                    y[0].bits = (uint16_t)r, y[1].bits = (uint16_t)(r >> 16);
                    c[2 * row + j] += to_f32(x[0]) * to_f32(y[0]) + to_f32(x[1]) * to_f32(y[1]);
                }
        }
#elif T_KIND == 1
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

__device__ __forceinline__ unsigned pack(float low, float high) {
#if defined(CUDA_ON_CPU)
    return Round<T>::of(low).bits | ((unsigned)Round<T>::of(high).bits << 16);
#else
    unsigned y;
#if T_KIND == 1
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
#else
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
#endif
    return y;
#endif
}

// Four matrices of eight rows of 16 bytes, whose rows' places lanes 8i .. 8i + 8 name for matrix i: lane l gets elements 2t and
// 2t + 1 of row g of each or, transposed, elements g of rows 2t and 2t + 1.
template <bool TRANSPOSED> __device__ __forceinline__ void load_matrices(unsigned* x, const T* row) {
#if defined(CUDA_ON_CPU)
    counts::matrix_row(row);
    cpu::matrices(x, row, TRANSPOSED);
#else
    unsigned at = (unsigned)__cvta_generic_to_shared(row);
    if (TRANSPOSED)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3]) : "r"(at) : "memory");
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3]) : "r"(at) : "memory");
#endif
}

// BYTES, 4 or 16, to shared memory, there when the copies are waited for; zeros, and nothing read, where there is nothing to copy.
template <int BYTES> __device__ __forceinline__ void copy_later(void* to, const void* from, bool there) {
#if defined(CUDA_ON_CPU)
    cpu::copy_later(to, from, BYTES, there);
#else
    unsigned at = (unsigned)__cvta_generic_to_shared(to);
    if (BYTES == 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(from), "r"(there ? 16 : 0) : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(at), "l"(from), "r"(there ? 4 : 0) : "memory");
#endif
}
// Those of this thread; a barrier behind it makes it those of all.
__device__ __forceinline__ void wait_for_copies() {
#if defined(CUDA_ON_CPU)
    cpu::wait_for_copies();
#else
    asm volatile("cp.async.wait_all;" ::: "memory");
#if defined(HOPPER)
    // wgmma reads by another way than these copies write.
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
#endif
}
#endif
