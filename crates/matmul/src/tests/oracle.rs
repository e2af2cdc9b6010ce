use proptest::prelude::*;

use super::support::{Case, KINDS, Kind, OutKind};
use crate::Compute;

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
