use crate::{Error, ModelFolder, Result};
use halfbyte_autograd::Param;
use halfbyte_lora::{Base, Linear, Role, Weight};
use halfbyte_ops::FrozenMatrix;
use halfbyte_tensor::{DType, Tensor};
use std::{collections::HashSet, sync::Arc};

/// Where a model's layers come from: a folder on disk, or numbers that a test makes up.
pub trait Weights {
    /// The linear layer at `path` with a `(out_features, in_features)` matrix.
    fn linear(&mut self, path: &str, dims: (usize, usize), bias: bool) -> Result<Linear>;

    /// A weight that is not a linear layer's matrix: an embedding, a norm's scale, a bias.
    fn weight(&mut self, name: &str, shape: &[usize], role: Role) -> Result<Weight>;

    /// The output head, which is never quantised.
    fn head(&mut self, path: &str, dims: (usize, usize)) -> Result<Linear>;
}

/// Stores a loaded matrix in the format of the run. Gets the module's path and the `(out_features, in_features)` tensor.
pub type Freeze<'a> = dyn Fn(&str, Tensor) -> std::result::Result<Arc<dyn FrozenMatrix>, String> + 'a;

/// Takes over a matrix that the folder stores in few bits. Gets the module's path and `(out_features, in_features)`; `None`
/// where the matrix is stored dense.
pub type TakeStored<'a> =
    dyn Fn(&str, (usize, usize)) -> std::result::Result<Option<Arc<dyn FrozenMatrix>>, String> + 'a;

/// How weights are taken from a folder.
pub enum Loading<'a> {
    /// Frozen: a matrix that is `stored` in few bits stays so; other linear layers go through `quantise`, the output head
    /// through `dense`.
    Frozen {
        /// For matrices of a quantised checkpoint; asked first.
        stored: Option<&'a TakeStored<'a>>,
        /// For the linear layers.
        quantise: &'a Freeze<'a>,
        /// For the output head.
        dense: &'a Freeze<'a>,
    },
    /// Everything trains: f32 master weights.
    Trainable,
}

/// Weights from a Hugging Face folder, read one matrix at a time.
pub struct FolderWeights<'a> {
    folder: &'a ModelFolder,
    loading: Loading<'a>,
    used: HashSet<String>,
    progress: &'a mut dyn FnMut(usize),
}

impl<'a> FolderWeights<'a> {
    /// Reads from `folder`; `progress` is told the bytes of every tensor read.
    pub fn new(folder: &'a ModelFolder, loading: Loading<'a>, progress: &'a mut dyn FnMut(usize)) -> FolderWeights<'a> {
        FolderWeights { folder, loading, used: HashSet::new(), progress }
    }

    /// Fails if the folder holds a tensor that the model did not ask for. `ignored` says which ones old files carry.
    pub fn finish(self, ignored: impl Fn(&str) -> bool) -> Result<()> {
        let surplus: Vec<&String> =
            self.folder.tensors().keys().filter(|it| !self.used.contains(*it) && !ignored(it)).collect();
        let Some(first) = surplus.first() else { return Ok(()) };
        let more = if surplus.len() > 1 { format!(" and {} more", surplus.len() - 1) } else { String::new() };
        let message = format!(
            "holds the tensor {first}{more}, which the architecture in config.json does not have; do weights and config.json belong together?"
        );
        Err(Error::File { path: self.folder.dir().to_owned(), message })
    }

    fn read(&mut self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let tensor = self.folder.read(name, shape)?;
        self.used.insert(name.to_owned());
        (self.progress)(tensor.bytes());
        Ok(tensor)
    }

    fn matrix(&mut self, path: &str, dims: (usize, usize), is_head: bool) -> Result<Base> {
        let name = format!("{path}.weight");
        let refused = |message| Error::Freeze { path: path.to_owned(), message };
        if let Loading::Frozen { stored: Some(take), .. } = &self.loading
            && let Some(matrix) = take(path, dims).map_err(refused)?
        {
            self.mark_parts(path);
            (self.progress)(matrix.bytes());
            return Ok(Base::Frozen(matrix));
        }
        let tensor = self.read(&name, &[dims.0, dims.1])?;
        let freeze = match &self.loading {
            Loading::Trainable => return Ok(Base::Trainable(Param::new(name, tensor.to_dtype(DType::F32)))),
            Loading::Frozen { dense, .. } if is_head => dense,
            Loading::Frozen { quantise, .. } => quantise,
        };
        freeze(path, tensor).map(Base::Frozen).map_err(refused)
    }

    /// The weight of a quantised layer is several tensors, all of which were used with it.
    fn mark_parts(&mut self, path: &str) {
        let (weight, parts) = (format!("{path}.weight"), format!("{path}.weight."));
        let own = [weight, format!("{path}.SCB"), format!("{path}.weight_format")];
        let names = self.folder.tensors().keys().filter(|it| it.starts_with(&parts) || own.contains(it));
        self.used.extend(names.cloned());
    }
}

impl Weights for FolderWeights<'_> {
    fn linear(&mut self, path: &str, dims: (usize, usize), bias: bool) -> Result<Linear> {
        let base = self.matrix(path, dims, false)?;
        let bias = if bias { Some(self.weight(&format!("{path}.bias"), &[dims.0], Role::Bias)?) } else { None };
        Ok(Linear::new(path, base, bias))
    }

    fn weight(&mut self, name: &str, shape: &[usize], role: Role) -> Result<Weight> {
        let tensor = self.read(name, shape)?;
        Ok(match self.loading {
            Loading::Trainable => Weight::trainable(Param::new(name, tensor.to_dtype(DType::F32)), role),
            Loading::Frozen { .. } => Weight::frozen(name, role, tensor),
        })
    }

    fn head(&mut self, path: &str, dims: (usize, usize)) -> Result<Linear> {
        Ok(Linear::head(path, self.matrix(path, dims, true)?))
    }
}
