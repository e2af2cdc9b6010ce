//! Work buffers that a thread keeps between products, so that a product allocates nothing once warm.

use std::cell::RefCell;

use half::bf16;

use crate::kernels::words::Words;

/// The buffers that one piece of work needs.
#[derive(Default)]
pub(crate) struct Buffers {
    /// Packed panels.
    pub(crate) panels: Words,
    /// Packed strips of a right operand that several threads share.
    pub(crate) strips: Words,
    /// Tiles of f32 sums.
    pub(crate) tiles: Words,
    /// Pieces of rows on their way into a panel.
    pub(crate) pieces: Pieces,
}

/// Pieces of rows, decoded.
#[derive(Default)]
pub(crate) struct Pieces {
    pub(crate) f32s: Vec<f32>,
    pub(crate) bf16s: Vec<bf16>,
}

thread_local! {
    static IDLE: RefCell<Vec<Buffers>> = const { RefCell::new(Vec::new()) };
}

/// Runs `f` with buffers of this thread. Nested use gets further ones: a thread that waits inside a product may be
/// handed a piece of another product by the pool.
pub(crate) fn with_buffers<R>(f: impl FnOnce(&mut Buffers) -> R) -> R {
    let mut buffers = IDLE.with_borrow_mut(Vec::pop).unwrap_or_default();
    let result = f(&mut buffers);
    IDLE.with_borrow_mut(|idle| idle.push(buffers));
    result
}
