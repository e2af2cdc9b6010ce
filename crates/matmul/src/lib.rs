//! CPU matrix products in f32 and bf16 over any panel source, decoding quantised blocks while packing.
