use crate::{Error, ModelFolder, Result, loaded_dtype};
use halfbyte_autograd::Param;
use halfbyte_files::Reading;
use halfbyte_lora::{Base, Linear, Member, Prepare, Role, Weight};
use halfbyte_ops::{FrozenMatrix, Refusal, WeightFormat};
use halfbyte_tensor::{DType, Device, Tensor, with_float};
use std::sync::Arc;

/// Where a model's layers come from: a folder on disk, or numbers that a test makes up.
pub trait Weights {
    /// The linear layer at `path` with a `(out_features, in_features)` matrix.
    fn linear(&mut self, path: &str, dims: (usize, usize), bias: bool) -> Result<Linear>;

    /// As [`Weights::linear`], of a layer whose matrix the published files hold the other way round, `(in_features, out_features)`; but not
    /// where they hold it in few bits.
    fn transposed(&mut self, path: &str, dims: (usize, usize), bias: bool) -> Result<Linear> {
        Ok(self.linear(path, dims, bias)?.published_transposed())
    }

    /// The layer at `path`, with a bias, of one of many experts, whose matrices the published files hold as one parameter
    /// `(experts, in_features, out_features)` and their biases as another; but not where they hold it in few bits.
    fn expert(&mut self, path: &str, _member: &Member, dims: (usize, usize)) -> Result<Linear> {
        Ok(self.linear(path, dims, true)?.published_transposed())
    }

    /// A weight that is not a linear layer's matrix: an embedding, a norm's scale, a bias.
    fn weight(&mut self, name: &str, shape: &[usize], role: Role) -> Result<Weight>;

    /// The output head, which is never quantised.
    fn head(&mut self, path: &str, dims: (usize, usize)) -> Result<Linear>;

    /// A router, which is never quantised, either.
    fn router(&mut self, path: &str, dims: (usize, usize)) -> Result<Linear> {
        Ok(self.head(path, dims)?.of_role(Role::Router))
    }
}

/// How weights are taken from a folder.
pub enum Loading<'a> {
    /// Frozen: linear layers and the output head are kept by a format.
    Frozen {
        /// How.
        format: &'a dyn WeightFormat,
        /// Who changes dense weights of linear layers before they are frozen, if anybody does.
        prepare: Option<&'a mut dyn Prepare>,
    },
    /// Everything trains: f32 master weights.
    Trainable,
}

/// Weights from a Hugging Face folder, read one matrix at a time and put on a device one at a time, so that the host never
/// holds the whole model.
pub struct FolderWeights<'a, 'l> {
    folder: &'a ModelFolder,
    reading: Reading<'a>,
    loading: Loading<'l>,
    device: &'a Device,
    progress: &'a mut dyn FnMut(usize),
    /// Tensors that went to a GPU unseen, and what was found there.
    unseen: Vec<(String, Tensor)>,
}

impl<'a, 'l> FolderWeights<'a, 'l> {
    /// Reads from `folder` onto `device`; `progress` is told the bytes of every tensor read.
    pub fn new(
        folder: &'a ModelFolder,
        loading: Loading<'l>,
        device: &'a Device,
        progress: &'a mut dyn FnMut(usize),
    ) -> FolderWeights<'a, 'l> {
        FolderWeights { folder, reading: Reading::new(folder.files()), loading, device, progress, unseen: Vec::new() }
    }

    /// Fails if the folder holds a tensor that the model did not ask for. `ignored` says which ones old files carry.
    /// So it does if one that went to a GPU is not finite.
    pub fn finish(self, ignored: impl Fn(&str) -> bool) -> Result<()> {
        for (name, infinite) in &self.unseen {
            if infinite.to_device(&Device::Cpu)?.data::<f32>()[0] != 0.0 {
                return Err(self.folder.not_finite(name));
            }
        }
        let surplus: Vec<&str> = self.reading.unused().into_iter().filter(|it| !ignored(it)).collect();
        let Some(first) = surplus.first() else { return Ok(()) };
        let more = if surplus.len() > 1 { format!(" and {} more", surplus.len() - 1) } else { String::new() };
        let hint = if surplus.iter().any(|it| it.contains(".lora_")) {
            "it is an adapter's, saved beside its base: merge it with PEFT's merge_and_unload, or save the two apart"
        } else {
            "do weights and config.json belong together?"
        };
        let message =
            format!("holds the tensor {first}{more}, which the architecture in config.json does not have; {hint}");
        Err(Error::File { path: self.folder.dir().to_owned(), message })
    }

    fn read(&mut self, name: &str, shape: &[usize], device: &Device) -> Result<Tensor> {
        let (tensor, infinite) = self.folder.read_onto(name, shape, device)?;
        self.unseen.extend(infinite.map(|it| (name.to_owned(), it)));
        self.reading.take(name);
        (self.progress)(tensor.bytes());
        Ok(tensor)
    }

    /// The matrix of a layer, `(out_features, in_features)`, of which the files may hold the transpose.
    fn read_matrix(
        &mut self,
        name: &str,
        dims: (usize, usize),
        (transposed, device): (bool, &Device),
    ) -> Result<Tensor> {
        match transposed {
            false => self.read(name, &[dims.0, dims.1], device),
            true => Ok(turned(&self.read(name, &[dims.1, dims.0], &Device::Cpu)?)),
        }
    }

    fn matrix(&mut self, path: &str, dims: (usize, usize), (is_head, transposed): (bool, bool)) -> Result<Base> {
        let name = format!("{path}.weight");
        let refused = |source: Refusal| Error::Freeze { path: path.to_owned(), source };
        let Loading::Frozen { format, .. } = self.loading else {
            let values = self.read_matrix(&name, dims, (transposed, &Device::Cpu))?;
            return self.freeze(path, values);
        };
        // A transpose of numbers is no matrix that could be taken over as it lies there.
        let lies_across =
            transposed && self.folder.files().get(&name).is_some_and(|it| loaded_dtype(it.1.dtype).is_some());
        let stored =
            if lies_across { None } else { format.stored(path, dims, &self.reading, self.device).map_err(refused)? };
        if let Some(matrix) = stored {
            if !is_head && self.wants(path) {
                return Err(refused(
                    "the adapter begins with a part of this weight, which is stored in few bits already; take the original weights, or another init_lora_weights".into(),
                ));
            }
            (self.progress)(matrix.bytes());
            return self.place(matrix);
        }
        let at_once = format.takes_from_gpu() && (is_head || !self.wants(path));
        let weight = self.read_matrix(&name, dims, (transposed, if at_once { self.device } else { &Device::Cpu }))?;
        if is_head {
            return self.place(format.keep(path, weight).map_err(refused)?);
        }
        self.freeze(path, weight)
    }

    /// A dense matrix as the format keeps it, or for training.
    fn freeze(&mut self, path: &str, mut weight: Tensor) -> Result<Base> {
        let Loading::Frozen { format, .. } = self.loading else {
            let param = Param::new(format!("{path}.weight"), weight.to_dtype(DType::F32).to_device(self.device)?);
            return Ok(Base::Trainable(param));
        };
        let shape = weight.shape().to_vec();
        if let Loading::Frozen { prepare: Some(it), .. } = &mut self.loading
            && it.wants(path)
        {
            weight = it.replace(path, weight)?;
            assert_eq!(weight.shape(), shape, "{path}: a prepared weight keeps its shape");
        }
        let refused = |source: Refusal| Error::Freeze { path: path.to_owned(), source };
        self.place(format.freeze(path, weight).map_err(refused)?)
    }

    /// One expert's part of a parameter of all; none where the files have no such parameter.
    fn part(&mut self, name: &str, (part, parts): (usize, usize), shape: &[usize]) -> Result<Option<Tensor>> {
        if self.folder.files().get(name).is_none() {
            return Ok(None);
        }
        let tensor = self.folder.read_part(name, (part, parts), shape)?;
        self.reading.take(name);
        (self.progress)(tensor.bytes());
        Ok(Some(tensor))
    }

    fn wants(&self, path: &str) -> bool {
        matches!(&self.loading, Loading::Frozen { prepare: Some(it), .. } if it.wants(path))
    }

    fn kept(&self, name: &str, role: Role, tensor: Tensor) -> Result<Weight> {
        Ok(match self.loading {
            Loading::Trainable => {
                Weight::trainable(Param::new(name, tensor.to_dtype(DType::F32).to_device(self.device)?), role)
            }
            Loading::Frozen { .. } => Weight::frozen(name, role, tensor.to_device(self.device)?),
        })
    }

    fn place(&self, matrix: Arc<dyn FrozenMatrix>) -> Result<Base> {
        Ok(Base::Frozen(matrix.to_device(self.device)?.unwrap_or(matrix)))
    }
}

impl Weights for FolderWeights<'_, '_> {
    fn linear(&mut self, path: &str, dims: (usize, usize), bias: bool) -> Result<Linear> {
        let base = self.matrix(path, dims, (false, false))?;
        let bias = if bias { Some(self.weight(&format!("{path}.bias"), &[dims.0], Role::Bias)?) } else { None };
        Ok(Linear::new(path, base, bias))
    }

    fn transposed(&mut self, path: &str, dims: (usize, usize), bias: bool) -> Result<Linear> {
        let base = self.matrix(path, dims, (false, true))?;
        let bias = if bias { Some(self.weight(&format!("{path}.bias"), &[dims.0], Role::Bias)?) } else { None };
        Ok(Linear::new(path, base, bias).published_transposed())
    }

    fn expert(&mut self, path: &str, member: &Member, dims: (usize, usize)) -> Result<Linear> {
        let base = match self.part(&member.stack, member.expert, &[dims.1, dims.0])? {
            Some(across) => self.freeze(path, turned(&across))?,
            None => self.matrix(path, dims, (false, false))?,
        };
        let name = format!("{path}.bias");
        let bias = match self.part(&format!("{}_bias", member.stack), member.expert, &[dims.0])? {
            Some(it) => self.kept(&name, Role::Bias, it)?,
            None => self.weight(&name, &[dims.0], Role::Bias)?,
        };
        Ok(Linear::new(path, base, Some(bias)).published_transposed())
    }

    fn weight(&mut self, name: &str, shape: &[usize], role: Role) -> Result<Weight> {
        let is_frozen = matches!(self.loading, Loading::Frozen { .. });
        let tensor = self.read(name, shape, if is_frozen { self.device } else { &Device::Cpu })?;
        self.kept(name, role, tensor)
    }

    fn head(&mut self, path: &str, dims: (usize, usize)) -> Result<Linear> {
        Ok(Linear::head(path, self.matrix(path, dims, (true, false))?))
    }
}

/// The transpose of a matrix in host memory.
pub(crate) fn turned(matrix: &Tensor) -> Tensor {
    /// Rows and columns that are turned at a time, which stay in the near cache.
    const TILE: usize = 32;
    let (rows, cols) = (matrix.rows(), matrix.cols());
    let mut out = Tensor::scratch(&[cols, rows], matrix.dtype());
    with_float!(matrix.dtype(), T, {
        let (from, to) = (matrix.data::<T>(), out.data_mut::<T>());
        for (first_row, first_col) in (0..rows).step_by(TILE).flat_map(|r| (0..cols).step_by(TILE).map(move |c| (r, c)))
        {
            for r in first_row..rows.min(first_row + TILE) {
                for c in first_col..cols.min(first_col + TILE) {
                    to[c * rows + r] = from[r * cols + c];
                }
            }
        }
    });
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_matrix_that_is_turned_twice_is_itself() {
        let values: Vec<f32> = (0..33 * 70).map(|it| it as f32).collect();
        let matrix = Tensor::from_vec(&[33, 70], values.clone());
        let across = turned(&matrix);
        assert_eq!((across.shape(), across.data::<f32>()[3 * 33 + 32]), (&[70, 33][..], values[32 * 70 + 3]));
        assert_eq!(turned(&across).data::<f32>(), values);
        let narrow = turned(&matrix.to_dtype(DType::Bf16));
        assert_eq!((narrow.dtype(), narrow.shape()), (DType::Bf16, &[70, 33][..]));
    }
}
