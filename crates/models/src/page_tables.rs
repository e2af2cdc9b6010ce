//! Which pages of a cache each sequence has: a book that knows of no memory.

use halfbyte_ops::{FORGOTTEN, kv_pages::PAGE};

/// The pages of several sequences, in the layers that see as far back.
///
/// A page belongs to one sequence, or to several that have begun alike; then none of them writes to it. Pages that nobody has any more are
/// the next ones to be given.
#[derive(Debug)]
pub(crate) struct PageTables {
    window: Option<usize>,
    /// Of every sequence, its pages from the first token on; those that no later token sees are forgotten.
    tables: Vec<Vec<u32>>,
    /// How many sequences have each page.
    holders: Vec<usize>,
    free: Vec<u32>,
}

impl PageTables {
    /// Of so many sequences without tokens, in layers with a window or without.
    pub(crate) fn new(window: Option<usize>, sequences: usize) -> PageTables {
        PageTables { window, tables: vec![Vec::new(); sequences], holders: Vec::new(), free: Vec::new() }
    }

    /// How far back the layers see.
    pub(crate) fn window(&self) -> Option<usize> {
        self.window
    }

    /// A sequence's pages.
    pub(crate) fn of(&self, sequence: usize) -> &[u32] {
        &self.tables[sequence]
    }

    /// Pages that were ever given: they are numbered up to this.
    pub(crate) fn count(&self) -> usize {
        self.holders.len()
    }

    /// Gives pages for `new` tokens of a sequence that has `length`, some at least, and forgets those that none of them sees. Where the
    /// first one comes into a page that others have as well, that page is to be copied, before anything is written: from the first to the
    /// second.
    pub(crate) fn begin(&mut self, sequence: usize, length: usize, new: usize) -> Option<(u32, u32)> {
        // Those before one that is forgotten are, too.
        for at in (0..self.first_seen(length) / PAGE).rev() {
            let page = std::mem::replace(&mut self.tables[sequence][at], FORGOTTEN);
            if page == FORGOTTEN {
                break;
            }
            self.release(page);
        }
        let mut copied = None;
        if let Some(page) = self.tables[sequence].get(length / PAGE).copied()
            && self.holders[page as usize] > 1
        {
            let own = self.take();
            self.release(page);
            self.tables[sequence][length / PAGE] = own;
            copied = Some((page, own));
        }
        while self.tables[sequence].len() * PAGE < length + new {
            let page = self.take();
            self.tables[sequence].push(page);
        }
        copied
    }

    /// Whether a sequence could go on behind so many tokens: those that the next one sees are held.
    pub(crate) fn reaches_back(&self, sequence: usize, length: usize) -> bool {
        let forgotten = self.tables[sequence].iter().take_while(|it| **it == FORGOTTEN).count();
        forgotten * PAGE <= self.first_seen(length)
    }

    /// Lets go of the pages behind so many tokens of a sequence.
    pub(crate) fn truncate(&mut self, sequence: usize, length: usize) {
        while self.tables[sequence].len() > length.div_ceil(PAGE) {
            let page = self.tables[sequence].pop().expect("it is longer");
            self.release(page);
        }
    }

    /// One more sequence, behind the others.
    pub(crate) fn admit(&mut self) {
        self.tables.push(Vec::new());
    }

    /// Lets go of the sequences that are not marked.
    pub(crate) fn retain(&mut self, keep: &[bool]) {
        let tables = std::mem::take(&mut self.tables);
        for (table, keep) in tables.into_iter().zip(keep) {
            match keep {
                true => self.tables.push(table),
                false => table.into_iter().for_each(|it| self.release(it)),
            }
        }
    }

    /// Makes the named sequences those that there are, each as often as it is named.
    pub(crate) fn fork(&mut self, of: &[usize]) {
        let forked: Vec<Vec<u32>> = of.iter().map(|it| self.tables[*it].clone()).collect();
        let pages = forked.iter().flatten().filter(|it| **it != FORGOTTEN);
        pages.for_each(|it| self.holders[*it as usize] += 1);
        let before = std::mem::replace(&mut self.tables, forked);
        before.into_iter().flatten().for_each(|it| self.release(it));
    }

    /// The first token that one behind `length` others sees.
    fn first_seen(&self, length: usize) -> usize {
        self.window.map_or(0, |it| (length + 1).saturating_sub(it))
    }

    fn take(&mut self) -> u32 {
        match self.free.pop() {
            Some(page) => {
                self.holders[page as usize] = 1;
                page
            }
            None => {
                self.holders.push(1);
                (self.holders.len() - 1) as u32
            }
        }
    }

    fn release(&mut self, page: u32) {
        if page == FORGOTTEN {
            return;
        }
        let holders = &mut self.holders[page as usize];
        *holders -= 1;
        if *holders == 0 {
            self.free.push(page);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    /// A sequence as it would be alone: what stands at each token, for reading by page.
    #[derive(Clone, Debug, Default)]
    struct Text(Vec<u32>);

    /// Tables, texts, and what stands in the pages.
    struct World {
        tables: PageTables,
        texts: Vec<Text>,
        memory: HashMap<u32, Vec<u32>>,
        written: u32,
    }

    impl World {
        fn begin(&mut self, sequence: usize, new: usize) {
            let length = self.texts[sequence].0.len();
            if let Some((from, to)) = self.tables.begin(sequence, length, new) {
                let copy = self.memory[&from].clone();
                self.memory.insert(to, copy);
            }
            for token in length..length + new {
                let page = self.tables.of(sequence)[token / PAGE];
                assert_eq!(self.tables.holders[page as usize], 1, "what is written to is nobody else's");
                self.written += 1;
                self.memory.entry(page).or_insert_with(|| vec![0; PAGE])[token % PAGE] = self.written;
                self.texts[sequence].0.push(self.written);
            }
        }

        fn check(&self) {
            let held: Vec<u32> = self.tables.tables.iter().flatten().copied().filter(|it| *it != FORGOTTEN).collect();
            for page in 0..self.tables.count() as u32 {
                let of = held.iter().filter(|it| **it == page).count();
                assert_eq!(self.tables.holders[page as usize], of);
                let free = self.tables.free.iter().filter(|it| **it == page).count();
                assert_eq!(free, usize::from(of == 0), "a page is somebody's, or free once");
            }
            for (text, table) in self.texts.iter().zip(&self.tables.tables) {
                assert_eq!(table.len(), text.0.len().div_ceil(PAGE));
                for token in self.tables.first_seen(text.0.len())..text.0.len() {
                    assert_eq!(self.memory[&table[token / PAGE]][token % PAGE], text.0[token]);
                }
            }
        }
    }

    proptest! {
        #[test]
        fn sequences_find_what_they_wrote_and_all_pages_come_back(
            window in prop::option::of(1usize..200),
            steps in prop::collection::vec((0u8..8, 0usize..8, 1usize..150), 1..60),
        ) {
            let tables = PageTables::new(window, 2);
            let mut world = World { tables, texts: vec![Text::default(); 2], memory: HashMap::new(), written: 0 };
            for (what, which, number) in steps {
                let count = world.texts.len();
                match what {
                    0..4 if count > 0 => world.begin(which % count, number),
                    4 => {
                        world.tables.admit();
                        world.texts.push(Text::default());
                    }
                    5 => {
                        let keep: Vec<bool> = (0..count).map(|it| it != which).collect();
                        world.tables.retain(&keep);
                        let mut keep = keep.into_iter();
                        world.texts.retain(|_| keep.next().unwrap());
                    }
                    6 if count > 0 => {
                        let of = [which % count, number % count, which % count];
                        world.tables.fork(&of);
                        world.texts = of.map(|it| world.texts[it].clone()).to_vec();
                    }
                    7 if count > 0 => {
                        let sequence = which % count;
                        let length = world.texts[sequence].0.len().saturating_sub(number);
                        if world.tables.reaches_back(sequence, length) {
                            world.tables.truncate(sequence, length);
                            world.texts[sequence].0.truncate(length);
                        } else {
                            prop_assert!(window.is_some());
                        }
                    }
                    _ => {}
                }
                world.check();
            }
            world.tables.retain(&vec![false; world.texts.len()]);
            prop_assert_eq!(world.tables.free.len(), world.tables.count());
        }
    }

    #[test]
    fn pages_of_those_that_ended_are_given_to_the_next() {
        let mut it = PageTables::new(None, 3);
        (0..3).for_each(|sequence| assert_eq!(it.begin(sequence, 0, 2 * PAGE), None));
        it.retain(&[true, false, true]);
        it.admit();
        it.begin(2, 0, PAGE + 1);
        assert_eq!(it.count(), 6, "no page was added");
        it.begin(2, PAGE + 1, PAGE);
        assert_eq!(it.count(), 7);
    }

    #[test]
    fn a_window_holds_little_more_than_itself() {
        let mut it = PageTables::new(Some(2 * PAGE), 1);
        for length in 0..100 * PAGE {
            it.begin(0, length, 1);
        }
        // The window's pages, one that it has left in part, and one that it enters.
        assert_eq!(it.count(), 3);
    }

    #[test]
    fn those_that_begin_alike_share_all_but_the_page_that_they_go_on_in() {
        let mut it = PageTables::new(None, 1);
        it.begin(0, 0, 3 * PAGE + 1);
        it.fork(&[0, 0, 0]);
        assert_eq!(it.count(), 4);
        let copied: Vec<_> = (0..3).map(|sequence| it.begin(sequence, 3 * PAGE + 1, 2)).collect();
        assert_eq!(copied, [Some((3, 4)), Some((3, 5)), None], "the last has it for itself");
        assert_eq!((it.of(0), it.of(1), it.of(2)), (&[0, 1, 2, 4][..], &[0, 1, 2, 5][..], &[0, 1, 2, 3][..]));
        // At the beginning of a page nothing has to be copied.
        let mut it = PageTables::new(None, 1);
        it.begin(0, 0, PAGE);
        it.fork(&[0, 0]);
        assert_eq!([0, 1].map(|sequence| it.begin(sequence, PAGE, 1)), [None, None]);
        assert_eq!((it.of(0), it.of(1)), (&[0, 1][..], &[0, 2][..]));
    }
}
