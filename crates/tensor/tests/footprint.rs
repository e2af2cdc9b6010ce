//! What the process holds while tensors of ever other sizes come and go: in a file of its own, so in a process of its own.
#![cfg(target_os = "linux")]

use halfbyte_tensor::{DType, Tensor, pool};

/// Bytes of memory that the process has.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|it| it.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() << 10
}

/// One step of a model of 24 layers over so many tokens: what the forward pass keeps, and what comes and goes in between.
fn step(tokens: usize) -> usize {
    let make = |channels: usize, dtype| Tensor::zeros(&[tokens, channels], dtype);
    let mut kept = Vec::new();
    for _ in 0..24 {
        for channels in [192, 192, 576, 1536, 1536] {
            let _wide = make(channels, DType::F32);
            kept.push(make(channels, DType::Bf16));
        }
    }
    let mut most = resident();
    let mut gradient = make(576, DType::F32);
    while kept.pop().is_some() {
        gradient = make(gradient.cols() % 1000 + 300, DType::F32);
        most = most.max(resident());
    }
    most
}

#[test]
fn tensors_of_ever_other_sizes_leave_nothing_behind() {
    let before = resident();
    let most = (0..24).map(|i| step(400 + i * 157 % 211)).max().unwrap() - before;
    let peak = pool::stats().peak;
    assert!(peak > 100 << 20 && most < peak + peak / 20, "{most} bytes resident for {peak} of tensors");
}
