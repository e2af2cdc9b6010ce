//! Reading what a run wrote as another program would.

use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use std::{collections::BTreeMap, fs, path::Path};

/// The f32 tensors of a safetensors file: shape and values by name.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensors(pub BTreeMap<String, (Vec<usize>, Vec<f32>)>);

impl Tensors {
    /// Reads a file.
    #[track_caller]
    pub fn read(path: &Path) -> Tensors {
        let bytes = fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let file = SafeTensors::deserialize(&bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let tensors = file.tensors().into_iter().map(|(name, view)| {
            assert_eq!(view.dtype(), Dtype::F32, "{name}");
            let values = view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
            (name, (view.shape().to_vec(), values))
        });
        Tensors(tensors.collect())
    }

    /// Writes the file again, in another dtype.
    pub fn write(&self, path: &Path, dtype: Dtype) {
        let encode = |value: f32| match dtype {
            Dtype::BF16 => half::bf16::from_f32(value).to_le_bytes().to_vec(),
            Dtype::F16 => half::f16::from_f32(value).to_le_bytes().to_vec(),
            _ => value.to_le_bytes().to_vec(),
        };
        let bytes: Vec<Vec<u8>> = self.0.values().map(|it| it.1.iter().flat_map(|v| encode(*v)).collect()).collect();
        let views = self.0.iter().zip(&bytes).map(|((name, (shape, _)), bytes)| {
            (name, TensorView::new(dtype, shape.clone(), bytes).expect("bytes of this shape"))
        });
        fs::write(path, safetensors::serialize(views, None).expect("a file")).expect("written");
    }

    /// The largest difference of two files with the same names and shapes.
    #[track_caller]
    pub fn largest_difference(&self, other: &Tensors) -> f32 {
        assert!(self.0.keys().eq(other.0.keys()), "the names differ");
        let pairs = self.0.values().zip(other.0.values()).flat_map(|(a, b)| {
            assert_eq!(a.0, b.0, "the shapes differ");
            a.1.iter().zip(&b.1)
        });
        pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    }

    /// The largest absolute value.
    pub fn largest(&self) -> f32 {
        self.0.values().flat_map(|it| &it.1).fold(0.0, |a, b| a.max(b.abs()))
    }

    /// Whether all values are finite.
    pub fn is_finite(&self) -> bool {
        self.0.values().flat_map(|it| &it.1).all(|it| it.is_finite())
    }
}
