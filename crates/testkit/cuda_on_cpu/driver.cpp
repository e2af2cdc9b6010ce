// libcuda.so.1 for machines without a GPU: the driver API as documented, as far as Halfbyte uses it, on runtime.hpp.
#include "device.hpp"

using namespace device;

#define API extern "C" __attribute__((visibility("default"))) Result
#define LOCK std::lock_guard<std::recursive_mutex> held(lock)
#define READY \
    LOCK;     \
    if (Result r = ready()) return r

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
    *count = int(all().size());
    return initialised ? OK : NOT_INITIALIZED;
}
API cuDeviceGet(int* device, int ordinal) {
    *device = ordinal;
    return at(ordinal) ? OK : INVALID_DEVICE;
}
API cuDeviceGetName(char* name, int length, int) {
    snprintf(name, length, "CUDA on the CPU");
    return OK;
}
API cuDeviceTotalMem_v2(size_t* bytes, int) {
    *bytes = total();
    return OK;
}
API cuDeviceGetAttribute(int* value, int which, int device) {
    if (!at(device)) return INVALID_DEVICE;
    switch (which) {
        case 1: *value = MAX_THREADS; break;
        case 8: *value = SHARED_WITHOUT_LEAVE; break;
        case 10: *value = 32; break;  // lanes of a warp
        case 16: *value = 2; break;   // processors
        case 75: *value = 9; break;   // compute capability 9.0
        case 97: *value = SHARED_WITH_LEAVE; break;
        default: *value = 0;
    }
    return OK;
}
API cuDevicePrimaryCtxRetain(void** ctx, int device) {
    *ctx = at(device);
    return at(device) ? OK : INVALID_DEVICE;
}
API cuDevicePrimaryCtxRelease_v2(int) { return OK; }
API cuCtxSetCurrent(Device* ctx) {
    current = ctx;
    for (auto& it : all())
        if (ctx == &it) return OK;
    return ctx == nullptr ? OK : INVALID_CONTEXT;
}
API cuCtxGetCurrent(Device** ctx) {
    *ctx = current;
    return OK;
}

API cuStreamCreateWithPriority(Stream** stream, unsigned, int priority) {
    READY;
    streams.insert(*stream = new Stream{current, priority, {}});
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
    if (!is_here(stream)) return INVALID_HANDLE;
    return cannot_be_kept(stream) ? CAPTURE_UNSUPPORTED : finish(stream);
}
API cuStreamWaitEvent(Stream* stream, Event* event, unsigned) {
    READY;
    if (!is_here(stream) || !events.count(event)) return INVALID_HANDLE;
    // The event may be recorded again or destroyed before the wait runs; what counts is the record made so far.
    auto record = event->record;
    if (!record) return OK;
    if (record->capture && !stream->capture) {
        // It goes along from here on.
        stream->capture = record->capture;
        stream->lane = stream->capture->graph.lanes.size();
        stream->capture->graph.lanes.emplace_back();
    }
    if (stream->capture) {
        if (record->capture != stream->capture) {
            stream->capture->spoilt = true;
            return CAPTURE_ISOLATION;
        }
        stream->capture->graph.lanes[stream->lane].push_back({nullptr, false, true, record->mark});
        return OK;
    }
    push(stream, [record] { finish(*record); });
    return OK;
}
API cuEventCreate(Event** event, unsigned flags) {
    READY;
    constexpr unsigned DISABLE_TIMING = 2;
    events.insert(*event = new Event{current, !(flags & DISABLE_TIMING), nullptr});
    return OK;
}
API cuEventDestroy_v2(Event* event) {
    LOCK;
    if (!events.erase(event)) return INVALID_HANDLE;
    delete event;
    return OK;
}
API cuEventRecord(Event* event, Stream* stream) {
    READY;
    if (!is_here(stream) || !events.count(event) || event->device != current) return INVALID_HANDLE;
    auto record = std::make_shared<Record>(Record{stream});
    event->record = record;
    if (auto capture = stream->capture) {
        record->capture = capture;
        record->mark = capture->graph.marks.size();
        capture->graph.marks.push_back(stream->lane);
        capture->graph.lanes[stream->lane].push_back({nullptr, true, false, record->mark});
        return OK;
    }
    push(stream, [record] {
        record->done = true;
        record->at = std::chrono::steady_clock::now();
    });
    return OK;
}
API cuEventSynchronize(Event* event) {
    READY;
    if (!events.count(event)) return INVALID_HANDLE;
    if (event->record && event->record->capture) return CAPTURED_EVENT;
    if (event->record) finish(*event->record);
    return current->broken;
}
API cuEventQuery(Event* event) {
    READY;
    if (!events.count(event)) return INVALID_HANDLE;
    if (event->record && event->record->capture) return CAPTURED_EVENT;
    return !event->record || event->record->done ? OK : NOT_READY;
}
API cuEventElapsedTime(float* milliseconds, Event* from, Event* to) {
    READY;
    if (!events.count(from) || !events.count(to) || !from->timed || !to->timed) return INVALID_HANDLE;
    if (!from->record || !to->record) return INVALID_HANDLE;
    if (!from->record->done || !to->record->done) return NOT_READY;
    *milliseconds = std::chrono::duration<float, std::milli>(to->record->at - from->record->at).count();
    return OK;
}

API cuStreamBeginCapture_v2(Stream* stream, int) {
    READY;
    if (!is_here(stream)) return INVALID_HANDLE;
    const char* graphs = getenv("CUDA_ON_CPU_GRAPHS");
    if (graphs && !strcmp(graphs, "none")) return NOT_SUPPORTED;
    if (stream->capture) return INVALID_VALUE;
    stream->capture = std::make_shared<Capture>();
    stream->lane = 0;
    return OK;
}
API cuStreamEndCapture(Stream* stream, const Graph** graph) {
    READY;
    if (!is_here(stream)) return INVALID_HANDLE;
    auto capture = stream->capture;
    if (!capture || stream->lane != 0) return INVALID_VALUE;
    for (auto it : streams)
        if (it->capture == capture) it->capture = nullptr;
    *graph = nullptr;
    if (capture->spoilt) return CAPTURE_INVALIDATED;
    if (!capture->graph.run(false, false)) return CAPTURE_UNJOINED;
    const char* how = getenv("CUDA_ON_CPU_GRAPHS");
    if (how && !strcmp(how, "torn")) capture->graph.tear();
    graphs.insert(*graph = new Graph(capture->graph));
    return OK;
}
API cuGraphInstantiateWithFlags(const Graph** made, const Graph* graph, unsigned long long flags) {
    READY;
    if (flags || !graphs.count(graph)) return INVALID_VALUE;
    graphs.insert(*made = new Graph(*graph));
    return OK;
}
API cuGraphLaunch(const Graph* graph, Stream* stream) {
    READY;
    if (!graphs.count(graph) || !is_here(stream)) return INVALID_HANDLE;
    if (cannot_be_kept(stream)) return CAPTURE_UNSUPPORTED;
    // It may be destroyed before it runs.
    auto kept = std::make_shared<Graph>(*graph);
    push(stream, [kept, stream] {
        if (!stream->device->broken) kept->run(true, is_early());
    });
    return OK;
}
API cuGraphDestroy(const Graph* graph) {
    LOCK;
    if (!graphs.erase(graph)) return INVALID_VALUE;
    delete graph;
    return OK;
}
API cuGraphExecDestroy(const Graph* graph) { return cuGraphDestroy(graph); }

API cuMemAllocAsync(Pointer* at, size_t bytes, Stream* stream) {
    READY;
    if (bytes == 0) return INVALID_VALUE;
    if (!is_here(stream)) return INVALID_HANDLE;
    if (cannot_be_kept(stream)) return CAPTURE_UNSUPPORTED;
    size_t fails = environment("CUDA_ON_CPU_FAIL_ALLOC", 0);
    if (current->used + bytes > total() || (fails && ++allocated >= fails)) return OUT_OF_MEMORY;
    auto fresh = static_cast<char*>(aligned_alloc(GRAIN, guarded(bytes)));
    if (!fresh) return OUT_OF_MEMORY;
    // Fresh memory holds anything: a NaN in every float type. So does what lies behind it.
    memset(fresh, 0xFF, guarded(bytes));
    *at = reinterpret_cast<Pointer>(fresh);
    allocations[*at] = {bytes, current};
    memory[*at] = bytes;
    current->used += bytes;
    return OK;
}
API cuMemFreeAsync(Pointer at, Stream* stream) {
    READY;
    auto it = allocations.find(at);
    if (it == allocations.end() || it->second.device != current || !is_here(stream)) return INVALID_VALUE;
    if (cannot_be_kept(stream)) return CAPTURE_UNSUPPORTED;
    current->used -= it->second.bytes;
    allocations.erase(it);
    push(stream, [at, device = current] {
        size_t bytes = memory[at];
        auto from = reinterpret_cast<const unsigned char*>(at);
        if (!std::all_of(from + bytes, from + guarded(bytes), [](unsigned char it) { return it == 0xFF; })) {
            fprintf(stderr, "cuda on cpu: something was written behind the end of %zu bytes\n", bytes);
            device->broken = ILLEGAL_ADDRESS;
        }
        memory.erase(at);
        free(reinterpret_cast<void*>(at));
    });
    return OK;
}
API cuMemHostAlloc(void** at, size_t bytes, unsigned) {
    READY;
    size_t locked = 0;
    for (auto& it : pinned) locked += it.second;
    if (locked + bytes > environment("CUDA_ON_CPU_HOST_MEMORY", SIZE_MAX)) return OUT_OF_MEMORY;
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
API cuMemGetInfo_v2(size_t* available, size_t* whole) {
    READY;
    *whole = total();
    *available = total() - current->used;
    return OK;
}

// A copy or memset in a stream's order.
static void enqueue(Stream* stream, std::function<void()> move) {
    bool fails = ++copies == environment("CUDA_ON_CPU_FAIL_COPY", 0);
    push(stream, [stream, fails, move] {
        if (fails) stream->device->broken = ILLEGAL_ADDRESS;
        if (!stream->device->broken) move();
    });
}
API cuMemcpyHtoDAsync_v2(Pointer to, const void* from, size_t bytes, Stream* stream) {
    READY;
    if (!is_here(stream) || !inside(to, bytes)) return INVALID_VALUE;
    auto target = reinterpret_cast<void*>(to);
    if (!is_pinned(from, bytes) && cannot_be_kept(stream)) return CAPTURE_UNSUPPORTED;
    if (is_pinned(from, bytes)) {
        enqueue(stream, [=] { memcpy(target, from, bytes); });
    } else {
        // Ordinary memory is staged before the call returns.
        auto source = static_cast<const char*>(from);
        auto staged = std::make_shared<std::vector<char>>(source, source + bytes);
        enqueue(stream, [=] { memcpy(target, staged->data(), bytes); });
    }
    return OK;
}
API cuMemcpyDtoHAsync_v2(void* to, Pointer from, size_t bytes, Stream* stream) {
    READY;
    if (!is_here(stream) || !inside(from, bytes)) return INVALID_VALUE;
    if (!is_pinned(to, bytes) && cannot_be_kept(stream)) return CAPTURE_UNSUPPORTED;
    auto source = reinterpret_cast<const void*>(from);
    enqueue(stream, [=] { memcpy(to, source, bytes); });
    // To ordinary memory the call returns when the copy is done.
    return is_pinned(to, bytes) ? OK : finish(stream);
}
API cuMemcpyDtoDAsync_v2(Pointer to, Pointer from, size_t bytes, Stream* stream) {
    READY;
    if (!is_here(stream) || !inside(to, bytes) || !inside(from, bytes)) return INVALID_VALUE;
    enqueue(stream, [=] { memmove(reinterpret_cast<void*>(to), reinterpret_cast<void*>(from), bytes); });
    return OK;
}
API cuMemsetD8Async(Pointer at, unsigned char value, size_t bytes, Stream* stream) {
    READY;
    if (!is_here(stream) || !inside(at, bytes)) return INVALID_VALUE;
    enqueue(stream, [=] { memset(reinterpret_cast<void*>(at), value, bytes); });
    return OK;
}

API cuModuleLoadData(Module** module, const void* image) {
    READY;
    constexpr char MAGIC[] = "cuda on cpu:";
    auto text = static_cast<const char*>(image);
    if (strncmp(text, MAGIC, sizeof MAGIC - 1) != 0) return INVALID_IMAGE;
    *module = new Module{text + sizeof MAGIC - 1, current, {}};
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
    auto& found = module->functions[name];
    if (!found) found.reset(new Function{it->first, &it->second, module->device});
    *function = found.get();
    return OK;
}
API cuFuncSetAttribute(Function* f, int which, int value) {
    READY;
    constexpr int MAX_DYNAMIC_SHARED_SIZE_BYTES = 8;
    if (!f || f->device != current) return INVALID_HANDLE;
    if (which != MAX_DYNAMIC_SHARED_SIZE_BYTES || value < 0 || unsigned(value) > SHARED_WITH_LEAVE) return INVALID_VALUE;
    f->granted = unsigned(value);
    return OK;
}
API cuFuncGetAttribute(int* value, int, Function*) {
    *value = 0;
    return OK;
}
static void run(const std::string& name, dim3 grid, dim3 block, unsigned shared, const std::function<void()>& body) {
#ifdef CUDA_ON_CPU_COUNTS
    std::vector<std::pair<uintptr_t, uintptr_t>> ranges;
    for (auto& [at, bytes] : memory) ranges.emplace_back(at, at + bytes);
    counts::begin(name, grid, block, shared, std::move(ranges));
    cpu::launch(grid, block, shared, body);
    counts::end();
#else
    cpu::launch(grid, block, shared, body);
#endif
}
API cuLaunchKernel(Function* f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, Stream* stream, void** args, void** extra) {
    READY;
    if (!f || f->device != current || !is_here(stream)) return INVALID_HANDLE;
    if (extra || !gx || !gy || !gz || gx > MAX_GRID_X || gy > MAX_GRID_YZ || gz > MAX_GRID_YZ) return INVALID_VALUE;
    if (!bx || !by || !bz || bx > MAX_THREADS || by > MAX_THREADS || bz > MAX_BLOCK_Z) return INVALID_VALUE;
    if (uint64_t(bx) * by * bz > MAX_THREADS || shared > f->granted) return INVALID_VALUE;
    Result fault = follow(*f->kernel, args);
    if (++launches == environment("CUDA_ON_CPU_FAIL_LAUNCH", 0)) fault = LAUNCH_FAILED;
    if (fault) {
        push(stream, [stream, fault] { stream->device->broken = fault; });
        return OK;
    }
    auto body = f->kernel->bind(args);
    push(stream, [=] {
        if (!stream->device->broken) run(f->name, {gx, gy, gz}, {bx, by, bz}, shared, body);
    });
    return OK;
}
// A configuration with the one attribute that is known here: that the kernel may begin before the one before it is done. It does not,
// here, which that attribute allows.
struct LaunchAttribute {
    unsigned id;
    char pad[4];
    union {
        char whole[64];
        int allowed;
    } value;
};
struct LaunchConfig {
    unsigned grid[3], block[3], shared;
    Stream* stream;
    LaunchAttribute* attributes;
    unsigned count;
};
API cuLaunchKernelEx(const LaunchConfig* it, Function* f, void** args, void** extra) {
    const unsigned OVERLAPS = 6;
    for (unsigned i = 0; i < it->count; i++)
        if (it->attributes[i].id != OVERLAPS || it->attributes[i].value.allowed != 1) return INVALID_VALUE;
    return cuLaunchKernel(f, it->grid[0], it->grid[1], it->grid[2], it->block[0], it->block[1], it->block[2], it->shared, it->stream,
                          args, extra);
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
        case NOT_READY: *name = "CUDA_ERROR_NOT_READY"; break;
        case ILLEGAL_ADDRESS: *name = "CUDA_ERROR_ILLEGAL_ADDRESS"; break;
        case MISALIGNED_ADDRESS: *name = "CUDA_ERROR_MISALIGNED_ADDRESS"; break;
        case LAUNCH_FAILED: *name = "CUDA_ERROR_LAUNCH_FAILED"; break;
        case NOT_SUPPORTED: *name = "CUDA_ERROR_NOT_SUPPORTED"; break;
        case CAPTURE_UNSUPPORTED: *name = "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"; break;
        case CAPTURE_INVALIDATED: *name = "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"; break;
        case CAPTURE_UNJOINED: *name = "CUDA_ERROR_STREAM_CAPTURE_UNJOINED"; break;
        case CAPTURE_ISOLATION: *name = "CUDA_ERROR_STREAM_CAPTURE_ISOLATION"; break;
        case CAPTURED_EVENT: *name = "CUDA_ERROR_CAPTURED_EVENT"; break;
        default: *name = "CUDA_ERROR_UNKNOWN";
    }
    return OK;
}
API cuGetErrorString(int code, const char** text) { return cuGetErrorName(code, text); }

// For libcublasLt of the same kind: work in a stream's order, on memory that must be the current device's.
extern "C" __attribute__((visibility("default"))) bool cuda_on_cpu_enqueue(Stream* stream, std::function<void()>* task) {
    LOCK;
    if (!is_here(stream)) return false;
    push(stream, [stream, work = std::move(*task)] {
        if (!stream->device->broken) work();
    });
    return true;
}
extern "C" __attribute__((visibility("default"))) bool cuda_on_cpu_owns(const void* at, size_t bytes) {
    LOCK;
    return inside(reinterpret_cast<Pointer>(at), bytes);
}
