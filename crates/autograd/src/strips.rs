//! Checkpoints over strips of rows, for what computes each row by itself.

use crate::{Result, Tape, Var, tape::Sink};
use halfbyte_tensor::Tensor;
use std::ops::Range;

impl<'m> Tape<'m> {
    /// [`Tape::checkpoint`] for an `f` that makes of each row of `x` a row as wide, without a look at the others: over strips of at most
    /// `height` rows, whose number `f` is told, so that what it holds has a strip's size.
    ///
    /// Within a checkpoint it must be what that checkpoint gives: when that is run again, nobody reads the value, and it is left out. A
    /// parameter's gradient is summed over the strips, the first one first.
    pub fn checkpoint_in_strips(
        &self,
        x: &Var,
        height: usize,
        f: impl Fn(&Tape<'m>, &Var, usize) -> Result<Var> + 'm,
    ) -> Result<Var> {
        let strips = strips(x.value().rows(), height);
        let quiet = Tape::disabled();
        // What is replayed records that it was asked for; its value would be computed in vain.
        let y = if self.replays { x.value().clone() } else { forward(&quiet, x.value(), &strips, &f)? };
        let used = quiet.into_used();
        let wanted = self.replays || !used.is_empty() || x.requires_grad();
        self.add_used(used);
        if !self.is_recording() || !wanted {
            return Ok(Var::constant(y));
        }
        let (input, slot, keeps_cheap) = (x.value().clone(), x.slot, self.keeps_cheap);
        let replay = move |mut dys: Vec<Option<Tensor>>, sink: &mut Sink<'_>| {
            let Some(Some(dy)) = dys.pop() else { return Ok(()) };
            // Each strip's gradient takes the place of the rows that it came from.
            let mut grad = dy.dense().into_unique();
            for (i, strip) in strips.iter().enumerate() {
                let inner = Tape::recording().keeping_cheap(keeps_cheap).replaying();
                let rows = input.rows_at(strip.start, strip.len())?;
                let x = if slot.is_some() { inner.input(rows) } else { Var::constant(rows) };
                let y = f(&inner, &x, i)?;
                let wanted = x.slot;
                drop(x);
                let (grads, dx) = inner.run(y, grad.rows_at(strip.start, strip.len())?, wanted)?;
                sink.merge(grads);
                if wanted.is_some() {
                    let zeros = || Tensor::zeros_on(&grad.device(), &[strip.len(), grad.cols()], grad.dtype());
                    let dx = dx.unwrap_or_else(zeros);
                    grad.put_rows(strip.start, &dx)?;
                }
            }
            if let Some(slot) = slot {
                sink.deliver(slot, grad);
            }
            Ok(())
        };
        Ok(self.push_one("checkpoint", y, Box::new(replay)))
    }
}

fn forward<'m>(
    quiet: &Tape<'m>,
    x: &Tensor,
    strips: &[Range<usize>],
    f: &impl Fn(&Tape<'m>, &Var, usize) -> Result<Var>,
) -> Result<Tensor> {
    let mut y = x.scratch_like(x.shape(), x.dtype());
    for (i, strip) in strips.iter().enumerate() {
        let rows = Var::constant(x.rows_at(strip.start, strip.len())?);
        y.put_rows(strip.start, f(quiet, &rows, i)?.value())?;
    }
    Ok(y)
}

/// Strips of about the same height, a multiple of 128 rows where they are that high, which the tiles of products fill.
fn strips(rows: usize, height: usize) -> Vec<Range<usize>> {
    let even = rows.div_ceil(rows.div_ceil(height.max(1)).max(1));
    let height = if height >= 128 { even.next_multiple_of(128).min(height) } else { even };
    (0..rows).step_by(height.max(1)).map(|first| first..(first + height).min(rows)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strips_cover_all_rows_once_and_none_is_too_high() {
        for (rows, height, heights) in [
            (16_385, 8192, vec![5504, 5504, 5377]),
            (16_384, 8192, vec![8192, 8192]),
            (100_000, 8192, [vec![7808; 12], vec![6304]].concat()),
            (7, 3, vec![3, 3, 1]),
            (2, 8192, vec![2]),
            (0, 8, vec![]),
        ] {
            let found = strips(rows, height);
            assert_eq!(found.iter().map(|it| it.len()).collect::<Vec<_>>(), heights, "{rows}");
            assert!(found.windows(2).all(|it| it[0].end == it[1].start));
        }
    }
}
