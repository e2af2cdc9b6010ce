//! Against torch: three steps of `torch.optim.AdamW`, recorded.

use halfbyte_paged_optim::{AdamW, AdamWConfig, Budget, ParamSpec, ParamStep, StateFormat};
use safetensors::SafeTensors;

const FIXTURE: &[u8] = include_bytes!("../fixtures/torch_adamw.safetensors");

fn tensor(name: &str) -> Vec<f32> {
    let file = SafeTensors::deserialize(FIXTURE).expect("fixture parses");
    let view = file.tensor(name).expect("fixture holds the tensor");
    view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

/// Largest difference, in units of the last place of the tensor's largest value.
fn worst(got: &[f32], name: &str) -> f32 {
    let want = tensor(name);
    assert_eq!(got.len(), want.len());
    let largest = want.iter().fold(0f32, |most, w| most.max(w.abs()));
    got.iter().zip(&want).fold(0f32, |most, (g, w)| most.max((g - w).abs())) / (largest * f32::EPSILON)
}

/// Not bit for bit: torch's vector kernels fuse the multiplication and addition of both moments where the processor can, and
/// this crate does not, so that all machines agree with each other.
#[test]
fn three_steps_agree_with_torch() {
    let config = AdamWConfig { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1 };
    let mut p = tensor("p0");
    let specs = [ParamSpec { name: "p".into(), len: p.len(), decay: true, state: StateFormat::F32 }];
    let mut adamw = AdamW::new(config, &specs, Budget::default()).expect("valid");
    for g in ["g0", "g1", "g2"] {
        adamw.step(1e-2, &mut [ParamStep { value: &mut p, grad: &tensor(g) }]).expect("steps");
    }
    let state = adamw.export().expect("exports");
    assert_eq!(state.steps, 3);
    let (m, v) = (&state.params[0].m, &state.params[0].v);
    for (got, name) in [(&p, "p"), (m, "exp_avg"), (v, "exp_avg_sq")] {
        let off = worst(got, &format!("torch_adamw.{name}"));
        assert!(off <= 1.0, "{name} is {off} units off");
    }
}

/// Where `eps` stands shows only for tiny gradients: `m / (sqrt(v) / sqrt(1 - beta2) + eps)` is `1e-8 / (1e-8 + 1e-8)`.
#[test]
fn eps_is_added_after_the_bias_correction() {
    let mut p = [0.0f32];
    let specs = [ParamSpec { name: "p".into(), len: 1, decay: true, state: StateFormat::F32 }];
    let mut adamw = AdamW::new(AdamWConfig::default(), &specs, Budget::default()).expect("valid");
    adamw.step(0.1, &mut [ParamStep { value: &mut p, grad: &[1e-8] }]).expect("steps");
    assert!((p[0] + 0.05).abs() < 1e-6, "{p:?}");
}
