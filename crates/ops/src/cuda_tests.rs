//! Every op on a GPU (or the CPU in the guise of one) beside the same op on the CPU: outputs and gradients, in every dtype.

use crate::{
    Columns, Dropout, FrozenMatrix, Gate, Gelu, Head, IGNORE, Ids, Layer, Layout, LowRank, RmsNorm, RopeScaling,
    RopeSpec, RopeTable, RowGroups, Shaping, Targets, add_scaled, cross_entropy, deal_rows, dora_scale, dropout,
    embedding, frozen_linear,
    frozen_linear::test_support::{FLOATS, FourBit, Plain, with_gradient},
    gated, gather_rows, gelu,
    kv_pages::{
        append_rows,
        tests::{held, paged},
    },
    layer_norm, linear, logits, lora_linears, rms_norm, rope, row_norms, scale, split,
};
use crate::{
    frozen::{Coded, Decoder, OnDevice},
    gpu_product::{
        Window,
        cuda::{side_by_side, stack},
    },
    place::on_gpu,
};
use halfbyte_autograd::{Param, Result, Tape, Var};
use halfbyte_matmul::Source;
use halfbyte_tensor::{DType, Device, Ledger, Place, Tensor};
use halfbyte_testkit::{cuda::gpu, noise, noise_in};
use std::sync::Arc;

mod ahead;
mod attention;
mod beside;
mod experts;
mod few_rows;
mod loss;
mod room;

/// Four roundings of the dtype, relative to the largest value.
fn tolerance(dtype: DType) -> f32 {
    match dtype {
        DType::F32 => 2e-6,
        DType::Bf16 => 2.0f32.powi(-7),
        _ => 2.0f32.powi(-9),
    }
}

#[track_caller]
fn near(what: &str, got: &Tensor, expected: &Tensor, tolerance: f32) {
    assert_eq!((got.shape(), got.dtype()), (expected.shape(), expected.dtype()), "{what}");
    let (got, expected) = (got.to_f32_vec(), expected.to_f32_vec());
    let largest = expected.iter().fold(1e-3f32, |m, it| m.max(it.abs()));
    for (i, (g, e)) in got.iter().zip(&expected).enumerate() {
        assert!((g - e).abs() <= tolerance * largest, "{what}[{i}]: GPU {g}, CPU {e}, largest {largest}");
    }
}

/// Runs an op on both devices with the same parameters and compares its output and all gradients.
fn compare(what: &str, params: &[Tensor], op: impl Fn(&Tape<'static>, &[Var]) -> Result<Var>) {
    compare_within(what, params, 1.0, op);
}

/// Compares both devices as [`compare`] does, where an op rounds `more` times as often on a GPU.
fn compare_within(what: &str, params: &[Tensor], more: f32, op: impl Fn(&Tape<'static>, &[Var]) -> Result<Var>) {
    let Some(gpu) = gpu() else { return };
    let run = |device: &Device| {
        let params: Vec<Param> = params.iter().map(|it| Param::new("p", it.to_device(device).unwrap())).collect();
        let tape = Tape::recording();
        let vars: Vec<Var> = params.iter().map(|it| tape.param(it)).collect();
        let y = op(&tape, &vars).unwrap_or_else(|e| panic!("{what}: {e}"));
        let value = y.value().to_device(&Device::Cpu).unwrap();
        let loss = if y.value().shape() == [1] {
            y
        } else {
            let dy = noise(value.shape(), value.dtype(), 99).to_device(device).unwrap();
            with_gradient(&tape, &y, &dy)
        };
        drop(vars);
        let grads = tape.backward(loss).unwrap();
        let all: Vec<Tensor> =
            params.iter().map(|it| grads.get(it).unwrap().to_device(&Device::Cpu).unwrap()).collect();
        (value, all)
    };
    let ((y, grads), (expected, wanted)) = (run(&Device::Cuda(gpu)), run(&Device::Cpu));
    let tolerance = more * tolerance(params[0].dtype());
    near(what, &y, &expected, tolerance);
    for (i, (got, wanted)) in grads.iter().zip(&wanted).enumerate() {
        near(&format!("{what}, gradient {i}"), got, wanted, 4.0 * tolerance);
    }
}

#[test]
fn rows_in_groups() {
    let groups = RowGroups::new(&Layout::new(&[2, 3, 1, 2]).unwrap(), [0, 1, 0, 0].into_iter());
    for dtype in FLOATS {
        compare("rows", &[noise(&[8, 5], dtype, 1)], |tape, p| {
            let parts = deal_rows(tape, &p[0], &groups)?;
            gather_rows(tape, &[add_scaled(tape, &parts[0], &parts[0], 0.5)?, parts[1].clone()], &groups)
        });
    }
}

#[test]
fn pointwise_ops() {
    for dtype in FLOATS {
        for shape in [[1, 1], [3, 5], [70, 129], [67, 128]] {
            let [a, b] = [noise_in(&shape, dtype, 1, -4.0, 4.0), noise_in(&shape, dtype, 2, -4.0, 4.0)];
            compare("add_scaled", &[a.clone(), b.clone()], |tape, p| add_scaled(tape, &p[0], &p[1], -0.75));
            for f in [Gate::Silu, Gate::GeluTanh, Gate::Clamped { alpha: 1.7, limit: 2.5 }] {
                compare("gated", &[a.clone(), b.clone()], |tape, p| gated(tape, &p[0], &p[1], f));
            }
            compare("scale", std::slice::from_ref(&a), |tape, p| scale(tape, &p[0], 3.3));
            for kind in [Gelu::Tanh, Gelu::Exact] {
                compare("gelu", std::slice::from_ref(&a), |tape, p| gelu(tape, &p[0], kind));
            }
            let d = Dropout { p: 0.3, seed: 0x1234_5678_9abc, site: 77 << 33 };
            compare("dropout", &[a], |tape, p| dropout(tape, &p[0], d));
        }
    }
}

#[test]
fn columns_that_are_split() {
    for dtype in FLOATS {
        // By packs and by elements; pieces in a row, and pieces by turns as of fused heads.
        for (d, heads) in [(8, 3), (16, 2), (5, 3)] {
            let x = noise(&[7, 3 * d * heads], dtype, 1);
            let fused = [0, 1, 2].map(|i| Columns { first: i * d, width: d, stride: 3 * d, count: heads });
            let apart = [0, 1, 2].map(|i| Columns::one(i * d * heads, d * heads));
            for all in [fused, apart] {
                compare("split", std::slice::from_ref(&x), |tape, p| {
                    let [a, b, c] = split(tape, &p[0], all)?;
                    add_scaled(tape, &add_scaled(tape, &a, &b, -2.0)?, &c, 0.5)
                });
                // What nothing depends on.
                compare("a part of a split", std::slice::from_ref(&x), |tape, p| {
                    let [_, b, _] = split(tape, &p[0], all)?;
                    Ok(b)
                });
            }
        }
    }
}

#[test]
fn norms() {
    for dtype in FLOATS {
        // By packs and by elements, within what a thread keeps of a row and beyond.
        for (rows, c) in [(1, 1), (5, 33), (9, 700), (3, 704), (2, 8200), (1, 8217)] {
            let x = noise_in(&[rows, c], dtype, 1, -3.0, 3.0);
            let [w, b] = [noise(&[c], DType::F32, 2), noise(&[c], DType::F32, 3)];
            // Of a single channel, the gradient is what two terms leave of each other that are a hundred times as large and more: a
            // rounding of either, which a card that fuses has once less.
            let more = if c == 1 { 8.0 } else { 1.0 };
            let op = |tape: &Tape<'static>, p: &[Var]| rms_norm(tape, &p[0], &p[1], 1e-5);
            compare_within("rms_norm", &[x.clone(), w.clone()], more, op);
            let gemma = RmsNorm { eps: 1e-5, offset: 1.0, rounds_last: true };
            compare_within("rms_norm of 1 + w", &[x.clone(), w.clone()], more, |tape, p| {
                rms_norm(tape, &p[0], &p[1], gemma)
            });
            // Its gradient is added to that of the sum, which comes first.
            compare("rms_norm and a residual", &[x.clone(), w.clone()], |tape, p| {
                let y = rms_norm(tape, &p[0], &p[1], 1e-5)?;
                add_scaled(tape, &p[0], &y, 0.5)
            });
            for stored in FLOATS {
                let w = noise(&[c], stored, 2);
                compare_within("rms_norm of a stored weight", std::slice::from_ref(&x), more, |tape, p| {
                    rms_norm(tape, &p[0], &Var::constant(w.to_device(&p[0].value().device())?), 1e-5)
                });
            }
            let heads = noise_in(&[rows, 3 * c], dtype, 4, -3.0, 3.0);
            compare_within("rms_norm of heads", &[heads, w.clone()], more, op);
            if c > 1 {
                compare("layer_norm", &[x, w, b], |tape, p| layer_norm(tape, &p[0], &p[1], &p[2], 1e-5));
            }
        }
    }
}

/// A rotation of eight channels.
fn rotation() -> RopeSpec {
    RopeSpec { theta: 10000.0, channels: 8, max_position: 64, scaling: RopeScaling::None, pairs: rope::Pairs::Halves }
}

#[test]
fn rotations_and_embeddings() {
    let spec = rotation();
    let table = RopeTable::new(&spec, 64).unwrap();
    let layout = Layout::resumed(&(0..11).map(|it| (1, it * 5, &[][..])).collect::<Vec<_>>()).unwrap();
    let ids = Ids::new(vec![3, 0, 3, 6, 1, 3, 0]);
    for dtype in FLOATS {
        compare("rope", &[noise(&[11, 24], dtype, 1)], |tape, p| rope(tape, &p[0], &table, &layout, 8));
        for half in [1, 3, 16] {
            let spec = RopeSpec { channels: 2 * half, ..spec.clone() };
            let table = RopeTable::new(&spec, 64).unwrap();
            let x = noise(&[11, 6 * half], dtype, 1);
            compare("rope", &[x], |tape, p| rope(tape, &p[0], &table, &layout, 2 * half));
            for more in [5, 16] {
                let x = noise(&[11, 3 * (2 * half + more)], dtype, 1);
                compare("rope of a part", &[x], |tape, p| rope(tape, &p[0], &table, &layout, 2 * half + more));
            }
            let spec = RopeSpec { pairs: rope::Pairs::Neighbours, ..spec };
            let table = RopeTable::new(&spec, 64).unwrap();
            let x = noise(&[11, 3 * (2 * half + 6)], dtype, 1);
            compare("rope of neighbours", &[x], |tape, p| rope(tape, &p[0], &table, &layout, 2 * half + 6));
        }
        compare("embedding", &[noise(&[7, 33], DType::F32, 2)], |tape, p| embedding(tape, &p[0], &ids, dtype));
    }
}

/// A weight away from host memory: as it is, or as one that has to be decoded, which this one does by copying.
#[derive(Debug)]
struct Stored {
    weight: Tensor,
    decoder: Option<Arc<dyn Decoder>>,
}

impl FrozenMatrix for Stored {
    fn dims(&self) -> (usize, usize) {
        (self.weight.rows(), self.weight.cols())
    }
    fn source<'a>(&'a self) -> Box<dyn Source + 'a> {
        unreachable!("a product on a GPU reads what lies there")
    }
    fn bytes(&self) -> usize {
        0
    }
    fn format(&self) -> String {
        "test".into()
    }
    fn on_device(&self) -> Option<OnDevice<'_>> {
        Some(if self.decoder.is_some() { OnDevice::Coded(self) } else { OnDevice::Dense(&self.weight) })
    }
}

impl Coded for Stored {
    fn place(&self) -> Place<'_> {
        self.weight.place()
    }
    fn decoder(&self) -> Arc<dyn Decoder> {
        self.decoder.clone().expect("asked of what is decoded")
    }
}

/// Weights of both kinds on a device, each with its values in host memory.
fn weights(out: usize, inner: usize, device: &Device) -> Vec<(&'static Stored, Tensor)> {
    let of = |(coded, dtype): (bool, DType)| {
        let values = noise(&[out, inner], dtype, 4);
        let weight = values.to_device(device).unwrap();
        let decoder = coded.then(|| -> Arc<dyn Decoder> { Arc::new(few_rows::Copied(weight.clone())) });
        (&*Box::leak(Box::new(Stored { weight, decoder })), values.to_dtype(DType::F32))
    };
    [(false, DType::Bf16), (true, DType::F32)].map(of).into()
}

#[test]
fn frozen_layers_with_and_without_updates() {
    let Some(device) = gpu().map(Device::Cuda) else { return };
    for (rows, out, inner) in [(1, 3, 5), (7, 40, 33), (20, 65, 128)] {
        let all = weights(out, inner, &device);
        for dtype in FLOATS {
            for (gpu_weight, decoded) in &all {
                let plain = Plain::leaked(decoded.clone());
                let pick =
                    |x: &Var| -> &'static dyn FrozenMatrix { if on_gpu(x.value()) { *gpu_weight } else { plain } };
                let params = [
                    noise(&[rows, inner], dtype, 1),
                    noise(&[4, inner], DType::F32, 2),
                    noise(&[out, 4], DType::F32, 3),
                    noise(&[out], DType::F32, 4),
                    noise(&[rows, out], dtype, 5),
                ];
                compare("frozen_linear", &[params[0].clone(), params[3].clone()], |tape, p| {
                    frozen_linear(tape, &p[0], pick(&p[0]), Some(&p[1]))
                });
                for dropout in [Dropout::default(), Dropout { p: 0.25, seed: 5, site: 6 }] {
                    // On a GPU the base's output is rounded before the update is added, and again before the bias is.
                    compare_within("lora_linears", &params, 2.0, |tape, p| {
                        let lora = Some(LowRank { a: &p[1], b: &p[2], scaling: 0.5, dropout });
                        let one = Layer { w: pick(&p[0]), bias: Some(&p[3]), lora, onto: Some(&p[4]) };
                        let two = Layer { w: pick(&p[0]), bias: None, lora: None, onto: Some(&p[4]) };
                        let [a, b] = lora_linears(tape, &p[0], [one, two])?;
                        add_scaled(tape, &a, &b, 0.5)
                    });
                }
                let on_gpu = |t: &Tensor| t.to_device(&Device::Cuda(gpu().unwrap())).unwrap();
                let update = (&params[1], &params[2], 0.5);
                let there = (&on_gpu(update.0), &on_gpu(update.1), 0.5);
                let (got, wanted) =
                    (row_norms(*gpu_weight, Some(there)).unwrap(), row_norms(plain, Some(update)).unwrap());
                near("row_norms", &got.to_device(&Device::Cpu).unwrap(), &wanted, 1e-5);
            }
        }
    }
}

/// Layers of one input, wider and narrower than it, so that updates ride along or not, with ranks of their own, masks on none or on
/// some, and an output of which nobody asks the gradient.
#[test]
fn updates_of_several_layers_lie_beside_each_other() {
    let Some(device) = gpu().map(Device::Cuda) else { return };
    for (rows, out, inner) in [(20, 16, 64), (20, 72, 24), (9, 33, 33)] {
        let all = weights(out, inner, &device);
        for dtype in FLOATS {
            let factor = |shape: &[usize], seed| noise_in(shape, DType::F32, seed, -0.5, 0.5);
            let params = [
                noise(&[rows, inner], dtype, 1),
                factor(&[4, inner], 2),
                factor(&[out, 4], 3),
                factor(&[3, inner], 4),
                factor(&[out, 3], 5),
            ];
            for (masks, used) in [([0.0, 0.0], 3), ([0.25, 0.0], 3), ([0.0, 0.0], 2), ([0.3, 0.3], 2)] {
                let (gpu_weight, decoded) = &all[used % 2];
                let plain = Plain::leaked(decoded.clone());
                compare_within("layers of one input", &params, 3.0, |tape, p| {
                    let w: &'static dyn FrozenMatrix = if on_gpu(p[0].value()) { *gpu_weight } else { plain };
                    let mask = |i: usize| Dropout { p: masks[i], seed: 5, site: i as u64 };
                    let one = LowRank { a: &p[1], b: &p[2], scaling: 0.5, dropout: mask(0) };
                    let two = LowRank { a: &p[3], b: &p[4], scaling: 1.5, dropout: mask(1) };
                    let layer = |lora| Layer { w, bias: None, lora, onto: None };
                    let [a, b, c] = lora_linears(tape, &p[0], [layer(Some(one)), layer(Some(two)), layer(None)])?;
                    let sum = add_scaled(tape, &a, &b, 0.5)?;
                    if used == 3 { add_scaled(tape, &sum, &c, 0.25) } else { Ok(sum) }
                });
            }
        }
    }
}

/// An adapter that has only begun to learn: its updates, all of one sign, are far below the rounding of what they are added to, and
/// show in the mean of many results only if they are part of what is rounded.
#[test]
fn an_update_smaller_than_a_rounding_is_not_lost() {
    let Some(device) = gpu().map(Device::Cuda) else { return };
    // Copied beside a narrow input, and added by a product of its own to a wide one.
    for (inner, out) in [(32, 96), (96, 32)] {
        let there = |t: Tensor| t.to_device(&device).unwrap();
        let small = Tensor::from_vec(&[1, inner], vec![1e-3 / inner as f32; inner]);
        let w = weights(out, inner, &device)[1].0;
        let mean = |b: f32| {
            let tape = Tape::recording();
            let x = noise_in(&[64, inner], DType::Bf16, 1, 0.5, 1.0);
            let params =
                [there(small.clone()), there(Tensor::from_vec(&[out, 1], vec![b; out]))].map(|it| Param::new("p", it));
            let [a, b] = params.each_ref().map(|it| tape.param(it));
            let lora = Some(LowRank { a: &a, b: &b, scaling: 1.0, dropout: Dropout::default() });
            let layer = Layer { w, bias: None, lora, onto: None };
            let x = Var::constant(there(x));
            let [y] = lora_linears(&tape, &x, [layer]).unwrap();
            let y = y.value().to_device(&Device::Cpu).unwrap().to_f32_vec();
            y.iter().map(|it| f64::from(*it)).sum::<f64>() / y.len() as f64
        };
        // x averages 0.75, so an update 0.00075 b.
        let gained = mean(1.0) - mean(0.0);
        assert!((gained / 0.75e-3 - 1.0).abs() < 0.3, "{inner} -> {out}: {gained}");
    }
}

/// More pieces than one launch takes, of any dtype, with gaps, in a window that is no multiple of anything: what lies around it stays.
#[test]
fn pieces_are_put_below_and_beside_each_other() {
    let Some(device) = gpu().map(Device::Cuda) else { return };
    for dtype in FLOATS {
        for width in [24, 17] {
            let piece = |rows, dtype, seed| noise(&[rows, width], dtype, seed).to_device(&device).unwrap();
            let pieces = [
                Some(piece(3, DType::F32, 1)),
                None,
                Some(piece(1, DType::Bf16, 2)),
                None,
                Some(piece(2, DType::F16, 3)),
            ];
            let rows = [3, 2, 1, 1, 2];
            let mut out = noise(&[13, width + 6], dtype, 4).to_device(&device).unwrap();
            let mut expected = out.to_f32_vec();
            let mut below = pieces.iter().zip(rows).flat_map(|(it, rows)| {
                it.as_ref().map_or(vec![0.0; rows * width], |it| it.to_dtype(dtype).to_f32_vec())
            });
            for row in expected.chunks_mut(width + 6).skip(2).take(10) {
                row[4..][..width].fill_with(|| below.next().unwrap_or(0.0));
            }
            let given: Vec<_> = pieces.iter().zip(rows).map(|(it, rows)| (it.as_ref(), rows)).collect();
            stack(&given, Window::whole(&mut out).rows(2, 10).columns(4, width), None).unwrap();
            assert_eq!(out.to_f32_vec(), expected, "{dtype} {width}");
            let (left, right) = (piece(5, dtype, 5), noise(&[5, 8], dtype, 6).to_device(&device).unwrap());
            let (beside, [left, right]) =
                (side_by_side(&left, &right).unwrap(), [left, right].map(|it| it.to_f32_vec()));
            let expected: Vec<f32> =
                left.chunks(width).zip(right.chunks(8)).flat_map(|(l, r)| [l, r].concat()).collect();
            assert_eq!(beside.to_f32_vec(), expected, "{dtype} {width}");
        }
    }
}

/// A dry run goes the way of its device, and counts the products that this takes.
#[test]
fn a_dry_run_counts_what_either_half_would_do() {
    let (rows, out, inner, rank) = (20, 16, 64, 8);
    let (ledger, gpu) = (Ledger::new(), halfbyte_testkit::cuda::dry());
    for device in [Device::Dry(ledger.clone()), Device::Cuda(gpu.clone())] {
        let live = || if let Device::Dry(_) = device { ledger.live() } else { gpu.stats().live };
        let dry = |shape: &[usize], dtype| Tensor::scratch_on(&device, shape, dtype);
        let weight = dry(&[out, inner], DType::F32);
        let w = Stored { decoder: Some(Arc::new(few_rows::Copied(weight.clone()))), weight };
        let params = [dry(&[rows, inner], DType::Bf16), dry(&[rank, inner], DType::F32), dry(&[out, rank], DType::F32)];
        let params = params.map(|it| Param::new("p", it));
        let before = live();
        let tape = Tape::recording();
        let p = params.each_ref().map(|it| tape.param(it));
        let lora = LowRank { a: &p[1], b: &p[2], scaling: 0.5, dropout: Dropout::default() };
        let y = crate::lora_linear(&tape, &p[0], &w, None, lora).unwrap();
        assert_eq!(y.value().shape(), [rows, out]);
        let loss = with_gradient(&tape, &y, &dry(&[rows, out], DType::Bf16));
        drop((y, p));
        let grads = tape.backward(loss).unwrap();
        assert!(params.iter().all(|it| grads.get(it).is_some()));
        // Both products with the base, and two of every factor's three: forward, towards the input, its own gradient.
        let flops = 2 * rows * (2 * out * inner + 3 * rank * (out + inner));
        let counted = if let Device::Dry(_) = device { ledger.effort().operations } else { gpu.counters().operations };
        assert_eq!(counted, flops as u64, "{device:?}");
        assert!(live() > before);
        drop(grads);
        // The library of products keeps its workspace.
        let kept = if let Device::Dry(_) = device { 0 } else { 32 << 20 };
        assert_eq!(live(), before + kept);
    }
}

#[test]
fn layers_that_train_and_rescaled_ones() {
    for dtype in FLOATS {
        let [x, w, b] = [noise(&[9, 33], dtype, 1), noise(&[20, 33], DType::F32, 2), noise(&[20], DType::F32, 3)];
        compare("linear", &[x, w, b.clone()], |tape, p| linear(tape, &p[0], &p[1], Some(&p[2])));
        let norm = noise_in(&[20], DType::F32, 4, 0.5, 2.0);
        let params = [noise(&[9, 20], dtype, 5), noise(&[20], DType::F32, 6), b];
        compare("dora_scale", &params, |tape, p| {
            let norm = norm.to_device(&p[0].value().device())?;
            dora_scale(tape, &p[0], &p[1], &norm, Some(&p[2]))
        });
    }
}

#[test]
fn rows_of_a_cache() {
    let Some(gpu) = gpu() else { return };
    let device = Device::Cuda(gpu);
    for (dtype, channels) in FLOATS.into_iter().flat_map(|dtype| [(dtype, 130), (dtype, 64), (dtype, 3)]) {
        let sequences = [(3, 62, 0), (1, 0, 8), (2, 60, 16)];
        let new = [1, 2].map(|seed| noise(&[6, channels], dtype, seed));
        let run = |device: &Device| {
            let there = |t: &Tensor| t.to_device(device).unwrap();
            let past = there(&noise(&[80, channels], dtype, 3));
            let ((mut pages, layer), layout) = paged([&past, &past], &sequences, None);
            append_rows((&mut pages, layer), new.each_ref().map(there).each_ref(), &layout).unwrap();
            // The second sequence goes on in a copy.
            let own = layout.pages().unwrap()[2];
            pages.grow_on(5);
            pages.copy(own, 4).unwrap();
            let copied = Layout::resumed(&[(1, 0, &[4])]).unwrap();
            [held(&pages, layer, &layout), held(&pages, layer, &copied)]
                .concat()
                .iter()
                .map(Tensor::to_f32_vec)
                .collect::<Vec<_>>()
        };
        assert_eq!(run(&device), run(&Device::Cpu), "{channels} channels in {dtype}");
    }
}

#[test]
fn a_weight_in_host_memory_is_refused_by_name() {
    let Some(gpu) = gpu() else { return };
    let x = Var::constant(noise(&[2, 64], DType::F32, 1).to_device(&Device::Cuda(gpu)).unwrap());
    let w = FourBit::random(3, 64, 2);
    let error = frozen_linear(&Tape::disabled(), &x, &w, None).unwrap_err().to_string();
    assert!(error.contains("host memory") && error.contains("GPU"), "{error}");
}
