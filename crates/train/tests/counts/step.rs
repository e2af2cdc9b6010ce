//! A training step: QLoRA of a layer with heads of 128 channels, over a row of 256 tokens.

use crate::model::{HEADS, HIDDEN, INNER, RANK, VOCABULARY, adapter, model};
use halfbyte_data::{Dataset, Example};
use halfbyte_lora::Routing;
use halfbyte_tensor::{DType, Device};
use halfbyte_testkit::{
    counts::{Counter, Launched, by_kernel},
    cuda::dry,
};
use halfbyte_train::{Alone, LossScale, Optim, OptimConfig, Step, StepConfig, objective::CausalLm, parameters};
use std::sync::OnceLock;

const TOKENS: usize = 256;

/// Takes three steps, of which the first two make what later ones find, and hands the third to `watch`.
fn step(device: &Device, watch: impl FnOnce(&mut dyn FnMut())) {
    let mut model = model(device);
    let adapter = adapter(model.as_mut(), device);
    let trained = parameters(model.as_ref(), Some(&adapter));
    let routing = Routing::One(adapter.clone());
    let mut optim = Optim::new(device, &trained, &OptimConfig::default()).unwrap();
    let ids: Vec<u32> = (0..TOKENS as u32).map(|it| it * 37 % VOCABULARY as u32).collect();
    let data = Dataset::from_examples([Example { mask: vec![true; ids.len()], ids }]).unwrap();
    let config = StepConfig { compute: DType::Bf16, ..StepConfig::default() };
    let step = Step { model: model.as_ref(), routing: &routing, objective: &CausalLm, ranks: &Alone, config };
    let (mut scale, batches) = (LossScale::new(DType::Bf16), [data.collate(&[0])]);
    let mut take = || drop(step.take(&mut optim, &mut scale, &batches, 1e-3).unwrap());
    take();
    take();
    watch(&mut take);
}

/// What each kernel of a step does; nothing where nobody can count.
fn counted() -> &'static [Launched] {
    static COUNTED: OnceLock<Vec<Launched>> = OnceLock::new();
    COUNTED.get_or_init(|| {
        let Some(counter) = Counter::new() else { return Vec::new() };
        let mut launches = Vec::new();
        step(&Device::Cuda(counter.gpu()), |take| launches = counter.count(take));
        by_kernel(&launches)
    })
}

/// Kernels whose lanes leave parts of what they touch to the next access, and how much of it each asks for. What is read twice
/// lies in the first cache then; memory is asked once.
const APART: [(&str, f64); 2] = [
    // Eight cosines and eight sines a lane, each by two.
    ("rope.bf16/rotate", 0.83),
    ("rope.bf16/rotate_in_place", 0.83),
];

#[test]
fn neighbours_touch_what_lies_together() {
    for it in counted() {
        let least = APART.iter().find(|known| known.0 == it.kernel).map_or(0.98, |known| known.1);
        let coalescing = it.global().coalescing();
        assert!(coalescing >= least, "{coalescing:.3} of {least}\n{it}\n{}", it.explain());
    }
}

/// None in attention, and in no kernel more than lookups in a table cost.
#[test]
fn banks_of_shared_memory_do_not_conflict() {
    for it in counted() {
        let (shared, attention) = (it.shared(), it.kernel.starts_with("tensor_cores"));
        let most = if attention { 0 } else { shared.fewest_passes / 50 };
        assert!(shared.conflicts() <= most, "{} of {most}\n{it}\n{}", shared.conflicts(), it.explain());
    }
}

/// What each kernel has to move for all its launches, as the shapes say: every operand once.
fn demanded() -> Vec<(&'static str, usize)> {
    const ACTIVATIONS: usize = TOKENS * HIDDEN * 2;
    const GATED: usize = TOKENS * INNER * 2;
    const ROWS: usize = TOKENS * 4;
    // Bytes of decoded matrices: all of them forward, and backward those whose inputs have gradients.
    let square = HIDDEN * HIDDEN;
    let decoded = 4 * square + 3 * HIDDEN * INNER + square + 3 * HIDDEN * INNER;
    let parameters = RANK * (4 * (HIDDEN + HIDDEN) + 3 * (HIDDEN + INNER));
    // A row of f32 a head, such as sums of exponentials.
    let of_heads = HEADS * ROWS;
    let angles = TOKENS * 128 * 4;
    vec![
        // The gradient of both heads and tails of residuals: x, dy, dx, and what is added, which the last norm has not.
        ("rms_norm.bf16/backward", 2 * (3 * ACTIVATIONS + HIDDEN * 2 + ROWS) + ACTIVATIONS),
        // Three norms, two of them twice.
        ("rms_norm.bf16/forward", 5 * (2 * ACTIVATIONS + HIDDEN * 2 + ROWS)),
        ("gated.bf16/forward_in_rows", 2 * 3 * GATED),
        ("gated.bf16/backward_over", 5 * GATED),
        // Queries and keys, there and back.
        ("rope.bf16/rotate", 2 * (2 * ACTIVATIONS + angles + ROWS)),
        ("rope.bf16/rotate_in_place", 2 * (2 * ACTIVATIONS + angles + ROWS)),
        ("tensor_cores.bf16/forward", 4 * ACTIVATIONS + of_heads),
        ("tensor_cores_one_pass.bf16/along", 2 * ACTIVATIONS + of_heads),
        // Queries, keys, values and all gradients; and the sums of the second 128 rows, f32, to which a block adds what another left.
        ("tensor_cores_one_pass.bf16/gradients", 7 * ACTIVATIONS + 2 * of_heads + 2 * ACTIVATIONS),
        // Codes, and one of a scale for 64 of them, to bf16.
        ("coded.bf16/decode", decoded / 2 + decoded / 64 + 2 * decoded),
        ("cross_entropy.bf16/softmax_loss", (TOKENS - 1) * VOCABULARY * (4 + 2)),
        // Values and two moments, read and written, and gradients.
        ("paged-optim.f32/adamw", 7 * 4 * parameters),
        ("paged-optim.f32/sums_of_squares", 4 * parameters),
    ]
}

#[test]
fn memory_moves_what_the_shapes_demand() {
    let all = counted();
    for (kernel, demanded) in demanded().into_iter().filter(|_| !all.is_empty()) {
        let it = all.iter().find(|it| it.kernel == kernel).unwrap_or_else(|| panic!("no launch of {kernel}"));
        let moved = it.moved() as f64 / demanded as f64;
        assert!((1.0..1.1).contains(&moved), "{moved:.3} of what has to be moved\n{it}");
    }
}

/// Tensor cores do the products that attention has, and only those whose keys a row of a tile sees.
#[test]
fn products_are_those_of_the_tiles() {
    // A tile of 128 queries by 128 keys, times 128 channels, in products of 16 x 8 x 16; and the tiles on and below the diagonal.
    let (tile, tiles) = (8 * 16 * 8, 3);
    for it in counted() {
        let products = match it.kernel.as_str() {
            "tensor_cores.bf16/forward" => 2,
            "tensor_cores_one_pass.bf16/gradients" => 5,
            _ => continue,
        };
        // Tiles on the diagonal are cut where nobody sees anything: what is left is between the triangle and the square.
        let most = (HEADS * products * tiles * tile) as u64;
        assert!((most * 2 / 3..=most).contains(&it.products), "{} of {most}\n{it}", it.products);
    }
}

/// `inspect --roofline` goes by the books of a dry device.
#[test]
fn the_books_of_a_dry_device_say_what_kernels_move() {
    let (all, gpu) = (counted(), dry());
    let mut booked = Default::default();
    step(&Device::Cuda(gpu.clone()), |take| {
        gpu.booked();
        take();
        booked = gpu.booked();
    });
    for it in all {
        let found = booked.remove(&it.kernel).unwrap_or_else(|| panic!("{} is not in the books", it.kernel));
        assert_eq!(found.launches, it.launches, "{}", it.kernel);
        // Room beside rows, which the books count, is 48 of 512 columns here, and of 4,096 in a 7B.
        let (booked, moved) = (found.bytes as f64, it.moved() as f64);
        assert!((moved * 0.99 - 64.0..moved * 1.07).contains(&booked), "{booked} in the books\n{it}");
    }
    assert!(all.is_empty() || booked.is_empty(), "nobody counted {booked:?}");
}
