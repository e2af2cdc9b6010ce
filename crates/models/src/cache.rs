use crate::{ModelConfig, Result};
use halfbyte_tensor::{DType, Device, Element, Tensor, bf16, cuda, f16};

/// Keys and values of the tokens seen so far, for generation. Grows by doubling.
#[derive(Debug)]
pub struct KvCache {
    layers: Vec<(Tensor, Tensor)>,
    /// Whether the buffers lie where the model computes, which the first keys tell.
    placed: bool,
    channels: usize,
    capacity: usize,
    len: usize,
    compute: DType,
}

impl KvCache {
    /// An empty cache for a model, whose activations will have dtype `compute`.
    pub fn new(config: &ModelConfig, compute: DType) -> KvCache {
        let channels = config.num_key_value_heads * config.head_dim;
        let capacity = 64;
        let layer = || (Tensor::zeros(&[capacity, channels], compute), Tensor::zeros(&[capacity, channels], compute));
        let layers = (0..config.num_hidden_layers).map(|_| layer()).collect();
        KvCache { layers, placed: false, channels, capacity, len: 0, compute }
    }

    /// Tokens held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no token is held.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Dtype of keys, values and activations.
    pub fn compute(&self) -> DType {
        self.compute
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.layers.iter().map(|(k, v)| k.bytes() + v.bytes()).sum()
    }

    /// Appends a layer's new keys and values `(new, channels)` and gives the buffers, of which the first
    /// `len() + new` rows count.
    ///
    /// Fails if a GPU has no memory left.
    pub fn append(&mut self, layer: usize, k: &Tensor, v: &Tensor) -> Result<(&Tensor, &Tensor)> {
        self.place(&k.device())?;
        self.reserve(self.len + k.rows())?;
        let (at, channels) = (self.len * self.channels, self.channels);
        let (keys, values) = &mut self.layers[layer];
        for (into, from) in [(&mut *keys, k), (&mut *values, v)] {
            debug_assert_eq!(from.cols(), channels);
            if from.gpu().is_some() {
                cuda::copy_rows(into, self.len, from, 0, from.rows())?;
                continue;
            }
            match from.dtype() {
                DType::F32 => write::<f32>(into, at, from),
                DType::Bf16 => write::<bf16>(into, at, from),
                _ => write::<f16>(into, at, from),
            }
        }
        Ok((keys, values))
    }

    /// Counts the tokens that all layers have appended.
    pub fn advance(&mut self, new: usize) {
        self.len += new;
    }

    fn place(&mut self, device: &Device) -> Result<()> {
        if !self.placed {
            for (k, v) in &mut self.layers {
                (*k, *v) = (k.to_device(device)?, v.to_device(device)?);
            }
            self.placed = true;
        }
        Ok(())
    }

    fn reserve(&mut self, needed: usize) -> Result<()> {
        if needed <= self.capacity {
            return Ok(());
        }
        self.capacity = needed.next_power_of_two();
        for (k, v) in &mut self.layers {
            for tensor in [k, v] {
                let mut grown = Tensor::zeros_on(&tensor.device(), &[self.capacity, self.channels], self.compute);
                if tensor.gpu().is_some() {
                    cuda::copy_rows(&mut grown, 0, tensor, 0, tensor.rows())?;
                    *tensor = grown;
                    continue;
                }
                match self.compute {
                    DType::F32 => write::<f32>(&mut grown, 0, tensor),
                    DType::Bf16 => write::<bf16>(&mut grown, 0, tensor),
                    _ => write::<f16>(&mut grown, 0, tensor),
                }
                *tensor = grown;
            }
        }
        Ok(())
    }
}

fn write<T: Element>(into: &mut Tensor, at: usize, from: &Tensor) {
    into.data_mut::<T>()[at..at + from.len()].copy_from_slice(from.data::<T>());
}
