//! Attention of wide heads and of capped scores, as Gemma has them: two query heads of 256 channels that share keys and values, and heads of
//! 128 beside them.

use halfbyte_autograd::{Param, Tape, Var};
use halfbyte_ops::{AttentionShape, Layout, attention};
use halfbyte_tensor::{DType, Device};
use halfbyte_testkit::{
    counts::{Counter, Launched, by_kernel},
    cuda::dry,
    noise,
};

const TOKENS: usize = 256;
const HEADS: usize = 2;

fn shape(head_dim: usize, cap: Option<f32>) -> AttentionShape {
    AttentionShape { heads: HEADS, kv_heads: 1, head_dim, scale: 1.0 / (head_dim as f32).sqrt(), window: None, cap }
}

/// Values and all gradients. What is summed for a loss is another op.
fn run(device: &Device, shape: AttentionShape) {
    let of = |heads: usize, seed| noise(&[TOKENS, heads * shape.head_dim], DType::Bf16, seed);
    let params = [of(HEADS, 1), of(1, 2), of(1, 3)].map(|it| Param::new("p", it.to_device(device).unwrap()));
    let (tape, dy) = (Tape::recording(), of(HEADS, 4).to_device(device).unwrap());
    let [q, k, v] = params.each_ref().map(|it| tape.param(it));
    let y: Var = attention(&tape, [&q, &k, &v], shape, &Layout::new(&[TOKENS]).unwrap()).unwrap();
    let loss = tape.record("loss", [&y], halfbyte_tensor::Tensor::zeros(&[1], DType::F32), move |_, _| Ok([Some(dy)]));
    tape.backward(loss).unwrap();
}

fn counted(counter: &Counter, shape: AttentionShape) -> Vec<Launched> {
    let (device, mut launches) = (Device::Cuda(counter.gpu()), Vec::new());
    // The layout's copy on the device is made with the op.
    let whole = counter.count(|| run(&device, shape));
    launches.extend(whole.into_iter().filter(|it| it.kernel.starts_with("tensor_cores")));
    by_kernel(&launches)
}

#[test]
fn wide_heads_and_caps_read_what_lies_together_and_without_conflicts() {
    let Some(counter) = Counter::new() else { return };
    for (head_dim, cap, module) in [
        (256, None, "tensor_cores_wide.bf16"),
        (256, Some(30.0), "tensor_cores_wide_capped.bf16"),
        (128, Some(30.0), "tensor_cores_capped.bf16"),
    ] {
        // Operands with as many heads as queries have, and those with one; a number a row and head.
        let (many, one, numbers) = (TOKENS * HEADS * head_dim * 2, TOKENS * head_dim * 2, TOKENS * HEADS * 4);
        let of_wide = [
            ("along", 2 * many + numbers),
            ("forward", 2 * many + 2 * one + numbers),
            ("key_gradient", 2 * many + 3 * one + 2 * numbers),
            ("query_gradient", 3 * many + 2 * one + 2 * numbers),
            ("value_gradient", 2 * many + 2 * one + numbers),
        ];
        let of_others = [
            ("forward", 2 * many + 2 * one + numbers),
            ("along", 2 * many + numbers),
            // And the sums of the second 128 rows, f32, to which a block adds what another left.
            ("gradients", 3 * many + 4 * one + 2 * numbers + 2 * many),
        ];
        let demanded = if head_dim > 128 { &of_wide[..] } else { &of_others };
        let all = counted(&counter, shape(head_dim, cap));
        let kernels: Vec<&str> = all.iter().map(|it| it.kernel.split_once('/').unwrap().1).collect();
        assert_eq!(kernels, demanded.iter().map(|it| it.0).collect::<Vec<_>>());
        let gpu = dry();
        gpu.booked();
        run(&Device::Cuda(gpu.clone()), shape(head_dim, cap));
        let booked = gpu.booked();
        for (it, (kernel, demanded)) in all.iter().zip(demanded) {
            let backward = if head_dim > 128 { module.to_owned() } else { module.replace("cores", "cores_one_pass") };
            assert_eq!(it.kernel, format!("{}/{kernel}", if *kernel == "forward" { module } else { &backward }));
            let (coalescing, moved) = (it.global().coalescing(), it.moved() as f64 / *demanded as f64);
            assert!(coalescing >= 0.98, "{coalescing:.3}\n{it}\n{}", it.explain());
            assert_eq!(it.shared().conflicts(), 0, "{it}\n{}", it.explain());
            assert!((1.0..1.1).contains(&moved), "{moved:.3} of what has to be moved\n{it}");
            let books = booked[&it.kernel].bytes as f64;
            assert!((it.moved() as f64 * 0.99 - 64.0..it.moved() as f64 * 1.07).contains(&books), "{books}\n{it}");
        }
    }
}

/// Of all that a kernel multiplies, only what some row of a warp sees: 16 rows by a tile of 64, or by a half of one.
#[test]
fn products_of_wide_heads_are_those_of_the_tiles() {
    let Some(counter) = Counter::new() else { return };
    // A warp's 16 rows by so many columns, times 256 channels, in products of 16 x 8 x 16; and rows by columns that anybody sees.
    let product = |columns: usize| columns / 8 * 16;
    let blocks = |columns: usize| (0..TOKENS / 16).map(|it| (16 * it + 16).div_ceil(columns)).sum::<usize>();
    let of = |columns: usize, kinds: usize| (HEADS * kinds * blocks(columns) * product(columns)) as u64;
    for it in counted(&counter, shape(256, Some(30.0))) {
        let products = match it.kernel.rsplit('/').next() {
            Some("forward" | "value_gradient") => of(64, 2),
            Some("query_gradient" | "key_gradient") => of(32, 3),
            _ => 0,
        };
        assert_eq!(it.products, products, "{it}");
    }
}
