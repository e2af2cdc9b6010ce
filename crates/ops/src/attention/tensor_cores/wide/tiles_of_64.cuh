// Before the rest: rows that go by at a time, where a block has 129 KiB of shared memory. Fragments of the block's rows serve more products.
constexpr int TILE = 64;
