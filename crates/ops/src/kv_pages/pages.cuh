// Pages of a cache of keys and values, as the host makes them. Behind the segments of all sequences, of four words each, are the addresses of
// their pages, and a segment's third word is which of them its first is. A page that no query sees any more has the address 0.

#define PAGE 64  // tokens

struct Pages {
    const unsigned long long* addresses;
    __device__ __forceinline__ Pages(const unsigned* segments, unsigned sequences, unsigned first)
        : addresses((const unsigned long long*)(segments + 4 * sequences) + first) {}
    __device__ __forceinline__ T* of(int token) const { return (T*)addresses[(unsigned)token / PAGE]; }
    // A token's row of `stride` elements, of those that begin so many elements behind the page's beginning.
    __device__ __forceinline__ T* row(int token, size_t offset, int stride) const {
        return of(token) + offset + (size_t)((unsigned)token % PAGE) * stride;
    }
};
