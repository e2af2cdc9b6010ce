//! Parts of matrices as products on a GPU take and leave them: some of the rows, or a strip of the columns.
//!
//! Few tensors have gaps between their rows, products need none of that: what lies side by side in one workspace is one operand.

use halfbyte_cuda::Matrix;
use halfbyte_tensor::{Tensor, cuda};

/// `rows` rows of `cols` elements, `stride` apart, from element `start` of a tensor on.
#[derive(Clone, Copy, Debug)]
struct Part {
    start: usize,
    rows: usize,
    cols: usize,
    stride: usize,
}

impl Part {
    fn of(tensor: &Tensor) -> Part {
        Part { start: 0, rows: tensor.rows(), cols: tensor.cols(), stride: tensor.stride() }
    }

    fn rows(self, first: usize, count: usize) -> Part {
        assert!(first + count <= self.rows, "rows {first}..{} of {}", first + count, self.rows);
        Part { start: self.start + first * self.stride, rows: count, ..self }
    }

    fn columns(self, first: usize, count: usize) -> Part {
        assert!(first + count <= self.cols, "columns {first}..{} of {}", first + count, self.cols);
        Part { start: self.start + first, cols: count, ..self }
    }

    fn address(&self, tensor: &Tensor) -> u64 {
        cuda::rows_ptr(tensor) + (self.start * tensor.dtype().size()) as u64
    }
}

/// A matrix that a product reads, and whether it takes it turned over.
#[derive(Clone, Copy, Debug)]
pub struct Operand<'a> {
    pub(super) tensor: &'a Tensor,
    part: Part,
    transposed: bool,
}

impl<'a> Operand<'a> {
    /// As it is stored.
    pub fn new(tensor: &'a Tensor) -> Operand<'a> {
        Operand { tensor, part: Part::of(tensor), transposed: false }
    }

    /// With so many of the columns beside its rows.
    ///
    /// # Panics
    /// If there is less room.
    #[must_use]
    pub fn with_room(tensor: &'a Tensor, columns: usize) -> Operand<'a> {
        assert!(columns <= tensor.room(), "{columns} columns beside rows with room for {}", tensor.room());
        let part = Part::of(tensor);
        Operand { tensor, part: Part { cols: part.cols + columns, ..part }, transposed: false }
    }

    /// Tensors whose rows lie beside each other, with so many of the columns in the room behind the last.
    ///
    /// # Panics
    /// If there are none, they lie otherwise, or there is less room.
    #[must_use]
    pub(crate) fn across(tensors: &[&'a Tensor], room: usize) -> Operand<'a> {
        let (Some(first), Some(last)) = (tensors.first(), tensors.last()) else { panic!("one tensor at least") };
        assert!(tensors.windows(2).all(|it| it[0].is_beside(it[1])), "rows beside each other");
        assert!(room <= last.room(), "{room} columns beside rows with room for {}", last.room());
        let cols = tensors.iter().map(|it| it.cols()).sum::<usize>() + room;
        Operand { tensor: first, part: Part { cols, ..Part::of(first) }, transposed: false }
    }

    /// `count` of its stored columns, from `first` on.
    #[must_use]
    pub fn columns(self, first: usize, count: usize) -> Operand<'a> {
        Operand { part: self.part.columns(first, count), ..self }
    }

    /// Turned over.
    #[must_use]
    pub fn t(self) -> Operand<'a> {
        Operand { transposed: !self.transposed, ..self }
    }

    /// `(rows, columns)` as the product sees them.
    pub(super) fn dims(&self) -> (usize, usize) {
        let Part { rows, cols, .. } = self.part;
        if self.transposed { (cols, rows) } else { (rows, cols) }
    }

    pub(super) fn matrix(&self) -> Matrix {
        Matrix { ptr: self.part.address(self.tensor), stride: self.part.stride, transposed: self.transposed }
    }
}

/// A part of a tensor that is written.
#[derive(Debug)]
pub struct Window<'a> {
    tensor: &'a mut Tensor,
    part: Part,
}

impl<'a> Window<'a> {
    /// All of it.
    ///
    /// # Panics
    /// If somebody else holds the tensor.
    pub fn whole(tensor: &'a mut Tensor) -> Window<'a> {
        assert!(!tensor.is_shared(), "what is written is nobody else's");
        let part = Part::of(tensor);
        Window { tensor, part }
    }

    /// It once more, for a moment.
    pub fn reborrow(&mut self) -> Window<'_> {
        Window { tensor: self.tensor, part: self.part }
    }

    /// `count` of its rows, from `first` on.
    #[must_use]
    pub fn rows(self, first: usize, count: usize) -> Window<'a> {
        Window { part: self.part.rows(first, count), ..self }
    }

    /// `count` of its columns, from `first` on.
    #[must_use]
    pub fn columns(self, first: usize, count: usize) -> Window<'a> {
        Window { part: self.part.columns(first, count), ..self }
    }

    /// `(rows, columns)`.
    pub fn dims(&self) -> (usize, usize) {
        (self.part.rows, self.part.cols)
    }

    /// The element of the tensor at which it begins.
    pub fn start(&self) -> usize {
        self.part.start
    }

    /// Elements from row to row.
    pub fn stride(&self) -> usize {
        self.part.stride
    }

    /// The tensor that it is a part of.
    pub fn tensor(&mut self) -> &mut Tensor {
        self.tensor
    }

    pub(super) fn address(&self) -> u64 {
        self.part.address(self.tensor)
    }
}
