//! The ways in which an adapter changes a weight, a file each. Everything around them knows [`Update`] only; a new one is
//! a file, and a line in one of the two lists below.

mod dora;
mod embedding;
mod full;
mod lora;
mod pissa;
mod stacked;
mod taken;

pub use dora::Dora;
pub use embedding::EmbeddingLora;
pub use full::Full;
pub use lora::Lora;
pub(crate) use stacked::StackPlace;
pub use stacked::Stacked;
pub(crate) use taken::Part;

use crate::{Error, Linear, LoraConfig, Result, Role, Weight, svd::Matrix};
use halfbyte_autograd::{Param, Result as OpResult, Tape, Var};
use halfbyte_ops::{FrozenMatrix, Ids};
use halfbyte_tensor::{DType, Device, Tensor};
use std::{collections::BTreeMap, fmt, path::PathBuf};

/// Every variant; the first that answers for a place takes it.
const VARIANTS: [Begin; 6] = [full::begin, embedding::begin, stacked::begin, dora::begin, taken::begin, lora::begin];

/// Every initialisation that takes a part of the base over.
const INITIALISATIONS: [Initialisation; 1] = [pissa::PISSA];

/// Begins an update at a place, with numbers that are fresh or from a file; none where the place is another variant's.
type Begin = fn(&Place<'_>, &mut Numbers<'_>) -> Result<Option<Box<dyn Update>>>;

/// A way to begin with a part of the base, which then is frozen without it.
#[derive(Debug)]
pub(crate) struct Initialisation {
    /// What `init_lora_weights` may say, for people.
    names: &'static str,
    /// Whether `init_lora_weights` means this one.
    knows: fn(&str) -> bool,
    pub(crate) part: Take,
    /// Whether the part is a function of the matrix alone.
    pub(crate) repeats: fn(&str) -> bool,
}

/// The part of a matrix that the initialisation of a name takes, of a rank and with a factor; random numbers are a function of the
/// seed and the place.
type Take = fn(&str, Matrix<'_>, (usize, f32), (u64, u64)) -> Part;

/// The initialisation of this name.
pub(crate) fn initialisation(name: &str) -> Option<&'static Initialisation> {
    INITIALISATIONS.iter().find(|it| (it.knows)(name))
}

/// What there is, for people.
pub(crate) fn initialisations() -> String {
    INITIALISATIONS.map(|it| it.names).join(", ")
}

/// What an adapter does to one weight of the base.
pub trait Update: Send + Sync + fmt::Debug {
    /// The output of the module with the update. `dropout` seeds the masks, and is none in evaluation.
    fn forward<'m>(&self, tape: &Tape<'m>, module: Module<'_, 'm>, dropout: Option<u64>) -> OpResult<Var>;

    /// The low-rank product that is all there is to this update, if it is that: layers of one input then share the packed
    /// input and one pass over the output.
    fn low_rank(&self) -> Option<&Lora> {
        None
    }

    /// The low-rank products of many experts that this update is, if it is that.
    fn stacked(&self) -> Option<&Stacked> {
        None
    }

    /// The tensor that takes the base's place, where the update is one.
    fn copy(&self) -> Option<&Param> {
        None
    }

    /// What trains, in the order of creation.
    fn params(&self) -> Vec<Param>;

    /// The weight with the update folded in, from the base's in f32; in f32.
    ///
    /// # Errors
    /// If base or update lie on a device that failed.
    fn merge(&self, base: Tensor) -> OpResult<Tensor>;

    /// What PEFT's file holds of it: names without PEFT's prefix, values in f32 in host memory.
    fn stored(&self) -> OpResult<Vec<(String, Tensor)>> {
        self.params().iter().map(|it| Ok((it.name().to_owned(), on_host(it)?))).collect()
    }
}

/// A module of the base that an update changes, and its input.
pub enum Module<'a, 'm> {
    /// A linear layer.
    Linear {
        /// `(rows, in_features)`.
        x: &'a Var,
        /// `(out_features, in_features)`.
        w: &'m dyn FrozenMatrix,
        /// `(out_features)`.
        bias: Option<&'a Var>,
    },
    /// A table whose rows are looked up.
    Embedding {
        /// `(vocabulary, channels)`.
        table: &'a Var,
        /// The rows that are wanted.
        ids: &'a Ids,
        /// Of the output.
        dtype: DType,
    },
}

/// A place in the base that a configuration gives an update.
pub(crate) struct Place<'a> {
    /// By which the adapter knows it.
    pub(crate) path: String,
    /// Where among the model's linear layers or its other weights it stands: random numbers are a function of that.
    pub(crate) index: u64,
    pub(crate) what: What<'a>,
    pub(crate) role: Role,
    pub(crate) rank: usize,
    pub(crate) scaling: f32,
    pub(crate) config: &'a LoraConfig,
}

/// What kind of update a place gets.
pub(crate) enum What<'a> {
    /// A low-rank one of a linear layer.
    Linear(&'a Linear),
    /// A low-rank one of a table.
    Embedding(&'a Weight),
    /// Low-rank ones of all experts' matrices.
    Stack(StackPlace<'a>),
    /// A copy that trains in full.
    Copy(Copied<'a>),
}

/// Where a copied tensor stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CopyOf {
    Matrix,
    /// Of a linear layer.
    Bias,
    Other,
}

/// A tensor that an adapter has a copy of.
pub(crate) struct Copied<'a> {
    /// Its name in the base.
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
    /// The base's value.
    pub(crate) value: Box<dyn Fn() -> OpResult<Tensor> + 'a>,
    /// Under which names the copy may stand in a file.
    pub(crate) read_as: Vec<String>,
    /// Under which names it is written.
    pub(crate) stored_as: Vec<String>,
    pub(crate) of: CopyOf,
    pub(crate) role: Role,
}

impl Place<'_> {
    /// The order of a file's updates: linear layers, each with its bias, then the other weights.
    pub(crate) fn order(&self) -> (bool, u64, bool) {
        match &self.what {
            What::Linear(_) | What::Stack(_) => (false, self.index, false),
            What::Embedding(_) => (true, self.index, false),
            What::Copy(copied) => (copied.of == CopyOf::Other, self.index, copied.of != CopyOf::Matrix),
        }
    }
}

/// Begins the update at a place.
pub(crate) fn begin(place: &Place<'_>, numbers: &mut Numbers<'_>) -> Result<Box<dyn Update>> {
    for begin in VARIANTS {
        if let Some(update) = begin(place, numbers)? {
            return Ok(update);
        }
    }
    unreachable!("{}: no variant answers for it, though LoRA takes every linear layer", place.path)
}

/// Where an update's first numbers come from.
pub(crate) enum Numbers<'a> {
    /// From a seed, by each variant's own rule, or from what was taken out of the base.
    Fresh { seed: u64, parts: Option<&'a BTreeMap<String, Part>> },
    /// From a file.
    File(FileNumbers<'a>),
    /// None: only the sizes count, on a dry device.
    Dry(&'a Device),
}

/// The tensors of a file that no update has taken yet.
pub(crate) struct FileNumbers<'a> {
    pub(crate) path: PathBuf,
    /// What the file's updates take for granted that the base lacks.
    pub(crate) parts: Option<&'a BTreeMap<String, Part>>,
    pub(crate) tensors: BTreeMap<String, Tensor>,
    /// What updates asked for in vain.
    pub(crate) missing: Vec<String>,
}

impl Numbers<'_> {
    /// The part of the base with which the update at `path` begins.
    fn part(&self, path: &str) -> Option<Part> {
        let (Numbers::Fresh { parts, .. } | Numbers::File(FileNumbers { parts, .. })) = self else { return None };
        parts.as_ref()?.get(path).cloned()
    }

    /// A parameter: `fresh` of the seed, or the file's tensor of that name. What a file lacks is noted and stands as zeros, so
    /// that all missing names can be reported together.
    ///
    /// Fails if the file's tensor has another shape.
    pub(crate) fn param(&mut self, name: &str, shape: &[usize], fresh: impl FnOnce(u64) -> Tensor) -> Result<Param> {
        self.param_among(name, &[name.to_owned()], shape, |seed| Ok(fresh(seed)))
    }

    /// A parameter whose tensor may stand in a file under one of several names.
    pub(crate) fn param_among(
        &mut self,
        name: &str,
        read_as: &[String],
        shape: &[usize],
        fresh: impl FnOnce(u64) -> OpResult<Tensor>,
    ) -> Result<Param> {
        let value = match self {
            Numbers::Fresh { seed, .. } => fresh(*seed)?,
            Numbers::File(file) => file.take(read_as, shape)?,
            Numbers::Dry(device) => Tensor::scratch_on(device, shape, DType::F32),
        };
        Ok(Param::new(name, value))
    }

    /// A parameter whose tensor a file holds in the shape `stored` and another order; `turn` brings that of a file into ours, and
    /// without one begins afresh.
    pub(crate) fn param_turned(
        &mut self,
        name: &str,
        stored: [usize; 2],
        turn: impl FnOnce(Option<Tensor>) -> Tensor,
    ) -> Result<Param> {
        let value = match self {
            Numbers::Fresh { .. } => turn(None),
            Numbers::File(file) => turn(Some(file.take(&[name.to_owned()], &stored)?)),
            Numbers::Dry(device) => {
                let shape = turn(None).shape().to_vec();
                Tensor::scratch_on(device, &shape, DType::F32)
            }
        };
        Ok(Param::new(name, value))
    }

    /// A parameter whose tensor a file holds transposed; `rows` and `cols` are the parameter's.
    pub(crate) fn transposed(
        &mut self,
        name: &str,
        [rows, cols]: [usize; 2],
        fresh: impl FnOnce(u64) -> Tensor,
    ) -> Result<Param> {
        let value = match self {
            Numbers::Fresh { seed, .. } => fresh(*seed),
            Numbers::File(file) => transpose(&file.take(&[name.to_owned()], &[cols, rows])?),
            Numbers::Dry(device) => Tensor::scratch_on(device, &[rows, cols], DType::F32),
        };
        Ok(Param::new(name, value))
    }
}

impl FileNumbers<'_> {
    fn take(&mut self, names: &[String], shape: &[usize]) -> Result<Tensor> {
        let Some((name, value)) = names.iter().find_map(|it| Some((it, self.tensors.remove(it)?))) else {
            self.missing.extend(names.last().cloned());
            return Ok(Tensor::zeros(shape, DType::F32));
        };
        if value.shape() == shape {
            return Ok(value);
        }
        let resized = match (value.shape(), shape) {
            ([rows, cols], [wanted, same]) if cols == same && rows != wanted && !name.contains("lora_") => format!(
                "; was the vocabulary resized to {rows} for the training? Then resize the base, too: in transformers resize_token_embeddings({rows}), then save_pretrained"
            ),
            _ => String::new(),
        };
        let message = format!(
            "{name} has shape {:?}, this model and adapter_config.json ask for {shape:?}{resized}",
            value.shape()
        );
        Err(Error::File { path: self.path.clone(), message })
    }
}

/// A parameter's value in host memory, in f32.
pub(crate) fn on_host(param: &Param) -> OpResult<Tensor> {
    Ok(param.value().to_device(&Device::Cpu)?.to_dtype(DType::F32))
}

pub(crate) fn transpose(matrix: &Tensor) -> Tensor {
    let (rows, cols) = (matrix.rows(), matrix.cols());
    let values = matrix.data::<f32>();
    let turned: Vec<f32> = (0..cols).flat_map(|j| (0..rows).map(move |i| values[i * cols + j])).collect();
    Tensor::from_vec(&[cols, rows], turned)
}
