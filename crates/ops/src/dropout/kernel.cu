// Philox 4x32-10: the words of draw `quad` of a place, of which element 4 quad + j gets the jth.
__device__ __forceinline__ unsigned philox_word(unsigned long long seed, unsigned long long site, unsigned long long quad,
                                                int j) {
    unsigned k0 = (unsigned)seed, k1 = (unsigned)(seed >> 32);
    unsigned c0 = (unsigned)quad, c1 = (unsigned)(quad >> 32), c2 = (unsigned)site, c3 = (unsigned)(site >> 32);
    for (int round = 0; round < 10; round++) {
        unsigned hi0 = __umulhi(0xD2511F53u, c0), lo0 = 0xD2511F53u * c0;
        unsigned hi1 = __umulhi(0xCD9E8D57u, c2), lo1 = 0xCD9E8D57u * c2;
        c0 = hi1 ^ c1 ^ k0;
        c1 = lo1;
        c2 = hi0 ^ c3 ^ k1;
        c3 = lo0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return j == 0 ? c0 : j == 1 ? c1 : j == 2 ? c2 : c3;
}

// An element is kept, and scaled, if its draw from [0, 1) is at least p.
KERNEL dropout(const T* x, T* y, float p, unsigned long long seed, unsigned long long site, unsigned long long n) {
    float scale = 1.0f / (1.0f - p);
    FOR_EACH(i, n) {
        float unit = (philox_word(seed, site, i / 4, (int)(i % 4)) >> 8) * (1.0f / 16777216.0f);
        y[i] = Round<T>::of(to_f32(x[i]) * (unit >= p ? scale : 0.0f));
    }
}
