//! The binary from end to end: what it does with good input, and that bad input gets a sentence, the right exit code and
//! no loss. One test program, so that the binary is built and this one linked once.

mod adapters;
mod bad_data;
mod bad_models;
mod bad_settings;
mod bitsandbytes;
mod chat;
mod columns;
mod config_file;
mod cuda;
mod earlier;
mod endings;
mod eval_split;
mod exit_codes;
mod experts;
mod failures;
mod families;
mod files;
mod finetune;
mod fits;
mod formats;
mod fuzz;
mod generate;
mod hub;
mod import;
mod inspect;
mod interrupted;
mod keys;
mod merge;
mod mixture;
mod nonfinite;
mod odd_inputs;
mod other_tools;
mod packing;
mod parsers;
mod pissa;
mod plan;
mod python_stack;
mod quantize;
mod resume;
mod same_bits;
mod streaming;
mod token_cache;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod torture;
mod vocabulary;
