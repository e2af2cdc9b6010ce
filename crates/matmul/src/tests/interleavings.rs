//! Products whose pieces run in other orders, each stopped anywhere for others to come first: not a bit changes, and of what is there
//! already no piece is added twice.

use super::support::{Case, Kind, OutKind, bits};
use crate::fork::ordered;
use crate::kernels::{self, Kernel};
use crate::{Compute, Operand, PackedLeft};

/// Orders that are tried of each product.
const ORDERS: usize = 25;

/// Kernels of which two may take turns on one thread of the system, as shuttle's threads do: tiles of AMX are a thread's.
fn kernels(compute: Compute) -> impl Iterator<Item = &'static Kernel> {
    kernels::all(compute).into_iter().filter(|it| it.name != "amx")
}

/// Cells of one product share strips, are halved, wait for later pieces of k, or leave in 16 bits; an operand is read as it is stored.
fn cases() -> Vec<Case> {
    let lut = Kind::Lut4 { block: 32, double: true };
    let thin = |dims| Case::plain(dims, (Kind::Bf16, true), (Kind::Bf16, false), Compute::Bf16);
    let case = |dims, b, compute| Case::plain(dims, (Kind::F32, false), (b, true), compute);
    vec![
        Case { accumulate: true, bias: true, ..case((96, 70, 64), Kind::F32, Compute::F32) },
        Case { accumulate: true, ..case((40, 200, 33), lut, Compute::F32) },
        Case { accumulate: true, out: OutKind::Bf16, ..case((50, 40, 1300), Kind::Bf16, Compute::Bf16) },
        Case { accumulate: true, ..case((33, 65, 2500), Kind::F32, Compute::F32) },
        Case { accumulate: true, ..case((3, 700, 65), lut, Compute::F32) },
        Case { out: OutKind::Bf16, ..case((50, 70, 1300), lut, Compute::Bf16) },
        thin((16, 300, 170)),
        thin((200, 8, 90)),
    ]
}

#[test]
fn the_order_of_pieces_changes_no_bit() {
    for case in cases() {
        for kernel in kernels(case.compute) {
            let (a, b) = case.operands();
            let want = bits(&case.run(kernel, a.source().as_ref(), b.source().as_ref()));
            let name = kernel.name;
            let once = move || {
                let (a, b) = case.operands();
                let got = bits(&case.run(kernel, a.source().as_ref(), b.source().as_ref()));
                assert!(got == want, "{name} {case:?}");
            };
            ordered::with(3, || shuttle::check_random(once, ORDERS));
        }
    }
}

#[test]
fn products_at_a_time_keep_out_of_each_others_buffers() {
    let case = Case::plain((40, 60, 64), (Kind::F32, false), (Kind::F32, true), Compute::F32);
    let others = Case { seed: 2, ..case };
    for kernel in kernels(Compute::F32) {
        let run = move |case: &Case| {
            let (a, b) = case.operands();
            let (a, b) = (a.source(), b.source());
            let packed = PackedLeft::with_kernel(kernel, &Operand::new(a.as_ref())).expect("so many rows are packed");
            let left = Operand::new(a.as_ref()).packed(&packed);
            // Twice, as where several layers read one activation.
            let [one, two] = [(); 2].map(|()| bits(&case.run_terms(kernel, (left, Operand::new(b.as_ref()).t()), &[])));
            assert_eq!(one, two);
            one
        };
        let want = [run(&case), run(&others)];
        let once = move || {
            let all = [case, others, case].map(|case| shuttle::thread::spawn(move || run(&case)));
            let got = all.map(|it| it.join().expect("no thread panicked"));
            assert!(got[0] == want[0] && got[1] == want[1] && got[2] == want[0], "{}", kernel.name);
        };
        ordered::with(2, || shuttle::check_random(once, ORDERS));
    }
}
