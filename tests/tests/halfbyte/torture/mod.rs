//! Commands that are killed, refused and cut short at every call by which they change or read files: what they promise of what is
//! there afterwards, and that the next one goes on from it to the bytes of one that was never disturbed.
//!
//! Here a fixed number of disturbances is tried; `cargo xtask torture --minutes N` goes on for so long. Which call is disturbed
//! and how follows from a seed, which a failure prints.

mod faults;
mod kills;
mod long;
mod phase;
