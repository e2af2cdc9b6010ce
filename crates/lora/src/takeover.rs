//! Adapters that begin with a part of the base, which has to be known before the base is stored in few bits.

use crate::{
    Adapter, AdapterFile, AttachReport, LoraConfig, Modules, Prepare, Result, Selection,
    attach::attach_with,
    svd::Matrix,
    variants::{Initialisation, Numbers, Part, initialisation},
};
use halfbyte_tensor::Tensor;
use std::collections::BTreeMap;

/// The parts of a base with which an adapter begins. Whoever loads the base offers its matrices.
///
/// For a fresh adapter what is left of a matrix is frozen in its place. For one that was saved relative to such a base, the
/// base stays whole and the adapter gets what it lacks; so it can be used beside others.
#[derive(Debug)]
pub struct Takeover {
    config: LoraConfig,
    /// Path of the output head, which `all-linear` leaves alone.
    head: Option<String>,
    how: &'static Initialisation,
    seed: u64,
    /// Whether the parts leave the base.
    leaves: bool,
    parts: BTreeMap<String, Part>,
}

impl Takeover {
    /// For a fresh adapter; none where its initialisation leaves the base alone.
    pub fn fresh(config: &LoraConfig, head: Option<&str>, seed: u64) -> Result<Option<Takeover>> {
        config.validate()?;
        Takeover::new(config, head, (seed, true))
    }

    /// For an adapter from a file; none where it is an update of the whole base.
    pub fn of_file(file: &AdapterFile, head: Option<&str>) -> Result<Option<Takeover>> {
        Takeover::new(&file.config, head, (0, false))
    }

    fn new(config: &LoraConfig, head: Option<&str>, (seed, leaves): (u64, bool)) -> Result<Option<Takeover>> {
        let Some(how) = config.init_lora_weights.as_deref().and_then(initialisation) else { return Ok(None) };
        // Whether its expressions can be compiled is found out here, not while matrices are read.
        Selection::new(config, head)?;
        let head = head.map(str::to_owned);
        Ok(Some(Takeover { config: config.clone(), head, how, seed, leaves, parts: BTreeMap::new() }))
    }

    /// The fresh adapter, for the base that was loaded through this. See [`attach()`](crate::attach()).
    pub fn attach(&self, modules: &Modules<'_>, name: &str) -> Result<(Adapter, AttachReport)> {
        attach_with(modules, &self.config, name, Numbers::Fresh { seed: self.seed, parts: Some(&self.parts) })
    }

    /// Whether the same base always gives the same parts, whatever the seed.
    pub fn repeats(&self) -> bool {
        self.config.init_lora_weights.as_deref().is_none_or(self.how.repeats)
    }

    pub(crate) fn parts(&self) -> &BTreeMap<String, Part> {
        &self.parts
    }

    fn selects(&self, path: &str) -> Result<Option<(usize, f32)>> {
        let selection = Selection::new(&self.config, self.head.as_deref())?;
        let adapted = selection.adapts(path) && !selection.saves(path);
        Ok(adapted.then(|| selection.rank_and_scaling(path)))
    }
}

impl Prepare for Takeover {
    fn wants(&self, path: &str) -> bool {
        matches!(self.selects(path), Ok(Some(_)))
    }

    /// The matrix without the part that the adapter begins with, in its own dtype.
    fn replace(&mut self, path: &str, weight: Tensor) -> Result<Tensor> {
        let Some((rank, scaling)) = self.selects(path)? else { return Ok(weight) };
        let (rows, cols) = (weight.rows(), weight.cols());
        let mut values = weight.read_f32().map_err(halfbyte_autograd::Error::from)?;
        let name = self.config.init_lora_weights.as_deref().unwrap_or_default();
        let seed = (self.seed, place_of(path));
        let part = (self.how.part)(name, Matrix { values: &values, rows, cols }, (rank, scaling), seed);
        let left = if self.leaves {
            subtract(&mut values, cols, (&part, scaling));
            Tensor::from_vec(weight.shape(), values).to_dtype(weight.dtype())
        } else {
            weight
        };
        self.parts.insert(path.to_owned(), part);
        Ok(left)
    }
}

/// `W - scaling * B A`.
fn subtract(w: &mut [f32], cols: usize, (part, scaling): (&Part, f32)) {
    let rank = part.a.len() / cols;
    for (row, b) in w.chunks_mut(cols).zip(part.b.chunks(rank)) {
        let mut update = vec![0.0f32; cols];
        for (b, a) in b.iter().zip(part.a.chunks(cols)) {
            update.iter_mut().zip(a).for_each(|(u, a)| *u += b * a);
        }
        row.iter_mut().zip(&update).for_each(|(w, u)| *w -= scaling * u);
    }
}

/// Where random numbers for a matrix are taken from: a hash of its path (FNV-1a), since its place among the layers is not known
/// while it is read.
fn place_of(path: &str) -> u64 {
    path.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}
