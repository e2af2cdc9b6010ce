//! Fits a line through the optimizer twice, with all state in memory and with a quarter of it, and compares.
//!
//! `cargo run --release --example quarter`

use std::{error::Error, io::Write, time::Instant};

use halfbyte_paged_optim::{AdamW, AdamWConfig, Budget, PageStats, ParamSpec, ParamStep, StateFormat};

const LEN: usize = 4 << 20;
const STEPS: usize = 5;

fn main() -> Result<(), Box<dyn Error>> {
    let state = LEN * 8;
    let (all, _, seconds_all) = train(Budget::default())?;
    let quarter = Budget { resident_bytes: Some(state / 4), ..Budget::default() };
    let (paged, stats, seconds_paged) = train(quarter)?;
    assert!(all.iter().zip(&paged).all(|(a, b)| a.to_bits() == b.to_bits()), "paging must not change a bit");
    let mut out = std::io::stdout();
    writeln!(out, "{stats:#?}")?;
    writeln!(out, "same bits; {seconds_all:.3} s a step in memory, {seconds_paged:.3} s with a quarter of it")?;
    Ok(())
}

fn train(budget: Budget) -> Result<(Vec<f32>, PageStats, f64), Box<dyn Error>> {
    let mut value: Vec<f32> = (0..LEN).map(|i| (i as f32 * 0.37).sin()).collect();
    let specs = [ParamSpec { name: "weight".into(), len: LEN, decay: true, state: StateFormat::F32 }];
    let mut adamw = AdamW::new(AdamWConfig::default(), &specs, budget)?;
    let mut seconds = f64::INFINITY;
    for _ in 0..STEPS {
        let grad: Vec<f32> = value.iter().map(|x| x - 0.5).collect();
        let start = Instant::now();
        adamw.step(1e-2, &mut [ParamStep { value: &mut value, grad: &grad }])?;
        seconds = seconds.min(start.elapsed().as_secs_f64());
    }
    Ok((value, adamw.stats(), seconds))
}
