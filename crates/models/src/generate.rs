use crate::{Attend, Error, KvCache, Model, Pass, Result, model::head_paths};
use halfbyte_autograd::{Tape, Var};
use halfbyte_lora::{Context, Routing};
use halfbyte_ops::{Chosen, Ids, Layout, cross_entropy::logits, embedding, repeated, sample, settle};
use halfbyte_tensor::{DType, Device, Tensor};
use std::collections::VecDeque;

/// How text is continued, by transformers' names.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerateConfig {
    /// At most so many tokens.
    pub max_new_tokens: usize,
    /// 0 takes the most probable token; 1 samples from the model's own distribution.
    pub temperature: f32,
    /// Sample among so many of the most probable tokens; 0 means all.
    pub top_k: usize,
    /// Sample among the most probable tokens that reach this probability together; 1 means all.
    pub top_p: f32,
    /// Above 1, tokens that occurred become less probable.
    pub repetition_penalty: f32,
    /// Seeds the sampling, with the number of the prompt: a text does not depend on those beside it.
    pub seed: u64,
    /// The number of the first prompt, for a list that is continued piece by piece.
    pub first_number: usize,
    /// Ids that end the text.
    pub eos_token_ids: Vec<u32>,
    /// Dtype of the activations.
    pub compute: DType,
    /// Whether passes of a token that ask for the same as others before are started on a GPU as a whole. Nobody else may use that GPU
    /// meanwhile.
    pub repeating: bool,
}

impl Default for GenerateConfig {
    fn default() -> Self {
        GenerateConfig {
            max_new_tokens: 64,
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            repetition_penalty: 1.0,
            seed: 42,
            first_number: 0,
            eos_token_ids: Vec::new(),
            compute: DType::F32,
            repeating: false,
        }
    }
}

/// Why generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// The model ended the text.
    Eos,
    /// `max_new_tokens` was reached.
    MaxNewTokens,
    /// The model's last position was reached.
    MaxPosition,
    /// The caller had enough.
    Caller,
}

/// What was generated.
#[derive(Clone, Debug, PartialEq)]
pub struct Generated {
    /// The new ids, without the one that ended the text.
    pub ids: Vec<u32>,
    /// Why it ended.
    pub stop: StopReason,
}

/// Tokens of a sequence that go into one pass at most: a long prompt then needs no more memory than a short one, keys and values
/// apart.
pub(crate) const CHUNK: usize = 512;

/// So many prompts are read in one pass at most, as far as they are long, so that many need no more memory than a few.
pub(crate) const AT_ONCE: usize = 4;

/// What a generation of several texts tells as it goes on.
#[derive(Debug)]
pub enum Heard<'a> {
    /// A new token; what is returned says whether that text goes on.
    Token(u32),
    /// The text has ended; what is returned says whether those that wait begin.
    Ended(&'a Generated),
}

/// Called with the number of a prompt, and what there is to tell of it.
pub type Listener<'a> = dyn FnMut(usize, Heard<'_>) -> bool + 'a;

/// A text under way.
pub(crate) struct Sequence {
    /// Which prompt it is.
    number: usize,
    /// Prompt and new ids.
    ids: Vec<u32>,
    /// How many of them the cache holds.
    held: usize,
    /// How many are new.
    new: usize,
}

/// Texts that are continued, and those that wait for a place among them.
pub(crate) struct Texts {
    pub(crate) live: Vec<Sequence>,
    waiting: VecDeque<Sequence>,
    /// How many may be under way.
    together: usize,
    /// The tokens that were chosen last, which are what the next pass takes in most often.
    latest: Option<Chosen>,
}

impl Texts {
    /// One text, under way.
    pub(crate) fn of(one: Sequence) -> Texts {
        Texts { live: vec![one], waiting: VecDeque::new(), together: 1, latest: None }
    }

    /// Lets those that wait take the places that are free. A text that may outgrow the length from which positions are rotated in another
    /// way would have all beside it rotated so, so it goes alone.
    fn admit(&mut self, model: &dyn Model, cache: &mut KvCache, config: &GenerateConfig) {
        let limit = model.config().rope_switch().unwrap_or(usize::MAX);
        let outgrows = |it: &Sequence| it.ids.len() - it.new + config.max_new_tokens > limit;
        if self.live.is_empty() && !self.waiting.is_empty() {
            *cache = KvCache::new(model.config(), cache.compute(), 0);
        }
        while self.live.len() < self.together {
            let alone = self.live.iter().any(outgrows);
            let fits = |it: &Sequence| self.live.is_empty() || !(alone || outgrows(it));
            if !self.waiting.front().is_some_and(fits) {
                return;
            }
            self.live.extend(self.waiting.pop_front());
            cache.admit();
        }
    }

    /// Lets none that wait begin.
    fn give_up(&mut self, done: &mut [Option<Generated>]) {
        for it in self.waiting.drain(..) {
            done[it.number] = Some(Generated { ids: Vec::new(), stop: StopReason::Caller });
        }
    }
}

/// Continues prompts of any lengths together, each as if it were alone: in exact arithmetic. Products over more rows may sum in
/// another order, so that near ties can fall otherwise.
///
/// A context by row has an adapter for each prompt. Tells `on_token` the number of the prompt and each new id as it comes; it returns whether that text goes on. Gives what was
/// generated in the order of the prompts. Fails for a prompt that is empty or leaves no position free.
pub fn generate(
    model: &dyn Model,
    prompts: &[Vec<u32>],
    how: (&GenerateConfig, &Context),
    on_token: &mut dyn FnMut(usize, u32) -> bool,
) -> Result<Vec<Generated>> {
    generate_within(model, prompts, prompts.len(), how, &mut |number, heard| match heard {
        Heard::Token(id) => on_token(number, id),
        Heard::Ended(_) => true,
    })
}

/// As [`generate`], for any number of prompts, of which at most so many are under way: when a text ends, the next prompt takes its place.
/// Texts begin in the order of the prompts and end in any.
///
/// # Errors
/// Those of [`generate`], and no place at all.
pub fn generate_within(
    model: &dyn Model,
    prompts: &[Vec<u32>],
    together: usize,
    (config, ctx): (&GenerateConfig, &Context),
    listener: &mut Listener<'_>,
) -> Result<Vec<Generated>> {
    let limit = model.config().max_position_embeddings;
    prompts.iter().try_for_each(|it| check(it, limit))?;
    if together == 0 && !prompts.is_empty() {
        return Err(Error::Input("no text may be under way; give room for at least one".into()));
    }
    let mut done: Vec<Option<Generated>> = vec![None; prompts.len()];
    let fresh = |(number, ids): (usize, &Vec<u32>)| Sequence::new(number, ids.clone(), 0);
    let waiting = prompts.iter().enumerate().map(fresh).collect();
    let mut texts = Texts { live: Vec::new(), waiting, together, latest: None };
    let mut cache = KvCache::new(model.config(), config.compute, 0);
    go_on(model, (&mut texts, &mut cache), (config, ctx), listener, &mut done)?;
    Ok(done.into_iter().map(|it| it.expect("every text ended")).collect())
}

/// Continues texts until all have ended. The cache then holds those that ended last.
pub(crate) fn go_on(
    model: &dyn Model,
    (texts, cache): (&mut Texts, &mut KvCache),
    (config, ctx): (&GenerateConfig, &Context),
    listener: &mut Listener<'_>,
    done: &mut [Option<Generated>],
) -> Result<()> {
    let limit = model.config().max_position_embeddings;
    loop {
        texts.admit(model, cache, config);
        let live = &mut texts.live;
        let mut stopped: Vec<Option<StopReason>> = live.iter().map(|it| it.is_full(config, limit)).collect();
        if !finish(live, cache, &stopped, (&mut *listener, &mut *done)) {
            texts.give_up(done);
        }
        if texts.live.is_empty() {
            if texts.waiting.is_empty() {
                return Ok(());
            }
            continue;
        }
        let live = &mut texts.live;
        announce(model, live, cache);
        let chosen = step(model, live, cache, (config, ctx), &mut texts.latest)?;
        stopped = vec![None; live.len()];
        for (at, id) in chosen {
            let it = &mut live[at];
            if config.eos_token_ids.contains(&id) {
                stopped[at] = Some(StopReason::Eos);
                continue;
            }
            it.ids.push(id);
            it.new += 1;
            stopped[at] = match listener(it.number, Heard::Token(id)) {
                true => it.is_full(config, limit),
                false => Some(StopReason::Caller),
            };
        }
        if !finish(live, cache, &stopped, (&mut *listener, &mut *done)) {
            texts.give_up(done);
        }
    }
}

pub(crate) fn check(prompt: &[u32], limit: usize) -> Result<()> {
    if prompt.is_empty() {
        return Err(Error::Input("the prompt has no token; give the model something to continue".into()));
    }
    if prompt.len() >= limit {
        return Err(Error::Input(format!(
            "the prompt has {} tokens, the model has positions for {limit}",
            prompt.len()
        )));
    }
    Ok(())
}

impl Sequence {
    /// A prompt, of which the cache holds the first tokens.
    pub(crate) fn new(number: usize, ids: Vec<u32>, held: usize) -> Sequence {
        Sequence { number, ids, held, new: 0 }
    }

    /// Whether no further token is wanted, or there is no place for one.
    fn is_full(&self, config: &GenerateConfig, limit: usize) -> Option<StopReason> {
        if self.new == config.max_new_tokens {
            return Some(StopReason::MaxNewTokens);
        }
        (self.ids.len() == limit).then_some(StopReason::MaxPosition)
    }
}

/// Takes the texts that stopped out of the batch, and tells whether those that wait begin.
fn finish(
    live: &mut Vec<Sequence>,
    cache: &mut KvCache,
    stopped: &[Option<StopReason>],
    (listener, done): (&mut Listener<'_>, &mut [Option<Generated>]),
) -> bool {
    let mut goes_on = true;
    for (it, stop) in live.iter().zip(stopped) {
        if let Some(stop) = *stop {
            let generated = Generated { ids: it.ids[it.ids.len() - it.new..].to_vec(), stop };
            goes_on &= listener(it.number, Heard::Ended(&generated));
            done[it.number] = Some(generated);
        }
    }
    let keep: Vec<bool> = stopped.iter().map(Option::is_none).collect();
    if keep.contains(&true) {
        cache.retain(&keep);
    }
    let mut keep = keep.into_iter();
    live.retain(|_| keep.next().unwrap_or(false));
    goes_on
}

/// Announces how long texts have become. Where all positions are rotated in another way from some length on, what the cache holds when the
/// first text passes it is of no use any more.
fn announce(model: &dyn Model, live: &mut [Sequence], cache: &mut KvCache) {
    let longest = live.iter().map(|it| it.ids.len()).max().unwrap_or(0);
    let before = cache.longest();
    let switches = model.config().rope_switch().is_some_and(|it| before <= it && longest > it);
    if switches && before > 0 {
        *cache = KvCache::new(model.config(), cache.compute(), live.len());
        live.iter_mut().for_each(|it| it.held = 0);
    }
    cache.announce(longest.max(before));
}

/// One pass: of every sequence what is not in the cache yet, or a chunk of it. Gives the next token of those that are in the cache whole.
fn step(
    model: &dyn Model,
    live: &mut [Sequence],
    cache: &mut KvCache,
    (config, ctx): (&GenerateConfig, &Context),
    latest: &mut Option<Chosen>,
) -> Result<Vec<(usize, u32)>> {
    let new = portions(live.iter().map(|it| it.ids.len() - it.held));
    let ids = live.iter().zip(&new).flat_map(|(it, new)| &it.ids[it.held..][..*new]).copied().collect();
    // What was chosen on a GPU need not go there again.
    let ids = match latest.take() {
        Some(chosen) if chosen.ids == ids => Ids::known(ids, &chosen.there),
        _ => Ids::new(ids),
    };
    live.iter_mut().zip(&new).for_each(|(it, new)| it.held += new);
    let layout = cache.begin(&new)?;
    // Where much is being read, some prompts wait for a later pass.
    let taking: Vec<usize> = (0..live.len()).filter(|it| new[*it] > 0).collect();
    let all: Vec<usize> = taking.iter().map(|it| live[*it].number).collect();
    let wide = narrowed(ctx, &all, &layout)?;
    let last = layout.segments().iter().map(|it| (it.first + it.count - 1) as u32);
    let ready: Vec<(usize, u32)> =
        taking.into_iter().zip(last).filter(|it| live[it.0].held == live[it.0].ids.len()).collect();
    let numbers: Vec<usize> = ready.iter().map(|it| live[it.0].number).collect();
    // A pass of one token of each may come again, if a device can know before all that it needs of the host.
    let there = cache.device().filter(|_| config.repeating && ready.len() == ids.len());
    if let Some(device) = &there {
        settle(device)?;
        ids.send(device)?;
        cache.send(device)?;
    }
    let mut pass = || {
        cache.rewind();
        let hidden = extend(model, &ids, &layout, cache, &wide)?;
        if ready.is_empty() {
            return Ok(Vec::new());
        }
        let ctx = narrowed(ctx, &numbers, &Layout::new(&vec![1; ready.len()])?)?;
        logits_after(model, &hidden, ready.iter().map(|it| it.1).collect(), &ctx).map(|it| vec![it])
    };
    // How long the texts are decides which kernels it takes by and by.
    let kind = (layout.sequences(), layout.furthest().div_ceil(128));
    let done = match &there {
        Some(device) => repeated(device, kind, &mut pass)?,
        None => pass()?,
    };
    let Some(logits) = done.into_iter().next() else { return Ok(Vec::new()) };
    let draws: Vec<_> = ready.iter().map(|it| config.draw(&live[it.0].ids, live[it.0].number)).collect();
    let chosen = sample(logits, model.config().vocab_size, &config.sampling(), &draws)?.ok_or(Error::NotFinite)?;
    let found = ready.into_iter().map(|it| it.0).zip(chosen.ids.iter().copied()).collect();
    *latest = Some(chosen);
    Ok(found)
}

/// How much of what each sequence has not in the cache goes into the next pass: the one token of those that are read, and of the others
/// as much as a pass reads, those that came first before the others.
pub(crate) fn portions(missing: impl Iterator<Item = usize>) -> Vec<usize> {
    let mut room = AT_ONCE * CHUNK;
    let portion = |missing: usize| {
        if missing == 1 {
            return 1;
        }
        let new = missing.min(CHUNK).min(room);
        room -= new;
        new
    };
    missing.map(portion).collect()
}

/// A context of all prompts for a pass of some of them, which are the sequences of `layout`.
fn narrowed(ctx: &Context, numbers: &[usize], layout: &Layout) -> Result<Context> {
    let Routing::ByRow { adapters, of_sequence } = &ctx.routing else { return Ok(ctx.clone()) };
    let chosen: Vec<Option<usize>> = numbers.iter().map(|it| of_sequence[*it]).collect();
    Ok(Context::by_row(adapters.clone(), &chosen, layout)?)
}

/// The hidden states of new tokens, whose keys and values join a cache that has begun a pass of this layout.
pub fn extend(model: &dyn Model, ids: &Ids, layout: &Layout, cache: &mut KvCache, ctx: &Context) -> Result<Tensor> {
    let compute = cache.compute();
    let mut pass = Pass { attend: Attend::Cache(cache), ..Pass::new(ids, layout, ctx, compute) };
    Ok(model.forward(&Tape::disabled(), &mut pass)?.into_value())
}

/// The logits in f32, in host memory, after some rows of hidden states: `(rows.len(), vocab_size)`. Where `ctx` gives sequences
/// adapters of their own, each of these rows is a sequence.
///
/// # Errors
/// Logits that hold NaN or infinity: nothing can be told from them.
pub fn scores(model: &dyn Model, hidden: &Tensor, rows: Vec<u32>, ctx: &Context) -> Result<Tensor> {
    let scores = logits_after(model, hidden, rows, ctx)?.to_device(&Device::Cpu)?;
    if !scores.is_finite()? {
        return Err(Error::NotFinite);
    }
    Ok(scores)
}

/// The logits in f32 after some rows of hidden states, where these are.
fn logits_after(model: &dyn Model, hidden: &Tensor, rows: Vec<u32>, ctx: &Context) -> Result<Tensor> {
    let tape = Tape::disabled();
    let all = rows.len() == hidden.rows();
    let picked = match all {
        true => hidden.clone(),
        false => embedding(&tape, &Var::constant(hidden.clone()), &Ids::new(rows), hidden.dtype())?.into_value(),
    };
    let paths = head_paths(model);
    let [scores] =
        ctx.by_rows(&tape, &Var::constant(picked), &paths.each_ref().map(String::as_str), |picked, ctx| {
            Ok([Var::constant(logits(picked.value(), model.head(&tape, ctx).as_head())?)])
        })?;
    Ok(scores.into_value())
}
