//! Writing a model's weights as safetensors, one tensor at a time, so that saving needs no second copy of the model.

use crate::{Error, Model, Result};
use halfbyte_lora::Adapter;
use halfbyte_tensor::{DType, Device, Tensor, bf16, f16};
use serde_json::{Map, Value, json};
use std::{
    io::{BufWriter, Write},
    path::{Path, PathBuf},
};

/// A safetensors file being written. The names, shapes and dtype of all tensors are fixed at the start; the tensors
/// follow in the same order. The file appears under its name only when it is whole.
pub struct SafetensorsWriter {
    path: PathBuf,
    file: BufWriter<tempfile::NamedTempFile>,
    expected: std::vec::IntoIter<(String, Vec<usize>, DType)>,
}

impl SafetensorsWriter {
    /// Starts a file of `(name, shape)` tensors of one floating-point dtype.
    pub fn create(path: &Path, tensors: Vec<(String, Vec<usize>)>, dtype: DType) -> Result<SafetensorsWriter> {
        Self::create_mixed(path, tensors.into_iter().map(|(name, shape)| (name, shape, dtype)).collect())
    }

    /// Starts a file of `(name, shape, dtype)` tensors: floating-point numbers or bytes.
    pub fn create_mixed(path: &Path, tensors: Vec<(String, Vec<usize>, DType)>) -> Result<SafetensorsWriter> {
        let dir = path.parent().filter(|it| !it.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let io = |source| Error::Io { path: path.to_owned(), source };
        let file = tempfile::Builder::new().prefix(".tmp-").tempfile_in(dir).map_err(io)?;
        let mut file = BufWriter::with_capacity(1 << 20, file);
        let mut header = header(&tensors).into_bytes();
        // Readers map the file and want aligned numbers.
        header.resize(header.len().next_multiple_of(8), b' ');
        file.write_all(&(header.len() as u64).to_le_bytes()).and_then(|()| file.write_all(&header)).map_err(io)?;
        Ok(SafetensorsWriter { path: path.to_owned(), file, expected: tensors.into_iter() })
    }

    /// Writes the next tensor, rounded to the dtype that was announced.
    pub fn write(&mut self, name: &str, tensor: &Tensor) -> Result<()> {
        let expected = self.expected.next();
        let dtype = expected.as_ref().map_or(tensor.dtype(), |it| it.2);
        let here = Some((name.to_owned(), tensor.shape().to_vec(), dtype));
        assert_eq!(expected, here, "tensors are written in the order in which they were announced");
        let tensor = tensor.to_device(&Device::Cpu)?.to_dtype(dtype);
        let file = &mut self.file;
        let done = match dtype {
            DType::U8 => file.write_all(tensor.data::<u8>()),
            DType::F32 => tensor.data::<f32>().iter().try_for_each(|it| file.write_all(&it.to_le_bytes())),
            DType::Bf16 => tensor.data::<bf16>().iter().try_for_each(|it| file.write_all(&it.to_le_bytes())),
            _ => tensor.data::<f16>().iter().try_for_each(|it| file.write_all(&it.to_le_bytes())),
        };
        done.map_err(|source| Error::Io { path: self.path.clone(), source })
    }

    /// Makes the file appear.
    pub fn finish(self) -> Result<()> {
        assert_eq!(self.expected.len(), 0, "every announced tensor is written");
        let io = |source| Error::Io { path: self.path.clone(), source };
        let file = self.file.into_inner().map_err(|e| io(e.into_error()))?;
        file.as_file().sync_all().map_err(io)?;
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            file.as_file().set_permissions(std::fs::Permissions::from_mode(0o644)).map_err(io)?;
        }
        file.persist(&self.path).map_err(|e| io(e.error))?;
        Ok(())
    }
}

fn header(tensors: &[(String, Vec<usize>, DType)]) -> String {
    let name = |dtype: DType| match dtype {
        DType::F32 => "F32",
        DType::Bf16 => "BF16",
        DType::F16 => "F16",
        DType::U8 => "U8",
        other => panic!("tensors are saved as floating-point numbers or bytes, not {other}"),
    };
    let mut entries = Map::new();
    entries.insert("__metadata__".into(), json!({ "format": "pt" }));
    let mut begin = 0;
    for (tensor, shape, dtype) in tensors {
        let end = begin + shape.iter().product::<usize>() * dtype.size();
        entries.insert(tensor.clone(), json!({ "dtype": name(*dtype), "shape": shape, "data_offsets": [begin, end] }));
        begin = end;
    }
    Value::Object(entries).to_string()
}

/// Calls `each` with every tensor of a model as a checkpoint holds it: with an adapter folded in, matrices decoded one at a
/// time.
pub fn model_tensors<E>(
    model: &dyn Model,
    adapter: Option<&Adapter>,
    mut each: impl FnMut(&str, &[usize], &dyn Fn() -> Tensor) -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    let (linears, weights) = model.parts();
    for weight in weights {
        each(weight.path(), weight.value().shape(), &|| weight.merged(adapter))?;
    }
    for linear in linears {
        let (out, inner) = linear.dims();
        each(&format!("{}.weight", linear.path()), &[out, inner], &|| linear.dense(adapter))?;
        if let Some(bias) = linear.bias() {
            each(bias.path(), bias.value().shape(), &|| bias.merged(adapter))?;
        }
    }
    Ok(())
}
