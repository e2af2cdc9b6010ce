use super::{RowGroups, deal_rows, gather_rows};
use crate::{
    Layout, add_scaled,
    frozen_linear::test_support::{FLOATS, with_gradient},
};
use halfbyte_autograd::{Param, Tape, Var};
use halfbyte_tensor::{DType, Tensor};
use halfbyte_testkit::noise;

/// Sequences of 2, 3, 1 and 2 rows, of which the first and the last two belong together.
fn groups() -> RowGroups {
    RowGroups::new(&Layout::new(&[2, 3, 1, 2]).unwrap(), [0, 1, 0, 0].into_iter())
}

#[test]
fn each_group_gets_its_rows_in_their_order_and_they_come_back() {
    for dtype in FLOATS {
        let x = noise(&[8, 5], dtype, 1);
        let (tape, groups) = (Tape::disabled(), groups());
        let parts = deal_rows(&tape, &Var::constant(x.clone()), &groups).unwrap();
        let row = |i: usize| x.to_f32_vec()[i * 5..][..5].to_vec();
        assert_eq!(parts[0].value().to_f32_vec(), [0, 1, 5, 6, 7].map(row).concat());
        assert_eq!(parts[1].value().to_f32_vec(), [2, 3, 4].map(row).concat());
        let back = gather_rows(&tape, &parts, &groups).unwrap().into_value();
        assert_eq!((back.dtype(), back.to_f32_vec()), (dtype, x.to_f32_vec()));
    }
}

#[test]
fn gradients_go_where_the_rows_came_from() {
    let (x, dy) = (Param::new("x", noise(&[8, 5], DType::F32, 1)), noise(&[8, 5], DType::F32, 2));
    let (tape, groups) = (Tape::recording(), groups());
    let parts = deal_rows(&tape, &tape.param(&x), &groups).unwrap();
    // The second group is doubled.
    let doubled = add_scaled(&tape, &parts[1], &parts[1], 1.0).unwrap();
    let y = gather_rows(&tape, &[parts[0].clone(), doubled], &groups).unwrap();
    let loss = with_gradient(&tape, &y, &dy);
    let grads = tape.backward(loss).unwrap();
    let expected: Vec<f32> = dy
        .to_f32_vec()
        .chunks(5)
        .enumerate()
        .flat_map(|(i, row)| scaled(row, if (2..5).contains(&i) { 2.0 } else { 1.0 }))
        .collect();
    assert_eq!(grads.get(&x).unwrap().to_f32_vec(), expected);
}

#[test]
fn a_group_that_nothing_depends_on_has_no_gradient() {
    let (x, dy) = (Param::new("x", noise(&[8, 5], DType::F32, 1)), noise(&[3, 5], DType::F32, 2));
    let (tape, groups) = (Tape::recording(), groups());
    let parts = deal_rows(&tape, &tape.param(&x), &groups).unwrap();
    let loss = with_gradient(&tape, &parts[1], &dy);
    let grads = tape.backward(loss).unwrap();
    let mut expected = vec![0.0; 40];
    expected[10..25].copy_from_slice(dy.data::<f32>());
    assert_eq!(grads.get(&x).unwrap().to_f32_vec(), expected);
}

#[test]
#[should_panic(expected = "the groups are those of this batch")]
fn groups_of_another_batch_are_a_bug() {
    let x = Var::constant(Tensor::zeros(&[9, 5], DType::F32));
    let _ = deal_rows(&Tape::disabled(), &x, &groups());
}

fn scaled(row: &[f32], factor: f32) -> Vec<f32> {
    row.iter().map(|it| it * factor).collect()
}
