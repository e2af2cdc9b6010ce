//! Promises about bits.

use half::bf16;

use super::support::{Case, Kind, OutKind, bits, decoded};
use crate::kernels::Kernel;
use crate::product::matmul_with;
use crate::{Compute, Dense, Operand, Out, PackedLeft, Product, Source, kernels, matmul};

#[test]
fn a_quantised_source_equals_its_dense_matrix_bit_for_bit() {
    let lut = |block, double| Kind::Lut4 { block, double };
    for kind in [lut(64, false), lut(64, true), lut(128, false), lut(2, false), lut(10, true), Kind::Rows8, Kind::F16] {
        for dims in [(40, 72, 130), (40, 160, 71), (33, 65, 129), (1, 64, 576), (3, 65, 131), (20, 300, 900)] {
            for trans in [false, true] {
                for compute in [Compute::F32, Compute::Bf16] {
                    let case = Case::plain(dims, (Kind::F32, false), (kind, trans), compute);
                    let (a, b) = case.operands();
                    let (a, b) = (a.source(), b.source());
                    let values = decoded(b.as_ref(), compute);
                    let rounded: Vec<bf16> = values.iter().map(|&v| bf16::from_f32(v)).collect();
                    let dense32 = Dense::new(b.rows(), b.cols(), &values);
                    let dense16 = Dense::new(b.rows(), b.cols(), &rounded);
                    for kernel in kernels::all(compute) {
                        let want = bits(&case.run(kernel, a.as_ref(), b.as_ref()));
                        assert_eq!(want, bits(&case.run(kernel, a.as_ref(), &dense32)), "{} {case:?}", kernel.name);
                        if compute == Compute::Bf16 {
                            assert_eq!(want, bits(&case.run(kernel, a.as_ref(), &dense16)), "{} {case:?}", kernel.name);
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn the_number_of_threads_does_not_change_a_bit() {
    for dims in [(150, 200, 800), (512, 16, 576), (16, 576, 512), (1, 1000, 576), (300, 16, 16)] {
        for trans in 0..4 {
            for compute in [Compute::F32, Compute::Bf16] {
                let lut = Kind::Lut4 { block: 64, double: false };
                let case = Case::plain(dims, (Kind::Bf16, trans & 1 == 1), (lut, trans & 2 == 2), compute);
                let (a, b) = case.operands();
                let (a, b) = (a.source(), b.source());
                for kernel in kernels::all(compute) {
                    let results = [1, 2, 5].map(|threads| {
                        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                        pool.install(|| bits(&case.run(kernel, a.as_ref(), b.as_ref())))
                    });
                    assert!(results[0] == results[1] && results[0] == results[2], "{} {case:?}", kernel.name);
                }
            }
        }
    }
}

#[test]
fn a_kernel_and_its_model_agree_in_every_bit() {
    let kernels = kernels::all(Compute::Bf16);
    let named = |name: &str| kernels.iter().find(|it| it.name == name);
    // `vdpbf16ps` is absent: it rounds a pair's sum differently from any sequence of f32 operations.
    let (Some(kernel), Some(model)) = (named("amx"), named("model of amx")) else { return };
    for dims in [(64, 64, 64), (70, 90, 100), (40, 16, 700), (33, 200, 1300)] {
        for (trans, accumulate) in [(0, false), (1, true), (2, false), (3, true)] {
            let lut = Kind::Lut4 { block: 64, double: true };
            let case = Case::plain(dims, (Kind::Bf16, trans & 1 == 1), (lut, trans & 2 == 2), Compute::Bf16);
            let case = Case { accumulate, ..case };
            let (a, b) = case.operands();
            let (a, b) = (a.source(), b.source());
            let run = |kernel| bits(&case.run(kernel, a.as_ref(), b.as_ref()));
            assert!(run(kernel) == run(model), "{case:?}");
        }
    }
}

#[test]
fn ways_that_pack_or_store_less_change_no_bit() {
    let thin = [(16, 576, 512), (576, 16, 70), (8, 33, 801), (130, 64, 769), (9, 200, 1), (32, 64, 1300)];
    for (dims, trans) in thin.map(|it| (it, (true, false))).into_iter().chain([((40, 70, 100), (false, true))]) {
        for (kind, compute) in [(Kind::Bf16, Compute::Bf16), (Kind::F32, Compute::F32)] {
            for out in [OutKind::F32, OutKind::Bf16] {
                let case = Case { out, ..Case::plain(dims, (kind, trans.0), (kind, trans.1), compute) };
                case.check();
                let (a, b) = case.operands();
                let (a, b) = (a.source(), b.source());
                for kernel in kernels::all(compute) {
                    // In other sources no way but the usual one is taken.
                    let usual: &'static Kernel = Box::leak(Box::new(Kernel { thin: None, rounded: None, ..*kernel }));
                    let [got, want] = [kernel, usual].map(|it| bits(&case.run(it, a.as_ref(), b.as_ref())));
                    assert!(got == want, "{} {case:?}", kernel.name);
                }
            }
        }
    }
}

#[test]
fn rows_of_a_thin_product_may_begin_anywhere() {
    let case = Case::plain((70, 16, 90), (Kind::Bf16, true), (Kind::Bf16, false), Compute::Bf16);
    let (a, b) = case.operands();
    let (a, b) = (a.source(), b.source());
    let values = |it: &dyn Source| -> Vec<bf16> {
        decoded(it, Compute::Bf16)[20 * it.cols()..85 * it.cols()].iter().map(|v| bf16::from_f32(*v)).collect()
    };
    let (some_a, some_b) = (values(a.as_ref()), values(b.as_ref()));
    let (some_a, some_b) = (Dense::new(65, 70, &some_a), Dense::new(65, 16, &some_b));
    for kernel in kernels::all(Compute::Bf16) {
        let run = |a: Operand<'_>, b: Operand<'_>| {
            let mut out = vec![0.0; 70 * 16];
            matmul_with(kernel, &Product::new(a.t(), b, Compute::Bf16), Out::F32(&mut out));
            bits(&out)
        };
        let got = run(Operand::new(a.as_ref()).rows(20, 65), Operand::new(b.as_ref()).rows(20, 65));
        assert!(got == run(Operand::new(&some_a), Operand::new(&some_b)), "{}", kernel.name);
    }
}

#[test]
fn products_inside_a_pool_may_nest() {
    use rayon::prelude::*;
    let case = Case::plain((64, 96, 300), (Kind::F32, false), (Kind::F32, true), Compute::F32);
    let (a, b) = case.operands();
    let (a, b) = (a.source(), b.source());
    let kernel = kernels::select(Compute::F32);
    let want = bits(&case.run(kernel, a.as_ref(), b.as_ref()));
    (0..32).into_par_iter().for_each(|_| assert_eq!(want, bits(&case.run(kernel, a.as_ref(), b.as_ref()))));
}

#[test]
fn rows_of_an_operand_equal_a_matrix_of_just_them() {
    for kind in [Kind::Lut4 { block: 64, double: true }, Kind::Rows8, Kind::F32, Kind::Bf16] {
        for (compute, m) in [(Compute::F32, 1), (Compute::F32, 20), (Compute::Bf16, 2), (Compute::Bf16, 20)] {
            let case = Case::plain((m, 70, 96), (Kind::F32, false), (kind, true), compute);
            let (a, b) = case.operands();
            let (a, b) = (a.source(), b.source());
            let (start, len) = (7, 50);
            let values = decoded(b.as_ref(), compute);
            let some = Dense::new(len, 96, &values[start * 96..][..len * 96]);
            let run = |b: Operand<'_>| {
                let mut out = vec![0.0; m * len];
                matmul(&Product::new(Operand::new(a.as_ref()), b.t(), compute), Out::F32(&mut out));
                bits(&out)
            };
            let got = run(Operand::new(b.as_ref()).rows(2, 60).rows(start - 2, len));
            assert_eq!(got, run(Operand::new(&some)), "{case:?}");
        }
    }
}

#[test]
#[should_panic(expected = "rows 3..8 of 7")]
fn rows_that_an_operand_lacks_are_refused() {
    let values = [0.0f32; 14];
    let _ = Operand::new(&Dense::new(7, 2, &values)).rows(3, 5);
}

#[test]
fn an_operand_packed_beforehand_changes_no_bit() {
    for (dims, trans) in [((40, 33, 72), false), ((130, 70, 2100), true), ((600, 20, 2500), false)] {
        for compute in [Compute::F32, Compute::Bf16] {
            let case = Case::plain(dims, (Kind::Bf16, trans), (Kind::F32, true), compute);
            let (a, b) = case.operands();
            let (a, b) = (a.source(), b.source());
            let a = if trans { Operand::new(a.as_ref()).t() } else { Operand::new(a.as_ref()) };
            let b = Operand::new(b.as_ref()).t();
            for kernel in kernels::all(compute) {
                let packed = PackedLeft::with_kernel(kernel, &a).unwrap();
                let ready = a.packed(&packed);
                let run = |first: Operand<'_>, second: Operand<'_>| {
                    let mut out = vec![0.0; dims.0 * dims.1];
                    let product = Product { more: &[(second, b)], ..Product::new(first, b, compute) };
                    matmul_with(kernel, &product, Out::F32(&mut out));
                    bits(&out)
                };
                let want = run(a, a);
                for (first, second) in [(ready, ready), (ready, a), (a, ready)] {
                    assert!(want == run(first, second), "{} {case:?}", kernel.name);
                }
            }
        }
    }
    let few = [1.0f32; 8];
    assert!(PackedLeft::new(&Operand::new(&Dense::new(4, 2, &few)), Compute::F32).is_none(), "few rows are not packed");
}
