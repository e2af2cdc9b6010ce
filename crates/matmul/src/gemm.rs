//! The blocked product: the left operand is packed once per block and shared, the right one a strip at a time by the
//! thread that uses it.
//!
//! Sums over k run in an order that the shape fixes: blocks of k in sequence, each summed by a tile kernel. Threads
//! divide the output only, so the grid of work may follow the number of threads without touching a bit of the result.

use rayon::prelude::*;

use crate::buffers::with_buffers;
use crate::kernels::{Epilogue, Kernel, Target, Tile};
use crate::pack::{Panels, Side, Span};
use crate::product::{Out, Product};

/// Words of a packed block of the left operand: 4 MiB, shared by all threads.
const BLOCK_WORDS: usize = 1 << 20;
/// Word rows of k that a packed block of the left operand covers at most.
const DEEP_WORDS: usize = 2048;
/// Word rows of k that a tile kernel sums at once: a panel of the right operand then stays in a near cache.
const TILE_WORDS: usize = 384;
/// Columns of a strip where packing several panels together pays.
const WIDE_STRIP: usize = 64;
/// Columns of a block of f32 sums for outputs that cannot hold partial sums.
const SUM_COLS: usize = 2048;
/// Below this many multiplications a product stays on one thread.
const SMALL: usize = 1 << 15;

/// The part of the output and of k that one pass computes.
#[derive(Clone, Copy)]
struct Region {
    rows: (usize, usize),
    cols: (usize, usize),
    k: Span,
}

struct Job<'a> {
    kernel: &'static Kernel,
    a: Side<'a>,
    b: Side<'a>,
}

pub(crate) fn run(kernel: &'static Kernel, p: &Product<'_>, out: Out<'_>) {
    let ((m, k), n) = (p.a.dims(), p.b.dims().1);
    let job = Job { kernel, a: Side::left(kernel, &p.a), b: Side::right(kernel, &p.b) };
    let epilogue = Epilogue { alpha: p.alpha, bias: p.bias, accumulate: p.accumulate };
    let target = Target::new(out, n);
    let depth = DEEP_WORDS * k.max(1) / kernel.operands.words(k).max(1);
    // A multiple of the lanes, so that blocks do not cut panels.
    let rows = (BLOCK_WORDS / kernel.operands.words(k.min(depth)).max(1)).min(4096) / kernel.mr * kernel.mr;
    for r0 in (0..m).step_by(rows) {
        let rows = (r0, m.min(r0 + rows));
        if k <= depth || target.is_f32() {
            deep(&job, Region { rows, cols: (0, n), k: Span { start: 0, len: k } }, depth, (&target, &epilogue));
            continue;
        }
        // Partial sums do not survive in 16 bits, so they wait in f32.
        with_buffers(|buffers| {
            for c0 in (0..n).step_by(SUM_COLS) {
                let cols = (c0, n.min(c0 + SUM_COLS));
                let width = cols.1 - c0;
                let sums = buffers.tiles.floats((rows.1 - r0) * width);
                let wide = Region { rows, cols, k: Span { start: 0, len: k } };
                let plain = Epilogue { alpha: 1.0, bias: None, accumulate: false };
                let partial = Target::new(Out::F32(sums), width).shifted(rows.0, cols.0);
                deep(&job, wide, depth, (&partial, &plain));
                kernel.isa.store(&target, Tile { sums, stride: width, rows, cols }, &epilogue);
            }
        });
    }
}

/// Runs a region whose k may exceed what a packed block covers: later passes add to the first.
fn deep(job: &Job<'_>, region: Region, depth: usize, (target, epilogue): (&Target<'_>, &Epilogue<'_>)) {
    let end = region.k.start + region.k.len;
    let mut start = region.k.start;
    let mut epilogue = *epilogue;
    loop {
        let len = depth.min(end - start);
        pass(job, Region { k: Span { start, len }, ..region }, target, &epilogue);
        start += len;
        if start >= end {
            return;
        }
        epilogue = Epilogue { alpha: epilogue.alpha, bias: None, accumulate: true };
    }
}

/// Packs the left operand of a region, then computes its tiles.
fn pass(job: &Job<'_>, region: Region, target: &Target<'_>, epilogue: &Epilogue<'_>) {
    let (kernel, spans) = (job.kernel, spans(job.kernel, region.k));
    let ((r0, r1), (c0, c1)) = (region.rows, region.cols);
    let panels = (r1 - r0).div_ceil(kernel.mr);
    let panel_words = spans.iter().map(|s| kernel.operands.words(s.len)).sum::<usize>() * kernel.mr;
    let small = (r1 - r0) * (c1 - c0) * region.k.len <= SMALL;
    with_buffers(|buffers| {
        let packed = buffers.panels.words(panels * panel_words);
        // Where lanes are columns, neighbouring panels share the pieces of rows that are read.
        let together = if job.a.packs_across_panels() { WIDE_STRIP.div_ceil(kernel.mr) } else { 1 };
        let pack = |(i, words): (usize, &mut [u32])| {
            with_buffers(|own| {
                let (mut before, count) = (0, words.len() / panel_words);
                for span in &spans {
                    let mut out = Panels { words: &mut words[before * kernel.mr..], stride: panel_words, count };
                    job.a.pack(r0 + i * together * kernel.mr, *span, &mut out, &mut own.pieces);
                    before += kernel.operands.words(span.len);
                }
            });
        };
        let chunk = (panel_words * together).max(1);
        if small {
            packed.chunks_mut(chunk).enumerate().for_each(pack);
        } else {
            packed.par_chunks_mut(chunk).enumerate().for_each(pack);
        }
        let grid = Grid::new(job, panels, c1 - c0);
        let shared = Shared { job, region, spans: &spans, packed, panel_words, target, epilogue };
        let work = |i: usize| shared.strip(grid.cell(i, panels, (c0, c1)));
        if small {
            (0..grid.cells()).for_each(work);
        } else {
            (0..grid.cells()).into_par_iter().with_max_len(1).for_each(work);
        }
    });
}

/// Even pieces of a range of k, each at most what a tile kernel sums at once; at least one, though it be empty.
fn spans(kernel: &Kernel, k: Span) -> Vec<Span> {
    let words = kernel.operands.words(k.len);
    let count = words.div_ceil(TILE_WORDS).max(1);
    let each = words.div_ceil(count).max(1) * if words < k.len { 2 } else { 1 };
    let spans = (0..count).map(|i| {
        let start = (i * each).min(k.len);
        Span { start: k.start + start, len: each.min(k.len - start) }
    });
    spans.collect()
}

/// How the tiles of a pass are dealt out: strips of columns, cut into groups of panels where strips are too few to
/// keep every thread busy.
struct Grid {
    strip_cols: usize,
    strips: usize,
    groups: usize,
}

struct Cell {
    cols: (usize, usize),
    panels: (usize, usize),
}

impl Grid {
    fn new(job: &Job<'_>, panels: usize, cols: usize) -> Self {
        let nr = job.kernel.nr;
        let strip_cols = if job.b.packs_across_panels() { WIDE_STRIP.max(nr) / nr * nr } else { nr };
        let strips = cols.div_ceil(strip_cols);
        let wanted = 8 * rayon::current_num_threads();
        let groups = wanted.div_ceil(strips).min(panels.div_ceil(8)).max(1);
        Self { strip_cols, strips, groups }
    }

    fn cells(&self) -> usize {
        self.strips * self.groups
    }

    fn cell(&self, i: usize, panels: usize, (c0, c1): (usize, usize)) -> Cell {
        let (strip, group) = (i / self.groups, i % self.groups);
        let start = c0 + strip * self.strip_cols;
        Cell {
            cols: (start, c1.min(start + self.strip_cols)),
            panels: (panels * group / self.groups, panels * (group + 1) / self.groups),
        }
    }
}

/// What the cells of a pass share.
struct Shared<'a> {
    job: &'a Job<'a>,
    region: Region,
    spans: &'a [Span],
    packed: &'a [u32],
    panel_words: usize,
    target: &'a Target<'a>,
    epilogue: &'a Epilogue<'a>,
}

impl Shared<'_> {
    /// Computes one cell: packs its strip of the right operand span by span, and runs every panel against it.
    fn strip(&self, cell: Cell) {
        let Kernel { mr, nr, operands, .. } = *self.job.kernel;
        let ((c0, c1), (p0, p1)) = (cell.cols, cell.panels);
        let columns = (c1 - c0).div_ceil(nr);
        with_buffers(|own| {
            let many = self.spans.len() > 1;
            // With one span a tile leaves as soon as it is summed; with several all tiles of the cell wait.
            let tiles = own.tiles.floats(if many { (p1 - p0) * columns * mr * nr } else { mr * nr });
            let mut before = 0;
            for (s, span) in self.spans.iter().enumerate() {
                let words = operands.words(span.len);
                let strip = own.panels.words(columns * words * nr);
                let mut out = Panels { words: &mut *strip, stride: words * nr, count: columns };
                self.job.b.pack(c0, *span, &mut out, &mut own.pieces);
                for column in 0..columns {
                    let b = &strip[column * words * nr..][..words * nr];
                    for p in p0..p1 {
                        let a = &self.packed[p * self.panel_words + before * mr..][..words * mr];
                        let slot = if many { (column * (p1 - p0) + p - p0) * mr * nr } else { 0 };
                        let tile = &mut tiles[slot..slot + mr * nr];
                        self.job.kernel.multiply(words, a, b, tile, s > 0);
                        if s + 1 == self.spans.len() {
                            self.store(tile, p, c0 + column * nr, c1);
                        }
                    }
                }
                before += words;
            }
        });
    }

    fn store(&self, sums: &[f32], panel: usize, c0: usize, c1: usize) {
        let Kernel { mr, nr, .. } = *self.job.kernel;
        let r0 = self.region.rows.0 + panel * mr;
        let rows = (r0, self.region.rows.1.min(r0 + mr));
        let tile = Tile { sums, stride: nr, rows, cols: (c0, c1.min(c0 + nr)) };
        self.job.kernel.isa.store(self.target, tile, self.epilogue);
    }
}
