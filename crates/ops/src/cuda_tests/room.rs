//! Rows with room beside them: the same bits as without, nothing copied, and no op gets them unasked. And the thin products of a gradient.

use super::{Stored, compare, compare_within, near, rotation, tolerance, weights};
use crate::{
    AttentionShape, FrozenMatrix, Gate, Layer, Layout, LowRank, RmsNorm, RopeTable,
    attention::attention_with_room,
    frozen_linear::test_support::{Plain, with_gradient},
    gated::gated_with_room,
    gpu_product::{
        Operand, Window,
        cuda::{Aside, product, put_with},
    },
    lora_linear::room,
    lora_linears,
    place::on_gpu,
    rms_norm,
    rms_norm::rms_norm_with_room,
    rope, scale,
};
use halfbyte_autograd::{GradientPlace, Param, Tape, Var};
use halfbyte_tensor::{DType, Device, Tensor};
use halfbyte_testkit::{
    cuda::{fresh_gpu, gpu},
    noise, noise_in,
};

const SIXTEEN: [DType; 2] = [DType::Bf16, DType::F16];

/// The value and the gradients of what `op` makes of parameters with so much room.
fn run(
    device: &Device,
    params: &[Tensor],
    room: usize,
    op: impl Fn(&Tape<'static>, &[Var], usize) -> Var,
) -> (usize, Vec<Tensor>) {
    let params: Vec<Param> = params.iter().map(|it| Param::new("p", it.to_device(device).unwrap())).collect();
    let tape = Tape::recording();
    let vars: Vec<Var> = params.iter().map(|it| tape.param(it)).collect();
    let y = op(&tape, &vars, room);
    let (value, dy) = (y.value().clone(), noise(y.value().shape(), y.value().dtype(), 99).to_device(device).unwrap());
    let loss = with_gradient(&tape, &y, &dy);
    drop((vars, y));
    let grads = tape.backward(loss).unwrap();
    let all = std::iter::once(value.clone()).chain(params.iter().map(|it| grads.get(it).unwrap().clone()));
    (value.room(), all.map(|it| it.to_device(&Device::Cpu).unwrap()).collect())
}

#[test]
fn results_with_room_have_the_bits_of_those_without() {
    let Some(device) = gpu().map(Device::Cuda) else { return };
    let layout = Layout::new(&[40, 33]).unwrap();
    let shape = AttentionShape { heads: 2, kv_heads: 1, head_dim: 32, scale: 0.2, window: None, cap: None };
    for dtype in SIXTEEN {
        let of = |rows: usize, cols: usize, seed| noise_in(&[rows, cols], dtype, seed, -1.0, 1.0);
        let norm = [of(9, 40, 1), noise(&[40], DType::F32, 2)];
        let normed = |tape: &Tape<'static>, p: &[Var], room| {
            rms_norm_with_room(tape, (&p[0], &p[1]), RmsNorm::from(1e-5), room).unwrap()
        };
        let pair = [of(9, 40, 3), of(9, 40, 4)];
        let gate =
            |tape: &Tape<'static>, p: &[Var], room| gated_with_room(tape, [&p[0], &p[1]], Gate::Silu, room).unwrap();
        let qkv = [of(73, 64, 5), of(73, 32, 6), of(73, 32, 7)];
        let attend = |tape: &Tape<'static>, p: &[Var], room| {
            attention_with_room(tape, [&p[0], &p[1], &p[2]], (shape, None, room), &layout).unwrap()
        };
        let wide = AttentionShape { head_dim: 144, cap: Some(1.5), ..shape };
        let wide_qkv = [of(73, 288, 8), of(73, 144, 9), of(73, 144, 10)];
        let attend_widely = |tape: &Tape<'static>, p: &[Var], room| {
            attention_with_room(tape, [&p[0], &p[1], &p[2]], (wide, None, room), &layout).unwrap()
        };
        let pairs = [
            (run(&device, &norm, 0, normed), run(&device, &norm, 64, normed)),
            (run(&device, &pair, 0, gate), run(&device, &pair, 64, gate)),
            (run(&device, &qkv, 0, attend), run(&device, &qkv, 64, attend)),
            (run(&device, &wide_qkv, 0, attend_widely), run(&device, &wide_qkv, 64, attend_widely)),
        ];
        for (i, ((none, without), (room, with))) in pairs.into_iter().enumerate() {
            assert_eq!((none, room), (0, 64), "{dtype} {i}");
            for (a, b) in without.iter().zip(&with) {
                assert_eq!(a.to_f32_vec(), b.to_f32_vec(), "{dtype} {i}");
            }
        }
    }
}

#[test]
fn gradients_have_room_where_it_is_wanted_and_ops_that_know_of_none_get_none() {
    let Some(device) = gpu().map(Device::Cuda) else { return };
    let (table, layout) = (RopeTable::new(&rotation(), 64).unwrap(), Layout::new(&[9]).unwrap());
    for dtype in SIXTEEN {
        let params = [noise(&[9, 40], dtype, 1), noise(&[40], DType::F32, 2)];
        let turned = |tape: &Tape<'static>, p: &[Var], room| {
            let x = scale(tape, &p[0], 0.5).unwrap().wanting(GradientPlace::with_room(room));
            let y = rms_norm(tape, &x, &p[1], 1e-5).unwrap().wanting(GradientPlace::with_room(room));
            rope(tape, &y, &table, &layout, 8).unwrap()
        };
        let (without, with) = (run(&device, &params, 0, turned).1, run(&device, &params, 64, turned).1);
        for (a, b) in without.iter().zip(&with) {
            assert_eq!(a.to_f32_vec(), b.to_f32_vec(), "{dtype}");
        }
    }
}

/// Forward and backward, with biases that train and results that are added to something: all of it beside the CPU, and no launch that
/// copies an input or a gradient.
#[test]
fn what_lies_beside_rows_takes_part_in_the_products() {
    let Some(device) = gpu().map(Device::Cuda) else { return };
    for dtype in SIXTEEN {
        for (inner, out) in [(40, 96), (96, 40)] {
            let (gpu_weight, decoded): (&'static Stored, Tensor) = weights(out, inner, &device).remove(1);
            let plain = Plain::leaked(decoded);
            let params = [
                noise(&[20, inner], dtype, 1),
                noise(&[inner], DType::F32, 2),
                noise(&[12, inner], DType::F32, 3),
                noise(&[out, 12], DType::F32, 4),
                noise(&[out], DType::F32, 5),
                noise(&[20, out], dtype, 6),
                noise(&[out], DType::F32, 7),
            ];
            compare_within("layers beside room", &params, 3.0, |tape, p| {
                let w: &'static dyn FrozenMatrix = if on_gpu(p[0].value()) { gpu_weight } else { plain };
                let columns = room([12].into_iter(), p[0].value());
                assert_eq!(columns, if on_gpu(p[0].value()) { 64 } else { 0 });
                let x = rms_norm_with_room(tape, (&p[0], &p[1]), RmsNorm::from(1e-5), columns)?;
                let lora = LowRank { a: &p[2], b: &p[3], scaling: 0.5, dropout: crate::Dropout::default() };
                let [y] =
                    lora_linears(tape, &x, [Layer { w, bias: Some(&p[4]), lora: Some(lora), onto: Some(&p[5]) }])?;
                assert_eq!(y.claim_gradient_place().room(), columns);
                // Its gradient has room.
                rms_norm(tape, &y, &p[6], 1e-5)
            });
            // Where somebody else wanted less room than these projections take, they are copied, and no gradient is lost.
            compare_within("layers beside too little room", &params, 3.0, |tape, p| {
                let w: &'static dyn FrozenMatrix = if on_gpu(p[0].value()) { gpu_weight } else { plain };
                let x = rms_norm_with_room(tape, (&p[0], &p[1]), RmsNorm::from(1e-5), 8)?;
                let lora = LowRank { a: &p[2], b: &p[3], scaling: 0.5, dropout: crate::Dropout::default() };
                let layer = Layer { w, bias: Some(&p[4]), lora: Some(lora), onto: Some(&p[5]) };
                let [y] = lora_linears(tape, &x, [layer])?;
                rms_norm(tape, &y.wanting(GradientPlace::with_room(8)), &p[6], 1e-5)
            });
        }
    }
}

/// Tiles that are not full, several of them in both directions, ranks that are no multiple of anything, and those that the kernel leaves
/// to the library.
#[test]
fn thin_products_of_every_shape() {
    let Some(device) = gpu().map(Device::Cuda) else { return };
    for dtype in SIXTEEN {
        for (rows, out, rank) in [(1, 8, 1), (130, 264, 12), (300, 520, 16), (129, 40, 32), (60, 136, 33), (40, 36, 8)]
        {
            let inner = 24;
            let (gpu_weight, decoded): (&'static Stored, Tensor) = weights(out, inner, &device).remove(0);
            let plain = Plain::leaked(decoded);
            // As small as gradients of many rows have to be for their sums to be those of f32.
            let params = [
                noise_in(&[rows, inner], dtype, 1, -0.5, 0.5),
                noise_in(&[rank, inner], DType::F32, 2, -0.2, 0.2),
                noise_in(&[out, rank], DType::F32, 3, -0.2, 0.2),
            ];
            compare(&format!("thin products {rows} x {out}, rank {rank}"), &params, |tape, p| {
                let w: &'static dyn FrozenMatrix = if on_gpu(p[0].value()) { gpu_weight } else { plain };
                let lora = LowRank { a: &p[1], b: &p[2], scaling: 0.5, dropout: crate::Dropout::default() };
                let [y] = lora_linears(tape, &p[0], [Layer { w, bias: None, lora: Some(lora), onto: None }])?;
                Ok(y)
            });
        }
    }
}

/// An update is summed with its base before anything is rounded: in 16 bits always, in f32 where copying the input costs no more than a
/// pass over the output.
#[test]
fn an_update_and_its_base_are_one_product() {
    let Some(gpu) = fresh_gpu() else { return };
    let device = Device::Cuda(gpu.clone());
    for (dtype, [wider, narrower]) in [(DType::Bf16, [2, 2]), (DType::F16, [2, 2]), (DType::F32, [2, 3])] {
        for (inner, out, expected) in [(24, 40, wider), (40, 40, wider), (40, 24, narrower)] {
            let there = |shape: &[usize], dtype| Var::constant(noise(shape, dtype, 1).to_device(&device).unwrap());
            let (w, x) = (weights(out, inner, &device)[1].0, there(&[20, inner], dtype));
            let (a, b) = (there(&[8, inner], DType::F32), there(&[out, 8], DType::F32));
            let lora = LowRank { a: &a, b: &b, scaling: 0.5, dropout: crate::Dropout::default() };
            let before = gpu.counters();
            lora_linears(&Tape::disabled(), &x, [Layer { w, bias: None, lora: Some(lora), onto: None }]).unwrap();
            assert_eq!(gpu.counters().since(&before).products, expected, "{inner} -> {out} in {dtype}");
        }
    }
}

/// A factor that trains beside one that does not: its gradient, and the input's where there is one, are as on a CPU.
#[test]
fn one_factor_trains_without_the_other() {
    let Some(device) = gpu().map(Device::Cuda) else { return };
    let (there, here) = weights(40, 24, &device).remove(1);
    let plain = Plain::leaked(here);
    // In 16 bits by the kernel of thin products, in f32 by the library.
    for dtype in [DType::Bf16, DType::F16, DType::F32] {
        let small = |shape: [usize; 2], dtype, seed| noise_in(&shape, dtype, seed, -0.3, 0.3);
        let (x, a) = (small([20, 24], dtype, 1), small([8, 24], DType::F32, 2));
        let b = small([40, 8], DType::F32, 3);
        let layer = |tape: &Tape<'static>, [x, a, b]: [&Var; 3]| {
            let w: &'static dyn FrozenMatrix = if on_gpu(x.value()) { there } else { plain };
            let lora = LowRank { a, b, scaling: 0.5, dropout: crate::Dropout::default() };
            lora_linears(tape, x, [Layer { w, bias: None, lora: Some(lora), onto: None }]).map(|[y]| y)
        };
        let beside = |other: &Tensor, it: &Var| Var::constant(other.to_device(&it.value().device()).unwrap());
        compare_within("A alone", &[x.clone(), a.clone()], 2.0, |tape, p| {
            layer(tape, [&p[0], &p[1], &beside(&b, &p[0])])
        });
        compare_within("B and the input", &[x.clone(), b.clone()], 2.0, |tape, p| {
            layer(tape, [&p[0], &beside(&a, &p[0]), &p[1]])
        });
        let (y, dy) = (small([20, 24], dtype, 1), noise(&[20, 40], dtype, 4));
        let alone = |device: &Device| {
            let on = |t: &Tensor| t.to_device(device).unwrap();
            let (tape, param) = (Tape::recording(), Param::new("b", on(&b)));
            let b = tape.param(&param);
            let y = layer(&tape, [&Var::constant(on(&y)), &Var::constant(on(&a)), &b]).unwrap();
            let loss = with_gradient(&tape, &y, &on(&dy));
            drop((b, y));
            tape.backward(loss).unwrap().get(&param).unwrap().to_device(&Device::Cpu).unwrap()
        };
        near("B alone", &alone(&device), &alone(&Device::Cpu), 8.0 * tolerance(dtype));
    }
}

/// As many numbers as go into a window; and a product of no rows, of which nobody asks the library.
#[test]
fn what_is_put_aside_leaves_the_window_its_own() {
    let Some(gpu) = fresh_gpu() else { return };
    let device = Device::Cuda(gpu.clone());
    let there = |t: Tensor| t.to_device(&device).unwrap();
    let [x, right, from] = [24, 8, 8].map(|cols| there(noise(&[5, cols], DType::Bf16, cols as u64)));
    let w = Var::constant(there(noise(&[24], DType::F32, 2)));
    let x = rms_norm_with_room(&Tape::disabled(), (&Var::constant(x), &w), RmsNorm::from(1e-5), 8).unwrap();
    let x = x.into_value();
    let mut out = from.scratch_like(&[5, 8], DType::Bf16);
    put_with(1.0, &from, 0, Window::whole(&mut out), Some(Aside::new(&x, &right))).unwrap();
    assert_eq!(out.to_f32_vec(), from.to_f32_vec());
    let one = |i: usize| if i.is_multiple_of(33) { 1.0 } else { 0.0 };
    let eye = there(Tensor::from_vec(&[32, 32], (0..32 * 32).map(one).collect()).to_dtype(DType::Bf16));
    let all = product(1.0, Operand::with_room(&x, 8), Operand::new(&eye), DType::F32).unwrap().to_f32_vec();
    let [left, right] = [x, right].map(|it| it.to_f32_vec());
    let expected: Vec<f32> = left.chunks(24).zip(right.chunks(8)).flat_map(|(l, r)| [l, r].concat()).collect();
    assert_eq!(all, expected);

    let (none, before) = (Tensor::zeros_on(&device, &[0, 32], DType::Bf16), gpu.counters().products);
    let y = product(1.0, Operand::new(&none), Operand::new(&eye), DType::F32).unwrap();
    assert_eq!((y.shape(), gpu.counters().products), (&[0, 32][..], before));
}

#[test]
fn what_is_done_to_a_tensor_as_a_whole_leaves_its_room_out() {
    let Some(device) = gpu().map(Device::Cuda) else { return };
    let (x, w) = (noise(&[5, 24], DType::Bf16, 1), noise(&[24], DType::F32, 2));
    let tape = Tape::disabled();
    let there = |t: &Tensor| Var::constant(t.to_device(&device).unwrap());
    let (xs, ws) = (there(&x), there(&w));
    let roomy = rms_norm_with_room(&tape, (&xs, &ws), RmsNorm::from(1e-5), 8).unwrap().into_value();
    let plain = rms_norm(&tape, &xs, &ws, 1e-5).unwrap().into_value();
    assert_eq!((roomy.room(), roomy.stride(), roomy.bytes()), (8, 32, plain.bytes()));
    let expected = plain.to_f32_vec();
    assert_eq!(roomy.to_f32_vec(), expected);
    assert_eq!(roomy.to_dtype(DType::F32).to_f32_vec(), expected);
    assert_eq!(roomy.clone().into_unique().to_f32_vec(), expected);
    assert_eq!(roomy.reshape(&[5, 1, 24]).unwrap().to_f32_vec(), expected);
    assert!(roomy.is_finite().unwrap());
    let (mut sum, mut other) = (roomy.clone(), plain.clone());
    sum.add_assign(&plain);
    other.add_assign(&roomy);
    assert_eq!(sum.to_f32_vec(), other.to_f32_vec());
    near(
        "twice",
        &sum.to_device(&Device::Cpu).unwrap(),
        &other.to_device(&Device::Cpu).unwrap(),
        tolerance(DType::Bf16),
    );
}

/// An MLP's gradients lie over what they are made of, and its inner result is let go of before its gradient is made: no more is held in the
/// backward pass than in the forward pass, or one more where gradients lie beside each other.
#[test]
fn gradients_of_an_mlp_take_no_more_memory_than_its_results() {
    const ROWS: usize = 512;
    const INNER: usize = 1024;
    for (coded, results) in [(false, 3), (true, 4)] {
        let Some(gpu) = fresh_gpu() else { return };
        let device = Device::Cuda(gpu.clone());
        let of =
            |out: usize, inner: usize| -> &'static Stored { weights(out, inner, &device).remove(usize::from(coded)).0 };
        let (gate, up, down) = (of(INNER, 64), of(INNER, 64), of(64, INNER));
        let factor = |rows: usize, cols: usize, seed| noise_in(&[rows, cols], DType::F32, seed, -0.1, 0.1);
        let params: Vec<Param> = [
            factor(8, 64, 2),
            factor(INNER, 8, 3),
            factor(8, 64, 4),
            factor(INNER, 8, 5),
            factor(8, INNER, 6),
            factor(64, 8, 7),
        ]
        .into_iter()
        .map(|it| Param::new("p", it.to_device(&device).unwrap()))
        .collect();
        let held = |keeps: bool, rows: usize| {
            let x = Param::new("x", noise_in(&[rows, 64], DType::Bf16, 1, -0.2, 0.2).to_device(&device).unwrap());
            let tape = Tape::recording().keeping_cheap(keeps);
            let x = tape.param(&x);
            let p: Vec<Var> = params.iter().map(|it| tape.param(it)).collect();
            let layer = |w: &'static Stored, i: usize| {
                let lora = LowRank { a: &p[i], b: &p[i + 1], scaling: 0.5, dropout: crate::Dropout::default() };
                Layer { w, bias: None, lora: Some(lora), onto: None }
            };
            let [g, u] = lora_linears(&tape, &x, [layer(gate, 0), layer(up, 2)]).unwrap();
            let inside = gated_with_room(&tape, [&g, &u], Gate::Silu, room([8].into_iter(), g.value())).unwrap();
            drop((g, u));
            let [y] = lora_linears(&tape, &inside, [layer(down, 4)]).unwrap();
            drop(inside);
            let dy = noise(&[rows, 64], DType::Bf16, 9).to_device(&device).unwrap();
            let loss = with_gradient(&tape, &y, &dy);
            drop((x, p, y));
            tape.backward(loss).unwrap();
            gpu.stats().peak
        };
        // What is held whatever the number of rows.
        let always = held(false, 32);
        // Operands of 64 columns and parts of thin sums are less than half of one.
        let one = ROWS * INNER * 2;
        for keeps in [false, true] {
            let peak = held(keeps, ROWS) - always;
            assert!(
                peak < results * one + one / 2,
                "{peak} bytes, {:.2} of {results} results",
                peak as f64 / one as f64
            );
        }
    }
}
