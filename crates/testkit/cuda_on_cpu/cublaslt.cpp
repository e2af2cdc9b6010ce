// libcublasLt.so of the same kind: matrix products as the library documents them, column-major, for f32, f16 and bf16 with sums in f32.
#include <chrono>
#include <cstdint>
#include <cstring>
#include <functional>
#include <thread>
#include <vector>

extern "C" bool cuda_on_cpu_enqueue(void* stream, std::function<void()>* task);
extern "C" bool cuda_on_cpu_owns(const void* at, size_t bytes);

using Status = int;
constexpr Status OK = 0, NOT_INITIALIZED = 1, INVALID_VALUE = 7, NOT_SUPPORTED = 15;
constexpr int F32 = 0, F16 = 2, BF16 = 14;

struct Handle {
    int magic;
};
struct Layout {
    int type;
    uint64_t rows, cols;
    int64_t stride;
};
struct Desc {
    int compute, scale, turn_a = 0, turn_b = 0;
};
struct Preference {
    uint64_t workspace = 0;
    // Of A, B, C and the result, as the library supposes unless it is told.
    uint32_t alignment[4] = {256, 256, 256, 256};
};
struct Algorithm {
    uint64_t data[8];
};
// What the first of several suggestions is called.
constexpr uint64_t SLOW = 1;
struct Heuristic {
    Algorithm algorithm;
    size_t workspace;
    Status state;
    float waves;
    int reserved[4];
};

typedef float Eight __attribute__((vector_size(32), aligned(4), may_alias));

static size_t size_of(int type) { return type == F32 ? 4 : 2; }
static float read(const void* p, int type, size_t i) {
    if (type == F32) return static_cast<const float*>(p)[i];
    uint16_t bits = static_cast<const uint16_t*>(p)[i];
    if (type == F16) {
        _Float16 h;
        memcpy(&h, &bits, 2);
        return float(h);
    }
    uint32_t wide = uint32_t(bits) << 16;
    float f;
    memcpy(&f, &wide, 4);
    return f;
}
static void write(void* p, int type, size_t i, float v) {
    if (type == F32) {
        static_cast<float*>(p)[i] = v;
    } else if (type == F16) {
        auto h = static_cast<_Float16>(v);
        memcpy(static_cast<uint16_t*>(p) + i, &h, 2);
    } else {
        uint32_t bits;
        memcpy(&bits, &v, 4);
        static_cast<uint16_t*>(p)[i] =
            (bits & 0x7fffffffu) > 0x7f800000u ? bits >> 16 | 0x40 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    }
}

// Whether the four layouts are those of one product.
static Status check(const Desc* d, const Layout* a, const Layout* b, const Layout* c, const Layout* out) {
    uint64_t m = d->turn_a ? a->cols : a->rows, k = d->turn_a ? a->rows : a->cols;
    uint64_t n = d->turn_b ? b->rows : b->cols, inner = d->turn_b ? b->cols : b->rows;
    if (k != inner || out->rows != m || out->cols != n || c->rows != m || c->cols != n) return INVALID_VALUE;
    for (auto l : {a, b, c, out})
        if (l->stride < int64_t(l->rows)) return INVALID_VALUE;
    // 68 is CUBLAS_COMPUTE_32F.
    if (d->compute != 68 || d->scale != F32 || a->type != b->type || c->type != out->type) return NOT_SUPPORTED;
    if (out->type != a->type && out->type != F32) return NOT_SUPPORTED;
    return OK;
}
static size_t extent(const Layout* l) {
    return l->cols == 0 ? 0 : ((l->cols - 1) * l->stride + l->rows) * size_of(l->type);
}

#define API extern "C" __attribute__((visibility("default"))) Status
extern "C" __attribute__((visibility("default"))) size_t cublasLtGetVersion() { return 130000; }
API cublasLtCreate(Handle** handle) {
    *handle = new Handle{42};
    return OK;
}
API cublasLtDestroy(Handle* handle) {
    delete handle;
    return OK;
}
API cublasLtMatrixLayoutCreate(Layout** layout, int type, uint64_t rows, uint64_t cols, int64_t stride) {
    if (type != F32 && type != F16 && type != BF16) return NOT_SUPPORTED;
    *layout = new Layout{type, rows, cols, stride};
    return OK;
}
API cublasLtMatrixLayoutDestroy(Layout* layout) {
    delete layout;
    return OK;
}
API cublasLtMatmulDescCreate(Desc** desc, int compute, int scale) {
    *desc = new Desc{compute, scale};
    return OK;
}
API cublasLtMatmulDescDestroy(Desc* desc) {
    delete desc;
    return OK;
}
API cublasLtMatmulDescSetAttribute(Desc* desc, int which, const void* value, size_t bytes) {
    if (bytes != 4) return INVALID_VALUE;
    int operation;
    memcpy(&operation, value, 4);
    if (operation != 0 && operation != 1) return NOT_SUPPORTED;
    if (which == 3) desc->turn_a = operation;
    else if (which == 4) desc->turn_b = operation;
    else return NOT_SUPPORTED;
    return OK;
}
API cublasLtMatmulPreferenceCreate(Preference** preference) {
    *preference = new Preference;
    return OK;
}
API cublasLtMatmulPreferenceDestroy(Preference* preference) {
    delete preference;
    return OK;
}
API cublasLtMatmulPreferenceSetAttribute(Preference* preference, int which, const void* value, size_t bytes) {
    constexpr int WORKSPACE = 1, REDUCTION = 3, ALIGNMENT = 5;
    if (which == WORKSPACE && bytes == 8) memcpy(&preference->workspace, value, 8);
    else if (which == REDUCTION && bytes == 4) return OK;  // Sums are not split here.
    else if (which >= ALIGNMENT && which < ALIGNMENT + 4 && bytes == 4) memcpy(&preference->alignment[which - ALIGNMENT], value, 4);
    else return INVALID_VALUE;
    return OK;
}
API cublasLtMatmulAlgoGetHeuristic(Handle* handle, Desc* d, Layout* a, Layout* b, Layout* c, Layout* out,
                                   Preference* preference, int asked, Heuristic* found, int* count) {
    if (!handle || handle->magic != 42) return NOT_INITIALIZED;
    if (asked < 1) return INVALID_VALUE;
    if (Status s = check(d, a, b, c, out)) return s;
    // The first of them is slow, and the last not for everybody.
    *count = asked < 3 ? asked : 3;
    for (int n = 0; n < *count; n++) {
        found[n] = Heuristic{};
        // An algorithm belongs to the shape and the alignment it was found for.
        found[n].algorithm.data[0] = out->rows;
        found[n].algorithm.data[1] = out->cols;
        for (int i = 0; i < 4; i++) found[n].algorithm.data[2 + i] = preference->alignment[i];
        found[n].algorithm.data[6] = n + (asked > 1);
        if (n == 2) found[n].state = NOT_SUPPORTED;
    }
    return OK;
}
API cublasLtMatmul(Handle* handle, Desc* d, const float* alpha, const void* a, Layout* la, const void* b, Layout* lb,
                   const float* beta, const void* c, Layout* lc, void* out, Layout* lo, const Algorithm* algorithm,
                   void* workspace, size_t workspace_bytes, void* stream) {
    if (!handle || handle->magic != 42) return NOT_INITIALIZED;
    if (Status s = check(d, la, lb, lc, lo)) return s;
    if (algorithm && (algorithm->data[0] != lo->rows || algorithm->data[1] != lo->cols)) return INVALID_VALUE;
    const void* matrices[4] = {a, b, c, out};
    for (int i = 0; i < 4; i++)
        if (algorithm && reinterpret_cast<uintptr_t>(matrices[i]) % algorithm->data[2 + i]) return INVALID_VALUE;
    bool owned = cuda_on_cpu_owns(a, extent(la)) && cuda_on_cpu_owns(b, extent(lb)) && cuda_on_cpu_owns(out, extent(lo));
    if (!owned || (workspace_bytes && !cuda_on_cpu_owns(workspace, workspace_bytes))) return INVALID_VALUE;
    bool slow = algorithm && algorithm->data[6] == SLOW;
    std::function<void()> task = [slow, d = *d, la = *la, lb = *lb, lo = *lo, a, b, c, out, alpha = *alpha, beta = *beta] {
        if (slow) std::this_thread::sleep_for(std::chrono::milliseconds(2));
        size_t m = lo.rows, n = lo.cols, k = d.turn_a ? la.rows : la.cols;
        // Rows of the result eight at a time, whose sums have the order that each would have alone.
        size_t panels = (m + 7) / 8;
        std::vector<float> left(panels * k * 8), right(k * n);
        for (size_t i = 0; i < m; i++)
            for (size_t p = 0; p < k; p++)
                left[(i / 8 * k + p) * 8 + i % 8] = read(a, la.type, d.turn_a ? p + i * la.stride : i + p * la.stride);
        for (size_t j = 0; j < n; j++)
            for (size_t p = 0; p < k; p++)
                right[j * k + p] = read(b, lb.type, d.turn_b ? j + p * lb.stride : p + j * lb.stride);
        for (size_t panel = 0; panel < panels; panel++)
            for (size_t j = 0; j < n; j++) {
                auto rows = reinterpret_cast<const Eight*>(left.data() + panel * k * 8);
                const float* factors = right.data() + j * k;
                Eight sums{};
                for (size_t p = 0; p < k; p++) sums += rows[p] * factors[p];
                for (size_t i = 8 * panel; i < m && i < 8 * panel + 8; i++) {
                    size_t at = i + j * lo.stride;
                    float sum = alpha * sums[i % 8];
                    // Beta 0 does not read.
                    write(out, lo.type, at, beta == 0 ? sum : sum + beta * read(c, lo.type, at));
                }
            }
    };
    return cuda_on_cpu_enqueue(stream, &task) ? OK : INVALID_VALUE;
}
