//! A stranger's program: a product whose second operand is a format of its own, read row by row.

use halfbyte_matmul::{Compute, Dense, Operand, Out, Product, Source, matmul};

/// A matrix that is never stored: element (i, j) is i - j.
struct Differences(usize, usize);

impl Source for Differences {
    fn rows(&self) -> usize {
        self.0
    }

    fn cols(&self) -> usize {
        self.1
    }

    fn read_f32(&self, row: usize, col: usize, out: &mut [f32]) {
        for (j, x) in out.iter_mut().enumerate() {
            *x = row as f32 - (col + j) as f32;
        }
    }
}

fn main() {
    let (m, n, k) = (5, 7, 33);
    let x: Vec<f32> = (0..m * k).map(|i| (i % 11) as f32 - 5.0).collect();
    let (dense, weight) = (Dense::new(m, k, &x), Differences(n, k));
    let mut y = vec![f32::NAN; m * n];
    matmul(&Product::new(Operand::new(&dense), Operand::new(&weight).t(), Compute::F32), Out::F32(&mut y));
    for row in 0..m {
        for col in 0..n {
            // Small whole numbers: every order of summation gives the same.
            let expected: f32 = (0..k).map(|j| x[row * k + j] * (col as f32 - j as f32)).sum();
            assert_eq!(y[row * n + col], expected, "({row}, {col})");
        }
    }
}
