use halfbyte_tensor::{DType, Tensor, philox};

/// Seeded numbers spread evenly over [-2, 2], rounded to `dtype`. Near zero most wrong derivatives look right, so tests
/// do not stay there.
pub fn noise(shape: &[usize], dtype: DType, seed: u64) -> Tensor {
    noise_in(shape, dtype, seed, -2.0, 2.0)
}

/// Seeded numbers spread evenly over `[low, high)`.
pub fn noise_in(shape: &[usize], dtype: DType, seed: u64, low: f32, high: f32) -> Tensor {
    let mut data = vec![0.0; shape.iter().product()];
    philox::fill_uniform(seed, 0x7e57, low, high, &mut data);
    Tensor::from_vec(shape, data).to_dtype(dtype)
}

/// A vector of seeded numbers spread evenly over [-2, 2).
pub fn noise_vec(len: usize, seed: u64) -> Vec<f32> {
    let mut data = vec![0.0; len];
    philox::fill_uniform(seed, 0x7e57, -2.0, 2.0, &mut data);
    data
}
