// Before the rest: rows that go by at a time, where a block has 97 KiB of shared memory.
constexpr int TILE = 32;
