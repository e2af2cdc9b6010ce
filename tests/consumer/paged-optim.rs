//! A stranger's program: a training loop on plain slices, once with all state in memory and once with a quarter.

use halfbyte_paged_optim::{
    AdamW, AdamWConfig, Budget, LrSchedule, ParamSpec, ParamStep, StateFormat, Result, Schedule, clip_by_global_norm,
};

const LEN: usize = 3000;

fn train(resident_bytes: Option<usize>) -> Result<(Vec<f32>, u64)> {
    let specs = [ParamSpec { name: "x".into(), len: LEN, decay: true, state: StateFormat::F32 }];
    let budget = Budget { resident_bytes, page_bytes: 1024, ..Budget::default() };
    let mut adamw = AdamW::new(AdamWConfig::default(), &specs, budget)?;
    let schedule = LrSchedule { kind: Schedule::Linear, base_lr: 0.1, warmup_steps: 3, total_steps: 40 };
    let mut x: Vec<f32> = (0..LEN).map(|i| (i as f32).cos()).collect();
    for step in 0..schedule.total_steps {
        let mut grad = x.clone();
        clip_by_global_norm(&mut [&mut grad], 1.0);
        adamw.step(schedule.lr(step), &mut [ParamStep { value: &mut x, grad: &grad }])?;
    }
    Ok((x, adamw.stats().bytes_spilled as u64))
}

fn main() -> Result<()> {
    let (unpaged, no_bytes) = train(None)?;
    let (paged, bytes) = train(Some(LEN * 8 / 4))?;
    assert!(no_bytes == 0 && bytes > 0);
    assert_eq!(unpaged, paged);
    assert!(unpaged.iter().all(|x| x.abs() < 0.5), "forty steps bring every number near its minimum");
    Ok(())
}
