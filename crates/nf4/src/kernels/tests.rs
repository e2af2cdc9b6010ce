//! Every set of loops that this CPU can run, against the portable one, bit for bit.

use proptest::prelude::*;

use super::*;
use crate::code::QuantType;

/// Bits, with every NaN the same (a product's NaN payload is the CPU's own business).
fn canonical(x: &[f32]) -> Vec<u32> {
    x.iter().map(|v| if v.is_nan() { f32::NAN.to_bits() } else { v.to_bits() }).collect()
}

fn canonical16(x: &[u16], infinity: u16) -> Vec<u16> {
    x.iter().map(|&v| if v & 0x7fff > infinity { infinity + 1 } else { v }).collect()
}

/// Ordinary weights, any bit pattern, tiny magnitudes, and values at or near a threshold for an absmax of 1.
fn values() -> impl Strategy<Value = Vec<f32>> {
    let near = (any::<prop::sample::Index>(), -2i32..=2, any::<prop::sample::Index>()).prop_map(|(t, ulps, q)| {
        let thresholds = &q.get(&QuantType::ALL).rule().thresholds;
        f32::from_bits((t.get(thresholds).to_bits() as i32 + ulps) as u32)
    });
    let one = prop_oneof![
        4 => -1.0f32..1.0,
        2 => near,
        1 => Just(1.0f32),
        1 => -3e-38f32..3e-38,
        1 => any::<u32>().prop_map(f32::from_bits),
    ];
    let mixed = prop::collection::vec(one, 0..300);
    let tame = prop::collection::vec(-1.0f32..1.0, 0..300);
    prop_oneof![mixed, tame]
}

fn compare(x: &[f32], block_size: usize, quant_type: QuantType) {
    let p = &portable::KERNELS;
    let encode = |k: &Kernels| {
        let (mut packed, mut absmax) = (vec![0; x.len().div_ceil(2)], vec![0.0; x.len().div_ceil(block_size)]);
        k.encode4(x, block_size, quant_type.rule(), &mut packed, &mut absmax);
        (packed, absmax)
    };
    let (packed, absmax) = encode(p);
    let run = Run { packed: &packed, scales: &absmax, code: quant_type.code(), block_size };
    let decode = |k: &Kernels| {
        let (mut a, mut b, mut c) = (vec![0.0; x.len()], vec![0; x.len()], vec![0; x.len()]);
        k.decode4_f32(run, &mut a);
        k.decode4_bf16(run, &mut b);
        k.decode4_f16(run, &mut c);
        (canonical(&a), canonical16(&b, 0x7f80), canonical16(&c, 0x7c00))
    };
    let int8 = |k: &Kernels| {
        let (mut codes, mut back) = (vec![0; x.len()], vec![0.0; x.len()]);
        k.encode_i8(x, 127.0 / k.absmax(x), &mut codes);
        k.decode_i8(&codes, k.absmax(x), &mut back);
        (codes, canonical(&back))
    };
    let bf16 = |k: &Kernels| {
        let (mut halves, mut back) = (vec![0; x.len()], vec![0.0; x.len()]);
        k.narrow_bf16(x, &mut halves);
        k.widen_bf16(&halves, &mut back);
        (halves, canonical(&back))
    };
    for k in available() {
        let (packed_k, absmax_k) = encode(k);
        assert_eq!(packed_k, packed, "{} {quant_type:?} {x:?}", k.name);
        assert_eq!(canonical(&absmax_k), canonical(&absmax), "{} {x:?}", k.name);
        assert_eq!(decode(k), decode(p), "{} {quant_type:?} {x:?}", k.name);
        assert_eq!(int8(k), int8(p), "{} {x:?}", k.name);
        assert_eq!(bf16(k), bf16(p), "{} {x:?}", k.name);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn all_sets_give_the_same_bits(x in values(), log in 5u32..9, q in prop::sample::select(&QuantType::ALL)) {
        compare(&x, 1 << log, q);
    }

    #[test]
    fn bf16_rounds_as_the_half_crate_does(bits in any::<u32>()) {
        let x = f32::from_bits(bits);
        prop_assert_eq!(portable::round_bf16(x), half::bf16::from_f32(x).to_bits());
    }
}

/// Ties are one number in 65,536, which random numbers do not meet.
#[test]
fn bf16_rounds_ties_as_the_half_crate_does() {
    let lows = [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff];
    let all: Vec<f32> = (0..=0xffffu32).flat_map(|it| lows.map(|low| f32::from_bits(it << 16 | low))).collect();
    let want: Vec<u16> = all.iter().map(|it| half::bf16::from_f32(*it).to_bits()).collect();
    for k in available() {
        let mut got = vec![0; all.len()];
        k.narrow_bf16(&all, &mut got);
        assert!(got == want, "{}", k.name);
    }
}

#[test]
fn every_length_up_to_two_blocks() {
    let x: Vec<f32> = (0..130).map(|i| (i as f32 * 0.7).sin()).collect();
    for quant_type in QuantType::ALL {
        for len in 0..=x.len() {
            compare(&x[..len], 64, quant_type);
        }
    }
}

#[test]
fn the_name_is_that_of_the_set_in_use() {
    assert_eq!(crate::kernel_name(), selected().name);
    let known = available().iter().any(|it| it.name == crate::kernel_name());
    assert!(known && ["portable", "avx2", "avx512"].contains(&crate::kernel_name()), "{}", crate::kernel_name());
}

#[test]
fn a_run_that_is_too_short_for_its_output_is_refused() {
    let (code, x) = (QuantType::Nf4.code(), [1.0]);
    let refused = |packed: usize, scales: &[f32], block_size: usize| {
        let packed = vec![0; packed];
        let run = Run { packed: &packed, scales, code, block_size };
        std::panic::catch_unwind(|| run.check(65)).is_err()
    };
    assert!(!refused(33, &[1.0; 2], 64) && !refused(40, &[1.0; 3], 64));
    assert!(refused(32, &[1.0; 2], 64) && refused(33, &x, 64), "a byte for two elements, a scale for a block");
    assert!(refused(33, &[1.0; 2], 0) && refused(33, &[1.0; 99], 1) && refused(33, &[1.0; 99], 65), "whole bytes");
}
