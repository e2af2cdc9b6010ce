use crate::{ModelConfig, Result};
use halfbyte_autograd::Result as OpResult;
use halfbyte_ops::{
    Layout,
    attention::{AttentionShape, attend_cached_with_sinks},
    kv_rows::{Move, append_rows, move_rows},
    rope::{RopeTable, rope_into_cache},
};
use halfbyte_tensor::{DType, Tensor};

/// Keys and values of the tokens that several sequences have seen so far, for generation.
///
/// A sequence has a region of rows in the buffers of every layer. Layers with a window forget what no later token sees, whenever
/// a region is full: it holds little more than the window, however long the text.
#[derive(Debug)]
pub struct KvCache {
    layers: Vec<Layer>,
    reaches: Vec<Reach>,
    /// Tokens of every sequence.
    lengths: Vec<usize>,
    /// Tokens of every sequence that the pass under way adds.
    new: Vec<usize>,
    channels: usize,
    compute: DType,
    /// Tokens of the longest text under way.
    longest: usize,
}

/// A layer's buffers `(rows, channels)` of keys and values, made when the first ones come and tell on which device.
#[derive(Debug, Default)]
struct Layer {
    reach: usize,
    rows: Option<[Tensor; 2]>,
    /// How many arrangements of the regions these buffers have seen.
    arranged: usize,
}

/// The layers that see as far back share where their rows are.
#[derive(Debug)]
struct Reach {
    window: Option<usize>,
    regions: Vec<Region>,
    /// Rows of all regions.
    rows: usize,
    arranged: usize,
    /// What the last arrangement moved.
    moves: Vec<Move>,
    /// The pass under way, as this reach's attention sees it: a forgotten token does not count as past.
    layout: Option<Layout>,
}

/// Rows of a sequence.
#[derive(Clone, Copy, Debug, Default)]
struct Region {
    first: usize,
    capacity: usize,
    count: usize,
}

/// Rows that a region has in reserve at least, so that rows do not move with every token.
const SPARE: usize = 64;

impl KvCache {
    /// An empty cache of so many sequences (more may be [admitted](Self::admit)), for a model whose activations will have dtype `compute`.
    pub fn new(config: &ModelConfig, compute: DType, sequences: usize) -> KvCache {
        let windows = config.windows();
        let mut reaches: Vec<Reach> = Vec::new();
        let mut layers = Vec::with_capacity(windows.len());
        for window in windows {
            let known = reaches.iter().position(|it| it.window == window);
            layers.push(Layer { reach: known.unwrap_or(reaches.len()), ..Layer::default() });
            if known.is_none() {
                reaches.push(Reach::new(window, vec![Region::default(); sequences]));
            }
        }
        let channels = config.num_key_value_heads * config.head_dim;
        let (lengths, new) = (vec![0; sequences], vec![0; sequences]);
        KvCache { layers, reaches, lengths, new, channels, compute, longest: 0 }
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
        self.layers.iter().flat_map(|it| it.rows.iter().flatten()).map(Tensor::bytes).sum()
    }

    /// Makes room for `new` more tokens of every sequence, and gives the layout of the pass that brings them: the sequences
    /// that have new tokens, in their order.
    ///
    /// Fails if no sequence has any.
    pub fn begin(&mut self, new: &[usize]) -> Result<Layout> {
        assert_eq!(new.len(), self.lengths.len(), "a count of new tokens for every sequence");
        for reach in &mut self.reaches {
            reach.begin(new)?;
        }
        self.new = new.to_vec();
        let first = &self.reaches[0];
        if let Some(same) =
            first.layout.as_ref().filter(|_| first.regions.iter().map(|it| it.count).eq(self.lengths.iter().copied()))
        {
            // Nothing was forgotten. What is the same goes to a device once.
            return Ok(same.clone());
        }
        let pasts = self.lengths.iter().copied().zip(first.regions.iter().map(|it| it.first));
        Ok(layout(new, pasts)?)
    }

    /// Adds a sequence that has no token yet, behind the others.
    pub fn admit(&mut self) {
        self.lengths.push(0);
        self.new.push(0);
        self.reaches.iter_mut().for_each(|it| it.regions.push(Region::default()));
    }

    /// Keeps the sequences that are marked, in their order.
    pub fn retain(&mut self, keep: &[bool]) {
        retain(&mut self.lengths, keep);
        retain(&mut self.new, keep);
        self.reaches.iter_mut().for_each(|it| retain(&mut it.regions, keep));
    }

    /// Forgets the tokens of every sequence beyond `length`, and tells whether that could be done: what a layer with a window has
    /// forgotten before does not come back.
    pub fn truncate(&mut self, length: usize) -> bool {
        let gone = |all: usize| all.saturating_sub(length);
        let sees_enough = |it: &Reach| {
            it.regions.iter().zip(&self.lengths).all(|(region, all)| {
                let seen = it.window.map_or(length, |window| length.min(window - 1)).min(*all);
                region.count >= gone(*all) + seen
            })
        };
        if !self.reaches.iter().all(sees_enough) {
            return false;
        }
        for reach in &mut self.reaches {
            reach.regions.iter_mut().zip(&self.lengths).for_each(|(it, all)| it.count -= gone(*all));
        }
        self.lengths.iter_mut().for_each(|it| *it = length.min(*it));
        true
    }

    /// A cache whose sequences go on from the named ones of this, each as often as it is named.
    ///
    /// Fails if a GPU has no memory left.
    pub fn fork(&self, of: &[usize]) -> Result<KvCache> {
        let mut reaches = Vec::with_capacity(self.reaches.len());
        for from in &self.reaches {
            let mut reach = Reach::new(from.window, of.iter().map(|it| from.regions[*it]).collect());
            reach.arrange(&vec![0; of.len()]);
            reaches.push(reach);
        }
        let lengths: Vec<usize> = of.iter().map(|it| self.lengths[*it]).collect();
        let mut layers = Vec::with_capacity(self.layers.len());
        for from in &self.layers {
            let mut layer = Layer { reach: from.reach, rows: from.rows.clone(), arranged: 0 };
            if let Some([like, _]) = &from.rows {
                layer.settle(&reaches[from.reach], like)?;
            }
            layers.push(layer);
        }
        let (new, channels) = (vec![0; of.len()], self.channels);
        Ok(KvCache { layers, reaches, new, lengths, channels, compute: self.compute, longest: self.longest })
    }

    /// Attention of a layer's new tokens, whose keys and values join those held; queries and keys are `turned` by a table to the positions
    /// of a layout, if there is one.
    pub(crate) fn attention(
        &mut self,
        [q, k, v]: [&Tensor; 3],
        (shape, sinks): (AttentionShape, Option<&Tensor>),
        (layer, turned): (usize, Option<(&RopeTable, &Layout)>),
    ) -> OpResult<Tensor> {
        let layer = &mut self.layers[layer];
        let reach = &self.reaches[layer.reach];
        assert_eq!((shape.window, k.cols()), (reach.window, self.channels), "the cache is this model's");
        let layout = reach.layout.as_ref().expect("a pass over a cache begins with `begin`");
        let [keys, values] = layer.settle(reach, k)?;
        let rotated = match turned {
            Some((table, positions)) => {
                let table = (table, shape.head_dim);
                Some(rope_into_cache([keys, values], [q, k, v], table, (positions, layout))?)
            }
            None => {
                append_rows([keys, values], [k, v], layout)?;
                None
            }
        };
        attend_cached_with_sinks(rotated.as_ref().unwrap_or(q), [keys, values], (shape, sinks), layout)
    }

    /// Counts tokens that no pass brought, up to the next length at which buffers grow, but not more than `most`: for a rehearsal.
    pub(crate) fn skip(&mut self, most: usize) {
        let room = |it: &Region| it.capacity - it.count;
        // Buffers of layers with a window grow no more, so those of others say how far it is, where there are some.
        let unbounded = self.reaches.iter().filter(|it| it.window.is_none());
        let reaches: Vec<&Reach> =
            if unbounded.clone().next().is_some() { unbounded.collect() } else { self.reaches.iter().collect() };
        let by = reaches.iter().flat_map(|it| &it.regions).map(room).min().unwrap_or(0).min(most);
        self.lengths.iter_mut().for_each(|it| *it += by);
        let regions = self.reaches.iter_mut().flat_map(|it| &mut it.regions);
        regions.for_each(|it| it.count = (it.count + by).min(it.capacity));
    }

    /// Counts the tokens that all layers have taken in.
    pub(crate) fn advance(&mut self) {
        for reach in &mut self.reaches {
            reach.regions.iter_mut().zip(&self.new).for_each(|(it, new)| it.count += new);
            reach.layout = None;
        }
        self.lengths.iter_mut().zip(&mut self.new).for_each(|(it, new)| *it += std::mem::take(new));
    }
}

impl Layer {
    /// The buffers as the reach's regions have them now, on the device of `like`.
    fn settle(&mut self, reach: &Reach, like: &Tensor) -> OpResult<&mut [Tensor; 2]> {
        if self.rows.is_none() || self.arranged != reach.arranged {
            let shape = [reach.rows, like.cols()];
            let empty = || Tensor::zeros_on(&like.device(), &shape, like.dtype());
            let mut fresh = [empty(), empty()];
            for (into, from) in fresh.iter_mut().zip(self.rows.iter().flatten()) {
                move_rows(into, from, &reach.moves)?;
            }
            (self.rows, self.arranged) = (Some(fresh), reach.arranged);
        }
        Ok(self.rows.as_mut().expect("they were made above"))
    }
}

impl Reach {
    fn new(window: Option<usize>, regions: Vec<Region>) -> Reach {
        Reach { window, regions, rows: 0, arranged: 0, moves: Vec::new(), layout: None }
    }

    fn begin(&mut self, new: &[usize]) -> Result<()> {
        if self.regions.iter().zip(new).any(|(it, new)| it.count + new > it.capacity) {
            self.arrange(new);
        }
        self.layout = Some(layout(new, self.regions.iter().map(|it| (it.count, it.first)))?);
        Ok(())
    }

    /// Gives every sequence a region for the rows that are still seen and so many new ones.
    fn arrange(&mut self, new: &[usize]) {
        self.moves.clear();
        self.rows = 0;
        for (it, new) in self.regions.iter_mut().zip(new) {
            // The next token sees itself and the window's rest.
            let count = self.window.map_or(it.count, |window| it.count.min(window - 1));
            let capacity = match self.window {
                None => (count + new).next_power_of_two().max(SPARE),
                Some(window) => count + new + SPARE.max(window / 4),
            };
            let end = it.first + it.count;
            self.moves.push(Move { from: end - count..end, to: self.rows });
            *it = Region { first: self.rows, capacity, count };
            self.rows += capacity;
        }
        self.arranged += 1;
    }
}

/// Of the sequences with new tokens; `pasts` gives for each the tokens before and the row of the first.
fn layout(new: &[usize], pasts: impl Iterator<Item = (usize, usize)>) -> halfbyte_tensor::Result<Layout> {
    let all = new.iter().zip(pasts).filter(|it| *it.0 > 0);
    Layout::resumed(&all.map(|(new, (past, first))| (*new, past, first)).collect::<Vec<_>>())
}

fn retain<T>(all: &mut Vec<T>, keep: &[bool]) {
    assert_eq!(all.len(), keep.len(), "a mark for every sequence");
    let mut keep = keep.iter();
    all.retain(|_| keep.next().is_some_and(|it| *it));
}
