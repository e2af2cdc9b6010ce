use super::Routes;
use crate::place::{Cost, fill};
use halfbyte_autograd::{Result, Tape, Var};
use halfbyte_tensor::{Error, Tensor, cuda, with_float};

/// Of a stack `(experts * rows, columns)` the rows of each expert that has tokens, in `per` pieces each. The gradient of the stack is
/// zero where no piece has one.
///
/// # Errors
/// If the stack cannot be cut so, or a GPU fails.
pub fn pieces(tape: &Tape<'_>, stack: &Var, routes: &Routes, per: usize) -> Result<Vec<Var>> {
    let value = stack.value();
    let ((all, _), count) = (crate::product::check_matrix("pieces", value)?, routes.experts() * per);
    if !all.is_multiple_of(count) {
        return Err(Error::shape("pieces", format!("rows for {count} pieces"), value.shape()).into());
    }
    let rows = all / count;
    let which: Vec<usize> = routes.busy().flat_map(|e| e * per..(e + 1) * per).collect();
    let one = |it: &usize| {
        let y = value.scratch_like(&[rows, value.cols()], value.dtype());
        moved((value, it * rows), (y, 0), rows)
    };
    let ys: Vec<Tensor> = which.iter().map(one).collect::<Result<_>>()?;
    let shape = value.shape().to_vec();
    Ok(tape.record_many("pieces", &[stack], ys, move |dys, _| {
        let Some(like) = dys.iter().flatten().next() else { unreachable!("pieces: some output has a gradient") };
        let mut sum = Tensor::zeros_on(&like.device(), &shape, like.dtype());
        for (it, dy) in which.iter().zip(&dys) {
            let Some(dy) = dy else { continue };
            sum = moved((dy, 0), (sum, it * rows), rows)?;
        }
        Ok(vec![Some(sum)])
    }))
}

/// `to`, with rows of `from` over its own.
fn moved((from, first): (&Tensor, usize), (to, at): (Tensor, usize), rows: usize) -> Result<Tensor> {
    let columns = from.cols();
    let host = |to: &mut Tensor| {
        with_float!(from.dtype(), T, {
            let (from, to) = (from.data::<T>(), to.data_mut::<T>());
            to[at * columns..][..rows * columns].copy_from_slice(&from[first * columns..][..rows * columns]);
        });
        Ok(())
    };
    let cost = Cost::new(0, 2 * rows * columns * from.dtype().size());
    fill(from, cost, to, host, |_, to| cuda::copy_rows(to, at, from, first, rows))
}
