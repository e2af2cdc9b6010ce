//! Every format: the product reads what the codec decodes, in the forward and transposed, and the plan's bytes are true.
use halfbyte_frozen::{Format, Quant};
use halfbyte_matmul::{Compute, Dense, Operand, Out, Product, matmul};
use halfbyte_tensor::{DType, Tensor};
use halfbyte_testkit::{noise, noise_vec};

const DIMS: [(usize, usize); 4] = [(1, 1), (5, 48), (33, 130), (64, 192)];

fn formats() -> Vec<Format> {
    let mut all = vec![Format::DENSE, Format { quant: Quant::Int8, ..Format::DENSE }];
    for quant in [Quant::Nf4, Quant::Fp4, Quant::Int4] {
        for block_size in [32, 64, 4096] {
            all.extend([false, true].map(|double_quant| Format { quant, block_size, double_quant }));
        }
    }
    all
}

fn decoded(matrix: &dyn halfbyte_frozen::FrozenMatrix) -> Tensor {
    let (out, inner) = matrix.dims();
    let mut w = vec![0.0; out * inner];
    for (row, values) in w.chunks_mut(inner).enumerate() {
        matrix.source().read_f32(row, 0, values);
    }
    Tensor::from_vec(&[out, inner], w)
}

#[test]
fn the_plan_counts_the_bytes_that_are_kept() {
    for format in formats() {
        for (out, inner) in DIMS {
            let matrix = format.freeze(noise(&[out, inner], DType::Bf16, 1)).unwrap();
            assert_eq!(matrix.bytes(), format.bytes(out, inner, 2), "{format:?} {out}x{inner}");
        }
    }
}

#[test]
fn a_product_reads_exactly_the_decoded_weight_both_ways() {
    for format in formats() {
        for (out, inner) in DIMS {
            let matrix = format.freeze(noise(&[out, inner], DType::F32, 2)).unwrap();
            let w = decoded(matrix.as_ref());
            let dense = Dense::new(out, inner, w.data::<f32>());
            let source = matrix.source();
            let (x, dy) = (noise_vec(3 * inner, 3), noise_vec(3 * out, 4));
            for compute in [Compute::F32, Compute::Bf16] {
                let product = |a: &[f32], k: usize, w: Operand<'_>, n: usize| {
                    let mut y = vec![0.0; 3 * n];
                    let a = Dense::new(3, k, a);
                    matmul(&Product::new(Operand::new(&a), w, compute), Out::F32(&mut y));
                    y
                };
                let what = format!("{format:?} {out}x{inner} {compute:?}");
                let forward = |w: Operand<'_>| product(&x, inner, w, out);
                assert_eq!(forward(Operand::new(source.as_ref()).t()), forward(Operand::new(&dense).t()), "{what}");
                let backward = |w: Operand<'_>| product(&dy, out, w, inner);
                assert_eq!(backward(Operand::new(source.as_ref())), backward(Operand::new(&dense)), "{what}");
            }
        }
    }
}

/// The widest gap between neighbours of each code, halved; FP4's is between 2/3 and 1, INT4's is 1/7.
#[test]
fn a_stored_weight_is_near_the_original() {
    let w = noise(&[64, 192], DType::F32, 5);
    let within = |format: Format, bound: f32| {
        let error = decoded(format.freeze(w.clone()).unwrap().as_ref())
            .data::<f32>()
            .iter()
            .zip(w.data::<f32>())
            .fold(0.0f32, |m, (a, b)| m.max((a - b).abs()));
        assert!(error <= 2.0 * bound, "{format:?}: {error}");
        error
    };
    let plain = |quant| Format { quant, block_size: 64, double_quant: false };
    within(Format::DENSE, 0.0);
    // LLM.int8() rounds the weight to f16 first, which keeps 11 bits.
    within(plain(Quant::Int8), 0.5 / 127.0 + 2f32.powi(-11));
    within(plain(Quant::Int4), 0.5 / 7.0 + 1e-6);
    within(plain(Quant::Nf4), 0.1520);
    within(plain(Quant::Fp4), 0.1667);
}

#[test]
fn what_is_not_a_matrix_is_refused() {
    for format in formats() {
        let error = format.freeze(noise(&[2, 3, 4], DType::F32, 1)).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(error.contains("[2, 3, 4]"), "{format:?}: {error}");
    }
}
