use super::embedding;
use crate::Ids;
use crate::frozen_linear::test_support::{FLOATS, on_threads, rounded, tolerance, with_gradient};
use halfbyte_autograd::{Param, Tape, Var};
use halfbyte_tensor::{DType, Tensor};
use halfbyte_testkit::{assert_close, gradcheck, noise};

/// Repeated, unsorted, first and last.
fn ids(vocab: usize, n: usize) -> Vec<u32> {
    (0..n).map(|i| if i % 3 == 0 { vocab as u32 - 1 } else { ((i * i * 7) % vocab) as u32 }).collect()
}

#[test]
fn rows_are_copied_and_rounded_to_the_asked_dtype() {
    for (stored, asked) in FLOATS.into_iter().flat_map(|s| FLOATS.map(|a| (s, a))) {
        let table = noise(&[150, 11], stored, 1);
        let ids = ids(150, 130);
        let y = embedding(&Tape::disabled(), &Var::constant(table.clone()), &Ids::new(ids.clone()), asked).unwrap();
        assert_eq!((y.value().dtype(), y.value().shape()), (asked, &[130, 11][..]));
        let values = table.to_dtype(asked).to_f32_vec();
        let expected: Vec<f32> = ids.iter().flat_map(|id| values[*id as usize * 11..][..11].to_vec()).collect();
        assert_eq!(y.value().to_f32_vec(), expected);
    }
}

#[test]
fn the_gradient_sums_a_tokens_places_in_every_dtype() {
    for dtype in FLOATS {
        let (vocab, n, c) = (200, 333, 5);
        let w = Param::new("w", noise(&[vocab, c], DType::F32, 1));
        let (ids, dy) = (ids(vocab, n), noise(&[n, c], dtype, 2));
        let tape = Tape::recording();
        let y = embedding(&tape, &tape.param(&w), &Ids::new(ids.clone()), dtype).unwrap();
        let loss = with_gradient(&tape, &y, &dy);
        let grads = tape.backward(loss).unwrap();
        let mut expected = vec![0.0; vocab * c];
        for (i, v) in rounded(&dy, dtype).iter().enumerate() {
            expected[ids[i / c] as usize * c + i % c] += v;
        }
        assert_close("dw", grads.get(&w).unwrap().data(), &expected, tolerance(DType::F32, n));
    }
}

#[test]
fn the_gradient_agrees_with_differences() {
    gradcheck(&[Param::new("w", noise(&[6, 3], DType::F32, 1))], |tape, p| {
        embedding(tape, &tape.param(&p[0]), &Ids::new(vec![5, 0, 5, 2, 5]), DType::F32)
    });
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let run = || {
        let w = Param::new("w", noise(&[300, 7], DType::F32, 1));
        let tape = Tape::recording();
        let y = embedding(&tape, &tape.param(&w), &Ids::new(ids(300, 900)), DType::F32).unwrap();
        let loss = with_gradient(&tape, &y, &noise(&[900, 7], DType::F32, 2));
        tape.backward(loss).unwrap().get(&w).unwrap().to_f32_vec()
    };
    assert_eq!(on_threads(1, run), on_threads(3, run));
}

#[test]
fn a_frozen_table_records_nothing() {
    let tape = Tape::recording();
    let y =
        embedding(&tape, &Var::constant(noise(&[6, 3], DType::Bf16, 1)), &Ids::new(vec![1, 2]), DType::Bf16).unwrap();
    assert!(!y.requires_grad() && tape.names().is_empty());
}

#[test]
fn an_id_out_of_range_is_named() {
    let table = Var::constant(noise(&[6, 3], DType::F32, 1));
    let message = embedding(&Tape::disabled(), &table, &Ids::new(vec![5, 6]), DType::F32).unwrap_err().to_string();
    assert!(message.starts_with("embedding: token id 6 at position 1 is outside the vocabulary of 6"), "{message}");
    let flat = Var::constant(Tensor::from_vec(&[6], vec![0.0f32; 6]));
    assert!(embedding(&Tape::disabled(), &flat, &Ids::new(vec![0]), DType::F32).is_err());
    assert!(embedding(&Tape::disabled(), &table, &Ids::new(vec![0]), DType::U8).is_err());
    assert_eq!(embedding(&Tape::disabled(), &table, &Ids::new(vec![]), DType::F32).unwrap().value().shape(), [0, 3]);
}
