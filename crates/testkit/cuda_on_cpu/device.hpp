// What the driver keeps: devices, streams, events, allocations, and the limits of a Hopper card, which it enforces.
//
// Streams are queues that run only when somebody waits for them, so that a missing synchronisation shows. Whatever goes on beside the
// compute stream runs so as late as it may; a wait that it lacks itself shows where it runs as early as it may. Settings, read when
// they are needed:
//   CUDA_ON_CPU_STREAMS=early      streams of no priority run what they are given at once, before all that they do not wait for
//   CUDA_ON_CPU_DEVICES=N          how many devices there are; one if it is not set
//   CUDA_ON_CPU_MEMORY=BYTES       the memory of each
//   CUDA_ON_CPU_HOST_MEMORY=BYTES  page-locked memory that the host gives; without a limit if it is not set
//   CUDA_ON_CPU_FAIL_ALLOC=N       the Nth allocation finds no memory, and none after it
//   CUDA_ON_CPU_FAIL_LAUNCH=N      the Nth launch fails when it runs, and everything after it
//   CUDA_ON_CPU_GRAPHS=none        no graphs are made
//   CUDA_ON_CPU_GRAPHS=torn        graphs lack the last thing that was asked of the stream where they began
//   CUDA_ON_CPU_FAIL_COPY=N        the Nth copy or memset fails when it runs, and everything after it
#pragma once

#include <chrono>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <set>

#include "graph.hpp"
#include "runtime.hpp"

namespace device {

using Result = int;
using Pointer = unsigned long long;
constexpr Result OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, INVALID_DEVICE = 101,
                 INVALID_IMAGE = 200, INVALID_CONTEXT = 201, INVALID_HANDLE = 400, NOT_FOUND = 500, NOT_READY = 600,
                 ILLEGAL_ADDRESS = 700, MISALIGNED_ADDRESS = 716, LAUNCH_FAILED = 719, NOT_SUPPORTED = 801,
                 CAPTURE_UNSUPPORTED = 900, CAPTURE_INVALIDATED = 901, CAPTURE_UNJOINED = 904, CAPTURE_ISOLATION = 905,
                 CAPTURED_EVENT = 907;

// As the driver gives memory out.
constexpr size_t GRAIN = 512;
// What is taken for so many bytes: with some behind them that nobody may write.
constexpr size_t guarded(size_t bytes) { return (bytes + GRAIN - 1) / GRAIN * GRAIN + 4 * GRAIN; }
// Dynamic shared memory that a launch may ask for without leave, and with it.
constexpr unsigned SHARED_WITHOUT_LEAVE = 48u << 10, SHARED_WITH_LEAVE = 227u << 10;
constexpr unsigned MAX_THREADS = 1024, MAX_BLOCK_Z = 64, MAX_GRID_YZ = 65535, MAX_GRID_X = 0x7fffffffu;

inline size_t environment(const char* name, size_t otherwise) {
    const char* text = getenv(name);
    return text && *text ? strtoull(text, nullptr, 10) : otherwise;
}

// Which is also its context.
struct Device {
    int ordinal;
    size_t used = 0;
    // What failed while it ran; from then on every call gives this.
    Result broken = OK;
};

struct Stream {
    Device* device;
    // Lower is first.
    int priority;
    std::deque<std::function<void()>> queue;
    // What is asked of it is kept there, on that lane, and not done.
    std::shared_ptr<Capture> capture;
    size_t lane = 0;
};
// What an event stands for since it was last recorded.
struct Record {
    Stream* stream;
    bool done = false;
    std::chrono::steady_clock::time_point at{};
    // Which mark it is of what is being kept.
    std::shared_ptr<Capture> capture;
    size_t mark = 0;
};
struct Event {
    Device* device;
    bool timed;
    std::shared_ptr<Record> record;
};
struct Allocation {
    size_t bytes;
    Device* device;
};
struct Function {
    // With its module's.
    std::string name;
    const cpu::Kernel* kernel;
    Device* device;
    // Dynamic shared memory that it has leave for.
    unsigned granted = SHARED_WITHOUT_LEAVE;
};
struct Module {
    std::string name;
    Device* device;
    std::map<std::string, std::unique_ptr<Function>> functions;
};

inline std::recursive_mutex lock;
inline bool initialised = false;
inline thread_local Device* current = nullptr;
inline std::set<Stream*> streams;
inline std::set<Event*> events;
inline std::map<Pointer, Allocation> allocations;
// What lies there, until the stream has come to where it was freed.
inline std::map<Pointer, size_t> memory;
inline std::map<const char*, size_t> pinned;
inline std::set<const Graph*> graphs;
inline size_t launches = 0, copies = 0, allocated = 0;

inline std::deque<Device>& all() {
    static std::deque<Device> devices = [] {
        std::deque<Device> it;
        const char* visible = getenv("CUDA_VISIBLE_DEVICES");
        size_t count = visible && !*visible ? 0 : environment("CUDA_ON_CPU_DEVICES", 1);
        for (size_t i = 0; i < count; i++) it.push_back({int(i)});
        return it;
    }();
    return devices;
}
inline Device* at(int ordinal) { return ordinal >= 0 && size_t(ordinal) < all().size() ? &all()[ordinal] : nullptr; }
inline size_t total() { return environment("CUDA_ON_CPU_MEMORY", size_t(8) << 30); }

inline Result ready() { return !initialised ? NOT_INITIALIZED : !current ? INVALID_CONTEXT : current->broken; }

inline void step(Stream* stream) {
    auto task = std::move(stream->queue.front());
    stream->queue.pop_front();
    task();
}
inline Result finish(Stream* stream) {
    while (!stream->queue.empty()) step(stream);
    return stream->device->broken;
}
inline void finish(const Record& record) {
    while (!record.done && !record.stream->queue.empty()) step(record.stream);
}

// Puts work at the end of a stream. Where that is asked for, a stream that is not among the first does it at once: what it waits for is
// done, and nothing that it does not wait for.
inline bool is_early() {
    const char* when = getenv("CUDA_ON_CPU_STREAMS");
    return when && !strcmp(when, "early");
}
inline void push(Stream* stream, std::function<void()> task) {
    if (stream->capture) {
        stream->capture->graph.lanes[stream->lane].push_back({std::move(task), false, false, 0});
        return;
    }
    stream->queue.push_back(std::move(task));
    if (is_early() && stream->priority >= 0) finish(stream);
}

// Whether the stream's calls are being kept, and this is none that can be.
inline bool cannot_be_kept(Stream* stream) {
    if (!stream->capture) return false;
    return stream->capture->spoilt = true;
}

// Whether the stream is one of the current context.
inline bool is_here(Stream* stream) { return streams.count(stream) && stream->device == current; }

// The allocation that `at` points into, or right behind, as a pointer to no elements may.
inline const Allocation* find(Pointer at) {
    auto it = allocations.upper_bound(at);
    if (it == allocations.begin()) return nullptr;
    --it;
    return at <= it->first + it->second.bytes ? &it->second : nullptr;
}
// Whether [at, at + bytes) lies in one allocation of the current device.
inline bool inside(Pointer at, size_t bytes) {
    auto it = allocations.upper_bound(at);
    if (it == allocations.begin()) return false;
    --it;
    return it->second.device == current && at + bytes <= it->first + it->second.bytes;
}
inline bool is_pinned(const void* p, size_t bytes) {
    auto at = static_cast<const char*>(p);
    auto it = pinned.upper_bound(at);
    if (it == pinned.begin()) return false;
    --it;
    return at + bytes <= it->first + it->second;
}

// What a kernel would run into when it follows its arguments: memory that is not there, or of another device, or that does not begin
// where an element may.
inline Result follow(const cpu::Kernel& kernel, void** args) {
    for (const auto& [index, before, alignment] : kernel.pointers) {
        Pointer at;
        memcpy(&at, static_cast<const char*>(args[index]) + before, sizeof at);
        if (at == 0) continue;
        if (at % alignment) return MISALIGNED_ADDRESS;
        auto found = find(at);
        if (found ? found->device != current : !is_pinned(reinterpret_cast<void*>(at), 0)) return ILLEGAL_ADDRESS;
    }
    return OK;
}

}  // namespace device
