//! The blocked product: the left operand is packed once per block and shared, the right one a strip at a time by the
//! thread that uses it.
//!
//! Sums over k run in an order that the shapes fix: pieces of k in sequence, term by term, each summed by a tile kernel. Threads
//! divide the output only, so the grid of work may follow the number of threads without touching a bit of the result.

use crate::buffers::{Pieces, with_buffers};
use crate::fork;
use crate::kernels::words::Words;
use crate::kernels::{Corner, Epilogue, Kernel, Target, Tile};
use crate::pack::{Panels, Side, Span};
use crate::packed::PackedLeft;
use crate::product::{Operand, Out, Product};

/// Words of a packed block of the left operand: 4 MiB, shared by all threads.
const BLOCK_WORDS: usize = 1 << 20;
/// Word rows of k that a packed block of the left operand covers at most.
const DEEP_WORDS: usize = 2048;
/// Columns of a strip where packing several panels together pays.
const WIDE_STRIP: usize = 192;
/// Columns of a block of f32 sums for outputs that cannot hold partial sums.
const SUM_COLS: usize = 2048;
/// Below this many multiplications a product stays on one thread.
pub(crate) const SMALL: usize = 1 << 15;
/// Up to this many multiplications of a cell stay together: some ten microseconds. Tests want to see cells split.
const ALONE: usize = if cfg!(test) { 1 << 14 } else { 3 << 20 };

/// The panels of one piece of the left operand, `stride` words apart.
struct Left<'a> {
    words: &'a [u32],
    stride: usize,
}

/// The part of the output that one pass computes.
#[derive(Clone, Copy)]
struct Region {
    rows: (usize, usize),
    cols: (usize, usize),
}

/// The two operands of one product of a sum.
struct Sides<'a> {
    a: Side<'a>,
    b: Side<'a>,
    /// Panels of `a` that are there already.
    packed: Option<&'a PackedLeft>,
}

struct Job<'a> {
    kernel: &'static Kernel,
    terms: Vec<Sides<'a>>,
}

/// A range of one term's k that a tile kernel sums at once.
#[derive(Clone, Copy)]
struct Piece {
    term: usize,
    span: Span,
}

pub(crate) fn run<'a>(kernel: &'static Kernel, p: &Product<'a>, out: Out<'_>) {
    let (m, n) = (p.a.dims().0, p.b.dims().1);
    let sides = |(a, b): (&Operand<'a>, &Operand<'a>)| Sides {
        a: Side::left(kernel, a),
        b: Side::right(kernel, b),
        packed: a.packed.filter(|it| it.is_for(kernel)),
    };
    let job = Job { kernel, terms: p.terms().map(sides).collect() };
    let epilogue = Epilogue { alpha: p.alpha, bias: p.bias, accumulate: p.accumulate };
    let target = Target::new(out, n);
    let pieces: Vec<Piece> = p
        .terms()
        .enumerate()
        .flat_map(|(term, (a, _))| spans(kernel, a.dims().1).map(move |span| Piece { term, span }))
        .collect();
    let passes = passes(kernel, &pieces);
    let deepest = passes.iter().map(|it| words(kernel, it)).max().unwrap_or(0);
    // A multiple of the lanes, so that blocks do not cut panels.
    let rows = (BLOCK_WORDS / deepest.max(1)).min(4096) / kernel.mr * kernel.mr;
    for r0 in (0..m).step_by(rows) {
        let rows = (r0, m.min(r0 + rows));
        if passes.len() == 1 || target.is_f32() {
            deep(&job, Region { rows, cols: (0, n) }, &passes, (&target, &epilogue));
            continue;
        }
        // Partial sums do not survive in 16 bits, so they wait in f32.
        with_buffers(|buffers| {
            for c0 in (0..n).step_by(SUM_COLS) {
                let cols = (c0, n.min(c0 + SUM_COLS));
                let width = cols.1 - c0;
                let sums = buffers.tiles.floats((rows.1 - r0) * width);
                let plain = Epilogue { alpha: 1.0, bias: None, accumulate: false };
                let partial = Target::new(Out::F32(sums), width).shifted(rows.0, cols.0);
                deep(&job, Region { rows, cols }, &passes, (&partial, &plain));
                kernel.isa.store(&target, Tile { sums, stride: width, rows, cols }, &epilogue);
            }
        });
    }
}

/// Runs all passes over a region: later ones add to the first.
fn deep(job: &Job<'_>, region: Region, passes: &[&[Piece]], (target, epilogue): (&Target<'_>, &Epilogue<'_>)) {
    let mut epilogue = *epilogue;
    for pieces in passes {
        pass(job, region, pieces, (target, &epilogue));
        epilogue = Epilogue { alpha: epilogue.alpha, bias: None, accumulate: true };
    }
}

/// Packs the left operands of a region, then computes its tiles.
fn pass(job: &Job<'_>, region: Region, pieces: &[Piece], (target, epilogue): (&Target<'_>, &Epilogue<'_>)) {
    let kernel = job.kernel;
    let ((r0, r1), (c0, c1)) = (region.rows, region.cols);
    let panels = (r1 - r0).div_ceil(kernel.mr);
    let unpacked: Vec<Piece> = pieces.iter().copied().filter(|it| job.terms[it.term].packed.is_none()).collect();
    let panel_words = words(kernel, &unpacked) * kernel.mr;
    let small = (r1 - r0) * (c1 - c0) * pieces.iter().map(|it| it.span.len).sum::<usize>() <= SMALL;
    with_buffers(|buffers| {
        let packed = buffers.panels.words(panels * panel_words);
        // Where lanes are columns, neighbouring panels share the pieces of rows that are read.
        let across = job.terms.iter().any(|it| it.packed.is_none() && it.a.packs_across_panels());
        let together = if across { WIDE_STRIP.div_ceil(kernel.mr) } else { 1 };
        let pack = |(i, words): (usize, &mut [u32])| {
            with_buffers(|own| {
                let (mut before, count) = (0, words.len() / panel_words);
                for Piece { term, span } in &unpacked {
                    let mut out = Panels { words: &mut words[before * kernel.mr..], stride: panel_words, count };
                    job.terms[*term].a.pack(r0 + i * together * kernel.mr, *span, &mut out, &mut own.pieces);
                    before += kernel.operands.words(span.len);
                }
            });
        };
        let chunk = (panel_words * together).max(1);
        if small {
            packed.chunks_mut(chunk).enumerate().for_each(pack);
        } else {
            fork::chunks(packed, chunk, pack);
        }
        let grid = Grid::new(job, panels, c1 - c0);
        let columns = grid.strip_cols / kernel.nr;
        let strip_words = words(kernel, pieces) * kernel.nr * columns;
        let lefts = lefts(job, pieces, r0, (packed, panel_words));
        let shared = Shared { job, region, pieces, lefts, target, epilogue };
        if small {
            (0..grid.cells()).for_each(|i| shared.cell(grid.cell(i, panels, (c0, c1)), None));
        } else if grid.groups == 1 {
            let work = |i: usize| shared.cell(grid.cell(i, panels, (c0, c1)), None);
            fork::apart(grid.cells(), work);
        } else {
            // Several cells share a strip, so it is packed beforehand.
            let strips = buffers.strips.words(grid.strips * strip_words);
            shared.pack_strips(&grid, strips, (c0, c1));
            let work = |i: usize| {
                let strip = &strips[i / grid.groups * strip_words..][..strip_words];
                shared.cell(grid.cell(i, panels, (c0, c1)), Some((strip, columns)));
            };
            fork::apart(grid.cells(), work);
        }
    });
}

/// Where the panels of each piece lie: in those packed for this pass, or in those that came with an operand.
fn lefts<'a>(job: &Job<'a>, pieces: &[Piece], r0: usize, (packed, stride): (&'a [u32], usize)) -> Vec<Left<'a>> {
    let kernel = job.kernel;
    let mut before = 0;
    let left = |Piece { term, span }: &Piece| {
        if let Some(ready) = job.terms[*term].packed {
            let (words, stride) = ready.panels();
            return Left {
                words: &words[r0 / kernel.mr * stride + kernel.operands.words(span.start) * kernel.mr..],
                stride,
            };
        }
        let words = &packed[before..];
        before += kernel.operands.words(span.len) * kernel.mr;
        Left { words, stride }
    };
    pieces.iter().map(left).collect()
}

/// Word rows that pieces take.
fn words(kernel: &Kernel, pieces: &[Piece]) -> usize {
    pieces.iter().map(|it| kernel.operands.words(it.span.len)).sum()
}

/// Even pieces of `k` elements, each at most what a tile kernel sums at once; at least one, though it be empty.
pub(crate) fn spans(kernel: &Kernel, k: usize) -> impl Iterator<Item = Span> {
    let words = kernel.operands.words(k);
    // Pieces are whole granules. As a tile kernel takes several, none of them is empty.
    let count = words.div_ceil(kernel.depth).max(1);
    let each = kernel.operands.elements(words.div_ceil(count).max(1).next_multiple_of(kernel.operands.granule()));
    (0..count).map(move |i| {
        let start = (i * each).min(k);
        Span { start, len: each.min(k - start) }
    })
}

/// Runs of pieces that a packed block of the left operand may cover.
fn passes<'p>(kernel: &Kernel, pieces: &'p [Piece]) -> Vec<&'p [Piece]> {
    let (mut found, mut rest) = (Vec::new(), pieces);
    while !rest.is_empty() {
        let fits = |n: &usize| words(kernel, &rest[..*n]) <= DEEP_WORDS;
        let n = (1..=rest.len()).take_while(fits).last().unwrap_or(1);
        let (pass, after) = rest.split_at(n);
        found.push(pass);
        rest = after;
    }
    found
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
        let across = job.terms.iter().any(|it| it.b.packs_across_panels());
        let strip_cols = if job.kernel.strip > nr {
            // Strips of one width, of whole blocks of a quantised row.
            cols.div_ceil(cols.div_ceil(job.kernel.strip)).next_multiple_of(2 * nr)
        } else if across {
            WIDE_STRIP.max(nr) / nr * nr
        } else {
            nr
        };
        let strips = cols.div_ceil(strip_cols);
        let wanted = 8 * fork::threads();
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

/// One piece of k against a strip.
struct Round<'a> {
    left: &'a Left<'a>,
    strip: &'a [u32],
    /// Word rows of the piece.
    words: usize,
    /// Whether the sums go on from the piece before.
    add: bool,
    /// Whether they leave after this piece.
    last: bool,
}

/// What the cells of a pass share.
struct Shared<'a> {
    job: &'a Job<'a>,
    region: Region,
    pieces: &'a [Piece],
    /// The left operand's panels, piece by piece.
    lefts: Vec<Left<'a>>,
    target: &'a Target<'a>,
    epilogue: &'a Epilogue<'a>,
}

impl Shared<'_> {
    /// Packs all strips of the right operands: each holds its pieces one after the other. Pieces are dealt out, since
    /// strips are few here.
    fn pack_strips(&self, grid: &Grid, strips: &mut [u32], (c0, c1): (usize, usize)) {
        let Kernel { nr, operands, .. } = *self.job.kernel;
        let columns = grid.strip_cols / nr;
        let mut work = Vec::new();
        let mut rest = strips;
        for first in (c0..c1).step_by(grid.strip_cols) {
            for piece in self.pieces {
                let (own, after) = rest.split_at_mut(columns * operands.words(piece.span.len) * nr);
                work.push((first, piece, own));
                rest = after;
            }
        }
        fork::items(work, |(first, Piece { term, span }, words)| {
            let count = columns.min((c1 - first).div_ceil(nr));
            let mut out = Panels { words, stride: operands.words(span.len) * nr, count };
            with_buffers(|own| self.job.terms[*term].b.pack(first, *span, &mut out, &mut own.pieces));
        });
    }

    /// Computes one cell: every panel against its strip of the right operands. The strip is packed here, unless it is `packed`:
    /// with the columns of tiles that it was packed for.
    fn cell(&self, cell: Cell, packed: Option<(&[u32], usize)>) {
        let Kernel { mr, nr, strip, .. } = *self.job.kernel;
        let columns = (cell.cols.1 - cell.cols.0).div_ceil(nr);
        with_buffers(|own| {
            let (panels, full) = match packed {
                // A strip at the end has fewer columns, but its pieces lie as far apart.
                Some(it) => it,
                None => (self.pack_strip(cell.cols.0, columns, (&mut own.panels, &mut own.pieces)), columns),
            };
            let (mut rounds, mut before) = (Vec::with_capacity(self.pieces.len()), 0);
            for (s, (piece, left)) in self.pieces.iter().zip(&self.lefts).enumerate() {
                let words = self.job.kernel.operands.words(piece.span.len);
                let strip = &panels[before * full * nr..][..columns * words * nr];
                rounds.push(Round { left, strip, words, add: s > 0, last: s + 1 == self.pieces.len() });
                before += words;
            }
            if strip <= nr {
                self.panels(&rounds, cell.cols, cell.panels, &mut []);
                return;
            }
            // A piece of a wide strip fills a near cache, so all tiles of the cell wait for the next one.
            let waiting = if rounds.len() > 1 { (cell.panels.1 - cell.panels.0) * columns * mr * nr } else { 0 };
            let tiles = own.tiles.floats(waiting);
            for round in rounds.chunks(1) {
                self.panels(round, cell.cols, cell.panels, tiles);
            }
        });
    }

    /// Packs a strip of the right operands that begins with column `first`, piece after piece.
    fn pack_strip<'b>(
        &self,
        first: usize,
        columns: usize,
        (panels, pieces): (&'b mut Words, &mut Pieces),
    ) -> &'b [u32] {
        let Kernel { nr, operands, .. } = *self.job.kernel;
        let strip = panels.words(words(self.job.kernel, self.pieces) * columns * nr);
        let mut rest = &mut *strip;
        for Piece { term, span } in self.pieces {
            let words = operands.words(span.len);
            let (own, after) = rest.split_at_mut(columns * words * nr);
            let mut out = Panels { words: own, stride: words * nr, count: columns };
            self.job.terms[*term].b.pack(first, *span, &mut out, pieces);
            rest = after;
        }
        strip
    }

    /// Some pieces of a cell: panels `p0..p1` against the strip, tile by tile. A thread that has run out of cells may take half of
    /// what another has left of its last one: the end of a product would else be waited for as long as a cell takes.
    fn panels(&self, rounds: &[Round<'_>], (c0, c1): (usize, usize), (p0, p1): (usize, usize), tiles: &mut [f32]) {
        let Kernel { mr, nr, .. } = *self.job.kernel;
        let columns = (c1 - c0).div_ceil(nr);
        let words = rounds.iter().map(|it| it.words).sum();
        let work = (p1 - p0) * mr * columns * nr * self.job.kernel.operands.elements(words);
        if p1 - p0 > 1 && work > ALONE {
            let middle = p0.midpoint(p1);
            let (first, second) =
                tiles.split_at_mut(if tiles.is_empty() { 0 } else { (middle - p0) * columns * mr * nr });
            fork::join(
                || self.panels(rounds, (c0, c1), (p0, middle), first),
                || self.panels(rounds, (c0, c1), (middle, p1), second),
            );
            return;
        }
        with_buffers(|own| {
            let ready = self.job.kernel.ready();
            let waiting = !tiles.is_empty();
            let passing = own.tiles.floats(mr * nr);
            let mut multiply = |column: usize, p: usize| {
                fork::point();
                let cols = c1 - (c0 + column * nr).min(c1);
                let slot = ((p - p0) * columns + column) * mr * nr;
                let tile = if waiting { &mut tiles[slot..slot + mr * nr] } else { &mut *passing };
                for round in rounds {
                    let b = &round.strip[column * round.words * nr..][..round.words * nr];
                    let a = &round.left.words[p * round.left.stride..][..round.words * mr];
                    if let Some(out) = round.last.then(|| self.corner(p, c0 + column * nr)).flatten() {
                        self.job.kernel.multiply_rounded(&ready, round.words, (a, b), (tile, round.add), out);
                        continue;
                    }
                    self.job.kernel.multiply(&ready, round.words, a, b, tile, (cols, round.add));
                    if round.last {
                        self.store(tile, p, c0 + column * nr, c1);
                    }
                }
            };
            // The inner loop goes over panels of the side that the far caches hold.
            if self.job.kernel.strip > nr {
                (p0..p1).for_each(|p| (0..columns).for_each(|column| multiply(column, p)));
            } else {
                (0..columns).for_each(|column| (p0..p1).for_each(|p| multiply(column, p)));
            }
        });
    }

    /// Where the sums of a tile can go at once; `None` where more has to be done to them.
    fn corner(&self, panel: usize, c0: usize) -> Option<Corner> {
        let Kernel { mr, nr, rounded, .. } = *self.job.kernel;
        let r0 = self.region.rows.0 + panel * mr;
        rounded.and_then(|_| self.target.corner((r0, r0 + mr), (c0, c0 + nr), self.epilogue))
    }

    fn store(&self, sums: &[f32], panel: usize, c0: usize, c1: usize) {
        let Kernel { mr, nr, .. } = *self.job.kernel;
        let r0 = self.region.rows.0 + panel * mr;
        let rows = (r0, self.region.rows.1.min(r0 + mr));
        let tile = Tile { sums, stride: nr, rows, cols: (c0, c1.min(c0 + nr)) };
        self.job.kernel.isa.store(self.target, tile, self.epilogue);
    }
}
