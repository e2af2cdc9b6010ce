use thiserror::Error;

/// What a caller can get wrong. Nothing here depends on the *values* that are quantised: every bit pattern is accepted.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Error {
    /// The block size is not one that the format knows.
    #[error("{op}: block size {given} is not allowed; use one of {allowed}")]
    BlockSize {
        /// The operation that refused it.
        op: &'static str,
        /// What was asked for.
        given: usize,
        /// What would have been accepted.
        allowed: &'static str,
    },
    /// A buffer has another length than the shape asks for.
    #[error("{op}: {what} must have {expected} elements, but has {found}; check the shape and the block size")]
    Length {
        /// The operation that refused it.
        op: &'static str,
        /// Which buffer.
        what: &'static str,
        /// The length that the shape asks for.
        expected: usize,
        /// The length that came.
        found: usize,
    },
    /// `rows * cols` does not fit into a `usize`.
    #[error("{op}: a matrix of {rows} x {cols} elements cannot be addressed; check the shape")]
    TooLarge {
        /// The operation that refused it.
        op: &'static str,
        /// Rows of the matrix.
        rows: usize,
        /// Columns of the matrix.
        cols: usize,
    },
}

/// `Ok` if `found == expected`, else the error that names the buffer.
pub(crate) fn check_len(op: &'static str, what: &'static str, expected: usize, found: usize) -> Result<(), Error> {
    if found == expected { Ok(()) } else { Err(Error::Length { op, what, expected, found }) }
}
