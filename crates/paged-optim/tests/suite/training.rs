//! A small deterministic training run that the other modules share.

use halfbyte_paged_optim::{AdamW, AdamWConfig, Budget, ParamSpec, ParamStep, Result, StateFormat};

pub(crate) const LR: f64 = 3e-3;

/// Parameters of the given lengths and what updates them. Gradients depend on the step, the element and the value, so a
/// moment that is lost or stale shows in every later step.
pub(crate) struct Training {
    pub(crate) values: Vec<Vec<f32>>,
    pub(crate) adamw: AdamW,
}

pub(crate) fn specs(lens: &[usize]) -> Vec<ParamSpec> {
    lens.iter()
        .enumerate()
        .map(|(i, &len)| ParamSpec { name: format!("p{i}"), len, decay: i % 2 == 0, state: StateFormat::F32 })
        .collect()
}

pub(crate) fn in_memory() -> Budget {
    Budget::default()
}

/// `frames` pages of `elements` elements may be in memory.
pub(crate) fn paged(frames: usize, elements: usize) -> Budget {
    Budget { resident_bytes: Some(frames * elements * 8), page_bytes: elements * 8, ..Budget::default() }
}

impl Training {
    pub(crate) fn new(lens: &[usize], budget: Budget) -> Self {
        let config = AdamWConfig { weight_decay: 0.1, ..AdamWConfig::default() };
        let adamw = AdamW::new(config, &specs(lens), budget).expect("valid setup");
        let values = lens.iter().enumerate().map(|(p, &n)| (0..n).map(|i| noise(p, i, 0)).collect()).collect();
        Self { values, adamw }
    }

    pub(crate) fn step(&mut self) -> Result<()> {
        let t = self.adamw.steps() as usize + 1;
        let grads = self.values.iter().enumerate();
        let grads: Vec<Vec<f32>> =
            grads.map(|(p, v)| v.iter().enumerate().map(|(i, x)| x * 0.3 + noise(p, i, t)).collect()).collect();
        let steps = self.values.iter_mut().zip(&grads);
        let mut steps: Vec<_> = steps.map(|(value, grad)| ParamStep { value, grad }).collect();
        self.adamw.step(LR, &mut steps)
    }

    pub(crate) fn run(mut self, steps: usize) -> Self {
        (0..steps).for_each(|_| self.step().expect("steps"));
        self
    }

    pub(crate) fn bits(&self) -> Vec<Vec<u32>> {
        self.values.iter().map(|v| v.iter().map(|x| x.to_bits()).collect()).collect()
    }
}

/// Something in -1 to 1 that no two places share.
pub(crate) fn noise(param: usize, element: usize, step: usize) -> f32 {
    let mut x = (param as u64) << 48 ^ (element as u64) << 16 ^ step as u64;
    for _ in 0..2 {
        x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9).wrapping_add(0x9e37_79b9_7f4a_7c15);
        x ^= x >> 27;
    }
    (x >> 40) as f32 / (1 << 23) as f32 - 1.0
}
