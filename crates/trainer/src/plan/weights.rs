//! A model without its weights: what the headers of its files say, on a dry device.

use crate::load;
use halfbyte_autograd::Param;
use halfbyte_frozen::{
    Format, Quant,
    bitsandbytes::{self, Skipped},
    mxfp4,
};
use halfbyte_lora::{Base, Linear, Member, Role, Weight};
use halfbyte_models::{Error, ModelFolder, Result, Weights, loaded_dtype};
use halfbyte_tensor::{DType, Device, Tensor};

/// Gives a model layers of the right sizes.
pub(crate) struct DryWeights<'a> {
    folder: &'a ModelFolder,
    /// How dense matrices would be frozen; none where everything trains.
    format: Option<Format>,
    /// What a folder that is quantised keeps dense.
    skipped: Skipped,
    device: &'a Device,
    /// Bytes of the largest matrix that is read as numbers to be frozen.
    pub(crate) most_read: usize,
}

impl<'a> DryWeights<'a> {
    /// Those of a folder, on a dry device.
    pub(crate) fn new(folder: &'a ModelFolder, format: Option<Format>, device: &'a Device) -> DryWeights<'a> {
        DryWeights { folder, format, skipped: load::skipped(folder), device, most_read: 0 }
    }
}

impl DryWeights<'_> {
    /// The dtype in which a dense tensor is stored, after its shape was compared; none where the files hold it in few bits.
    fn stored(&self, name: &str, shape: &[usize]) -> Result<Option<DType>> {
        let Some((file, info)) = self.folder.files().get(name) else {
            return Err(self.folder.files().missing(name).into());
        };
        // Codes may be stored in any dtype.
        let codes = bitsandbytes::holds_codes(self.folder.files(), name);
        let Some(dtype) = loaded_dtype(info.dtype).filter(|_| !codes) else { return Ok(None) };
        let wanted = self.folder.stored_shape(name, shape);
        if info.shape != wanted {
            let message = format!("{name} has shape {:?}, config.json asks for {wanted:?}", info.shape);
            return Err(Error::File { path: file.path().to_owned(), message });
        }
        Ok(Some(dtype))
    }

    fn scratch(&self, shape: &[usize], dtype: DType) -> Tensor {
        Tensor::scratch_on(self.device, shape, dtype)
    }

    fn matrix(&mut self, path: &str, dims: (usize, usize), (is_head, transposed): (bool, bool)) -> Result<Base> {
        let (name, shape) = (format!("{path}.weight"), [dims.0, dims.1]);
        let stored = self.stored(&name, &if transposed { [dims.1, dims.0] } else { shape })?;
        if transposed {
            // It is turned from one tensor into another.
            drop([self.moment(dims, stored), self.moment(dims, stored)]);
        }
        self.of_dtype(path, dims, (stored, is_head))
    }

    /// Numbers that are read and then are in the way no more: in host memory, wherever the weight goes.
    fn moment(&self, dims: (usize, usize), stored: Option<DType>) -> Option<Tensor> {
        let is_host = matches!(self.device, Device::Dry(_));
        stored.filter(|_| is_host).map(|it| self.scratch(&[dims.0, dims.1], it))
    }

    /// One that is stored in this dtype, or in few bits.
    fn of_dtype(&mut self, path: &str, dims: (usize, usize), (stored, is_head): (Option<DType>, bool)) -> Result<Base> {
        let Some(format) = self.format else {
            let param = Param::new(format!("{path}.weight"), self.scratch(&[dims.0, dims.1], DType::F32));
            return Ok(Base::Trainable(param));
        };
        let dense = stored.is_some() && (is_head || self.skipped.contains(path));
        let format = if dense { Format::DENSE } else { format };
        // Settings that the format refuses are refused by whatever is frozen, a few elements, too.
        let refused = |e: halfbyte_frozen::Error| Error::Freeze { path: path.to_owned(), source: e.into() };
        format.freeze(Tensor::zeros(&[1, 64], DType::F32)).map_err(refused)?;
        // What is coded is there as numbers until it is.
        let read = stored.filter(|_| format.quant != Quant::None);
        self.most_read = self.most_read.max(read.map_or(0, |it| dims.0 * dims.1 * it.size()));
        let _read = self.moment(dims, read);
        Ok(Base::Frozen(format.dry(self.device, dims, stored.unwrap_or(DType::Bf16))))
    }
}

impl Weights for DryWeights<'_> {
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
        let (count, files) = (member.expert.1, self.folder.files());
        let base = if files.get(&member.stack).is_some() {
            let stored = self.stored(&member.stack, &[count, dims.1, dims.0])?.unwrap_or(DType::Bf16);
            let _across = self.moment(dims, Some(stored));
            self.of_dtype(path, dims, (Some(stored), false))?
        } else if mxfp4::is_stored(&member.stack, files) {
            Base::Frozen(mxfp4::dry(self.device, dims))
        } else {
            self.matrix(path, dims, (false, false))?
        };
        let (name, of_all) = (format!("{path}.bias"), format!("{}_bias", member.stack));
        let bias = match files.get(&of_all) {
            Some(_) => {
                let dtype = self.stored(&of_all, &[count, dims.0])?.unwrap_or(DType::Bf16);
                Weight::frozen(name, Role::Bias, self.scratch(&[dims.0], dtype))
            }
            None => self.weight(&name, &[dims.0], Role::Bias)?,
        };
        Ok(Linear::new(path, base, Some(bias)).published_transposed())
    }

    fn weight(&mut self, name: &str, shape: &[usize], role: Role) -> Result<Weight> {
        let dtype = self.stored(name, shape)?.unwrap_or(DType::Bf16);
        Ok(match self.format {
            None => Weight::trainable(Param::new(name, self.scratch(shape, DType::F32)), role),
            Some(_) => Weight::frozen(name, role, self.scratch(shape, dtype)),
        })
    }

    fn head(&mut self, path: &str, dims: (usize, usize)) -> Result<Linear> {
        Ok(Linear::head(path, self.matrix(path, dims, (true, false))?))
    }
}
