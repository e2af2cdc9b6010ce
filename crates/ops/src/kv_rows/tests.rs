use super::*;
use halfbyte_tensor::DType;

fn counted(rows: usize, cols: usize, from: f32) -> Tensor {
    Tensor::from_vec(&[rows, cols], (0..rows * cols).map(|it| from + it as f32).collect())
}

#[test]
fn new_rows_go_behind_those_of_their_sequence() {
    // Two sequences of three and one new rows, the first with one row in the cache already.
    let layout = Layout::resumed(&[(3, 1, 0), (1, 0, 6)]).unwrap();
    let (k, v) = (counted(4, 2, 1.0), counted(4, 2, 101.0));
    let (mut keys, mut values) = (Tensor::zeros(&[7, 2], DType::F32), Tensor::zeros(&[7, 2], DType::F32));
    append_rows([&mut keys, &mut values], [&k, &v], &layout).unwrap();
    assert_eq!(keys.data::<f32>(), [0., 0., 1., 2., 3., 4., 5., 6., 0., 0., 0., 0., 7., 8.]);
    assert_eq!(values.data::<f32>()[2..4], [101., 102.]);
    let error = append_rows([&mut keys, &mut values], [&k, &v], &Layout::new(&[3]).unwrap()).unwrap_err();
    assert!(error.to_string().contains("3 rows, one a token"), "{error}");
}

#[test]
fn runs_of_rows_move_to_another_buffer() {
    let from = counted(4, 1, 1.0);
    let mut into = Tensor::zeros(&[5, 1], DType::F32);
    move_rows(&mut into, &from, &[Move { from: 2..4, to: 0 }, Move { from: 0..1, to: 4 }]).unwrap();
    assert_eq!(into.data::<f32>(), [3., 4., 0., 0., 1.]);
    assert!(move_rows(&mut into, &from, &[Move { from: 2..4, to: 4 }]).is_err(), "one row too far");
}

#[test]
fn what_fits_no_buffer_is_refused() {
    let layout = Layout::new(&[3]).unwrap();
    let append = |into: [&Tensor; 2], rows: [&Tensor; 2]| {
        let [mut keys, mut values] = into.map(Tensor::clone).map(Tensor::into_unique);
        append_rows([&mut keys, &mut values], rows, &layout).map_err(|e| e.to_string())
    };
    let (buffer, rows) = (Tensor::zeros(&[5, 2], DType::F32), counted(3, 2, 1.0));
    assert_eq!(append([&buffer; 2], [&rows; 2]), Ok(()));
    let exact = Tensor::zeros(&[3, 2], DType::F32);
    assert_eq!(append([&exact; 2], [&rows; 2]), Ok(()));
    let short = Tensor::zeros(&[2, 2], DType::F32);
    assert!(append([&short, &buffer], [&rows; 2]).unwrap_err().contains("a buffer of at least 3"));
    assert!(append([&buffer, &short], [&rows; 2]).unwrap_err().contains("a buffer of at least 3"));
    let (wide, half) = (Tensor::zeros(&[5, 3], DType::F32), Tensor::zeros(&[5, 2], DType::F16));
    for other in [&wide, &half] {
        let expected = "expected a buffer (rows, 2) in f32";
        assert!(append([other, &buffer], [&rows; 2]).unwrap_err().contains(expected));
        assert!(append([&buffer, other], [&rows; 2]).unwrap_err().contains(expected));
    }
    let deep = rows.reshape(&[3, 1, 2]).unwrap();
    assert!(append([&buffer; 2], [&deep, &rows]).is_err(), "rows are those of a matrix");
    let mut into = wide;
    assert!(move_rows(&mut into, &rows, &[]).is_err(), "buffers of other widths");
}
