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

#[cfg(test)]
mod tests {
    use super::*;
    use halfbyte_files::{ShardedWriter, TensorSpec};

    const STACK: &str = "model.layers.0.mlp.experts.down_proj";
    const DIMS: (usize, usize) = (3, 64);

    type Held = (TensorSpec, Vec<u8>);

    /// A folder with two experts, but for what `spoil` makes of the specs and bytes of blocks and scales.
    fn folder(spoil: impl Fn(&mut Vec<Held>)) -> tempfile::TempDir {
        let blocks = TensorSpec::new(format!("{STACK}_blocks"), Dtype::U8, &[2, DIMS.0, 2, 16]);
        let scales = TensorSpec::new(format!("{STACK}_scales"), Dtype::U8, &[2, DIMS.0, 2]);
        let mut all = vec![
            (blocks, (0..2 * 96).map(|it| (it * 37 + 11) as u8).collect()),
            (scales, (0..12).map(|it| 120 + it as u8).collect()),
        ];
        spoil(&mut all);
        let dir = tempfile::tempdir().unwrap();
        let mut writer = ShardedWriter::create(dir.path(), all.iter().map(|it| it.0.clone()).collect(), u64::MAX);
        all.iter().for_each(|(spec, bytes)| writer.write(&spec.name, bytes).unwrap());
        writer.finish().unwrap();
        dir
    }

    fn read(dir: &tempfile::TempDir, expert: usize) -> std::result::Result<Vec<f32>, String> {
        let files = ShardedFiles::open(dir.path()).unwrap();
        let path = format!("model.layers.0.mlp.experts.{expert}.down_proj");
        let matrix = stored(&path, DIMS, &Reading::new(&files)).map_err(|e| e.to_string())?.unwrap();
        let mut values = vec![0.0; DIMS.0 * DIMS.1];
        values.chunks_mut(DIMS.1).enumerate().for_each(|(i, row)| matrix.source().read_f32(i, 0, row));
        Ok(values)
    }

    #[test]
    fn each_expert_is_what_its_codes_and_exponents_say() {
        let dir = folder(|_| {});
        for expert in [0, 1] {
            for (i, got) in read(&dir, expert).unwrap().into_iter().enumerate() {
                let byte = ((expert * 96 + i / 2) * 37 + 11) as u8;
                // The first of two is in the low nibble.
                let code = if i % 2 == 0 { byte & 15 } else { byte >> 4 };
                let exponent = (expert * 6 + i / 32) as i32 + 120 - 127;
                let wanted = f64::from(VALUES[usize::from(code)]) * 2f64.powi(exponent);
                assert_eq!(f64::from(got), wanted, "element {i} of expert {expert}");
            }
        }
    }

    #[test]
    fn other_paths_are_none_and_damage_is_told() {
        let dir = folder(|_| {});
        let files = ShardedFiles::open(dir.path()).unwrap();
        let of = |path: &str| stored(path, DIMS, &Reading::new(&files)).unwrap().is_none();
        assert!(of("model.layers.0.mlp.experts.1.gate_up_proj") && of("model.layers.0.self_attn.q_proj") && of("x"));
        let told = |expert, spoil: &dyn Fn(&mut Vec<Held>)| read(&folder(spoil), expert).unwrap_err();
        assert!(told(2, &|_| {}).contains("more than 2 experts"));
        assert!(told(0, &|all| drop(all.pop())).contains("_scales is missing"));
        assert!(told(0, &|all| all[1].1[3] = 255).contains("holds 255"));
        assert!(told(0, &|all| all[1].0.shape = vec![12]).contains("of shape [12]"));
        assert!(told(0, &|all| all[0].0.shape = vec![2, DIMS.0, 4, 8]).contains("of shape [2, 3, 4, 8]"));
    }
}
