//! What must hold for every input.

use half::{bf16, f16};
use halfbyte_nf4::blockwise8::{self, DynamicMap};
use halfbyte_nf4::{BLOCK_SIZES, Blocks4, Element, Error, QuantType, Rows8, Scales};
use halfbyte_nf4::{quantize_rows8, quantize4, storage_bytes4};
use proptest::prelude::*;

fn quant_types() -> impl Strategy<Value = QuantType> {
    prop::sample::select(&QuantType::ALL)
}

/// Weights of any ordinary magnitude, some blocks far larger than others.
fn weights(max_len: usize) -> impl Strategy<Value = Vec<f32>> {
    (prop::collection::vec(-1.0f32..1.0, 0..max_len), -30i32..30).prop_map(|(mut x, exponent)| {
        for (i, v) in x.iter_mut().enumerate() {
            *v *= 2f32.powi(exponent + (i / 50 % 7) as i32);
        }
        x
    })
}

fn any_bits(max_len: usize) -> impl Strategy<Value = Vec<f32>> {
    prop::collection::vec(any::<u32>().prop_map(f32::from_bits), 0..max_len)
}

fn decode<T: Element>(blocks: &Blocks4) -> Vec<T> {
    let mut out = vec![T::default(); blocks.len];
    blocks.dequantize(&mut out);
    out
}

/// Half of the widest gap between neighbouring values of the code.
fn half_gap(quant_type: QuantType) -> f32 {
    let mut code = quant_type.code().to_vec();
    code.retain(|&c| c >= -1.0); // INT4's unused nibble
    code.sort_by(f32::total_cmp);
    code.windows(2).map(|w| w[1] - w[0]).fold(0.0, f32::max) / 2.0
}

fn same_bits<T: Element>(a: &[T], b: &[T]) -> bool {
    let bits = |x: &[T]| x.iter().map(|v| v.to_f32().to_bits()).collect::<Vec<_>>();
    bits(a) == bits(b)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn error_is_within_half_the_widest_gap(x in weights(700), q in quant_types(), bs in prop::sample::select(&BLOCK_SIZES)) {
        let blocks = quantize4(&x, q, bs, false).unwrap();
        for (i, (a, b)) in x.iter().zip(decode::<f32>(&blocks)).enumerate() {
            let bound = half_gap(q) * blocks.block_absmax(i / bs) * 1.000_001;
            prop_assert!((a - b).abs() <= bound, "{q:?} {i}: {a} became {b}, bound {bound}");
        }
    }

    #[test]
    fn requantising_changes_nothing(x in weights(700), q in quant_types(), bs in prop::sample::select(&BLOCK_SIZES)) {
        let once = decode::<f32>(&quantize4(&x, q, bs, false).unwrap());
        let twice = decode::<f32>(&quantize4(&once, q, bs, false).unwrap());
        // FP4 has two zeros, which are one value.
        prop_assert!(once.iter().zip(&twice).all(|(a, b)| a == b));
    }

    #[test]
    fn decoded_values_are_monotone(mut x in prop::collection::vec(-1.0f32..1.0, 1..64), q in quant_types(), double in any::<bool>()) {
        x.sort_by(f32::total_cmp);
        let decoded = decode::<f32>(&quantize4(&x, q, 64, double).unwrap());
        prop_assert!(decoded.windows(2).all(|w| w[0] <= w[1]), "{decoded:?}");
    }

    #[test]
    fn double_quantised_scales_are_near(absmax in prop::collection::vec(0.0f32..1.0, 1..600)) {
        let scales = Scales::double(&absmax);
        let Scales::Double { nested_absmax, offset, .. } = &scales else { unreachable!() };
        // Half of the widest gap of the signed map, and the rounding of two additions.
        let map = DynamicMap::Signed.values();
        let gap = map.windows(2).map(|w| w[1] - w[0]).fold(0.0, f32::max).max(1.0 + map[0]) / 2.0;
        for (i, (&a, b)) in absmax.iter().zip(scales.to_f32().iter()).enumerate() {
            let bound = gap * nested_absmax[i / 256] * 1.000_001 + 2.0 * f32::EPSILON * (a + offset.abs());
            prop_assert!((a - b).abs() <= bound, "{a} became {b}, bound {bound}");
            prop_assert_eq!(b.to_bits(), scales.get(i).to_bits());
        }
    }

    #[test]
    fn any_bit_pattern_is_accepted(x in any_bits(300), q in quant_types(), bs in prop::sample::select(&BLOCK_SIZES), double in any::<bool>()) {
        let blocks = quantize4(&x, q, bs, double).unwrap();
        prop_assert_eq!(blocks.packed.len(), x.len().div_ceil(2));
        prop_assert_eq!(blocks.blocks(), blocks.absmax().len());
        if !double {
            for (block, &absmax) in x.chunks(bs).zip(blocks.absmax().iter()) {
                prop_assert!(absmax >= 0.0 && !absmax.is_subnormal(), "{absmax}");
                prop_assert!(block.iter().all(|v| v.is_nan() || v.is_subnormal() || v.abs() <= absmax));
            }
        }
        decode::<f16>(&blocks);
        let halves: Vec<f16> = x.iter().map(|&v| f16::from_f32(v)).collect();
        decode::<bf16>(&quantize4(&halves, q, bs, double).unwrap());
        for map in [DynamicMap::Signed, DynamicMap::Unsigned] {
            let blocks = blockwise8::quantize(&x, map, bs).unwrap();
            blocks.dequantize(&mut vec![0.0f32; x.len()]);
        }
        quantize_rows8(&x, 1, x.len()).unwrap().dequantize(&mut vec![bf16::ZERO; x.len()]);
    }

    #[test]
    fn any_stored_bytes_decode(packed in prop::collection::vec(any::<u8>(), 0..200), odd in any::<bool>(), q in quant_types()) {
        let len = (packed.len() * 2).saturating_sub(usize::from(odd));
        let scales = Scales::Plain(vec![f32::NAN; len.div_ceil(64)]);
        prop_assert_eq!(decode::<bf16>(&Blocks4::from_parts(q, 64, len, packed, scales).unwrap()).len(), len);
    }

    #[test]
    fn any_stored_scales_decode_as_their_formula(
        codes in prop::collection::vec(any::<u8>(), 1..600),
        nested in prop::array::uniform3(any::<u32>()),
        offset in any::<u32>(),
        q in quant_types(),
    ) {
        let nested_absmax: Vec<f32> = nested[..codes.len().div_ceil(256)].iter().map(|b| f32::from_bits(*b)).collect();
        let offset = f32::from_bits(offset);
        let scales = Scales::Double { codes: codes.clone(), nested_absmax: nested_absmax.clone(), offset };
        let blocks = Blocks4::from_parts(q, 64, codes.len() * 64, vec![0x70; codes.len() * 32], scales).unwrap();
        // The code of the first of each pair is 7, that of the second 0.
        let decoded = decode::<f32>(&blocks);
        for (i, &code) in codes.iter().enumerate() {
            let absmax = DynamicMap::Signed.values()[usize::from(code)] * nested_absmax[i / 256] + offset;
            for (at, nibble) in [(i * 64, 7), (i * 64 + 63, 0)] {
                let expected = q.code()[nibble] * absmax;
                prop_assert!(decoded[at].to_bits() == expected.to_bits() || (decoded[at].is_nan() && expected.is_nan()));
            }
        }
    }

    #[test]
    fn any_stored_eight_bit_codes_decode_as_their_formula(codes in prop::collection::vec(any::<u8>(), 60), scale in any::<u32>()) {
        let scale = f32::from_bits(scale);
        let same = |a: f32, b: f32| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
        let mut decoded = vec![0.0f32; 60];
        // -128 included, which no quantiser writes.
        let signed: Vec<i8> = codes.iter().map(|c| *c as i8).collect();
        Rows8::from_parts(5, 12, signed.clone(), vec![scale; 5]).unwrap().dequantize(&mut decoded);
        for (c, d) in signed.iter().zip(&decoded) {
            prop_assert!(same(*d, f32::from(*c) * scale * (1.0 / 127.0)), "{c} at {scale} became {d}");
        }
        for map in [DynamicMap::Signed, DynamicMap::Unsigned] {
            let blocks = blockwise8::Blocks8::from_parts(map, 25, codes.clone(), vec![scale; 3]).unwrap();
            blocks.dequantize(&mut decoded);
            prop_assert!(codes.iter().zip(&decoded).all(|(c, d)| same(*d, map.values()[usize::from(*c)] * scale)));
        }
    }

    #[test]
    fn halves_and_doubly_quantised_scales_keep_their_bounds(
        x in prop::collection::vec(-1.0f32..1.0, 1..9000),
        q in quant_types(),
        bs in prop::sample::select(&BLOCK_SIZES),
    ) {
        fn check<T: Element>(x: &[T], q: QuantType, bs: usize) -> Result<(), TestCaseError> {
            let (plain, double) = (quantize4(x, q, bs, false).unwrap(), quantize4(x, q, bs, true).unwrap());
            prop_assert_eq!(&plain.packed, &double.packed, "the scales are quantised after the codes are chosen");
            for (i, ((a, plain_value), value)) in x.iter().zip(decode::<f32>(&plain)).zip(decode::<f32>(&double)).enumerate() {
                let (absmax, stored) = (plain.block_absmax(i / bs), double.block_absmax(i / bs));
                // Choosing the code rounds the scale's reciprocal and its product, decoding one more product: two ulps of the
                // largest value, which for INT4's narrow gap is more than the millionth.
                let bound = half_gap(q) * absmax * 1.000_001 + 2.0 * f32::EPSILON * absmax;
                prop_assert!((a.to_f32() - plain_value).abs() <= bound, "{q:?} {i}");
                // No value of a code exceeds one, so that the scale's own error is all that is added.
                prop_assert!((a.to_f32() - value).abs() <= bound + (absmax - stored).abs() * 1.000_001, "{q:?} {i}");
            }
            Ok(())
        }
        check(&x, q, bs)?;
        check(&x.iter().map(|v| bf16::from_f32(*v)).collect::<Vec<_>>(), q, bs)?;
        check(&x.iter().map(|v| f16::from_f32(*v)).collect::<Vec<_>>(), q, bs)?;
    }

    #[test]
    fn a_range_is_a_part_of_the_whole(x in weights(700), q in quant_types(), double in any::<bool>(), cut in any::<[prop::sample::Index; 2]>()) {
        let blocks = quantize4(&x, q, 64, double).unwrap();
        let mut ends = cut.map(|c| c.index(x.len() + 1));
        ends.sort();
        let [start, end] = ends;
        fn check<T: Element>(blocks: &Blocks4, start: usize, end: usize) -> bool {
            let mut part = vec![T::default(); end - start];
            blocks.dequantize_range(start, &mut part);
            same_bits(&part, &decode::<T>(blocks)[start..end])
        }
        prop_assert!(check::<f32>(&blocks, start, end));
        prop_assert!(check::<f16>(&blocks, start, end));
        prop_assert!(check::<bf16>(&blocks, start, end));
    }

    #[test]
    fn an_element_does_not_depend_on_its_type(x in prop::collection::vec(-1.0f32..1.0, 0..300), q in quant_types()) {
        let halves: Vec<bf16> = x.iter().map(|&v| bf16::from_f32(v)).collect();
        let widened: Vec<f32> = halves.iter().map(|v| v.to_f32()).collect();
        let blocks = quantize4(&halves, q, 64, true).unwrap();
        prop_assert_eq!(&blocks, &quantize4(&widened, q, 64, true).unwrap());
        let rounded: Vec<bf16> = decode::<f32>(&blocks).into_iter().map(bf16::from_f32).collect();
        prop_assert!(same_bits(&decode::<bf16>(&blocks), &rounded));
    }

    #[test]
    fn eight_bits_decode_to_halves_as_to_f32_rounded_once(x in prop::collection::vec(-1.0f32..1.0, 60), bs in 1usize..80) {
        fn check<T: Element>(x: &[T], bs: usize) -> bool {
            let (rows, blocks) =
                (quantize_rows8(x, 5, 12).unwrap(), blockwise8::quantize(x, DynamicMap::Signed, bs).unwrap());
            let [mut wide, mut wide_blocks] = [[0.0f32; 60]; 2];
            let [mut narrow, mut narrow_blocks] = [[T::default(); 60]; 2];
            rows.dequantize(&mut wide);
            rows.dequantize(&mut narrow);
            blocks.dequantize(&mut wide_blocks);
            blocks.dequantize(&mut narrow_blocks);
            same_bits(&narrow, &wide.map(T::from_f32)) && same_bits(&narrow_blocks, &wide_blocks.map(T::from_f32))
        }
        prop_assert!(check(&x.iter().map(|v| bf16::from_f32(*v)).collect::<Vec<_>>(), bs));
        prop_assert!(check(&x.iter().map(|v| f16::from_f32(*v)).collect::<Vec<_>>(), bs));
    }

    #[test]
    fn blockwise8_is_within_half_the_gap_around_the_value(x in weights(700), bs in 1usize..300) {
        let blocks = blockwise8::quantize(&x, DynamicMap::Signed, bs).unwrap();
        let mut decoded = vec![0.0f32; x.len()];
        blocks.dequantize(&mut decoded);
        for (i, (a, b)) in x.iter().zip(decoded).enumerate() {
            let nearest = DynamicMap::Signed.values().iter().map(|m| (a - m * blocks.absmax[i / bs]).abs()).fold(f32::MAX, f32::min);
            prop_assert!((a - b).abs() <= nearest + 2e-7 * blocks.absmax[i / bs], "{a} became {b}");
        }
    }

    #[test]
    fn rows8_error_is_half_a_step(x in prop::collection::vec(-1.0f32..1.0, 60)) {
        let rows = quantize_rows8(&x, 5, 12).unwrap();
        let mut decoded = vec![0.0f32; 60];
        rows.dequantize(&mut decoded);
        for (i, (a, b)) in x.iter().zip(&decoded).enumerate() {
            // Half a step, and the rounding to f16 that comes first.
            let bound = rows.absmax[i / 12] / 254.0 * 1.0001 + a.abs() / 2048.0 + 1e-7;
            prop_assert!((a - b).abs() <= bound, "{a} became {b}");
        }
        let mut part = [0.0f32; 4];
        rows.dequantize_row_range(3, 5, &mut part);
        prop_assert_eq!(&part[..], &decoded[41..45]);
    }
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads() {
    let x: Vec<f32> = (0..300_001).map(|i| (i as f32 * 0.37).sin() * (i % 977) as f32 * 0.02).collect();
    let with = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let blocks = quantize4(&x, QuantType::Nf4, 64, true).unwrap();
            let decoded = decode::<f32>(&blocks);
            (blocks, decoded, quantize_rows8(&x[..300_000], 300, 1000).unwrap())
        })
    };
    let one = with(1);
    assert_eq!(one, with(2));
    assert_eq!(one, with(5));
}

#[test]
fn a_tensor_of_several_tasks_is_its_parts_one_after_the_other() {
    let x: Vec<f32> = (0..200_001).map(|i| (i as f32 * 0.37).sin() * (1 + i % 977) as f32).collect();
    for bs in [64, 4096] {
        let whole = quantize4(&x, QuantType::Nf4, bs, false).unwrap();
        let parts: Vec<Blocks4> = x.chunks(8192).map(|it| quantize4(it, QuantType::Nf4, bs, false).unwrap()).collect();
        assert_eq!(whole.packed, parts.iter().flat_map(|it| it.packed.clone()).collect::<Vec<u8>>());
        assert_eq!(*whole.absmax(), parts.iter().flat_map(|it| it.absmax().to_vec()).collect::<Vec<f32>>());
        assert!(same_bits(&decode::<f32>(&whole), &parts.iter().flat_map(decode::<f32>).collect::<Vec<_>>()));
    }
}

#[test]
fn rows_longer_than_a_piece_decode_as_their_formula() {
    let (codes, absmax) = ((0..2 * 5001).map(|i| (i * 7) as i8).collect::<Vec<i8>>(), vec![0.75f32, 3.0]);
    let rows = Rows8::from_parts(2, 5001, codes.clone(), absmax.clone()).unwrap();
    let mut decoded = vec![0.0f32; codes.len()];
    rows.dequantize(&mut decoded);
    for (i, (code, value)) in codes.iter().zip(&decoded).enumerate() {
        assert_eq!(*value, f32::from(*code) * absmax[i / 5001] * (1.0 / 127.0), "{i}");
    }
    let mut part = vec![0.0f32; 3000];
    rows.dequantize_row_range(1, 1500, &mut part);
    assert_eq!(part, decoded[5001 + 1500..][..3000]);
}

#[test]
fn a_range_of_nothing_is_fine_anywhere() {
    let blocks = quantize4(&[0.5f32; 67], QuantType::Nf4, 64, true).unwrap();
    (0..=67).for_each(|at| blocks.dequantize_range::<f32>(at, &mut []));
}

#[test]
fn sizes_are_those_of_the_format() {
    let x = vec![0.5f32; 64 * 256 * 64];
    let plain = quantize4(&x, QuantType::Nf4, 64, false).unwrap();
    let double = quantize4(&x, QuantType::Nf4, 64, true).unwrap();
    assert_eq!(plain.bits_per_parameter(), 4.5);
    assert!((double.bits_per_parameter() - 4.126_953).abs() < 1e-4, "{}", double.bits_per_parameter());
    for (len, bs, dq) in [(0, 64, true), (1, 32, false), (70_001, 64, false), (70_001, 4096, true), (4097, 32, true)] {
        let blocks = quantize4(&vec![1.0f32; len], QuantType::Fp4, bs, dq).unwrap();
        assert_eq!(storage_bytes4(len, bs, dq).unwrap(), blocks.bytes());
    }
    let rows = quantize_rows8(&[1.0f32; 12], 3, 4).unwrap();
    assert_eq!((rows.bytes(), rows.bits_per_parameter()), (24, 16.0));
    assert_eq!(blockwise8::quantize(&[1.0f32; 70], DynamicMap::Signed, 32).unwrap().bytes(), 70 + 4 * 3);
}

#[test]
fn an_empty_tensor_is_a_tensor() {
    let blocks = quantize4::<f32>(&[], QuantType::Nf4, 64, true).unwrap();
    assert_eq!((blocks.len, blocks.blocks(), blocks.bits_per_parameter()), (0, 0, 0.0));
    assert!(blocks.scales.is_empty() && !Scales::Plain(vec![1.0]).is_empty());
    decode::<f32>(&blocks);
    blocks.dequantize_range::<f32>(0, &mut []);
    quantize_rows8::<f32>(&[], 3, 0).unwrap().dequantize::<f32>(&mut []);
}

#[test]
fn wrong_arguments_are_named() {
    let message = |e: Error| e.to_string();
    for bs in [0, 1, 16, 48, 8192] {
        assert!(message(quantize4(&[1.0f32], QuantType::Nf4, bs, false).unwrap_err()).contains(&bs.to_string()));
        assert!(storage_bytes4(1, bs, false).is_err());
        assert!(Blocks4::from_parts(QuantType::Nf4, bs, 0, vec![], Scales::Plain(vec![])).is_err());
    }
    let parts = |len, packed, scales| Blocks4::from_parts(QuantType::Nf4, 64, len, vec![0; packed], scales);
    assert!(parts(65, 33, Scales::Plain(vec![0.0; 2])).is_ok());
    assert!(message(parts(65, 32, Scales::Plain(vec![0.0; 2])).unwrap_err()).contains("packed must have 33"));
    assert!(message(parts(65, 33, Scales::Plain(vec![0.0; 3])).unwrap_err()).contains("absmax must have 2"));
    let double =
        |codes, nested| Scales::Double { codes: vec![0; codes], nested_absmax: vec![0.0; nested], offset: 0.0 };
    assert!(parts(257 * 64, 257 * 32, double(257, 2)).is_ok());
    assert!(message(parts(257 * 64, 257 * 32, double(256, 2)).unwrap_err()).contains("absmax codes"));
    assert!(message(parts(257 * 64, 257 * 32, double(257, 1)).unwrap_err()).contains("nested absmax must have 2"));
    assert!(message(quantize_rows8(&[0.0f32; 5], 2, 3).unwrap_err()).contains("must have 6"));
    assert!(matches!(quantize_rows8(&[0.0f32; 5], usize::MAX, 3), Err(Error::TooLarge { .. })));
    assert!(Rows8::from_parts(2, 3, vec![0; 6], vec![0.0; 3]).is_err());
    assert!(blockwise8::quantize(&[0.0f32], DynamicMap::Signed, 0).is_err());
    assert!(blockwise8::Blocks8::from_parts(DynamicMap::Signed, 256, vec![0; 257], vec![0.0]).is_err());
    assert!(blockwise8::dequantize_into(&[0], &[0.0], DynamicMap::Signed, 256, &mut [0.0f32; 2]).is_err());
}

#[test]
fn blockwise8_into_buffers_is_the_same() {
    let x: Vec<f32> = (0..70_000).map(|i| (i as f32 * 0.37).sin()).collect();
    for bs in [100, 256, 100_000] {
        let blocks = blockwise8::quantize(&x, DynamicMap::Signed, bs).unwrap();
        let (mut codes, mut absmax) = (vec![0; x.len()], vec![0.0; x.len().div_ceil(bs)]);
        blockwise8::quantize_into(&x, DynamicMap::Signed, bs, &mut codes, &mut absmax).unwrap();
        assert_eq!((&blocks.codes, &blocks.absmax), (&codes, &absmax));
        let (mut a, mut b) = (vec![0.0f32; x.len()], vec![0.0f32; x.len()]);
        blocks.dequantize(&mut a);
        blockwise8::dequantize_into(&codes, &absmax, DynamicMap::Signed, bs, &mut b).unwrap();
        assert_eq!(a, b);
    }
}
