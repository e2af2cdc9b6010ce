use super::{Columns, split};
use crate::frozen_linear::test_support::*;
use halfbyte_autograd::{Param, Tape, Var};
use halfbyte_tensor::DType;
use halfbyte_testkit::{gradcheck, noise};

const D: usize = 3;

/// Of two heads of query, key and value each.
fn fused() -> [Columns; 3] {
    [0, 1, 2].map(|i| Columns { first: i * D, width: D, stride: 3 * D, count: 2 })
}

#[test]
fn pieces_are_the_columns_that_they_name() {
    for dtype in FLOATS {
        let x = noise(&[5, 18], dtype, 1);
        let values = x.to_f32_vec();
        let all = split(&Tape::disabled(), &Var::constant(x), fused()).unwrap();
        for (i, piece) in all.iter().enumerate() {
            assert_eq!((piece.value().shape(), piece.value().dtype()), (&[5, 6][..], dtype));
            let at = |row: usize, c: usize| values[row * 18 + c / D * 3 * D + i * D + c % D];
            let expected: Vec<f32> = (0..30).map(|it| at(it / 6, it % 6)).collect();
            assert_eq!(piece.value().to_f32_vec(), expected);
        }
    }
}

#[test]
fn gradients_go_back_to_where_they_are_from() {
    let x = Param::new("x", noise(&[4, 18], DType::F32, 1));
    gradcheck(std::slice::from_ref(&x), |tape, p| Ok(split(tape, &tape.param(&p[0]), fused())?[1].clone()));
    let tape = Tape::recording();
    let [_, b, _] = split(&tape, &tape.param(&x), fused()).unwrap();
    let dy = noise(&[4, 6], DType::F32, 2);
    let loss = with_gradient(&tape, &b, &dy);
    let dx = tape.backward(loss).unwrap().get(&x).unwrap().to_f32_vec();
    for (row, dx) in dx.chunks(18).enumerate() {
        let own = &dy.to_f32_vec()[row * 6..][..6];
        assert_eq!((&dx[3..6], &dx[12..15], &dx[..3], &dx[15..]), (&own[..3], &own[3..], &[0.0; 3][..], &[0.0; 3][..]));
    }
}

#[test]
fn a_piece_beyond_the_matrix_is_refused() {
    let x = Var::constant(noise(&[2, 6], DType::F32, 1));
    let refused = |piece| split(&Tape::disabled(), &x, [piece]).unwrap_err().to_string();
    assert!(refused(Columns::one(2, 5)).contains("split"));
    assert!(refused(Columns::one(2, 0)).contains("split"));
    // The second run would reach beyond the last column, or over the first.
    assert!(refused(Columns { first: 1, width: 2, stride: 4, count: 2 }).contains("split"));
    assert!(refused(Columns { first: 0, width: 3, stride: 2, count: 2 }).contains("split"));
    // To the last column, and each run where the one before ends.
    let of = |piece| split(&Tape::disabled(), &x, [piece]).unwrap()[0].value().to_f32_vec();
    let whole = x.value().to_f32_vec();
    assert_eq!(of(Columns { first: 0, width: 3, stride: 3, count: 2 }), whole);
    assert_eq!(of(Columns { first: 0, width: 2, stride: 4, count: 2 })[..4], [whole[0], whole[1], whole[4], whole[5]]);
}
