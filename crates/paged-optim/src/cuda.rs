//! AdamW with values, gradients and resident state on a GPU; pages that do not fit wait in page-locked host
//! memory, moved by the same policy on a stream of their own while the kernels of other pages run.

use std::{io, sync::Arc};

use halfbyte_cuda::{Buffer, Gpu, Launch, Number, Pinned, Slice, kernels};
use halfbyte_nf4::blockwise8::DynamicMap;

use crate::{
    AdamWConfig, Error, PageStats, ParamSpec, Result, StateFormat, StatePart, StatePlace,
    adamw::{check_config, check_step, check_whole, pages},
    format::BLOCK,
    layout::{Layout, Span, WORD},
    policy::{Access, Moves, Policy},
    update::Coefficients,
};

kernels! {
    const SOURCE = "paged-optim", "kernel.cu", over Slice;
    adamw as Update {
        spans: *const u64, scale: f32, keep: f32, mix1: f32, beta2: f32, mix2: f32, step_size: f32, correction2: f32, eps: f32,
    }
    adamw_blockwise8 as UpdateBlockwise8 {
        spans: *const u64, maps: *const f32, scale: f32, keep: f32, beta1: f32, mix1: f32, beta2: f32, mix2: f32, step_size: f32,
        eps: f32,
    }
    sums_of_squares as SumsOfSquares { arrays: *const u64, sums: *mut f64 }
}

/// Blocks of a sum of squares: a number of its own for each, so that the sum is the same on every device.
const SUM_BLOCKS: u32 = 16;
/// Blocks that share the elements of one span, at most: with a few spans they keep a device busy.
const SPAN_BLOCKS: usize = 1024;
/// Rows of a table that one launch takes: the most that a grid has in its second dimension.
const ROWS: usize = 65535;

/// A part of a parameter as the kernels read it: `Span` in their file.
type Row = [u64; 8];

/// One parameter of a step: `len` f32 numbers and their gradient, on the optimizer's GPU.
#[derive(Debug)]
pub struct CudaParamStep<'a> {
    /// Changed in place.
    pub value: &'a mut Buffer,
    /// Read only.
    pub grad: &'a Buffer,
}

/// AdamW on a GPU. See [`AdamW`](crate::AdamW) for what it computes.
#[derive(Debug)]
pub struct CudaAdamW {
    gpu: Arc<Gpu>,
    config: AdamWConfig,
    specs: Vec<ParamSpec>,
    layout: Layout,
    policy: Policy,
    frames: usize,
    /// The signed and the unsigned dynamic map, if a parameter's state is in 8 bits.
    maps: Option<Buffer>,
    /// All frames, one after the other.
    memory: Buffer,
    /// A place for every page; absent when every page has a frame.
    host: Option<Pinned>,
    stats: PageStats,
    resident: usize,
    steps: u64,
    broken: Option<String>,
}

impl CudaAdamW {
    /// State for parameters of these sizes, all zero. `resident_bytes` of it stay on the GPU (all, if absent).
    ///
    /// # Errors
    /// A setting that makes no sense, or memory that is not there.
    pub fn new(
        gpu: &Arc<Gpu>,
        config: AdamWConfig,
        specs: &[ParamSpec],
        (resident_bytes, page_bytes): (Option<usize>, usize),
    ) -> Result<Self> {
        check_config(&config)?;
        let (layout, frames) = pages(specs, resident_bytes, page_bytes)?;
        let frame_bytes = layout.frame_words() * WORD;
        let memory = gpu.alloc(frames * frame_bytes)?;
        let host = if frames < layout.pages() { Some(Pinned::new(gpu, layout.pages() * frame_bytes)?) } else { None };
        let stats = PageStats { state_bytes: layout.state_bytes(), ..PageStats::default() };
        let policy = Policy::new(layout.pages(), frames);
        let (gpu, specs) = (gpu.clone(), specs.to_vec());
        let maps =
            if specs.iter().any(|it| it.state == StateFormat::Blockwise8) { Some(upload_maps(&gpu)?) } else { None };
        Ok(Self {
            gpu,
            maps,
            config,
            specs,
            layout,
            policy,
            frames,
            memory,
            host,
            stats,
            resident: 0,
            steps: 0,
            broken: None,
        })
    }

    /// Takes one step with `lr`; gradients count `grad_scale` times, as clipping wants it.
    ///
    /// # Errors
    /// Parameters that are not those of the optimizer, or a GPU that fails; then the state is incomplete until it is
    /// restored.
    pub fn step(&mut self, lr: f64, grad_scale: f32, params: &mut [CudaParamStep<'_>]) -> Result<()> {
        check_whole(self.broken.as_deref())?;
        let lens = params.iter().map(|it| (it.value.bytes() / WORD, it.grad.bytes() / WORD));
        check_step(&self.specs, lr, lens)?;
        let coefficients = Coefficients::new(&self.config, lr, self.steps + 1);
        let done = self.sweep(&coefficients, grad_scale, params);
        self.mark(&done);
        done?;
        self.steps += 1;
        Ok(())
    }

    /// Steps taken.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// The parameters.
    pub fn specs(&self) -> &[ParamSpec] {
        &self.specs
    }

    /// Bytes of state and what was moved.
    pub fn stats(&self) -> PageStats {
        self.stats
    }

    /// Shows the state in pieces, as [`AdamW::visit_state`](crate::AdamW::visit_state) does.
    ///
    /// # Errors
    /// What `visit` returns, or a GPU that fails.
    pub fn visit_state(&mut self, visit: &mut dyn FnMut(StatePlace<'_>, &[u8]) -> io::Result<()>) -> Result<()> {
        check_whole(self.broken.as_deref())?;
        self.each_piece(false, &mut |place, bytes| visit(place, bytes))
    }

    /// Fills the state, as [`AdamW::restore`](crate::AdamW::restore) does.
    ///
    /// # Errors
    /// What `fill` returns, or a GPU that fails; then the state stays incomplete.
    pub fn restore(
        &mut self,
        steps: u64,
        fill: &mut dyn FnMut(StatePlace<'_>, &mut [u8]) -> io::Result<()>,
    ) -> Result<()> {
        self.policy = Policy::new(self.layout.pages(), self.frames);
        (self.resident, self.broken) = (0, None);
        let done = self.each_piece(true, fill);
        self.mark(&done);
        done?;
        self.steps = steps;
        Ok(())
    }

    /// All pages in order, those that are there one after the other in one launch, and the next that is not on its way while the kernels of
    /// the one before run.
    fn sweep(&mut self, c: &Coefficients, scale: f32, params: &mut [CudaParamStep<'_>]) -> Result<()> {
        let layout = self.layout.clone();
        let at_once = self.host.is_none();
        let (mut waiting, mut rows) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
        for page in 0..layout.pages() {
            let moves = self.policy.touch(page, Access::Write);
            self.transfer(moves)?;
            let frame = self.memory.ptr() + (moves.frame * layout.frame_words() * WORD) as u64;
            for span in layout.of_page(page) {
                let format = usize::from(span.format == StateFormat::Blockwise8);
                rows[format].push(self.row(span, frame, &params[span.param]));
            }
            let next = page + 1;
            if next == layout.pages() || at_once || self.policy.is_resident(next) {
                waiting.iter_mut().zip(&mut rows).for_each(|(all, own)| all.append(own));
                continue;
            }
            self.gpu.copy_stream().before_compute()?;
            // Of pages that are there all but this one may leave for the next: their kernels have to be started before.
            self.update(&waiting, c, scale)?;
            waiting.iter_mut().for_each(Vec::clear);
            // Its eviction waits for kernels that were started before: those of this page come after.
            if let Some(ahead) = self.policy.prefetch(next, page..next) {
                self.transfer(ahead)?;
            }
            self.update(&rows, c, scale)?;
            rows.iter_mut().for_each(Vec::clear);
        }
        self.gpu.copy_stream().before_compute()?;
        self.update(&waiting, c, scale)
    }

    /// Where the kernels find a span, whose page's frame is at this address.
    fn row(&self, span: &Span, frame: u64, step: &CudaParamStep<'_>) -> Row {
        let part = |it| frame + span.bytes(it).start as u64;
        let mut state = [0; 4];
        for (place, it) in state.iter_mut().zip(StatePart::of(span.format)) {
            *place = part(*it);
        }
        let offset = (span.offset * WORD) as u64;
        let (value, grad) = (step.value.ptr() + offset, step.grad.ptr() + offset);
        let decays = u64::from(self.specs[span.param].decay);
        [value, grad, state[0], state[1], state[2], state[3], span.len as u64, decays]
    }

    /// Starts the kernels over spans in f32 and in 8 bits.
    fn update(&self, [floats, codes]: &[Vec<Row>; 2], c: &Coefficients, scale: f32) -> Result<()> {
        for rows in floats.chunks(ROWS) {
            let table = upload(&self.gpu, rows.as_flattened())?;
            // Values and both moments are read and written, gradients are read.
            self.gpu.next_moves(table.bytes() + 7 * WORD * elements(rows));
            let kernel = Update {
                spans: &Slice(table.ptr()),
                scale,
                keep: c.keep,
                mix1: c.mix1,
                beta2: c.beta2,
                mix2: c.mix2,
                step_size: c.step_size,
                correction2: c.correction2,
                eps: c.eps,
            };
            // SAFETY: values, gradients and state have each span's elements at its addresses.
            unsafe { kernel.launch(&self.gpu, Number::F32, over(rows, 256)) }?;
        }
        for rows in codes.chunks(ROWS) {
            let table = upload(&self.gpu, rows.as_flattened())?;
            let c8 = &c.in_8_bits;
            // Moments are codes, with a scale for each block.
            let scales = rows.iter().map(|it| (it[6] as usize).div_ceil(BLOCK)).sum::<usize>();
            self.gpu.next_moves(table.bytes() + (3 * WORD + 4) * elements(rows) + 4 * WORD * scales);
            let kernel = UpdateBlockwise8 {
                spans: &Slice(table.ptr()),
                maps: &Slice(self.maps.as_ref().map_or(0, Buffer::ptr)),
                scale,
                keep: c8.keep,
                beta1: c8.beta1,
                mix1: c8.mix1,
                beta2: c8.beta2,
                mix2: c8.mix2,
                step_size: c8.step_size,
                eps: c8.eps,
            };
            // SAFETY: as above, with two numbers for every block of codes; both maps are there.
            unsafe { kernel.launch(&self.gpu, Number::F32, over(rows, BLOCK)) }?;
        }
        Ok(())
    }

    /// Performs the moves of one frame on the copy stream, after the kernels that were started so far.
    fn transfer(&mut self, moves: Moves) -> Result<()> {
        if moves.evict.is_none() && moves.fetch.is_none() {
            return Ok(());
        }
        let copies = self.gpu.copy_stream();
        copies.wait_for_compute()?;
        let frame_bytes = self.layout.frame_words() * WORD;
        let at = moves.frame * frame_bytes;
        let bytes_of = |page: usize| self.layout.page_words(page) * WORD;
        if let Some(evict) = moves.evict {
            let bytes = bytes_of(evict.page);
            if let (true, Some(host)) = (evict.write_back, &mut self.host) {
                let place = &mut host.as_mut_slice()[evict.page * frame_bytes..][..bytes];
                // SAFETY: the page's place in host memory is touched by copies of this stream alone, until one waits for it.
                unsafe { copies.download(place, &self.memory, at) }?;
                self.stats.bytes_spilled += bytes as u64;
            }
            self.resident -= bytes;
        }
        if let Some(fetch) = moves.fetch {
            let bytes = bytes_of(fetch.page);
            match &self.host {
                Some(host) if fetch.read => {
                    let place = &host.as_slice()[fetch.page * frame_bytes..][..bytes];
                    // SAFETY: as above.
                    unsafe { copies.upload(&mut self.memory, at, place) }?;
                    self.stats.bytes_fetched += bytes as u64;
                }
                _ => copies.zero(&mut self.memory, at, bytes)?,
            }
            self.resident += bytes;
            self.stats.resident_peak = self.stats.resident_peak.max(self.resident);
        }
        Ok(())
    }

    /// Every piece of the state through host memory; back again if `write`.
    fn each_piece(
        &mut self,
        write: bool,
        f: &mut dyn FnMut(StatePlace<'_>, &mut [u8]) -> io::Result<()>,
    ) -> Result<()> {
        let layout = self.layout.clone();
        let specs = self.specs.clone();
        let mut staging = Pinned::new(&self.gpu, layout.frame_words() * WORD)?;
        for (param, spec) in specs.iter().enumerate() {
            for &part in StatePart::of(spec.state) {
                for span in layout.of_param(param) {
                    let access = if write { Access::Write } else { Access::Read };
                    let moves = self.policy.touch(span.page, access);
                    self.transfer(moves)?;
                    let range = span.bytes(part);
                    let at = moves.frame * layout.frame_words() * WORD + range.start;
                    let bytes = &mut staging.as_mut_slice()[..range.len()];
                    let copies = self.gpu.copy_stream();
                    copies.wait_for_compute()?;
                    if write {
                        bytes.fill(0);
                    } else {
                        // SAFETY: the copy is waited for before the memory is looked at.
                        unsafe { copies.download(bytes, &self.memory, at) }?;
                        copies.synchronize()?;
                    }
                    let offset = span.first(part);
                    f(StatePlace { param, name: &spec.name, part, offset }, bytes)
                        .map_err(|source| Error::Transfer { name: spec.name.clone(), part, offset, source })?;
                    if write {
                        // SAFETY: the copy is waited for before the memory is used again.
                        unsafe { copies.upload(&mut self.memory, at, bytes) }?;
                        copies.synchronize()?;
                    }
                }
            }
        }
        Ok(self.gpu.copy_stream().before_compute()?)
    }

    fn mark(&mut self, done: &Result<()>) {
        if let Err(error) = done {
            self.broken = Some(error.to_string());
        }
    }
}

/// Elements of spans.
fn elements(rows: &[Row]) -> usize {
    rows.iter().map(|it| it[6] as usize).sum()
}

/// Blocks for spans, each block with a share of one span of so many threads at a time.
fn over(rows: &[Row], threads: usize) -> Launch {
    let longest = rows.iter().map(|it| it[6]).max().unwrap_or(0) as usize;
    let blocks = longest.div_ceil(threads).clamp(1, SPAN_BLOCKS);
    Launch { grid: (blocks as u32, rows.len() as u32, 1), block: (threads as u32, 1, 1), shared: 0 }
}

/// The sum of squares of every gradient, in f64 and in an order that depends on their sizes alone; and, in the same copy, so
/// that nothing is waited for twice, the f32 number in the buffer `beside`, such as the loss that they belong to.
///
/// # Errors
/// If the GPU fails.
pub fn sums_of_squares(gpu: &Arc<Gpu>, grads: &[&Buffer], beside: Option<&Buffer>) -> Result<(Vec<f64>, Option<f32>)> {
    const BYTES: usize = SUM_BLOCKS as usize * size_of::<f64>();
    let end = grads.len() * BYTES;
    let mut sums = gpu.alloc(end + beside.map_or(0, |_| WORD))?;
    for (i, some) in grads.chunks(ROWS).enumerate() {
        let arrays: Vec<[u64; 2]> = some.iter().map(|it| [it.ptr(), (it.bytes() / WORD) as u64]).collect();
        let table = upload(gpu, arrays.as_flattened())?;
        let mut place = Slice(sums.ptr() + (i * ROWS * BYTES) as u64);
        gpu.next_moves(table.bytes() + some.iter().map(|it| it.bytes() + BYTES).sum::<usize>());
        let kernel = SumsOfSquares { arrays: &Slice(table.ptr()), sums: &mut place };
        let launch = Launch { grid: (SUM_BLOCKS, some.len() as u32, 1), block: (256, 1, 1), shared: 0 };
        // SAFETY: the gradients have so many elements, and every block a place for its sum.
        unsafe { kernel.launch(gpu, Number::F32, launch) }?;
    }
    if let Some(beside) = beside {
        sums.copy_from(end, beside, 0, WORD)?;
    }
    let mut bytes = vec![0; sums.bytes()];
    sums.download(&mut bytes)?;
    let (numbers, number) = bytes.split_at(end);
    let numbers: Vec<f64> = numbers.as_chunks().0.iter().map(|it| f64::from_le_bytes(*it)).collect();
    let sums = numbers.chunks(SUM_BLOCKS as usize).map(|it| it.iter().sum()).collect();
    Ok((sums, number.first_chunk().map(|it| f32::from_le_bytes(*it))))
}

fn upload_maps(gpu: &Arc<Gpu>) -> Result<Buffer> {
    upload(gpu, &[*DynamicMap::Signed.values(), *DynamicMap::Unsigned.values()].concat())
}

fn upload<N: bytemuck::NoUninit>(gpu: &Arc<Gpu>, numbers: &[N]) -> Result<Buffer> {
    let bytes = bytemuck::cast_slice(numbers);
    let mut buffer = gpu.alloc(bytes.len())?;
    buffer.upload(bytes)?;
    Ok(buffer)
}
