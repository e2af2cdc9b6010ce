//! Rows with room beside them: the same bits as without, nothing copied, and no op gets them unasked. And the thin products of a gradient.

use super::{Stored, compare, compare_within, near, rotation, tolerance, weights};
use crate::{
    AttentionShape, FrozenMatrix, Gate, Layer, Layout, LowRank, RmsNorm, RopeTable,
    attention::attention_with_room,
    frozen_linear::test_support::{Plain, with_gradient},
    gated::gated_with_room,
    lora_linear::room,
    lora_linears,
    place::on_gpu,
    rms_norm,
    rms_norm::rms_norm_with_room,
    rope, scale,
};
use halfbyte_autograd::{GradientPlace, Param, Tape, Var};
use halfbyte_tensor::{DType, Device, Tensor};
use halfbyte_testkit::{cuda::gpu, noise, noise_in};

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
