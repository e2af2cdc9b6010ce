//! The same optimizer with values, gradients and resident state on a GPU; pages that do not fit wait in page-locked host
//! memory, moved by the same policy on a stream of their own while the kernels of other pages run.

use std::{io, sync::Arc};

use halfbyte_cuda::{Arg, Buffer, Gpu, Launch, Number, Pinned, Source};
use halfbyte_nf4::blockwise8::DynamicMap;

use crate::{
    AdamWConfig, Error, PageStats, ParamSpec, Result, StateFormat, StatePart, StatePlace,
    adamw::{check_config, check_step, check_whole, pages},
    format::BLOCK,
    layout::{Layout, Span, WORD},
    policy::{Access, Moves, Policy},
    update::Coefficients,
};

const SOURCE: Source = Source { name: "paged-optim", text: include_str!("kernel.cu") };
/// Blocks of a sum of squares: a number of its own for each, so that the sum is the same on every device.
const SUM_BLOCKS: u32 = 16;

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

    /// All pages in order, the next on its way while the kernels of one run.
    fn sweep(&mut self, c: &Coefficients, scale: f32, params: &mut [CudaParamStep<'_>]) -> Result<()> {
        let layout = self.layout.clone();
        for page in 0..layout.pages() {
            let moves = self.policy.touch(page, Access::Write);
            self.transfer(moves)?;
            self.gpu.copy_stream().before_compute()?;
            // Its eviction waits for kernels that were started before: those of this page come after.
            if page + 1 < layout.pages()
                && let Some(ahead) = self.policy.prefetch(page + 1, page..page + 1)
            {
                self.transfer(ahead)?;
            }
            let frame = self.memory.ptr() + (moves.frame * layout.frame_words() * WORD) as u64;
            for span in layout.of_page(page) {
                let step = &mut params[span.param];
                let offset = (span.offset * WORD) as u64;
                let pair = (step.value.ptr() + offset, step.grad.ptr() + offset);
                self.update(span, frame, pair, c, scale)?;
            }
        }
        Ok(())
    }

    /// Starts the kernel of a span, whose page's frame, values and gradients are at these addresses.
    fn update(&self, span: &Span, frame: u64, (value, grad): (u64, u64), c: &Coefficients, scale: f32) -> Result<()> {
        let part = |it| Arg::Ptr(frame + span.bytes(it).start as u64);
        let decays = self.specs[span.param].decay;
        let mut args = vec![Arg::Ptr(value), Arg::Ptr(grad)];
        let (kernel, launch, numbers) = match span.format {
            StateFormat::F32 => {
                args.extend([StatePart::First, StatePart::Second].map(part));
                let keep = if decays { c.keep } else { 1.0 };
                let numbers = [scale, keep, c.mix1, c.beta2, c.mix2, c.step_size, c.correction2, c.eps];
                ("adamw", Launch::elements(span.len), numbers)
            }
            StateFormat::Blockwise8 => {
                args.extend(StatePart::of(span.format).iter().map(|it| part(*it)));
                args.push(Arg::Ptr(self.maps.as_ref().map_or(0, Buffer::ptr)));
                let c = &c.in_8_bits;
                let keep = if decays { c.keep } else { 1.0 };
                let numbers = [scale, keep, c.beta1, c.mix1, c.beta2, c.mix2, c.step_size, c.eps];
                let grid = (span.len.div_ceil(BLOCK) as u32, 1, 1);
                ("adamw_blockwise8", Launch { grid, block: (BLOCK as u32, 1, 1), shared: 0 }, numbers)
            }
        };
        args.extend(numbers.map(Arg::F32));
        args.push(Arg::U64(span.len as u64));
        // SAFETY: value and gradient have the span's elements at these addresses, the page's frame its state.
        Ok(unsafe { self.gpu.launch((&SOURCE, Number::F32), kernel, launch, &args) }?)
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

/// The sum of squares of every gradient, in f64 and in an order that depends on their sizes alone; and, in the same copy, so
/// that nothing is waited for twice, the f32 number in the buffer `beside`, such as the loss that they belong to.
///
/// # Errors
/// If the GPU fails.
pub fn sums_of_squares(gpu: &Arc<Gpu>, grads: &[&Buffer], beside: Option<&Buffer>) -> Result<(Vec<f64>, Option<f32>)> {
    const BYTES: usize = SUM_BLOCKS as usize * size_of::<f64>();
    let end = grads.len() * BYTES;
    let mut sums = gpu.alloc(end + beside.map_or(0, |_| WORD))?;
    for (i, grad) in grads.iter().enumerate() {
        let launch = Launch { grid: (SUM_BLOCKS, 1, 1), block: (256, 1, 1), shared: 0 };
        let n = (grad.bytes() / WORD) as u64;
        let args = [Arg::Ptr(grad.ptr()), Arg::Ptr(sums.ptr() + (i * BYTES) as u64), Arg::U64(n)];
        // SAFETY: the gradient has `n` elements, and every block a place for its sum.
        unsafe { gpu.launch((&SOURCE, Number::F32), "sum_of_squares", launch, &args) }?;
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
    let maps = [*DynamicMap::Signed.values(), *DynamicMap::Unsigned.values()].concat();
    let mut buffer = gpu.alloc(maps.len() * WORD)?;
    buffer.upload(bytemuck::cast_slice(&maps))?;
    Ok(buffer)
}
