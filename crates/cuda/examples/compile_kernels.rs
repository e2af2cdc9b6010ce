//! Compiles modules of kernels with NVRTC, on any machine, for architectures that it need not have:
//!
//! ```sh
//! cargo run --example compile_kernels -- sm_80,sm_90 CRATES [NAME ...]
//! ```
//!
//! These are all that the crates in a folder declare, or those of some names. One line for each: name, architecture, seconds, bytes, and
//! what the assembler says of registers and spills.

#![allow(clippy::print_stdout)]

use halfbyte_cuda::{Error, Number, compile_verbose, declared, full_text, module_name, probe};
use std::{path::Path, time::Instant};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let architectures = args.next().ok_or("the first argument names architectures: sm_80,sm_90")?;
    let nvrtc = probe().libraries.into_iter().find(|it| it.name == "NVRTC").and_then(|it| it.found);
    println!(
        "NVRTC: {}",
        nvrtc.ok_or(
            "libnvrtc.so was not found: pip install nvidia-cuda-nvrtc in a virtual environment, and activate it"
        )?
    );
    let mut failed = 0;
    let (crates, names) = (args.next().ok_or("the second argument is a folder of crates")?, args.collect::<Vec<_>>());
    for module in declared(Path::new(&crates))?.iter().filter(|it| names.is_empty() || names.contains(&it.name)) {
        let (name, text) = (&module.name, module.text()?);
        for architecture in architectures.split(',') {
            for element in Number::ALL {
                let (module, begun) = (module_name(name, element), Instant::now());
                match compile_verbose(&module, &full_text(&text, element), architecture) {
                    Ok((image, log)) => {
                        let seconds = begun.elapsed().as_secs_f64();
                        println!("{module} {architecture} {seconds:.2} s {} bytes{}", image.len(), usage(&log));
                    }
                    Err(Error::Compile { log, .. }) => {
                        failed += 1;
                        println!("{module} {architecture} FAILED\n{log}");
                    }
                    Err(other) => return Err(other.into()),
                }
            }
        }
    }
    if failed > 0 {
        return Err(format!("{failed} do not compile").into());
    }
    Ok(())
}

/// The most registers of a kernel, and all spilled bytes, out of the assembler's report.
fn usage(log: &str) -> String {
    let numbers_before = |word: &str| -> Vec<u64> {
        let places = log.match_indices(word).map(|it| log[..it.0].trim_end());
        places.filter_map(|it| it.rsplit(|c: char| !c.is_ascii_digit()).next()?.parse().ok()).collect()
    };
    let registers = numbers_before("registers").into_iter().max();
    let spills: u64 = numbers_before("bytes spill stores").iter().sum();
    registers.map_or_else(String::new, |it| format!(", at most {it} registers, {spills} bytes spilled"))
}
