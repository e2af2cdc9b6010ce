use proptest::prelude::*;

use super::support::{Case, KINDS, Kind, OutKind, decoded};
use crate::{Compute, Dense, Operand};

const COMPUTES: [Compute; 2] = [Compute::F32, Compute::Bf16];

#[test]
fn every_source_transposition_and_compute() {
    for (i, a) in KINDS.into_iter().enumerate() {
        for (j, b) in KINDS.into_iter().enumerate() {
            for trans in 0..4 {
                for compute in COMPUTES {
                    let seed = (i * 100 + j * 10 + trans) as u64;
                    // Odd on purpose, and past one tile of every kernel.
                    let case = Case::plain((37, 67, 71), (a, trans & 1 == 1), (b, trans & 2 == 2), compute);
                    Case { seed, ..case }.check();
                    Case { seed, dims: (3, 67, 71), ..case }.check();
                }
            }
        }
    }
}

#[test]
fn every_output_and_epilogue() {
    for out in [OutKind::F32, OutKind::Bf16, OutKind::F16] {
        for (accumulate, bias) in [(false, false), (true, false), (false, true), (true, true)] {
            for compute in COMPUTES {
                for alpha in [1.0, -0.37] {
                    for dims in [(19, 35, 40), (2, 35, 40), (1, 300, 9), (29, 33, 0)] {
                        let case = Case::plain(dims, (Kind::Bf16, false), (Kind::F32, true), compute);
                        Case { out, accumulate, bias, alpha, ..case }.check();
                    }
                }
            }
        }
    }
}

#[test]
fn shapes_at_the_edges_of_blocks() {
    // k around one and two tile spans and past a packed block; m and n around the tiles; the skinny products of LoRA.
    let dims = [
        (5, 16, 384),
        (6, 17, 385),
        (14, 32, 767),
        (15, 33, 769),
        (28, 16, 1537),
        (7, 31, 4099),
        (16, 48, 512),
        (64, 576, 16),
        (64, 16, 576),
        (512, 16, 16),
        (1, 1, 1),
        (5, 1, 1),
        (4, 65, 1025),
        (5, 65, 2049),
    ];
    for dims in dims {
        for compute in COMPUTES {
            for trans in 0..4 {
                for out in [OutKind::F32, OutKind::Bf16] {
                    let lut = Kind::Lut4 { block: 64, double: false };
                    let case = Case::plain(dims, (Kind::Bf16, trans & 1 == 1), (lut, trans & 2 == 2), compute);
                    Case { out, accumulate: trans == 3, ..case }.check();
                }
            }
        }
    }
}

#[test]
fn empty_products_are_left_alone_or_zero() {
    for dims in [(0, 5, 3), (5, 0, 3), (5, 6, 0), (1, 6, 0), (0, 0, 0)] {
        Case::plain(dims, (Kind::F32, false), (Kind::F32, false), Compute::F32).check();
    }
}

#[test]
fn a_sum_of_products_is_stored_once() {
    for compute in COMPUTES {
        for (m, n) in [(40, 70), (3, 300), (29, 16)] {
            for (out, accumulate) in [(OutKind::Bf16, false), (OutKind::F32, true)] {
                for ks in [[576, 16, 16], [17, 0, 4100], [64, 1, 7]] {
                    check_sum((m, n), ks, out, accumulate, compute);
                }
            }
        }
    }
}

/// One product over the concatenation of all k, which has an oracle, and the same as a sum of three.
fn check_sum((m, n): (usize, usize), ks: [usize; 3], out: OutKind, accumulate: bool, compute: Compute) {
    let k: usize = ks.iter().sum();
    let whole = Case::plain((m, n, k), (Kind::F32, false), (Kind::Bf16, true), compute);
    let whole = Case { out, accumulate, bias: true, alpha: 0.75, ..whole };
    let (a, b) = whole.operands();
    let (av, bv) = (decoded(a.source().as_ref(), Compute::F32), decoded(b.source().as_ref(), Compute::F32));
    let part = |values: &[f32], rows: usize, from: usize, len: usize| -> Vec<f32> {
        (0..rows).flat_map(|r| values[r * k + from..][..len].to_vec()).collect()
    };
    let mut from = 0;
    let parts = ks.map(|len| {
        from += len;
        (part(&av, m, from - len, len), part(&bv, n, from - len, len), len)
    });
    let sources = parts.each_ref().map(|(a, b, len)| (Dense::new(m, *len, a), Dense::new(n, *len, b)));
    let terms = sources.each_ref().map(|(a, b)| (Operand::new(a), Operand::new(b).t()));
    whole.check_with(|kernel| whole.run_terms(kernel, terms[0], &terms[1..]));
}

fn kind() -> impl Strategy<Value = (Kind, bool)> {
    (0..KINDS.len(), any::<bool>()).prop_map(|(i, t)| (KINDS[i], t))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn any_shape(
        dims in (1usize..70, 1usize..90, 0usize..140),
        a in kind(),
        b in kind(),
        (bf16, out, accumulate, bias) in (any::<bool>(), 0..3, any::<bool>(), any::<bool>()),
        seed in any::<u64>(),
    ) {
        let compute = if bf16 { Compute::Bf16 } else { Compute::F32 };
        let out = [OutKind::F32, OutKind::Bf16, OutKind::F16][out as usize];
        Case { out, accumulate, bias, seed, alpha: 0.75, ..Case::plain(dims, a, b, compute) }.check();
    }
}
