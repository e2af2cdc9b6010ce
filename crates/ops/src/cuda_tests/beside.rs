//! Gradients of layers with one input, beside each other in one buffer: one product takes all of them, and nobody's columns are written by
//! somebody else.

use super::{Stored, compare_within, rotation, weights};
use crate::{
    AttentionShape, Dropout, FrozenMatrix, Gate, Layer, Layout, LowRank, RopeTable,
    attention::attention,
    frozen_linear::test_support::{Plain, with_gradient},
    gated::gated,
    lora_linears,
    place::on_gpu,
    rope, scale,
};
use halfbyte_autograd::{GradientPlace, Param, Result, Tape, Var};
use halfbyte_tensor::{DType, Device, Tensor};
use halfbyte_testkit::{
    cuda::{fresh_gpu, gpu},
    noise, noise_in,
};

const SIXTEEN: [DType; 2] = [DType::Bf16, DType::F16];
/// Rows, columns of the input, and those of queries, of keys and of values.
const ROWS: usize = 73;
const INNER: usize = 40;
const WIDTHS: [usize; 3] = [64, 32, 32];
const RANK: usize = 12;

/// What is done with the results of three layers.
type Rest = dyn Fn(&Tape<'static>, [Var; 3]) -> Result<Var>;

/// Three layers on each device, with their updates.
struct Layers {
    on_gpu: [&'static Stored; 3],
    on_cpu: [&'static Plain; 3],
}

impl Layers {
    fn new(device: &Device, widths: [usize; 3]) -> Layers {
        Layers::stored(device, widths, true)
    }

    /// Of codes, or as they are.
    fn stored(device: &Device, widths: [usize; 3], coded: bool) -> Layers {
        let both = widths.map(|out| {
            let (on_gpu, decoded): (&'static Stored, Tensor) = weights(out, INNER, device).remove(usize::from(coded));
            (on_gpu, Plain::leaked(decoded))
        });
        Layers { on_gpu: both.map(|it| it.0), on_cpu: both.map(|it| it.1) }
    }

    /// The input, and A and B of each layer.
    fn params(dtype: DType, widths: [usize; 3]) -> Vec<Tensor> {
        let small = |shape: [usize; 2], seed| noise_in(&shape, DType::F32, seed, -0.3, 0.3);
        let factors = widths.into_iter().zip(2..);
        let factors = factors.flat_map(|(out, i)| [small([RANK, INNER], i), small([out, RANK], i + 10)]);
        std::iter::once(noise_in(&[ROWS, INNER], dtype, 1, -0.2, 0.2)).chain(factors).collect()
    }

    /// The results of the first so many of them; the update of one may have a mask.
    fn forward<const N: usize>(&self, tape: &Tape<'static>, p: &[Var], masked: Option<usize>) -> Result<[Var; N]> {
        let layers = std::array::from_fn(|i| {
            let w: &'static dyn FrozenMatrix = if on_gpu(p[0].value()) { self.on_gpu[i] } else { self.on_cpu[i] };
            let dropout = match masked == Some(i) {
                true => Dropout { p: 0.25, seed: 7, site: 9 },
                false => Dropout::default(),
            };
            let lora = LowRank { a: &p[1 + 2 * i], b: &p[2 + 2 * i], scaling: 0.5, dropout };
            Layer { w, bias: None, lora: Some(lora), onto: None }
        });
        lora_linears(tape, &p[0], layers)
    }
}

/// Queries and keys turned, and attention.
fn attend(tape: &Tape<'static>, qkv: [Var; 3]) -> Result<Var> {
    attend_as(tape, qkv, (32, None))
}

/// The same with two heads of so many channels and a cap.
fn attend_as(tape: &Tape<'static>, [q, k, v]: [Var; 3], (head_dim, cap): (usize, Option<f32>)) -> Result<Var> {
    let (table, layout) = (RopeTable::new(&rotation(), 64)?, Layout::new(&[40, 33])?);
    let [q, k] = [rope(tape, &q, &table, &layout, head_dim)?, rope(tape, &k, &table, &layout, head_dim)?];
    let shape = AttentionShape { heads: 2, kv_heads: 1, head_dim, scale: 0.2, window: None, cap };
    attention(tape, [&q, &k, &v], shape, &layout)
}

#[test]
fn queries_keys_and_values_are_as_on_a_cpu() {
    let Some(device) = gpu().map(Device::Cuda) else { return };
    for (coded, dtype) in SIXTEEN.into_iter().flat_map(|it| [(true, it), (false, it)]) {
        let layers = Layers::stored(&device, WIDTHS, coded);
        for masked in [None, Some(1)] {
            compare_within("queries, keys and values", &Layers::params(dtype, WIDTHS), 3.0, |tape, p| {
                attend(tape, layers.forward(tape, p, masked)?)
            });
        }
    }
}

#[test]
fn wide_heads_and_capped_scores_leave_the_others_columns_alone() {
    let Some(device) = gpu().map(Device::Cuda) else { return };
    for (head_dim, cap) in [(144, None), (144, Some(2.0)), (32, Some(2.0))] {
        let widths = [2 * head_dim, head_dim, head_dim];
        let layers = Layers::new(&device, widths);
        compare_within("wide heads", &Layers::params(DType::Bf16, widths), 3.0, |tape, p| {
            attend_as(tape, layers.forward(tape, p, None)?, (head_dim, cap))
        });
    }
}

#[test]
fn gates_are_as_on_a_cpu() {
    let Some(device) = gpu().map(Device::Cuda) else { return };
    // Rows of whole pieces of 16 bytes, and others, which are nobody's neighbours.
    for width in [48, 44] {
        let layers = Layers::new(&device, [width; 3]);
        for dtype in SIXTEEN {
            let mut params = Layers::params(dtype, [width; 3]);
            params.truncate(5);
            compare_within("a gate", &params, 3.0, |tape, p| {
                let [gate, up] = layers.forward(tape, p, None)?;
                gated(tape, &gate, &up, Gate::Silu)
            });
            // Where one of them is another tensor's, its gradient lies by itself, and the other one's in its place.
            for other in [0, 1] {
                compare_within("a gate of something else", &params, 3.0, |tape, p| {
                    let mut pair: [Var; 2] = layers.forward(tape, p, None)?;
                    pair[other] = scale(tape, &pair[other], 0.5)?;
                    gated(tape, &pair[0], &pair[1], Gate::Silu)
                });
            }
        }
    }
}

/// How many products the backward pass of three layers is on the GPU, by what is done with their results.
fn products(device: &Device, layers: &Layers, rest: &Rest) -> u64 {
    let Device::Cuda(gpu) = device else { unreachable!("asked of a GPU") };
    let there = |t: &Tensor| Param::new("p", t.to_device(device).unwrap());
    let params: Vec<Param> = Layers::params(DType::Bf16, WIDTHS).iter().map(there).collect();
    let tape = Tape::recording();
    let vars: Vec<Var> = params.iter().map(|it| tape.param(it)).collect();
    let y = rest(&tape, layers.forward(&tape, &vars, None).unwrap()).unwrap();
    let dy = noise(y.value().shape(), DType::Bf16, 99).to_device(device).unwrap();
    let loss = with_gradient(&tape, &y, &dy);
    drop((vars, y));
    let before = gpu.counters();
    tape.backward(loss).unwrap();
    gpu.counters().since(&before).products
}

#[test]
fn one_product_takes_all_where_each_has_one_reader() {
    // Of which nobody else counts anything.
    let Some(device) = fresh_gpu().map(Device::Cuda) else { return };
    let layers = Layers::new(&device, WIDTHS);
    // The gradient of the input, and that of all A.
    assert_eq!(products(&device, &layers, &attend), 2);
    // Keys have two readers, whose gradients are a sum in memory of its own.
    let twice = |tape: &Tape<'static>, [q, k, v]: [Var; 3]| {
        let both = crate::add_scaled(tape, &scale(tape, &k, 0.5)?, &k, 1.0)?;
        attend(tape, [q, both, v])
    };
    assert_eq!(products(&device, &layers, &twice), 4);
    // The reader of values makes a tensor like any other.
    let scaled = |tape: &Tape<'static>, [q, k, v]: [Var; 3]| attend(tape, [q, k, scale(tape, &v, 0.5)?]);
    assert_eq!(products(&device, &layers, &scaled), 4);
}

#[test]
fn what_nobody_answers_for_or_two_do_lies_by_itself() {
    let Some(device) = gpu().map(Device::Cuda) else { return };
    let like = |cols: usize| Tensor::zeros_on(&device, &[5, cols], DType::Bf16);
    let vars = || {
        let places = GradientPlace::side_by_side(&[16, 8], 64);
        [16, 8].map(like).into_iter().zip(places).map(|(t, place)| Var::constant(t).wanting(place)).collect::<Vec<_>>()
    };
    let scratch = |places: &[GradientPlace]| [places[0].scratch(&like(16)), places[1].scratch(&like(8))];

    let all = vars();
    let places: Vec<_> = all.iter().map(Var::claim_gradient_place).collect();
    let [a, b] = scratch(&places);
    assert!(a.is_beside(&b) && !b.is_beside(&a));
    assert_eq!([a.room(), b.room(), a.stride(), b.stride()], [0, 64, 88, 88]);
    // Each is taken once.
    let again = places[0].scratch(&like(16));
    assert!(!again.is_beside(&b) && again.room() == 64);

    let all = vars();
    let places = [all[0].claim_gradient_place(), all[0].claim_gradient_place()];
    assert!(scratch(&[places[0].clone(), all[1].claim_gradient_place()]).iter().all(|it| it.room() == 64));

    let all = vars();
    let [first, second] = [all[0].claim_gradient_place(), all[1].claim_gradient_place()];
    // What comes before a gradient is written there without a word, and the gradient over it.
    let before = Var::constant(like(16)).wanting(first.passed_on());
    let [a, b] = [before.claim_gradient_place().scratch(&like(16)), second.scratch(&like(8))];
    assert!(a.is_beside(&b));
}
