// What libcuda.so.1 tells of the launches it counted. crates/testkit/src/counts/cuda.rs has the same.
#pragma once

#include <array>
#include <cstdint>

namespace counts::interface {

enum class Kind : uint32_t { Load, Store, SharedLoad, SharedStore, Matrices, CopyFrom, CopyTo };

// One place in a kernel's text, and what all warps did there. A request is an access of a warp.
struct Place {
    // Of the instruction after the access.
    uint64_t code = 0;
    Kind kind{};
    uint32_t unused = 0;
    uint64_t requests = 0;
    // Of global memory: different bytes that requests named, sectors they touch, and would touch if those bytes lay together.
    uint64_t bytes = 0, sectors = 0, fewest_sectors = 0;
    // Of shared memory: passes over its banks, and how many there would be without conflicts.
    uint64_t passes = 0, fewest_passes = 0;

    void add(const Place& other) {
        requests += other.requests;
        bytes += other.bytes;
        sectors += other.sectors;
        fewest_sectors += other.fewest_sectors;
        passes += other.passes;
        fewest_passes += other.fewest_passes;
    }
};

struct Launch {
    // As "rms_norm.bf16/forward".
    char kernel[128];
    std::array<uint32_t, 3> grid, block;
    uint32_t dynamic_shared, unused;
    // How many places there are.
    uint64_t places;
    // Different sectors of global memory that were read, and written.
    uint64_t read_sectors, written_sectors;
    // Barriers of blocks; exchanges and products (mma.m16n8k16) of warps; atomic additions of lanes.
    uint64_t barriers, exchanges, products, atomics;
};

}  // namespace counts::interface
