use crate::{ModelConfig, Result, page_tables::PageTables};
use halfbyte_autograd::Result as OpResult;
use halfbyte_ops::{
    Layout,
    attention::{AttentionShape, attend_cached},
    kv_pages::{KvPages, append_rows},
    rope::{RopeTable, rope_into_cache},
};
use halfbyte_tensor::{DType, Device, Tensor};

/// Keys and values of the tokens that several sequences have seen so far, for generation.
///
/// They lie in pages of a fixed number of tokens, of which a sequence has as many as it needs, one in part: pages of sequences that ended
/// are given to others, and what a page holds never moves. Sequences that begin alike share pages. Layers with a window let go of those
/// that no later token sees: they hold little more than the window, however long the text.
#[derive(Debug)]
pub struct KvCache {
    /// Of every layer, which of the reaches it belongs to, and the how manieth there it is.
    layers: Vec<(usize, usize)>,
    reaches: Vec<Reach>,
    /// Tokens of every sequence.
    lengths: Vec<usize>,
    /// Tokens of every sequence that the pass under way adds, and whether all layers have taken them in.
    new: Vec<usize>,
    taken: bool,
    channels: usize,
    compute: DType,
    /// Tokens of the longest text under way.
    longest: usize,
}

/// The layers that see as far back have the same pages.
#[derive(Debug)]
struct Reach {
    tables: PageTables,
    pages: KvPages,
    /// The pass under way, with this reach's pages.
    layout: Option<Layout>,
}

impl KvCache {
    /// An empty cache of so many sequences (more may be [admitted](Self::admit)), for a model whose activations will have dtype `compute`.
    pub fn new(config: &ModelConfig, compute: DType, sequences: usize) -> KvCache {
        let (windows, channels) = (config.windows(), config.num_key_value_heads * config.head_dim);
        let mut found: Vec<(Option<usize>, usize)> = Vec::new();
        let mut layers = Vec::with_capacity(windows.len());
        for window in windows {
            let reach = found.iter().position(|it| it.0 == window).unwrap_or_else(|| {
                found.push((window, 0));
                found.len() - 1
            });
            layers.push((reach, found[reach].1));
            found[reach].1 += 1;
        }
        let reach = |(window, layers)| Reach {
            tables: PageTables::new(window, sequences),
            pages: KvPages::new(layers, channels),
            layout: None,
        };
        let reaches = found.into_iter().map(reach).collect();
        let (lengths, new) = (vec![0; sequences], vec![0; sequences]);
        KvCache { layers, reaches, lengths, new, taken: false, channels, compute, longest: 0 }
    }

    /// Says how long the longest text under way is, of which the next passes may bring a part only: rotations may depend on it.
    pub fn announce(&mut self, longest: usize) {
        self.longest = longest;
    }

    /// What was announced last.
    pub fn longest(&self) -> usize {
        self.longest
    }

    /// The tokens of every sequence, those included that layers with a window forgot.
    pub fn lengths(&self) -> &[usize] {
        &self.lengths
    }

    /// Dtype of keys, values and activations.
    pub fn compute(&self) -> DType {
        self.compute
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.reaches.iter().map(|it| it.pages.bytes()).sum()
    }

    /// Makes room for `new` more tokens of every sequence, and gives the layout of the pass that brings them: the sequences
    /// that have new tokens, in their order.
    ///
    /// Fails if no sequence has any.
    pub fn begin(&mut self, new: &[usize]) -> Result<Layout> {
        assert_eq!(new.len(), self.lengths.len(), "a count of new tokens for every sequence");
        for reach in &mut self.reaches {
            reach.begin(&self.lengths, new)?;
        }
        (self.new, self.taken) = (new.to_vec(), false);
        Ok(self.reaches[0].layout.clone().expect("it began above"))
    }

    /// Where the pages are; nowhere, before the first ones come with the first keys.
    pub(crate) fn device(&self) -> Option<Device> {
        self.reaches.first()?.pages.device()
    }

    /// Sends what a pass that has begun needs to know of its pages to their device now, not when it is first needed there.
    pub(crate) fn send(&mut self, device: &Device) -> Result<()> {
        for Reach { tables, pages, layout } in &mut self.reaches {
            let layout = layout.as_ref().expect("a pass over a cache begins with `begin`");
            pages.grow_on(tables.count());
            layout.send_with(device, pages, tables.window())?;
        }
        Ok(())
    }

    /// Has the pass that has begun be gone through from its beginning, also where it was gone through before.
    pub(crate) fn rewind(&mut self) {
        if std::mem::take(&mut self.taken) {
            self.lengths.iter_mut().zip(&self.new).for_each(|(it, new)| *it -= new);
        }
    }

    /// Adds a sequence that has no token yet, behind the others.
    pub fn admit(&mut self) {
        self.lengths.push(0);
        self.new.push(0);
        self.reaches.iter_mut().for_each(|it| it.tables.admit());
    }

    /// Keeps the sequences that are marked, in their order.
    pub fn retain(&mut self, keep: &[bool]) {
        retain(&mut self.lengths, keep);
        retain(&mut self.new, keep);
        self.reaches.iter_mut().for_each(|it| it.tables.retain(keep));
    }

    /// Forgets the tokens of every sequence beyond `length`, and tells whether that could be done: what a layer with a window has
    /// forgotten before does not come back.
    pub fn truncate(&mut self, length: usize) -> bool {
        let left: Vec<usize> = self.lengths.iter().map(|it| length.min(*it)).collect();
        let sees_enough = |it: &Reach| left.iter().enumerate().all(|(i, left)| it.tables.reaches_back(i, *left));
        if !self.reaches.iter().all(sees_enough) {
            return false;
        }
        for reach in &mut self.reaches {
            left.iter().enumerate().for_each(|(i, left)| reach.tables.truncate(i, *left));
        }
        self.lengths = left;
        true
    }

    /// The cache whose sequences go on from the named ones of this, each as often as it is named. What they have in common is held once, but
    /// for a page in which they go on.
    #[must_use]
    pub fn fork(mut self, of: &[usize]) -> KvCache {
        self.reaches.iter_mut().for_each(|it| it.tables.fork(of));
        let lengths = of.iter().map(|it| self.lengths[*it]).collect();
        KvCache { lengths, new: vec![0; of.len()], ..self }
    }

    /// Attention of a layer's new tokens, whose keys and values join those held; queries and keys are `turned` by a table to the positions
    /// of a layout, if there is one.
    pub(crate) fn attention(
        &mut self,
        [q, k, v]: [&Tensor; 3],
        (shape, sinks): (AttentionShape, Option<&Tensor>),
        (layer, turned): (usize, Option<(&RopeTable, &Layout)>),
    ) -> OpResult<Tensor> {
        let (reach, layer) = self.layers[layer];
        let Reach { tables, pages, layout } = &mut self.reaches[reach];
        assert_eq!((shape.window, k.cols()), (tables.window(), self.channels), "the cache is this model's");
        let layout = layout.as_ref().expect("a pass over a cache begins with `begin`");
        pages.grow(k, tables.count());
        let rotated = match turned {
            Some((table, positions)) => {
                let table = (table, shape.head_dim);
                Some(rope_into_cache((pages, layer), [q, k, v], table, (positions, layout))?)
            }
            None => {
                append_rows((pages, layer), [k, v], layout)?;
                None
            }
        };
        attend_cached(rotated.as_ref().unwrap_or(q), (pages, layer), (shape, sinks), layout)
    }

    /// Counts so many tokens of every sequence that no pass brought, with the pages that they would have: for a rehearsal, behind a pass.
    pub(crate) fn skip(&mut self, tokens: usize) {
        for _ in 0..tokens {
            for Reach { tables, pages, .. } in &mut self.reaches {
                for (sequence, length) in self.lengths.iter().enumerate() {
                    tables.begin(sequence, *length, 1);
                }
                pages.grow_on(tables.count());
            }
            self.lengths.iter_mut().for_each(|it| *it += 1);
        }
    }

    /// Counts the tokens that all layers have taken in.
    pub(crate) fn advance(&mut self) {
        self.lengths.iter_mut().zip(&self.new).for_each(|(it, new)| *it += new);
        self.taken = true;
    }
}

impl Reach {
    fn begin(&mut self, lengths: &[usize], new: &[usize]) -> Result<()> {
        let with_new = || lengths.iter().zip(new).enumerate().filter(|it| *it.1.1 > 0);
        let copied: Vec<_> = with_new().filter_map(|(i, (length, new))| self.tables.begin(i, *length, *new)).collect();
        if !copied.is_empty() {
            self.pages.grow_on(self.tables.count());
        }
        copied.into_iter().try_for_each(|(from, to)| self.pages.copy(from, to))?;
        let all: Vec<_> = with_new().map(|(i, (length, new))| (*new, *length, self.tables.of(i))).collect();
        self.layout = Some(Layout::resumed(&all)?);
        Ok(())
    }
}

fn retain<T>(all: &mut Vec<T>, keep: &[bool]) {
    assert_eq!(all.len(), keep.len(), "a mark for every sequence");
    let mut keep = keep.iter();
    all.retain(|_| keep.next().is_some_and(|it| *it));
}
