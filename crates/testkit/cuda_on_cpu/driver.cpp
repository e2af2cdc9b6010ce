// libcuda.so.1 for machines without a GPU: the driver API as documented, as far as Halfbyte uses it, on runtime.hpp.
//
// Streams are queues that run only when somebody waits for them, so that a missing synchronisation shows. Faults can be asked for:
//   CUDA_ON_CPU_MEMORY=BYTES       the device's memory
//   CUDA_ON_CPU_FAIL_ALLOC=N       the Nth allocation finds no memory, and none after it
//   CUDA_ON_CPU_FAIL_LAUNCH=N      the Nth launch fails, and everything after it
#include <deque>
#include <mutex>
#include <set>

#include "kernels.hpp"

namespace {

using Result = int;
using Pointer = unsigned long long;
constexpr Result OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, INVALID_DEVICE = 101,
                 INVALID_IMAGE = 200, INVALID_CONTEXT = 201, INVALID_HANDLE = 400, NOT_FOUND = 500, LAUNCH_FAILED = 719;
constexpr unsigned GUARD = 256;

std::recursive_mutex lock;
bool initialised = false;
Result broken = OK;
size_t used = 0;
long launches = 0;
size_t allocated = 0;
std::map<Pointer, size_t> allocations;
std::map<const char*, size_t> pinned;
thread_local void* current = nullptr;
int context;

struct Stream {
    std::deque<std::function<void()>> queue;
};
struct Event {
    Stream* stream = nullptr;
    bool done = true;
};
std::set<Stream*> streams;
std::set<Event*> events;

struct Module {
    std::string name;
};
struct Function {
    const cpu::Bind* bind;
};

size_t environment(const char* name, size_t otherwise) {
    const char* text = getenv(name);
    return text && *text ? strtoull(text, nullptr, 10) : otherwise;
}
size_t total() { return environment("CUDA_ON_CPU_MEMORY", size_t(8) << 30); }

void step(Stream* stream) {
    auto task = std::move(stream->queue.front());
    stream->queue.pop_front();
    task();
}
Result finish(Stream* stream) {
    while (!stream->queue.empty()) step(stream);
    return broken;
}

Result ready() { return !initialised ? NOT_INITIALIZED : current ? OK : INVALID_CONTEXT; }

// Whether [at, at + bytes) lies in one allocation.
bool inside(Pointer at, size_t bytes) {
    auto it = allocations.upper_bound(at);
    if (it == allocations.begin()) return false;
    --it;
    return at + bytes <= it->first + it->second;
}
bool is_pinned(const void* p, size_t bytes) {
    auto at = static_cast<const char*>(p);
    auto it = pinned.upper_bound(at);
    if (it == pinned.begin()) return false;
    --it;
    return at + bytes <= it->first + it->second;
}

}  // namespace

#define API extern "C" __attribute__((visibility("default"))) Result
#define LOCK std::lock_guard<std::recursive_mutex> held(lock)
#define READY                              \
    LOCK;                                  \
    if (Result r = ready()) return r;      \
    if (broken) return broken

API cuInit(unsigned flags) {
    if (flags) return INVALID_VALUE;
    initialised = true;
    return OK;
}
API cuDriverGetVersion(int* version) {
    *version = 13000;
    return OK;
}
API cuDeviceGetCount(int* count) {
    const char* visible = getenv("CUDA_VISIBLE_DEVICES");
    *count = visible && !*visible ? 0 : 1;
    return initialised ? OK : NOT_INITIALIZED;
}
API cuDeviceGet(int* device, int ordinal) {
    *device = 0;
    return ordinal == 0 ? OK : INVALID_DEVICE;
}
API cuDeviceGetName(char* name, int length, int) {
    snprintf(name, length, "CUDA on the CPU");
    return OK;
}
API cuDeviceTotalMem_v2(size_t* bytes, int) {
    *bytes = total();
    return OK;
}
API cuDeviceGetAttribute(int* value, int which, int) {
    // Compute capability 9.0, 32 lanes, 1,024 threads a block, two processors.
    *value = which == 75 ? 9 : which == 76 ? 0 : which == 10 ? 32 : which == 1 ? 1024 : which == 16 ? 2 : 0;
    return OK;
}
API cuDevicePrimaryCtxRetain(void** ctx, int device) {
    *ctx = &context;
    return device == 0 ? OK : INVALID_DEVICE;
}
API cuDevicePrimaryCtxRelease_v2(int) { return OK; }
API cuCtxSetCurrent(void* ctx) {
    current = ctx;
    return ctx == nullptr || ctx == &context ? OK : INVALID_CONTEXT;
}
API cuCtxGetCurrent(void** ctx) {
    *ctx = current;
    return OK;
}

API cuStreamCreate(Stream** stream, unsigned) {
    READY;
    streams.insert(*stream = new Stream);
    return OK;
}
API cuStreamDestroy_v2(Stream* stream) {
    READY;
    if (!streams.erase(stream)) return INVALID_HANDLE;
    Result r = finish(stream);
    delete stream;
    return r;
}
API cuStreamSynchronize(Stream* stream) {
    READY;
    return streams.count(stream) ? finish(stream) : INVALID_HANDLE;
}
API cuStreamWaitEvent(Stream* stream, Event* event, unsigned) {
    READY;
    if (!streams.count(stream) || !events.count(event)) return INVALID_HANDLE;
    if (event->done) return OK;
    auto from = event->stream;
    // The event may be recorded again or destroyed before the wait runs; what counts is the record made so far.
    auto mark = std::make_shared<bool>(false);
    from->queue.push_back([mark] { *mark = true; });
    stream->queue.push_back([from, mark] {
        while (!*mark && !from->queue.empty()) step(from);
    });
    return OK;
}
API cuEventCreate(Event** event, unsigned) {
    READY;
    events.insert(*event = new Event);
    return OK;
}
API cuEventDestroy_v2(Event* event) {
    READY;
    if (!events.erase(event)) return INVALID_HANDLE;
    return OK;  // Left to the queue that may still name it.
}
API cuEventRecord(Event* event, Stream* stream) {
    READY;
    if (!streams.count(stream) || !events.count(event)) return INVALID_HANDLE;
    event->stream = stream;
    event->done = false;
    stream->queue.push_back([event] { event->done = true; });
    return OK;
}
API cuEventSynchronize(Event* event) {
    READY;
    while (!event->done && !event->stream->queue.empty()) step(event->stream);
    return broken;
}
API cuEventQuery(Event* event) { return event->done ? OK : 600; }

API cuMemAllocAsync(Pointer* at, size_t bytes, Stream* stream) {
    READY;
    if (bytes == 0) return INVALID_VALUE;
    if (!streams.count(stream)) return INVALID_HANDLE;
    size_t fails = environment("CUDA_ON_CPU_FAIL_ALLOC", 0);
    if (used + bytes > total() || (fails && ++allocated >= fails)) return OUT_OF_MEMORY;
    auto memory = static_cast<char*>(aligned_alloc(GUARD, (bytes + GUARD - 1) / GUARD * GUARD));
    if (!memory) return OUT_OF_MEMORY;
    // Fresh memory holds anything: a NaN in every float type.
    memset(memory, 0xFF, bytes);
    *at = reinterpret_cast<Pointer>(memory);
    allocations[*at] = bytes;
    used += bytes;
    return OK;
}
API cuMemFreeAsync(Pointer at, Stream* stream) {
    READY;
    auto it = allocations.find(at);
    if (it == allocations.end() || !streams.count(stream)) return INVALID_VALUE;
    used -= it->second;
    allocations.erase(it);
    stream->queue.push_back([at] { free(reinterpret_cast<void*>(at)); });
    return OK;
}
API cuMemHostAlloc(void** at, size_t bytes, unsigned) {
    READY;
    *at = aligned_alloc(64, (bytes + 63) / 64 * 64);
    pinned[static_cast<char*>(*at)] = bytes;
    return OK;
}
API cuMemFreeHost(void* at) {
    LOCK;
    if (!pinned.erase(static_cast<char*>(at))) return INVALID_VALUE;
    // As documented: waits for everything that might use it.
    for (auto stream : streams) finish(stream);
    free(at);
    return OK;
}
API cuMemGetInfo_v2(size_t* available, size_t* all) {
    READY;
    *all = total();
    *available = total() - used;
    return OK;
}
API cuMemcpyHtoDAsync_v2(Pointer to, const void* from, size_t bytes, Stream* stream) {
    READY;
    if (!streams.count(stream) || !inside(to, bytes)) return INVALID_VALUE;
    auto target = reinterpret_cast<void*>(to);
    if (is_pinned(from, bytes)) {
        stream->queue.push_back([=] { memcpy(target, from, bytes); });
    } else {
        // Ordinary memory is staged before the call returns.
        auto staged = std::make_shared<std::vector<char>>(static_cast<const char*>(from), static_cast<const char*>(from) + bytes);
        stream->queue.push_back([=] { memcpy(target, staged->data(), bytes); });
    }
    return OK;
}
API cuMemcpyDtoHAsync_v2(void* to, Pointer from, size_t bytes, Stream* stream) {
    READY;
    if (!streams.count(stream) || !inside(from, bytes)) return INVALID_VALUE;
    auto source = reinterpret_cast<const void*>(from);
    stream->queue.push_back([=] { memcpy(to, source, bytes); });
    // To ordinary memory the call returns when the copy is done.
    return is_pinned(to, bytes) ? OK : finish(stream);
}
API cuMemcpyDtoDAsync_v2(Pointer to, Pointer from, size_t bytes, Stream* stream) {
    READY;
    if (!streams.count(stream) || !inside(to, bytes) || !inside(from, bytes)) return INVALID_VALUE;
    stream->queue.push_back([=] { memmove(reinterpret_cast<void*>(to), reinterpret_cast<void*>(from), bytes); });
    return OK;
}
API cuMemsetD8Async(Pointer at, unsigned char value, size_t bytes, Stream* stream) {
    READY;
    if (!streams.count(stream) || !inside(at, bytes)) return INVALID_VALUE;
    stream->queue.push_back([=] { memset(reinterpret_cast<void*>(at), value, bytes); });
    return OK;
}

API cuModuleLoadData(Module** module, const void* image) {
    READY;
    constexpr char MAGIC[] = "cuda on cpu:";
    auto text = static_cast<const char*>(image);
    if (strncmp(text, MAGIC, sizeof MAGIC - 1) != 0) return INVALID_IMAGE;
    *module = new Module{text + sizeof MAGIC - 1};
    return OK;
}
API cuModuleUnload(Module* module) {
    delete module;
    return OK;
}
API cuModuleGetFunction(Function** function, Module* module, const char* name) {
    READY;
    auto it = cpu::kernels().find(module->name + "/" + name);
    if (it == cpu::kernels().end()) return NOT_FOUND;
    *function = new Function{&it->second};
    return OK;
}
API cuFuncSetAttribute(Function*, int, int) { return OK; }
API cuFuncGetAttribute(int* value, int, Function*) {
    *value = 0;
    return OK;
}
API cuLaunchKernel(Function* f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, Stream* stream, void** args, void** extra) {
    READY;
    if (!streams.count(stream)) return INVALID_HANDLE;
    if (!f || extra || !gx || !gy || !gz || gy > 65535 || gz > 65535) return INVALID_VALUE;
    if (uint64_t(bx) * by * bz == 0 || uint64_t(bx) * by * bz > 1024 || shared > (227u << 10)) return INVALID_VALUE;
    if (++launches == long(environment("CUDA_ON_CPU_FAIL_LAUNCH", 0))) {
        stream->queue.push_back([] { broken = LAUNCH_FAILED; });
        return OK;
    }
    auto body = (*f->bind)(args);
    stream->queue.push_back([=] {
        if (!broken) cpu::launch({gx, gy, gz}, {bx, by, bz}, shared, body);
    });
    return OK;
}

API cuGetErrorName(int code, const char** name) {
    switch (code) {
        case OK: *name = "CUDA_SUCCESS"; break;
        case INVALID_VALUE: *name = "CUDA_ERROR_INVALID_VALUE"; break;
        case OUT_OF_MEMORY: *name = "CUDA_ERROR_OUT_OF_MEMORY"; break;
        case NOT_INITIALIZED: *name = "CUDA_ERROR_NOT_INITIALIZED"; break;
        case INVALID_IMAGE: *name = "CUDA_ERROR_INVALID_IMAGE"; break;
        case INVALID_CONTEXT: *name = "CUDA_ERROR_INVALID_CONTEXT"; break;
        case INVALID_HANDLE: *name = "CUDA_ERROR_INVALID_HANDLE"; break;
        case NOT_FOUND: *name = "CUDA_ERROR_NOT_FOUND"; break;
        case LAUNCH_FAILED: *name = "CUDA_ERROR_LAUNCH_FAILED"; break;
        default: *name = "CUDA_ERROR_UNKNOWN";
    }
    return OK;
}
API cuGetErrorString(int code, const char** text) { return cuGetErrorName(code, text); }

// For libcublasLt of the same kind: work in a stream's order, on memory that must be the device's.
extern "C" __attribute__((visibility("default"))) bool cuda_on_cpu_enqueue(void* stream, std::function<void()>* task) {
    LOCK;
    auto it = streams.find(static_cast<Stream*>(stream));
    if (it == streams.end()) return false;
    (*it)->queue.push_back([work = std::move(*task)] {
        if (!broken) work();
    });
    return true;
}
extern "C" __attribute__((visibility("default"))) bool cuda_on_cpu_owns(const void* at, size_t bytes) {
    LOCK;
    return inside(reinterpret_cast<Pointer>(at), bytes);
}
