//! A generated token, and eight and 32 at once.

use crate::model::{HIDDEN, INNER, VOCABULARY, adapter, model};
use halfbyte_lora::Context;
use halfbyte_models::{KvCache, extend};
use halfbyte_ops::Ids;
use halfbyte_tensor::{DType, Device};
use halfbyte_testkit::counts::{Counter, Launched, by_kernel};

/// What each kernel does for the next token of some texts that have 48 already.
fn counted(counter: &Counter, texts: usize) -> Vec<Launched> {
    let device = Device::Cuda(counter.gpu());
    let mut model = model(&device);
    let ctx = Context::new(Some(adapter(model.as_mut(), &device)));
    let mut cache = KvCache::new(model.config(), DType::Bf16, texts);
    let mut launches = Vec::new();
    // The first one-token pass brings the table of rotations along.
    for new in [48, 1, 1] {
        let layout = cache.begin(&vec![new; texts]).unwrap();
        let ids = Ids::new((0..(texts * new) as u32).map(|it| it * 7 % VOCABULARY as u32).collect());
        let token = || drop(extend(model.as_ref(), &ids, &layout, &mut cache, &ctx).unwrap());
        launches = counter.count(token);
    }
    by_kernel(&launches)
}

/// Kernels whose lanes leave parts of what they touch to the next access, and how much each asks for with one text, with eight and
/// with 32.
const APART: [(&str, [f64; 3]); 5] = [
    // Codes lie together; of x, 32 bytes a lane are two accesses; of scales, a warp touches eight rows.
    ("few_rows.bf16/multiply", [0.83, 0.64, 0.0]),
    // And of projections, which stay in memory, each lane of a half reads the same.
    ("few_rows_more.bf16/multiply", [0.0, 0.0, 0.56]),
    // Eight f32 of A a lane, by two accesses.
    ("few_rows.bf16/project", [0.60, 0.82, 0.82]),
    // Queries are read by elements.
    ("few_queries.bf16/attend_parts", [0.66, 0.66, 0.66]),
    // Angles, as in training.
    ("rope.bf16/rotate_into", [0.88, 0.88, 0.88]),
];

#[test]
fn weights_are_read_once_and_banks_do_not_conflict() {
    let Some(counter) = Counter::new() else { return };
    for (many, texts) in [1, 8, 32].into_iter().enumerate() {
        for it in counted(&counter, texts) {
            let least = APART.iter().find(|known| known.0 == it.kernel).map_or(0.98, |known| known.1[many]);
            let (coalescing, shared) = (it.global().coalescing(), it.shared());
            assert!(coalescing >= least, "{coalescing:.3} of {least}\n{it}\n{}", it.explain());
            if it.kernel.starts_with("few_rows") && it.kernel.ends_with("/multiply") {
                // What is stored for the end is a row of an update's factor and a half, and lookups of scales meet by chance.
                assert!(shared.conflicts() * 25 <= shared.passes, "{it}\n{}", it.explain());
                let (matrices, inputs) = (4 * HIDDEN * HIDDEN + 3 * HIDDEN * INNER, texts * (3 * HIDDEN + INNER) * 2);
                // Of factors of rank 16, 5,376 rows in f32.
                let outputs = 4 * HIDDEN + 2 * INNER + HIDDEN;
                let demanded = matrices / 2 + matrices / 64 + inputs + outputs * (16 * 4 + texts * 2);
                let moved = it.moved() as f64 / demanded as f64;
                assert!((1.0..1.1).contains(&moved), "{moved:.3} of what has to be moved\n{it}");
            }
        }
    }
}
