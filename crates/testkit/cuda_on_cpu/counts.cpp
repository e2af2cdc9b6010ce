// Counts what counts.hpp is told: warp-wide accesses with their sectors of 32 bytes and passes over 32 banks, and who met whom.
//
// As on the hardware: shared memory has 32 banks of 4 bytes; an access of 8 bytes a lane is done by halves of a warp, one of 16 by
// quarters, and lanes that name the same word are served together. ldmatrix takes eight rows of 16 bytes at once.
#include <dlfcn.h>
#include <link.h>

#include <algorithm>
#include <array>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <unordered_set>

#include "counts_interface.hpp"
#include "runtime.hpp"

namespace counts {
namespace {

using interface::Kind;
using interface::Launch;
using interface::Place;

constexpr uintptr_t SECTOR = 32;
constexpr unsigned LANES = 32, BANKS = 32;
// Where static shared memory is supposed to begin, behind everything dynamic.
constexpr uintptr_t STATIC = 1u << 20;

// What the lanes of a warp did at one place, the same time each.
struct Access {
    uint32_t lanes = 0;
    unsigned bytes = 0;
    uintptr_t at[LANES];
};
// Of one place, what the lanes of a warp did since they were together.
struct Pending {
    uint32_t seen[LANES] = {};
    std::vector<Access> accesses;
};
struct Warp {
    std::vector<Pending> places;
    // Those where something happened.
    std::vector<uint32_t> touched;
};

// Sectors that were read or written, a bit each, by pages of 64 sectors.
using Footprint = std::unordered_map<uintptr_t, uint64_t>;

// What one thread of the processor has counted of a launch.
struct Worker {
    uintptr_t stacks, stack_bytes, dynamic, shared, tls, tls_bytes;
    std::vector<Warp> warps;
    std::map<std::pair<const void*, Kind>, uint32_t> numbers;
    // The last place of each kind of few, so that the map is rarely asked.
    struct Known {
        const void* code = nullptr;
        Kind kind{};
        uint32_t number = 0;
    } known[256];
    std::vector<Place> places;
    std::vector<bool> is_copy;
    Footprint read, written;
    uint64_t barriers = 0, exchanges = 0, products = 0, atomics = 0;
};
struct Running {
    Launch launch;
    std::vector<std::pair<uintptr_t, uintptr_t>> memory;
    std::map<std::pair<const void*, Kind>, Place> places;
    Footprint read, written;
    uint64_t products = 0;
};
struct Done {
    Launch launch;
    std::vector<Place> places;
};

std::mutex lock;
bool counting = false;
std::unique_ptr<Running> running;
std::vector<Done> done;
thread_local std::unique_ptr<Worker> worker;

unsigned bits(uint64_t x) { return __builtin_popcountll(x); }

// Finds where this thread keeps the static shared memory of all kernels: what this library has of its own for each thread.
int find_tls(dl_phdr_info* info, size_t, void* to) {
    auto w = static_cast<Worker*>(to);
    auto here = reinterpret_cast<uintptr_t>(&find_tls);
    bool ours = false;
    size_t bytes = 0;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const auto& part = info->dlpi_phdr[i];
        if (part.p_type == PT_LOAD) ours |= here - (info->dlpi_addr + part.p_vaddr) < part.p_memsz;
        if (part.p_type == PT_TLS) bytes = part.p_memsz;
    }
    if (!ours) return 0;
    w->tls = reinterpret_cast<uintptr_t>(info->dlpi_tls_data);
    w->tls_bytes = w->tls ? bytes : 0;
    return 1;
}

uint32_t number_of(Worker& w, const void* code, Kind kind) {
    auto& known = w.known[(reinterpret_cast<uintptr_t>(code) >> 1 ^ unsigned(kind)) % 256];
    if (known.code == code && known.kind == kind) return known.number;
    auto [it, is_new] = w.numbers.try_emplace({code, kind}, uint32_t(w.places.size()));
    if (is_new) {
        Place place{};
        place.code = reinterpret_cast<uintptr_t>(code);
        place.kind = kind;
        w.places.push_back(place);
    }
    known = {code, kind, it->second};
    return it->second;
}

void note(Worker& w, const void* code, Kind kind, uintptr_t at, unsigned bytes) {
    uint32_t number = number_of(w, code, kind);
    Warp& warp = w.warps[cpu::fiber->warp - cpu::block->warps.data()];
    if (warp.places.size() <= number) warp.places.resize(w.places.size());
    Pending& pending = warp.places[number];
    unsigned lane = cpu::fiber->lane;
    uint32_t time = pending.seen[lane]++;
    if (pending.accesses.size() <= time) {
        if (pending.accesses.empty()) warp.touched.push_back(number);
        pending.accesses.resize(time + 1);
    }
    Access& access = pending.accesses[time];
    access.lanes |= 1u << lane;
    access.at[lane] = at;
    access.bytes = std::max(access.bytes, bytes);
}

// Passes over the banks for the lanes of one phase.
unsigned passes(const Access& it, unsigned first, unsigned count) {
    uintptr_t words[BANKS][LANES];
    unsigned held[BANKS] = {}, most = 0;
    for (unsigned lane = first; lane < first + count; lane++) {
        if (!(it.lanes >> lane & 1)) continue;
        for (uintptr_t word = it.at[lane] / 4; word <= (it.at[lane] + it.bytes - 1) / 4; word++) {
            unsigned bank = word % BANKS;
            if (std::find(words[bank], words[bank] + held[bank], word) != words[bank] + held[bank]) continue;
            words[bank][held[bank]++] = word;
            most = std::max(most, held[bank]);
        }
    }
    return most;
}

void tally_shared(Place& place, const Access& it) {
    unsigned phases = it.bytes > 8 ? 4 : it.bytes > 4 ? 2 : 1, count = LANES / phases;
    for (unsigned phase = 0; phase < phases; phase++) {
        unsigned all = passes(it, phase * count, count);
        place.passes += all;
        place.fewest_passes += all > 0;
    }
}

void tally_global(Worker& w, Place& place, const Access& it, bool writes) {
    struct Piece {
        uintptr_t sector;
        uint32_t bytes;
    } pieces[2 * LANES];
    unsigned count = 0;
    for (unsigned lane = 0; lane < LANES; lane++) {
        if (!(it.lanes >> lane & 1)) continue;
        for (uintptr_t at = it.at[lane], end = at + it.bytes; at < end;) {
            uintptr_t sector = at / SECTOR, next = std::min(end, (sector + 1) * SECTOR);
            uint32_t mask = uint32_t((uint64_t(1) << (next - at)) - 1) << at % SECTOR;
            unsigned i = count;
            while (i > 0 && pieces[i - 1].sector != sector) i--;
            if (i) pieces[i - 1].bytes |= mask;
            else pieces[count++] = {sector, mask};
            at = next;
        }
    }
    uint64_t bytes = 0;
    auto& footprint = writes ? w.written : w.read;
    for (unsigned i = 0; i < count; i++) {
        bytes += bits(pieces[i].bytes);
        footprint[pieces[i].sector / 64] |= uint64_t(1) << pieces[i].sector % 64;
    }
    place.bytes += bytes;
    place.sectors += count;
    place.fewest_sectors += (bytes + SECTOR - 1) / SECTOR;
}

void settle(Worker& w, Warp& warp) {
    for (uint32_t number : warp.touched) {
        Pending& pending = warp.places[number];
        Place& place = w.places[number];
        for (const Access& it : pending.accesses) {
            place.requests++;
            if (place.kind == Kind::Load || place.kind == Kind::Store || place.kind == Kind::CopyFrom)
                tally_global(w, place, it, place.kind == Kind::Store);
            else tally_shared(place, it);
        }
        pending.accesses.clear();
        memset(pending.seen, 0, sizeof pending.seen);
    }
    warp.touched.clear();
}

bool within(uintptr_t at, const void* variable, size_t bytes) { return at - reinterpret_cast<uintptr_t>(variable) < bytes; }

bool is_global(uintptr_t at) {
    auto& memory = running->memory;
    auto it = std::upper_bound(memory.begin(), memory.end(), std::make_pair(at, ~uintptr_t(0)));
    return it != memory.begin() && at < (--it)->second;
}
// Where in the block's shared memory, if it is there.
bool in_shared(const Worker& w, uintptr_t at, uintptr_t* offset) {
    if (at - w.dynamic < w.shared) return *offset = at - w.dynamic, true;
    if (at - w.tls >= w.tls_bytes || within(at, &cpu::fiber, sizeof cpu::fiber) || within(at, &cpu::block, sizeof cpu::block))
        return false;
    return *offset = at - w.tls + STATIC, true;
}

void access(const void* p, size_t bytes, bool writes, const void* code) {
    Worker* w = worker.get();
    auto at = reinterpret_cast<uintptr_t>(p);
    if (!w || !cpu::fiber || at - w->stacks < w->stack_bytes) return;
    uintptr_t offset = at;
    bool shared = in_shared(*w, at, &offset);
    if (!shared && !is_global(at)) return;
    Kind kind = shared ? writes ? Kind::SharedStore : Kind::SharedLoad : writes ? Kind::Store : Kind::Load;
    // No instruction moves more than 16 bytes.
    for (size_t done = 0; done < bytes; done += 16) note(*w, code, kind, offset + done, unsigned(std::min<size_t>(16, bytes - done)));
}

uint64_t sectors(const Footprint& of) {
    uint64_t sum = 0;
    for (auto& it : of) sum += bits(it.second);
    return sum;
}
void add(Footprint& to, const Footprint& from) {
    for (auto& it : from) to[it.first] |= it.second;
}

}  // namespace

void begin(const std::string& kernel, const dim3& grid, const dim3& block, unsigned shared,
           std::vector<std::pair<uintptr_t, uintptr_t>> memory) {
    std::lock_guard<std::mutex> held(lock);
    if (!counting) return;
    running = std::make_unique<Running>();
    Launch& it = running->launch;
    it = {};
    kernel.copy(it.kernel, sizeof it.kernel - 1);
    it.grid = {grid.x, grid.y, grid.z};
    it.block = {block.x, block.y, block.z};
    it.dynamic_shared = shared;
    std::sort(memory.begin(), memory.end());
    running->memory = std::move(memory);
}
void end() {
    std::lock_guard<std::mutex> held(lock);
    if (!running) return;
    Launch& it = running->launch;
    it.read_sectors = sectors(running->read);
    it.written_sectors = sectors(running->written);
    it.products = running->products / LANES;
    Done finished{it, {}};
    for (auto& place : running->places) finished.places.push_back(place.second);
    finished.launch.places = finished.places.size();
    done.push_back(std::move(finished));
    running.reset();
}

void enter(const char* stacks, size_t stack_bytes, const unsigned char* dynamic, size_t shared, size_t warps) {
    if (!running) return;
    worker = std::make_unique<Worker>();
    Worker& w = *worker;
    w.stacks = reinterpret_cast<uintptr_t>(stacks), w.stack_bytes = stack_bytes;
    w.dynamic = reinterpret_cast<uintptr_t>(dynamic), w.shared = shared;
    w.warps.resize(warps);
    dl_iterate_phdr(find_tls, &w);
}
void leave() {
    if (!worker) return;
    std::lock_guard<std::mutex> held(lock);
    Running& to = *running;
    for (const Place& it : worker->places) {
        auto& sum = to.places.try_emplace({reinterpret_cast<void*>(it.code), it.kind}, Place{it.code, it.kind}).first->second;
        sum.add(it);
    }
    add(to.read, worker->read);
    add(to.written, worker->written);
    to.launch.barriers += worker->barriers;
    to.launch.exchanges += worker->exchanges;
    to.launch.atomics += worker->atomics;
    to.products += worker->products;
    worker.reset();
}
void block_ends() {
    if (worker)
        for (Warp& warp : worker->warps) settle(*worker, warp);
}
void block_meets() {
    if (!worker) return;
    worker->barriers++;
    block_ends();
}
void warp_meets(size_t warp) {
    if (worker) settle(*worker, worker->warps[warp]);
}
void exchange(uint32_t mask) {
    // The first lane counts for all.
    uint32_t present = mask & cpu::fiber->warp->alive;
    if (worker && __builtin_ctz(present) == int(cpu::fiber->lane)) worker->exchanges++;
}
void mma() {
    if (worker) worker->products++;
}
void matrix_row(const void* row) {
    uintptr_t offset;
    if (!worker) return;
    if (!in_shared(*worker, reinterpret_cast<uintptr_t>(row), &offset)) cpu::fail("ldmatrix reads what is not shared memory");
    note(*worker, __builtin_return_address(0), Kind::Matrices, offset, 16);
}
void copy(const void* to, const void* from, size_t bytes, bool there) {
    uintptr_t offset;
    if (!worker) return;
    if (!in_shared(*worker, reinterpret_cast<uintptr_t>(to), &offset)) cpu::fail("a copy leads to what is not shared memory");
    const void* code = __builtin_return_address(0);
    note(*worker, code, Kind::CopyTo, offset, unsigned(bytes));
    if (there) note(*worker, code, Kind::CopyFrom, reinterpret_cast<uintptr_t>(from), unsigned(bytes));
}
void atomic(const void*, size_t) {
    if (worker) worker->atomics++;
}

}  // namespace counts

#define API extern "C" __attribute__((visibility("default")))
API void cuda_on_cpu_count(bool on) {
    std::lock_guard<std::mutex> held(counts::lock);
    counts::counting = on;
    if (on) counts::done.clear();
}
API size_t cuda_on_cpu_launches() {
    std::lock_guard<std::mutex> held(counts::lock);
    return counts::done.size();
}
API bool cuda_on_cpu_launch(size_t i, counts::interface::Launch* to) {
    std::lock_guard<std::mutex> held(counts::lock);
    if (i >= counts::done.size()) return false;
    *to = counts::done[i].launch;
    return true;
}
API bool cuda_on_cpu_place(size_t launch, size_t i, counts::interface::Place* to) {
    std::lock_guard<std::mutex> held(counts::lock);
    if (launch >= counts::done.size() || i >= counts::done[launch].places.size()) return false;
    *to = counts::done[launch].places[i];
    // From the beginning of this library, as tools for debugging count.
    Dl_info library;
    if (dladdr(reinterpret_cast<void*>(to->code), &library)) to->code -= reinterpret_cast<uintptr_t>(library.dli_fbase);
    return true;
}

// What the compiler calls before each access.
#define ACCESSES(bytes)                                                                                               \
    API void __tsan_read##bytes(void* p) { counts::access(p, bytes, false, __builtin_return_address(0)); }            \
    API void __tsan_write##bytes(void* p) { counts::access(p, bytes, true, __builtin_return_address(0)); }            \
    API void __tsan_unaligned_read##bytes(void* p) { counts::access(p, bytes, false, __builtin_return_address(0)); }  \
    API void __tsan_unaligned_write##bytes(void* p) { counts::access(p, bytes, true, __builtin_return_address(0)); }  \
    API void __tsan_volatile_read##bytes(void* p) { counts::access(p, bytes, false, __builtin_return_address(0)); }   \
    API void __tsan_volatile_write##bytes(void* p) { counts::access(p, bytes, true, __builtin_return_address(0)); }
ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)
API void __tsan_read_range(void* p, size_t bytes) { counts::access(p, bytes, false, __builtin_return_address(0)); }
API void __tsan_write_range(void* p, size_t bytes) { counts::access(p, bytes, true, __builtin_return_address(0)); }
API void __tsan_init() {}
API void __tsan_func_entry(void*) {}
API void __tsan_func_exit() {}
API void __tsan_vptr_update(void**, void*) {}
// The guard of a static variable, of what registers kernels.
API unsigned char __tsan_atomic8_load(const volatile unsigned char* p, int) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); }
