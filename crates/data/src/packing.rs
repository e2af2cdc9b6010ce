//! Packing: several examples one after the other in a row of at most `max_length` tokens, so that every step holds about
//! the same number of tokens.
//!
//! **Best-fit decreasing over a whole epoch.** The examples are sorted by falling length, those of one length in the
//! epoch's order; each goes into the fullest row that has room for it, and of equally full rows into the one that was
//! filled last. That takes O(n log n), leaves at most one row half empty or emptier, and needs 11/9 of the least possible
//! number of rows at worst, a few apart.
//!
//! Where a row is chosen, only lengths count. So the lengths in the rows, and with them the number of rows, are those of
//! every other epoch; what a seed decides is which example of a length stands where, and the order of the rows. An example
//! whose length no other has meets the same companions in each epoch; as sequences of a row do not see each other, that
//! shows only in which gradients are summed up in one step, and each epoch's order of rows changes that.

use std::collections::BTreeMap;
use std::ops::Range;

/// Rows of examples: whichever row an index names, its examples stand together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Rows {
    /// The examples of the first row, then those of the second.
    examples: Vec<usize>,
    /// Where each row ends in `examples`.
    ends: Vec<usize>,
}

impl Rows {
    /// Packs the examples `order`, whose lengths are at most `capacity`.
    pub(crate) fn best_fit_decreasing(order: &[usize], length: impl Fn(usize) -> usize, capacity: usize) -> Self {
        let mut examples = order.to_vec();
        // Stable: examples of one length stay in the epoch's order.
        examples.sort_by_key(|&example| std::cmp::Reverse(length(example)));
        let mut room: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        let mut rows = 0;
        let mut row_of = Vec::with_capacity(examples.len());
        for &example in &examples {
            let length = length(example);
            assert!(length <= capacity, "an example of {length} tokens in rows of {capacity}");
            let (row, left) = match room.range_mut(length..).next() {
                Some((&free, same)) => {
                    let row = same.pop().expect("emptied entries are removed");
                    if same.is_empty() {
                        room.remove(&free);
                    }
                    (row, free - length)
                }
                None => {
                    rows += 1;
                    (rows - 1, capacity - length)
                }
            };
            // A full row is never asked for again.
            if left > 0 {
                room.entry(left).or_default().push(row);
            }
            row_of.push(row);
        }
        Self::grouped(&examples, &row_of, rows)
    }

    /// `examples` by the row of each, in their order within a row.
    fn grouped(examples: &[usize], row_of: &[usize], rows: usize) -> Self {
        let mut next = vec![0; rows];
        row_of.iter().for_each(|&row| next[row] += 1);
        let mut end = 0;
        for place in &mut next {
            end += std::mem::replace(place, end);
        }
        let mut grouped = vec![0; examples.len()];
        for (&example, &row) in examples.iter().zip(row_of) {
            grouped[next[row]] = example;
            next[row] += 1;
        }
        // Each place has moved to the end of its row.
        Self { examples: grouped, ends: next }
    }

    /// Puts a row after the others.
    pub(crate) fn push(&mut self, examples: &[usize]) {
        self.examples.extend_from_slice(examples);
        self.ends.push(self.examples.len());
    }

    /// These rows in the order given by their numbers.
    pub(crate) fn reordered(&self, order: &[usize]) -> Self {
        let mut out = Self { examples: Vec::with_capacity(self.examples.len()), ends: Vec::with_capacity(order.len()) };
        for &row in order {
            out.push(self.examples(row..row + 1));
        }
        out
    }

    /// The rows by their earliest example, and each row's examples by their place in the file.
    pub(crate) fn in_file_order(mut self) -> Self {
        for row in 0..self.len() {
            let place = self.place(row..row + 1);
            self.examples[place].sort_unstable();
        }
        let mut order: Vec<usize> = (0..self.len()).collect();
        order.sort_unstable_by_key(|&row| self.examples(row..row + 1)[0]);
        self.reordered(&order)
    }

    /// Number of rows.
    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The examples of some rows, one row after the other.
    pub(crate) fn examples(&self, rows: Range<usize>) -> &[usize] {
        &self.examples[self.place(rows)]
    }

    fn place(&self, rows: Range<usize>) -> Range<usize> {
        let end_of = |row: usize| row.checked_sub(1).map_or(0, |row| self.ends[row]);
        end_of(rows.start)..end_of(rows.end)
    }
}
