//! Blockwise 4-bit (NF4, FP4, INT4) and 8-bit quantisation on slices, byte-compatible with bitsandbytes.
