//! Attention of every kind: by the general kernels, on tensor cores and of few queries.

use super::{compare, near, tolerance};
use crate::{
    AttentionShape, Layout, attend_cached, attention,
    attention::attention_with_sinks,
    frozen_linear::test_support::{FLOATS, with_gradient},
    kv_pages::tests::paged,
};
use halfbyte_autograd::{Param, Tape, Var};
use halfbyte_cuda::Gpu;
use halfbyte_tensor::{DType, Device};
use halfbyte_testkit::{cuda::gpu, noise, noise_in};
use std::sync::Arc;

#[test]
fn attention_of_every_kind() {
    let shapes = [
        (AttentionShape { heads: 1, kv_heads: 1, head_dim: 1, scale: 1.0, window: None, cap: None }, vec![1]),
        (AttentionShape { heads: 4, kv_heads: 2, head_dim: 12, scale: 0.3, window: None, cap: None }, vec![37, 20]),
        (AttentionShape { heads: 2, kv_heads: 2, head_dim: 40, scale: 1.0, window: Some(9), cap: None }, vec![50, 33]),
        (AttentionShape { heads: 3, kv_heads: 1, head_dim: 64, scale: 0.125, window: None, cap: None }, vec![70]),
        (
            AttentionShape { heads: 2, kv_heads: 1, head_dim: 32, scale: 0.2, window: Some(37), cap: None },
            vec![150, 1, 61],
        ),
        (AttentionShape { heads: 1, kv_heads: 1, head_dim: 128, scale: 0.1, window: None, cap: None }, vec![66]),
        // Several blocks of rows, and of keys that only some of a block's rows see.
        (
            AttentionShape { heads: 2, kv_heads: 1, head_dim: 128, scale: 0.1, window: None, cap: None },
            vec![290, 129, 128],
        ),
        (
            AttentionShape { heads: 2, kv_heads: 2, head_dim: 80, scale: 0.1, window: Some(100), cap: None },
            vec![33, 300],
        ),
        (AttentionShape { heads: 2, kv_heads: 1, head_dim: 48, scale: 0.2, window: Some(17), cap: None }, vec![270]),
        // Scales that turn the scores' order round, or leave none.
        (AttentionShape { heads: 2, kv_heads: 1, head_dim: 32, scale: -0.3, window: None, cap: None }, vec![40, 3]),
        (AttentionShape { heads: 2, kv_heads: 1, head_dim: 32, scale: 0.0, window: None, cap: None }, vec![40, 3]),
        // Caps that bend the scores, and the widest heads.
        (AttentionShape { heads: 2, kv_heads: 1, head_dim: 64, scale: 0.5, window: None, cap: Some(1.5) }, vec![70, 3]),
        (
            AttentionShape { heads: 2, kv_heads: 1, head_dim: 256, scale: 0.1, window: Some(20), cap: Some(2.0) },
            vec![40],
        ),
    ];
    for dtype in FLOATS {
        shapes.iter().for_each(|(shape, lengths)| both_ways(shape, lengths, dtype));
    }
}

/// The op with and without sinks, and its gradients.
fn both_ways(shape: &AttentionShape, lengths: &[usize], dtype: DType) {
    let layout = Layout::new(lengths).unwrap();
    let of = |heads: usize, seed| noise_in(&[layout.tokens(), heads * shape.head_dim], dtype, seed, -1.0, 1.0);
    let params = [of(shape.heads, 1), of(shape.kv_heads, 2), of(shape.kv_heads, 3)];
    let what = format!("{shape:?} over {lengths:?} in {dtype}");
    compare(&what, &params, |tape, p| attention(tape, [&p[0], &p[1], &p[2]], *shape, &layout));
    let sinks = noise(&[shape.heads], DType::F32, 5);
    compare(&format!("{what} with sinks"), &params, |tape, p| {
        let sinks = sinks.to_device(&p[0].value().device())?;
        attention_with_sinks(tape, [&p[0], &p[1], &p[2]], (*shape, Some(&sinks)), &layout)
    });
}

/// On tensor cores; as wide as can be and between, whole blocks of rows and tiles and not, and rows that end where a window begins.
#[test]
fn wide_heads() {
    let of = |(heads, kv_heads, head_dim), window| AttentionShape {
        heads,
        kv_heads,
        head_dim,
        scale: 1.0 / (head_dim as f32).sqrt(),
        window,
        cap: None,
    };
    let shapes = [
        (of((2, 1, 256), None), vec![290, 129, 128]),
        (of((3, 1, 144), None), vec![65, 1, 32]),
        (of((2, 2, 192), Some(100)), vec![33, 300]),
        (of((4, 2, 256), Some(17)), vec![150, 7]),
        (of((1, 1, 240), Some(1)), vec![70]),
    ];
    for dtype in [DType::Bf16, DType::F16] {
        shapes.iter().for_each(|(shape, lengths)| both_ways(shape, lengths, dtype));
    }
}

/// On tensor cores; caps that some scores are far below and some far beyond.
#[test]
fn capped_scores() {
    let of = |(heads, kv_heads, head_dim), window, cap| AttentionShape {
        heads,
        kv_heads,
        head_dim,
        scale: 3.0 / (head_dim as f32).sqrt(),
        window,
        cap: Some(cap),
    };
    let shapes = [
        (of((2, 1, 64), None, 0.7), vec![150, 3]),
        (of((2, 2, 32), Some(37), 2.0), vec![61, 130]),
        (of((2, 1, 128), None, 1.5), vec![140, 33]),
        (of((3, 1, 80), Some(50), 50.0), vec![200]),
        (of((2, 1, 256), None, 1.0), vec![150, 3, 65]),
        (of((2, 2, 256), Some(40), 0.5), vec![140]),
        (of((4, 2, 144), Some(100), 30.0), vec![33, 120]),
    ];
    for dtype in [DType::Bf16, DType::F16] {
        shapes.iter().for_each(|(shape, lengths)| both_ways(shape, lengths, dtype));
    }
}

/// Gradients are wanted of some operands, and not of others: each is what it is beside the others, by the general kernels and those of
/// wide heads to the bit.
#[test]
fn gradients_one_by_one() {
    let Some(gpu) = gpu() else { return };
    for (head_dim, tolerance) in [(176, 0.0), (12, 0.0), (64, tolerance(DType::Bf16))] {
        let shape = AttentionShape { heads: 2, kv_heads: 1, head_dim, scale: 0.1, window: Some(40), cap: Some(1.0) };
        one_by_one(&gpu, shape, tolerance);
    }
}

fn one_by_one(gpu: &Arc<Gpu>, shape: AttentionShape, tolerance: f32) {
    let layout = Layout::new(&[70, 33]).unwrap();
    let of = |heads: usize, seed| {
        let it = noise(&[layout.tokens(), heads * shape.head_dim], DType::Bf16, seed);
        it.to_device(&Device::Cuda(gpu.clone())).unwrap()
    };
    let (inputs, dy) = ([of(2, 1), of(1, 2), of(1, 3)], of(2, 4));
    let gradients = |wanted: [bool; 3]| {
        let params = inputs.each_ref().map(|it| Param::new("p", it.clone()));
        let tape = Tape::recording();
        let [q, k, v] = [0, 1, 2].map(|i| match wanted[i] {
            true => tape.param(&params[i]),
            false => Var::constant(inputs[i].clone()),
        });
        let y = attention(&tape, [&q, &k, &v], shape, &layout).unwrap();
        let loss = with_gradient(&tape, &y, &dy);
        let grads = tape.backward(loss).unwrap();
        params.map(|it| grads.get(&it).map(|it| it.to_device(&Device::Cpu).unwrap()))
    };
    let all = gradients([true; 3]);
    for wanted in 0..3 {
        let one = gradients([0, 1, 2].map(|it| it == wanted));
        let [one_alone, beside] = [&one, &all].map(|it| it[wanted].as_ref().unwrap());
        near(&format!("gradient {wanted} of {shape:?}"), one_alone, beside, tolerance);
        assert_eq!(one.iter().flatten().count(), 1);
    }
}

#[test]
fn attention_over_a_cache() {
    let Some(gpu) = gpu() else { return };
    let device = Device::Cuda(gpu);
    for dtype in FLOATS {
        // New rows, rows before them, and where the sequence's keys begin, of one or several sequences.
        for (sequences, window) in [
            (vec![(1, 0, 0)], None),
            (vec![(1, 45, 0)], None),
            (vec![(5, 33, 0)], Some(7)),
            (vec![(40, 8, 0)], None),
            (vec![(35, 29, 0)], Some(11)),
            (vec![(1, 20, 0), (1, 3, 64), (1, 63, 128)], None),
            (vec![(33, 0, 64), (2, 60, 0), (40, 9, 128)], Some(12)),
            (vec![(140, 50, 2)], None),
            // Tiles whose first page no query sees any more.
            (vec![(40, 130, 0), (150, 42, 0)], Some(9)),
        ] {
            let cap = window.map(|it| it as f32 / 9.0);
            // Whole pieces of channels, fewer than a warp has lanes for or more, and none.
            for head_dim in [16, 160, 12] {
                let shape = AttentionShape {
                    heads: 4,
                    kv_heads: 2,
                    head_dim,
                    scale: 1.0 / (head_dim as f32).sqrt(),
                    window,
                    cap,
                };
                over_pages(&device, dtype, shape, &sequences);
            }
        }
    }
}

#[test]
fn few_queries_over_a_long_cache() {
    let Some(gpu) = gpu() else { return };
    let device = Device::Cuda(gpu);
    for dtype in FLOATS {
        for ((heads, kv_heads, head_dim), window) in
            [((3, 3, 64), None), ((5, 1, 128), Some(300)), ((2, 1, 24), Some(9)), ((2, 2, 8), None)]
        {
            // One part of the keys or several, and a sequence that has fewer than the others.
            for sequences in [vec![(1, 255, 0)], vec![(1, 700, 3), (4, 0, 710), (2, 255, 720)]] {
                let cap = window.map(|_| 1.5);
                let shape = AttentionShape { heads, kv_heads, head_dim, scale: 0.25, window, cap };
                over_pages(&device, dtype, shape, &sequences);
            }
        }
    }
}

/// On a GPU as here, with sinks and without, from pages of the sequences' new rows, rows before, and first rows.
fn over_pages(device: &Device, dtype: DType, shape: AttentionShape, sequences: &[(usize, usize, usize)]) {
    let AttentionShape { heads, kv_heads, head_dim, window, .. } = shape;
    let rows = sequences.iter().map(|it| it.0 + it.1 + it.2).max().unwrap_or(0);
    let q = noise(&[sequences.iter().map(|it| it.0).sum(), heads * head_dim], dtype, 1);
    let [k, v] = [2, 3].map(|seed| noise(&[rows, kv_heads * head_dim], dtype, seed));
    let sinks = noise(&[heads], DType::F32, 5);
    let on = |device: &Device| {
        let [q, k, v, sinks] = [&q, &k, &v, &sinks].map(|it| it.to_device(device).unwrap());
        let ((pages, layer), layout) = paged([&k, &v], sequences, window);
        [None, Some(&sinks)].map(|it| attend_cached(&q, (&pages, layer), (shape, it), &layout).unwrap())
    };
    for (got, wanted) in on(device).iter().zip(&on(&Device::Cpu)) {
        near(&format!("{shape:?} in {dtype} of {sequences:?}"), got, wanted, tolerance(dtype));
    }
}
