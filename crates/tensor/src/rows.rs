//! Rows of a tensor, copied out of it and into it.

use crate::{Place, Result, Tensor, cuda};

impl Tensor {
    /// A copy of `count` rows from row `first` on, all but the last extent folded together: `(count, cols)`.
    ///
    /// # Errors
    /// If the copy cannot be started.
    ///
    /// # Panics
    /// If there are not so many rows.
    pub fn rows_at(&self, first: usize, count: usize) -> Result<Tensor> {
        assert!(first + count <= self.rows(), "rows {first} to {} of {}", first + count, self.rows());
        let from = self.dense();
        let mut out = from.scratch_like(&[count, from.cols()], from.dtype());
        match from.place() {
            Place::Host => {
                let row = from.cols() * from.dtype().size();
                let bytes = &from.host_bytes()[first * row..][..count * row];
                out.host_bytes_mut().copy_from_slice(bytes);
            }
            Place::Gpu(_) => cuda::copy_rows(&mut out, 0, &from, first, count)?,
            Place::Dry(_) => {}
        }
        Ok(out)
    }

    /// Some of the rows of a matrix, each time from a first row on as many, which are nobody else's then: on a GPU in the same memory, if they
    /// begin where memory of a tensor might; else copies.
    ///
    /// # Errors
    /// If a copy cannot be started.
    ///
    /// # Panics
    /// If there are not so many rows, or pieces have a row in common.
    pub fn into_pieces(self, pieces: &[(usize, usize)]) -> Result<Vec<Tensor>> {
        let mut free = 0;
        for &(first, count) in pieces {
            assert!(free <= first && first + count <= self.rows(), "rows {first} to {} of {self:?}", first + count);
            free = first + count;
        }
        match cuda::row_pieces(self, pieces) {
            Ok(pieces) => Ok(pieces),
            Err(whole) => pieces.iter().map(|(first, count)| whole.rows_at(*first, *count)).collect(),
        }
    }

    /// Copies `from`, of as many columns and the same dtype, over the rows from row `first` on.
    ///
    /// # Errors
    /// If the copy cannot be started.
    ///
    /// # Panics
    /// If the tensor is shared, or there are not so many rows of that kind.
    pub fn put_rows(&mut self, first: usize, from: &Tensor) -> Result<()> {
        let alike = from.cols() == self.cols() && from.dtype() == self.dtype();
        assert!(alike && first + from.rows() <= self.rows(), "{from:?} from row {first} on of {self:?}");
        let from = from.dense();
        match from.place() {
            Place::Host => {
                let at = first * from.cols() * from.dtype().size();
                let bytes = from.host_bytes();
                self.host_bytes_mut()[at..at + bytes.len()].copy_from_slice(bytes);
            }
            Place::Gpu(_) => cuda::copy_rows(self, first, &from, 0, from.rows())?,
            Place::Dry(_) => {}
        }
        Ok(())
    }
}
