//! MXFP4, in which gpt-oss's experts are published: codes of eleven values and their opposites, and a power of two for every 32 of a row.
//! It is read as it is and written by nobody here.
//!
//! Files hold the matrices of all experts as `P_blocks (experts, out_features, in_features / 32, 16)`, two codes a byte with the first in
//! the low nibble, and `P_scales (experts, out_features, in_features / 32)`, exponents that are 127 too large.

use crate::{
    Error, FrozenMatrix, Result,
    coded::{Block, Code, CodedMatrix, Scales},
};
use halfbyte_files::{Dtype, Reading, ShardedFiles};
use halfbyte_matmul as matmul;
use halfbyte_ops::frozen::OnDevice;
use halfbyte_tensor::{Device, Tensor};
use std::sync::Arc;

/// Elements that share a scale.
const BLOCK: usize = 32;
/// The largest exponent with which the largest value is a number.
const LARGEST: u8 = 252;
const VALUES: [f32; 16] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];
const CODE: Code = Code { bits: 4, values: &VALUES, unit: 1.0 };

/// A weight in MXFP4.
#[derive(Debug)]
struct Mxfp4Matrix(CodedMatrix);

/// Whether files hold the parameter `stack` of all experts in MXFP4.
pub fn is_stored(stack: &str, files: &ShardedFiles) -> bool {
    files.get(&format!("{stack}_blocks")).is_some()
}

/// A matrix of these dimensions without contents.
pub fn dry(device: &Device, dims: (usize, usize)) -> Arc<dyn FrozenMatrix> {
    Arc::new(Mxfp4Matrix(CodedMatrix::dry(device, dims, (CODE, Block::Elements(BLOCK)), false)))
}

/// The `(out_features, in_features)` matrix at a path that ends in `experts.NUMBER.NAME`, if files hold `experts.NAME` in MXFP4.
pub(crate) fn stored(path: &str, dims: (usize, usize), files: &Reading<'_>) -> Result<Option<Arc<dyn FrozenMatrix>>> {
    let Some((stack, expert)) = member(path) else { return Ok(None) };
    if !is_stored(&stack, files.files()) {
        return Ok(None);
    }
    let (out, inner) = dims;
    if !inner.is_multiple_of(BLOCK) {
        return Err(Error::Stored(format!("rows of {inner} are no multiple of MXFP4's blocks of {BLOCK}")));
    }
    let mut codes = part(&format!("{stack}_blocks"), expert, (&[out, inner / BLOCK, BLOCK / 2], files))?;
    codes.iter_mut().for_each(|it| *it = it.rotate_left(4));
    let scales = part(&format!("{stack}_scales"), expert, (&[out, inner / BLOCK], files))?;
    if let Some(it) = scales.iter().find(|it| **it > LARGEST) {
        return Err(Error::Stored(format!(
            "{stack}_scales holds {it}, with which weights are infinite; it is damaged"
        )));
    }
    let scales: Vec<f32> = scales.into_iter().map(|it| 2f64.powi(i32::from(it) - 127) as f32).collect();
    let scales = Scales::Plain(Tensor::from_vec(&[scales.len()], scales));
    let codes = Tensor::from_vec(&[codes.len()], codes);
    Ok(Some(Arc::new(Mxfp4Matrix(CodedMatrix::new(dims, (CODE, Block::Elements(BLOCK)), codes, scales)))))
}

/// The parameter that an expert's matrix is a part of, and the number of the expert.
fn member(path: &str) -> Option<(String, usize)> {
    let (rest, name) = path.rsplit_once('.')?;
    let (experts, number) = rest.rsplit_once('.')?;
    Some((format!("{experts}.{name}"), number.parse().ok()?))
}

/// One expert's bytes of a tensor, each expert's of this shape.
fn part(name: &str, expert: usize, (shape, files): (&[usize], &Reading<'_>)) -> Result<Vec<u8>> {
    let (file, it) = files.take(name).ok_or_else(|| Error::Stored(format!("the tensor {name} is missing")))?;
    if it.dtype != Dtype::U8 || it.shape.get(1..) != Some(shape) || expert >= it.shape[0] {
        return Err(Error::Stored(format!(
            "{name} is {} of shape {:?}, expected U8 of shape (experts, {shape:?}) and more than {expert} experts",
            it.dtype, it.shape
        )));
    }
    let mut bytes = vec![0; shape.iter().product()];
    file.read_part(it, expert * bytes.len(), &mut bytes)?;
    Ok(bytes)
}

impl FrozenMatrix for Mxfp4Matrix {
    fn dims(&self) -> (usize, usize) {
        self.0.dims
    }

    fn source<'a>(&'a self) -> Box<dyn matmul::Source + 'a> {
        self.0.source()
    }

    fn bytes(&self) -> usize {
        self.0.bytes()
    }

    fn on_device(&self) -> Option<OnDevice<'_>> {
        self.0.on_device()
    }

    fn to_device(&self, device: &Device) -> halfbyte_tensor::Result<Option<Arc<dyn FrozenMatrix>>> {
        let moved = self.0.to_device(device)?;
        Ok(moved.map(|it| Arc::new(Mxfp4Matrix(it)) as Arc<dyn FrozenMatrix>))
    }

    fn format(&self) -> String {
        "mxfp4 (block 32)".into()
    }
}
