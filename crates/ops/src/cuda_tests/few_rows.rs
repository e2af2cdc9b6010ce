//! Few rows, as in generation: products with 4-bit codes and what is added to them, and the way of queries and keys to the cache.

use super::{compare_within, near, tolerance};
use crate::{
    Dropout, FrozenMatrix, Layer, Layout, LowRank, RopeScaling, RopeSpec, RopeTable, add_scaled,
    frozen::{Coded, Decoder, FEW_ROWS, FourBit, OnDevice},
    frozen_linear,
    frozen_linear::test_support::{FLOATS, Plain, with_gradient},
    gpu_product::{Window, put},
    kv_pages::tests::{held, paged},
    lora_linears,
    place::on_gpu,
    rope::{Pairs, rope_into_cache},
};
use halfbyte_autograd::{Param, Tape, Var};
use halfbyte_matmul::Source;
use halfbyte_tensor::{DType, Device, Place, Tensor};
use halfbyte_testkit::{
    cuda::{fresh_gpu, gpu},
    noise, noise_in,
};
use std::sync::Arc;

/// A matrix of 4-bit codes on a device, and what they stand for.
#[derive(Debug)]
struct Codes {
    dims: (usize, usize),
    codes: Tensor,
    tables: Tensor,
    scales: [Option<Tensor>; 3],
    shift: usize,
    decoded: Arc<Copied>,
}

const OFFSET: f32 = 0.125;

impl Codes {
    /// Blocks of `2^shift` elements, whose scales are f32 or codes. Gives the values in host memory, too.
    fn random(
        (out, inner): (usize, usize),
        (shift, double): (usize, bool),
        device: &Device,
    ) -> (&'static Codes, Tensor) {
        let n = out * inner;
        let codes: Vec<u8> = (0..n.div_ceil(2)).map(|it| ((it * 2_654_435_761) >> 7) as u8).collect();
        let tables = noise(&[16 + 256], DType::F32, 7);
        let blocks = n.div_ceil(1 << shift);
        let scale_codes: Vec<u8> = (0..blocks).map(|it| (it * 97 + 13) as u8).collect();
        let (absmax, nested) = (noise(&[blocks], DType::F32, 8), noise(&[blocks.div_ceil(256)], DType::F32, 9));
        let scale = |block: usize| match double {
            true => {
                let code = usize::from(scale_codes[block]);
                tables.data::<f32>()[16 + code] * nested.data::<f32>()[block / 256] + OFFSET
            }
            false => absmax.data::<f32>()[block],
        };
        let code = |i: usize| if i.is_multiple_of(2) { codes[i / 2] >> 4 } else { codes[i / 2] & 15 };
        let values = (0..n).map(|i| tables.data::<f32>()[usize::from(code(i))] * scale(i >> shift)).collect();
        let decoded = Tensor::from_vec(&[out, inner], values);
        let there = |it: &Tensor| it.to_device(device).unwrap();
        let bytes = |it: &[u8]| Tensor::from_vec(&[it.len()], it.to_vec()).to_device(device).unwrap();
        let scales = match double {
            true => [None, Some(bytes(&scale_codes)), Some(there(&nested))],
            false => [Some(there(&absmax)), None, None],
        };
        let (codes, tables) = (bytes(&codes), there(&tables));
        let it = Codes { dims: (out, inner), codes, tables, scales, shift, decoded: Arc::new(Copied(there(&decoded))) };
        (Box::leak(Box::new(it)), decoded)
    }
}

/// What stands for decoding: a copy.
#[derive(Debug)]
pub(super) struct Copied(pub(super) Tensor);

impl Decoder for Copied {
    fn decode(&self, into: Window<'_>) -> halfbyte_tensor::Result<()> {
        put(1.0, &self.0, 0, into)
    }
}

impl FrozenMatrix for Codes {
    fn dims(&self) -> (usize, usize) {
        self.dims
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
        Some(OnDevice::Coded(self))
    }
}

impl Coded for Codes {
    fn place(&self) -> Place<'_> {
        self.codes.place()
    }
    fn decoder(&self) -> Arc<dyn Decoder> {
        self.decoded.clone()
    }
    fn four_bit(&self) -> Option<FourBit<'_>> {
        let [absmax, scale_codes, nested] = self.scales.each_ref().map(Option::as_ref);
        let Codes { dims, codes, tables, shift, .. } = self;
        Some(FourBit { dims: *dims, codes, tables, absmax, scale_codes, nested, offset: OFFSET, shift: *shift })
    }
}

fn picked(x: &Var, (there, here): &(&'static Codes, Tensor)) -> &'static dyn FrozenMatrix {
    if on_gpu(x.value()) { *there } else { Plain::leaked(here.clone()) }
}

/// Rows of every number, elements of a row in whole units of the tensor cores and not, rows of a matrix in whole tiles and not, parts of
/// a warp that are empty, blocks of every kind.
#[test]
fn products_with_codes() {
    let Some(device) = gpu().map(Device::Cuda) else { return };
    for dtype in FLOATS {
        for (at, (out, inner)) in [(1, 64), (16, 33), (40, 192), (33, 1088), (17, 2112), (3, 1)].into_iter().enumerate()
        {
            for (shift, double) in [(5, false), (6, true), (6, false), (8, true)] {
                let w = Codes::random((out, inner), (shift, double), &device);
                for rows in [1, 2 + at % 3, 5 + at % 3, FEW_ROWS, 9 + 7 * (at % 2), 20 + at, 32] {
                    let params = [noise(&[rows, inner], dtype, 1), noise(&[out], DType::F32, 2)];
                    let what = format!("{rows} of {out} x {inner}, blocks of 2^{shift}, {dtype}");
                    // Sums over a long row differ in f32 by their order.
                    compare_within(&what, &params, 2.0, |tape, p| {
                        frozen_linear(tape, &p[0], picked(&p[0], &w), Some(&p[1]))
                    });
                }
            }
        }
    }
}

/// Layers of one input in one launch, with updates of different ranks, with biases and residuals and without; more of them than a launch
/// takes; and ranks that the kernel does not take.
#[test]
fn products_with_codes_and_what_is_added() {
    let Some(device) = gpu().map(Device::Cuda) else { return };
    for dtype in FLOATS {
        for (at, ranks) in [[1, 8], [12, 16], [64, 3], [65, 2]].into_iter().enumerate() {
            let many = [[1, 4, 7, 8][at], [9, 16, 23, 32][at]];
            for (inner, rows) in [128, 40].into_iter().flat_map(|it| many.map(|rows| (it, rows))) {
                let ws = [20, 33, 16].map(|out| Codes::random((out, inner), (6, at % 2 == 0), &device));
                let factor = |shape: &[usize], seed| noise_in(shape, DType::F32, seed, -0.3, 0.3);
                let params = [
                    noise(&[rows, inner], dtype, 1),
                    factor(&[ranks[0], inner], 2),
                    factor(&[20, ranks[0]], 3),
                    factor(&[ranks[1], inner], 4),
                    factor(&[33, ranks[1]], 5),
                    noise(&[20], DType::F32, 6),
                    noise(&[rows, 20], dtype, 7),
                    noise(&[rows, 16], dtype, 8),
                ];
                compare_within(
                    &format!("{rows} rows, ranks {ranks:?} of {inner} in {dtype}"),
                    &params,
                    4.0,
                    |tape, p| {
                        let low_rank = |i: usize, scaling| {
                            Some(LowRank { a: &p[2 * i + 1], b: &p[2 * i + 2], scaling, dropout: Dropout::default() })
                        };
                        let layer = |i: usize, lora| Layer { w: picked(&p[0], &ws[i]), bias: None, lora, onto: None };
                        let first = Layer { bias: Some(&p[5]), onto: Some(&p[6]), ..layer(0, low_rank(0, 0.5)) };
                        let third = Layer { onto: Some(&p[7]), ..layer(2, None) };
                        let [a, b, c, d] =
                            lora_linears(tape, &p[0], [first, layer(1, low_rank(1, 1.5)), third, layer(0, None)])?;
                        let a = add_scaled(tape, &a, &d, 0.5)?;
                        let narrow = |it: &Var| crate::split(tape, it, [crate::Columns::one(0, 16)]).map(|[it]| it);
                        add_scaled(tape, &add_scaled(tape, &narrow(&a)?, &narrow(&b)?, -0.7)?, &c, 0.3)
                    },
                );
            }
        }
    }
}

/// Two launches for layers of one input with updates, one without, and no product of the library: what generation is made of.
#[test]
fn layers_of_one_input_take_two_launches() {
    let Some(gpu) = fresh_gpu() else { return };
    let device = Device::Cuda(gpu.clone());
    let ws = [16, 32, 48].map(|out| Codes::random((out, 128), (6, true), &device).0);
    let there = |shape: &[usize], dtype| Var::constant(noise(shape, dtype, 1).to_device(&device).unwrap());
    for (dtype, rows) in
        FLOATS.into_iter().flat_map(|it| [1, if it == DType::F32 { 8 } else { 32 }].map(|rows| (it, rows)))
    {
        let (x, a) = (there(&[rows, 128], dtype), there(&[8, 128], DType::F32));
        let bs = [16, 32, 48].map(|out| there(&[out, 8], DType::F32));
        let onto = [16, 32, 48].map(|out| there(&[rows, out], dtype));
        for updated in [false, true] {
            let layer = |i: usize| {
                let lora = LowRank { a: &a, b: &bs[i], scaling: 2.0, dropout: Dropout::default() };
                Layer { w: ws[i], bias: None, lora: updated.then_some(lora), onto: Some(&onto[i]) }
            };
            let before = gpu.counters();
            lora_linears(&Tape::disabled(), &x, [layer(0), layer(1), layer(2)]).unwrap();
            let asked = gpu.counters().since(&before);
            assert_eq!((asked.launches, asked.products), (1 + u64::from(updated), 0), "{dtype}");
        }
    }
}

/// Two operations for each term of a sum, whoever adds it up.
#[test]
fn few_rows_count_what_they_multiply() {
    let Some(gpu) = fresh_gpu() else { return };
    let device = Device::Cuda(gpu.clone());
    let there = |shape: &[usize]| Var::constant(noise(shape, DType::F32, 1).to_device(&device).unwrap());
    let (rows, inner, out, rank) = (3, 128, [16, 48], 6);
    let (x, a, bs) = (there(&[rows, inner]), there(&[rank, inner]), out.map(|out| there(&[out, rank])));
    let lora = |i: usize| LowRank { a: &a, b: &bs[i], scaling: 2.0, dropout: Dropout::default() };
    let codes = out.map(|out| Codes::random((out, inner), (6, true), &device).0);
    let dense = super::weights(out[1], inner, &device)[0].0;
    let counted = |ws: [&'static dyn FrozenMatrix; 2], updated: [bool; 2]| {
        let layer = |i: usize| Layer { w: ws[i], bias: None, lora: updated[i].then(|| lora(i)), onto: None };
        let before = gpu.counters();
        lora_linears(&Tape::disabled(), &x, [layer(0), layer(1)]).unwrap();
        gpu.counters().since(&before).operations
    };
    let plain = 2 * rows * inner * (out[0] + out[1]);
    let updates = [0, 1].map(|i| 2 * rows * rank * (inner + out[i]));
    assert_eq!(counted([codes[0], codes[1]], [false, false]), plain as u64);
    assert_eq!(counted([codes[0], codes[1]], [true, true]), (plain + updates[0] + updates[1]) as u64);
    assert_eq!(counted([codes[0], dense], [false, true]), (plain + updates[1]) as u64);
}

/// An adapter that has only begun to learn: what it adds is far below the rounding of a product, and is not lost before that.
#[test]
fn an_update_is_added_before_the_rounding() {
    let Some(device) = gpu().map(Device::Cuda) else { return };
    let (w, _) = Codes::random((256, 64), (6, false), &device);
    let there = |t: Tensor| Param::new("p", t.to_device(&device).unwrap());
    let mean = |b: f32| {
        let tape = Tape::recording();
        let x = Var::constant(noise_in(&[8, 64], DType::Bf16, 1, 0.5, 1.0).to_device(&device).unwrap());
        let params =
            [there(Tensor::from_vec(&[1, 64], vec![1.0 / 64.0; 64])), there(Tensor::from_vec(&[256, 1], vec![b; 256]))];
        let [a, b] = params.each_ref().map(|it| tape.param(it));
        let lora = Some(LowRank { a: &a, b: &b, scaling: 1.0, dropout: Dropout::default() });
        let [y] = lora_linears(&tape, &x, [Layer { w, bias: None, lora, onto: None }]).unwrap();
        let y = y.value().to_f32_vec();
        y.iter().map(|it| f64::from(*it)).sum::<f64>() / y.len() as f64
    };
    let gained = mean(4e-3) - mean(0.0);
    assert!((gained / 3e-3 - 1.0).abs() < 0.2, "x averages 0.75, so 0.003 of outputs of about 3: {gained}");
}

/// Projections are saved for the gradients as wide as a product wants them, with zeros where no layer has a column.
#[test]
fn an_odd_rank_trains_on_few_rows() {
    let Some(device) = gpu().map(Device::Cuda) else { return };
    let w = Codes::random((24, 64), (6, false), &device);
    for dtype in FLOATS {
        let run = |device: &Device| {
            let there = |t: Tensor| t.to_device(device).unwrap();
            let [x, a, b] = [noise(&[2, 64], dtype, 1), noise(&[3, 64], DType::F32, 2), noise(&[24, 3], DType::F32, 3)];
            let params = [x, a, b].map(|it| Param::new("p", there(it)));
            let tape = Tape::recording();
            let p = params.each_ref().map(|it| tape.param(it));
            let lora = Some(LowRank { a: &p[1], b: &p[2], scaling: 0.5, dropout: Dropout::default() });
            let [y] =
                lora_linears(&tape, &p[0], [Layer { w: picked(&p[0], &w), bias: None, lora, onto: None }]).unwrap();
            let loss = with_gradient(&tape, &y, &there(noise(&[2, 24], dtype, 4)));
            drop((p, y));
            let grads = tape.backward(loss).unwrap();
            params.each_ref().map(|it| grads.get(it).unwrap().to_device(&Device::Cpu).unwrap())
        };
        for (got, wanted) in run(&device).iter().zip(&run(&Device::Cpu)) {
            near("gradients of few rows", got, wanted, 8.0 * tolerance(dtype));
        }
    }
}

/// Heads that turn whole, in part, by packs and not, by neighbours, and in more packs than a block has threads; into pages that lie anywhere.
#[test]
fn queries_and_keys_turn_on_their_way_to_the_cache() {
    let Some(device) = gpu().map(Device::Cuda) else { return };
    let sequences = [(2, 63, 0), (1, 5, 20), (3, 0, 40)];
    let positions = Layout::resumed(&sequences.map(|it| (it.0, it.1, &[][..]))).unwrap();
    for dtype in FLOATS {
        for (channels, dim) in [(16, 16), (6, 6), (8, 13), (16, 32), (128, 128), (32, 80), (256, 256)] {
            for pairs in [Pairs::Halves, Pairs::Neighbours] {
                if pairs == Pairs::Neighbours && dim % 2 == 1 {
                    continue;
                }
                let spec = RopeSpec { theta: 10000.0, channels, max_position: 64, scaling: RopeScaling::None, pairs };
                let table = RopeTable::new(&spec, 70).unwrap();
                let new = [3, 2, 2].map(|heads| noise(&[6, heads * dim], dtype, heads as u64));
                let run = |device: &Device| {
                    let there = |t: &Tensor| t.to_device(device).unwrap();
                    let [q, k, v] = new.each_ref().map(there);
                    let past = there(&noise(&[70, 2 * dim], dtype, 5));
                    let ((mut pages, layer), cache) = paged([&past, &past], &sequences, None);
                    let into = (&mut pages, layer);
                    let q = rope_into_cache(into, [&q, &k, &v], (&table, dim), (&positions, &cache)).unwrap();
                    let [keys, values] = held(&pages, layer, &cache);
                    [q.to_device(&Device::Cpu).unwrap(), keys, values]
                };
                for (got, wanted) in run(&device).iter().zip(&run(&Device::Cpu)) {
                    near(&format!("{channels} of {dim} by {pairs:?} in {dtype}"), got, wanted, tolerance(dtype));
                }
            }
        }
    }
}
