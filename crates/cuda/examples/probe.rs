//! Prints what of CUDA this machine has: `cargo run -p halfbyte-cuda --example probe`.

#![allow(clippy::print_stdout)]

fn main() {
    let probe = halfbyte_cuda::probe();
    println!("{probe}");
    match probe.require() {
        Ok(devices) => println!("ready: {} device(s)", devices.len()),
        Err(e) => println!("not ready: {e}"),
    }
}
