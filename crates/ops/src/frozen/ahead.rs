//! Matrices that are decoded before they are asked for, beside the product before them.
//!
//! What comes next is what came next the last time: steps of a run ask for the same matrices in the same order. Where the guess is wrong
//! the matrix is decoded on the spot, with the same bits. Two workspaces are held at a time, that of the product at work and the next one's.
//!
//! Two orders meet at two events. The side stream may write a workspace when all that the compute stream was asked for before is done,
//! since the pool hands out memory that is still being read there; and whatever is asked of the compute stream after a workspace was taken
//! waits until it is decoded, also where nobody uses it, so that the pool may have it back.
//!
//! A pass that may come again as a whole ([`crate::repeated`]) has guesses of its own, which hang on the pass of its kind before it and on
//! nothing else: passes that are alike have to ask for the same.

use super::Decoder;
use crate::gpu_product::Window;
use halfbyte_cuda::{Event, Gpu};
use halfbyte_tensor::{DType, Error, Result, Tensor, cuda};
use std::{
    collections::VecDeque,
    sync::{Arc, Weak},
};

/// Matrices below each other, and the workspace that they are wanted in: their rows and columns, and how many rows and columns it leaves
/// behind them.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Asked {
    matrices: Vec<Piece>,
    cols: usize,
    beyond: (usize, usize),
    dtype: DType,
}

/// One of the matrices, and its rows.
#[derive(Clone, Debug)]
struct Piece {
    matrix: Weak<dyn Decoder>,
    rows: usize,
}

impl PartialEq for Piece {
    fn eq(&self, other: &Piece) -> bool {
        // Addresses of what is remembered are not given to anything else.
        std::ptr::addr_eq(self.matrix.as_ptr(), other.matrix.as_ptr()) && self.rows == other.rows
    }
}

impl Asked {
    /// Matrices with their rows, of as many columns.
    pub(super) fn new(
        matrices: &[(Arc<dyn Decoder>, usize)],
        cols: usize,
        beyond: (usize, usize),
        dtype: DType,
    ) -> Asked {
        let piece = |(matrix, rows): &(Arc<dyn Decoder>, usize)| Piece { matrix: Arc::downgrade(matrix), rows: *rows };
        let matrices = matrices.iter().map(piece).collect();
        Asked { matrices, cols, beyond, dtype }
    }

    pub(super) fn shape(&self) -> [usize; 2] {
        let rows: usize = self.matrices.iter().map(|it| it.rows).sum();
        [rows + self.beyond.0, self.cols + self.beyond.1]
    }

    pub(super) fn dtype(&self) -> DType {
        self.dtype
    }

    /// Decodes all of them into their workspace.
    ///
    /// # Panics
    /// If one is there no more.
    pub(super) fn decode(&self, workspace: &mut Tensor) -> Result<()> {
        let mut first = 0;
        for Piece { matrix, rows } in &self.matrices {
            let matrix = matrix.upgrade().expect("who asks for a matrix holds it meanwhile");
            matrix.decode(Window::whole(workspace).rows(first, *rows).columns(0, self.cols))?;
            first += rows;
        }
        Ok(())
    }

    /// The matrices, as long as all are there.
    fn held(&self) -> Option<Vec<Arc<dyn Decoder>>> {
        self.matrices.iter().map(|it| it.matrix.upgrade()).collect()
    }
}

/// The matrices in a workspace of their own, which was begun ahead if this was foreseen; and begins with the next.
pub(super) fn decoded(gpu: &Arc<Gpu>, asked: Asked) -> Result<Tensor> {
    gpu.attached(|ahead: &mut Ahead| {
        let workspace = match ahead.take(gpu, &asked)? {
            Some(workspace) => workspace,
            None => {
                let mut workspace = cuda::workspace(gpu, &asked.shape(), asked.dtype)?;
                asked.decode(&mut workspace)?;
                workspace
            }
        };
        if let Some(next) = ahead.order.follow(asked) {
            ahead.begin(gpu, next)?;
        }
        Ok(workspace)
    })
}

/// Has the compute stream wait for whatever is being decoded, and forgets it.
pub(crate) fn settle(gpu: &Gpu) -> Result<()> {
    gpu.attached(|ahead: &mut Ahead| ahead.settle(gpu))
}

/// Runs a pass of a kind, which neither finds nor leaves anything under way.
pub(crate) fn within<R, E: From<Error>>(
    gpu: &Gpu,
    kind: u64,
    pass: &mut dyn FnMut() -> std::result::Result<R, E>,
) -> std::result::Result<R, E> {
    gpu.attached(|ahead: &mut Ahead| ahead.enter(kind));
    let done = pass();
    gpu.attached(|ahead: &mut Ahead| {
        let settled = ahead.settle(gpu);
        if done.is_err() || settled.is_err() {
            // What was recorded before that is waited for no more.
            ahead.events = None;
        }
        ahead.leave(kind);
        settled
    })?;
    done
}

/// What is kept for a device.
#[derive(Default)]
struct Ahead {
    order: Order<Asked>,
    /// The order outside the pass under way, if there is one.
    outside: Option<Order<Asked>>,
    /// Those of kinds of passes, the latest last.
    kinds: Vec<(u64, Order<Asked>)>,
    under_way: Option<UnderWay>,
    events: Option<Events>,
    /// There was no memory for a second workspace.
    is_short: bool,
}

/// Matrices that are being decoded, which stay alive meanwhile.
struct UnderWay {
    asked: Asked,
    _matrices: Vec<Arc<dyn Decoder>>,
    workspace: Tensor,
}

struct Events {
    /// The compute stream is done with what had the memory before.
    free: Event,
    /// The side stream is done.
    decoded: Event,
}

/// Kinds of passes whose orders are remembered.
const KINDS: usize = 64;

impl Ahead {
    fn enter(&mut self, kind: u64) {
        let known = self.kinds.iter().position(|it| it.0 == kind);
        let mut order = known.map(|it| self.kinds.remove(it).1).unwrap_or_default();
        order.begin_again();
        self.outside.get_or_insert(std::mem::replace(&mut self.order, order));
    }

    fn leave(&mut self, kind: u64) {
        let Some(outside) = self.outside.take() else { return };
        self.kinds.push((kind, std::mem::replace(&mut self.order, outside)));
        if self.kinds.len() > KINDS {
            self.kinds.remove(0);
        }
    }

    fn settle(&mut self, gpu: &Gpu) -> Result<()> {
        match (self.under_way.take(), &self.events) {
            (Some(_under_way), Some(events)) => Ok(gpu.compute_stream().wait_for(&events.decoded)?),
            _ => Ok(()),
        }
    }

    /// What is under way, if it is this. Kernels that follow find it decoded.
    fn take(&mut self, gpu: &Gpu, asked: &Asked) -> Result<Option<Tensor>> {
        let (Some(it), Some(events)) = (self.under_way.take(), &self.events) else { return Ok(None) };
        gpu.compute_stream().wait_for(&events.decoded)?;
        Ok((it.asked == *asked).then_some(it.workspace))
    }

    /// Has the side stream decode matrices, if they are still there and there is memory for them.
    fn begin(&mut self, gpu: &Arc<Gpu>, asked: Asked) -> Result<()> {
        let Some(matrices) = asked.held().filter(|_| !self.is_short) else { return Ok(()) };
        let Ok(mut workspace) = cuda::workspace(gpu, &asked.shape(), asked.dtype) else {
            self.is_short = true;
            return Ok(());
        };
        let events = match self.events.take() {
            Some(events) => events,
            None => Events { free: Event::untimed(gpu)?, decoded: Event::untimed(gpu)? },
        };
        let Events { free, decoded } = self.events.insert(events);
        gpu.compute_stream().record(free)?;
        gpu.side_stream().wait_for(free)?;
        gpu.beside(|| asked.decode(&mut workspace))?;
        gpu.side_stream().record(decoded)?;
        self.under_way = Some(UnderWay { asked, _matrices: matrices, workspace });
        Ok(())
    }
}

/// What was asked for one after the other, as far as that is remembered.
struct Order<A> {
    past: VecDeque<A>,
    /// Where in the past that is expected which is asked for next.
    expected: Option<usize>,
    /// Where the pass at hand begins, behind another one; 0 where there was none.
    begun: usize,
}

impl<A> Default for Order<A> {
    fn default() -> Order<A> {
        Order { past: VecDeque::new(), expected: None, begun: 0 }
    }
}

/// A step of a 65B that runs its blocks again asks for 1,680 matrices.
const REMEMBERED: usize = 1 << 14;
/// What went before says enough within so many, several blocks.
const COMPARED: usize = 64;

impl<A: PartialEq + Clone> Order<A> {
    /// Remembers what is asked for, and gives what was asked for after it the last time: as long as guesses are right, where they were
    /// taken from; else where most of what came before it came before it, too.
    fn follow(&mut self, asked: A) -> Option<A> {
        let foreseen = self.expected.filter(|at| self.past[*at] == asked);
        let found = foreseen.or_else(|| self.most_alike(&asked));
        self.past.push_back(asked);
        self.expected = found.map(|it| it + 1);
        if self.past.len() > REMEMBERED {
            self.past.pop_front();
            self.expected = self.expected.and_then(|it| it.checked_sub(1));
            self.begun = self.begun.saturating_sub(1);
        }
        // Behind the last there is nothing to know, and nothing to be done behind the last of a pass.
        let ends = |it: usize| it + 1 >= self.past.len() || it > 0 && it == self.begun;
        let expected = self.expected.filter(|it| !ends(*it))?;
        Some(self.past[expected].clone())
    }

    /// Begins a pass of which is expected what the one before asked for, the only one that is remembered.
    fn begin_again(&mut self) {
        self.past.drain(..self.begun);
        self.begun = self.past.len();
        self.expected = (self.begun > 0).then_some(0);
    }

    /// Where this was asked for after most of what it is asked for after now; the last such place.
    fn most_alike(&self, asked: &A) -> Option<usize> {
        let alike = |at: usize| {
            let pairs = self.past.range(..at).rev().zip(self.past.iter().rev());
            pairs.take(COMPARED).take_while(|(then, now)| then == now).count()
        };
        (0..self.past.len()).filter(|at| self.past[*at] == *asked).max_by_key(|at| alike(*at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Wrong guesses, and matrices that nobody foresaw, in each of so many steps.
    fn misses(step: &str, times: usize) -> Vec<usize> {
        let (mut order, mut guess) = (Order::default(), None);
        let one = |_| {
            step.chars().fold(0, |missed, it| {
                let right = guess == Some(it);
                guess = order.follow(it);
                missed + usize::from(!right)
            })
        };
        (0..times).map(one).collect()
    }

    #[test]
    fn steps_are_foreseen_from_the_third_on() {
        // Forward and backward have workspaces of their own.
        assert_eq!(misses("abcdDCBA", 4), [8, 1, 0, 0]);
        // One workspace for both.
        assert_eq!(misses("abcddcba", 4)[2..], [0, 0]);
        // Blocks of two that are run again, but for their last product.
        assert_eq!(misses("abcdefeFEcDCaBA", 4)[2..], [0, 0]);
        // Two micro-batches a step.
        assert_eq!(misses("abBAabBA", 3)[1..], [0, 0]);
        // Of a matrix that is the only one nothing comes after.
        assert_eq!(misses("a", 3), [1, 1, 1]);
    }

    #[test]
    fn passes_of_a_kind_are_foreseen_by_the_one_before_from_their_first_to_their_last() {
        let mut order = Order::default();
        let mut pass = |asked: &str| {
            order.begin_again();
            asked.chars().map(|it| order.follow(it).unwrap_or('-')).collect::<String>()
        };
        pass("abcabd");
        assert_eq!(pass("abcabd"), "bcabd-");
        assert_eq!(pass("abcabd"), "bcabd-");
        // Another one, and what it leaves.
        assert_eq!(pass("abxxabd")[..2], *"bc");
        let third = pass("abxxabd");
        assert_eq!((third.as_str(), pass("abxxabd").as_str()), ("bxxabd-", "bxxabd-"));
    }

    #[test]
    fn what_is_remembered_has_an_end() {
        let mut order = Order::default();
        let guesses: Vec<Option<usize>> = (0..3 * REMEMBERED).map(|it| order.follow(it % 1000)).collect();
        assert!(guesses[2000..].iter().enumerate().all(|(i, it)| *it == Some((i + 1) % 1000)));
        assert_eq!(order.past.len(), REMEMBERED);
        let fresh: Vec<_> = (0..2 * REMEMBERED).map(|it| order.follow(5000 + it)).collect();
        assert!(fresh.iter().all(Option::is_none), "nothing of the kind was there before");
    }
}
