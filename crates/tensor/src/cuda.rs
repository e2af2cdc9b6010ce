//! Tensors on a GPU: making, moving and converting them, and what kernels may be given. Ops have kernels of their own.

use crate::{DType, Result, Tensor};
use halfbyte_cuda::{Any, Gpu, Holds, InRows, Kind, Launch, Memory, Number, Purpose, Share, T, kernels};
use std::sync::Arc;

kernels! {
    const SOURCE = "tensor", "kernel.cu", over Tensor;
    convert as Convert { x: *const Any, kind: Kind, y: *mut T, n: usize }
    add_assign as AddAssign { sum: *mut T, x: *const Any, kind: Kind, n: usize }
    find_infinite as FindInfinite { x: *const T, found: *mut f32, n: usize }
    without_room as WithoutRoom { x: InRows<*const T>, y: *mut T, cols: i32, stride: i32, n: usize }
}

impl Memory for Tensor {
    type Error = crate::Error;

    #[track_caller]
    fn address(&self) -> u64 {
        ptr(self)
    }

    #[track_caller]
    fn address_in_rows(&self) -> u64 {
        rows_ptr(self)
    }

    fn holds(&self) -> Holds {
        match self.dtype() {
            DType::U32 => Holds::Word,
            DType::U8 => Holds::Byte,
            float => Holds::Float(number(float)),
        }
    }

    fn device(&self) -> Option<u32> {
        self.gpu().map(|it| it.info().ordinal)
    }

    fn is_sole(&self) -> bool {
        !self.is_shared()
    }
}

/// Where a tensor's elements lie on its GPU, without gaps.
///
/// # Panics
/// If the tensor is not on one, or something lies beside its rows.
#[track_caller]
pub fn ptr(tensor: &Tensor) -> u64 {
    assert!(tensor.is_dense(), "an op that knows of nothing beside rows got a tensor that has something there");
    rows_ptr(tensor)
}

/// Where a tensor's rows lie on its GPU, [`Tensor::stride`] elements apart.
///
/// # Panics
/// If the tensor is not on one.
#[track_caller]
pub fn rows_ptr(tensor: &Tensor) -> u64 {
    tensor.cuda_buffer().expect("all operands of an op lie on one device").ptr()
}

/// The element type of a floating-point dtype, as the GPU's libraries know it.
pub fn number(dtype: DType) -> Number {
    match dtype {
        DType::F32 => Number::F32,
        DType::Bf16 => Number::Bf16,
        DType::F16 => Number::F16,
        other => panic!("a floating-point dtype was expected here, not {other}"),
    }
}

/// Token ids or positions on a device.
///
/// # Errors
/// If the device has no memory left.
pub fn upload_u32(gpu: &Arc<Gpu>, values: &[u32]) -> Result<Tensor> {
    let bytes: Vec<u8> = values.iter().flat_map(|it| it.to_le_bytes()).collect();
    let mut buffer = gpu.alloc(bytes.len())?;
    buffer.upload(&bytes)?;
    Ok(Tensor::from_cuda(&[values.len()], DType::U32, buffer))
}

/// f32 numbers on a device.
///
/// # Errors
/// If the device has no memory left.
pub fn upload_f32(gpu: &Arc<Gpu>, shape: &[usize], values: &[f32]) -> Result<Tensor> {
    to_gpu(&Tensor::from_vec(shape, values.to_vec()), gpu)
}

/// A tensor of unspecified contents for one product.
///
/// # Errors
/// If the device has no memory for it.
pub fn workspace(gpu: &Arc<Gpu>, shape: &[usize], dtype: DType) -> Result<Tensor> {
    let bytes = shape.iter().product::<usize>() * dtype.size();
    Ok(Tensor::from_cuda(shape, dtype, gpu.alloc_for(Purpose::Workspace, bytes)?))
}

pub(crate) fn scratch(gpu: &Arc<Gpu>, shape: &[usize], dtype: DType) -> Tensor {
    let bytes = shape.iter().product::<usize>() * dtype.size();
    Tensor::from_cuda(shape, dtype, gpu.alloc_or_fault(bytes))
}

pub(crate) fn scratch_with_room(gpu: &Arc<Gpu>, shape: &[usize], dtype: DType, room: usize) -> Tensor {
    let cols = shape.last().copied().unwrap_or(1).max(1);
    let rows = shape.iter().product::<usize>() / cols;
    let buffer = gpu.alloc_or_fault(rows * (cols + room) * dtype.size());
    Tensor::from_cuda(shape, dtype, buffer).roomy(room)
}

pub(crate) fn scratch_side_by_side(
    gpu: &Arc<Gpu>,
    (rows, columns): (usize, &[usize]),
    dtype: DType,
    room: usize,
) -> Vec<Tensor> {
    let size = dtype.size();
    let stride = columns.iter().sum::<usize>() + room;
    let all = rows * stride * size;
    let shares = columns.iter().scan(0, |next, it| {
        let at = std::mem::replace(next, *next + it * size);
        // What begins behind the last row, where there is none, is nothing.
        let at = at.min(all);
        Some(Share { at, bytes: all - at, own: rows * it * size })
    });
    let parts = gpu.alloc_or_fault(all).shared_out(&shares.collect::<Vec<_>>());
    let last = columns.len().saturating_sub(1);
    let tensors = parts.into_iter().zip(columns).enumerate().map(|(i, (buffer, cols))| {
        let room = if i == last { room } else { 0 };
        Tensor::from_cuda(&[rows, *cols], dtype, buffer).roomy(room).among(stride - cols - room)
    });
    tensors.collect()
}

/// [`Tensor::into_pieces`] in the same memory; else the tensor.
pub(crate) fn row_pieces(from: Tensor, pieces: &[(usize, usize)]) -> std::result::Result<Vec<Tensor>, Tensor> {
    /// As memory of the pool is.
    const ALIGNED: usize = 256;
    let (cols, dtype) = (from.cols(), from.dtype());
    let row = cols * dtype.size();
    if !from.is_dense() || pieces.iter().any(|(first, _)| !(first * row).is_multiple_of(ALIGNED)) {
        return Err(from);
    }
    let share = |&(first, count): &(usize, usize)| Share { at: first * row, bytes: count * row, own: count * row };
    let shares: Vec<Share> = pieces.iter().map(share).collect();
    let parts = from.into_cuda_buffer()?.shared_out(&shares).into_iter().zip(pieces);
    Ok(parts.map(|(part, (_, count))| Tensor::from_cuda(&[*count, cols], dtype, part)).collect())
}

/// What the tensor holds, without gaps.
pub(crate) fn dense(from: &Tensor) -> Tensor {
    let mut to = from.scratch_like(from.shape(), from.dtype());
    let gpu = from.gpu().expect("the tensor lies on a GPU").clone();
    let (cols, stride, n) = (from.cols(), from.stride(), from.len());
    let kernel = WithoutRoom { x: from, y: &mut to, cols, stride, n };
    // SAFETY: rows of so many elements, so far apart.
    or_fault(&gpu, unsafe { kernel.launch(&gpu, number(from.dtype()), Launch::elements(n)) });
    to
}

pub(crate) fn zeros(gpu: &Arc<Gpu>, shape: &[usize], dtype: DType) -> Tensor {
    let mut it = scratch(gpu, shape, dtype);
    if let Some(buffer) = it.cuda_buffer_mut()
        && let Err(error) = buffer.zero()
    {
        gpu.fault(error);
    }
    it
}

pub(crate) fn copy(from: &Tensor) -> Tensor {
    if !from.is_dense() {
        return dense(from);
    }
    let mut to = from.scratch_like(from.shape(), from.dtype());
    let (bytes, source) = (from.bytes(), from.cuda_buffer());
    if let (Some(target), Some(source)) = (to.cuda_buffer_mut(), source)
        && let Err(error) = target.copy_from(0, source, 0, bytes)
    {
        source.gpu().fault(error);
    }
    to
}

/// Copies rows of `from`, from row `from_row` on, over those of `to`, from `row` on.
///
/// # Errors
/// If the copy cannot be started.
///
/// # Panics
/// If `to` is shared, or the rows are not there.
pub fn copy_rows(to: &mut Tensor, row: usize, from: &Tensor, from_row: usize, rows: usize) -> Result<()> {
    assert!(to.is_dense() && from.is_dense(), "rows are copied as they lie, without anything beside them");
    let bytes = to.cols() * to.dtype().size();
    let source = from.cuda_buffer().expect("both tensors lie on a GPU");
    let target = to.cuda_buffer_mut().expect("a tensor that is written is not shared");
    Ok(target.copy_from(row * bytes, source, from_row * bytes, rows * bytes)?)
}

pub(crate) fn to_gpu(from: &Tensor, gpu: &Arc<Gpu>) -> Result<Tensor> {
    let mut buffer = gpu.alloc(from.bytes())?;
    buffer.upload(&from.le_bytes())?;
    Ok(Tensor::from_cuda(from.shape(), from.dtype(), buffer))
}

/// A tensor whose bytes `fill` writes, piece by piece.
pub(crate) fn filled<E: From<crate::Error>>(
    gpu: &Arc<Gpu>,
    shape: &[usize],
    dtype: DType,
    mut fill: impl FnMut(usize, &mut [u8]) -> std::result::Result<(), E>,
) -> std::result::Result<Tensor, E> {
    /// What ended it: the device, or who writes.
    enum Ended<E> {
        Device(halfbyte_cuda::Error),
        Writer(E),
    }
    impl<E> From<halfbyte_cuda::Error> for Ended<E> {
        fn from(error: halfbyte_cuda::Error) -> Self {
            Ended::Device(error)
        }
    }
    let of_device = |error: halfbyte_cuda::Error| E::from(crate::Error::from(error));
    let bytes = shape.iter().product::<usize>() * dtype.size();
    let mut buffer = gpu.alloc(bytes).map_err(of_device)?;
    let done = buffer.fill(|at, piece| fill(at, piece).map_err(Ended::Writer));
    done.map_err(|it| match it {
        Ended::Device(error) => of_device(error),
        Ended::Writer(error) => error,
    })?;
    Ok(Tensor::from_cuda(shape, dtype, buffer))
}

pub(crate) fn to_host(from: &Tensor) -> Result<Tensor> {
    let from = &from.dense();
    let buffer = from.cuda_buffer().expect("the tensor lies on a GPU");
    Tensor::filled(from.shape(), from.dtype(), |bytes| Ok(buffer.download(bytes)?))
}

pub(crate) fn to_dtype(from: &Tensor, dtype: DType) -> Tensor {
    let from = &from.dense();
    let mut to = from.scratch_like(from.shape(), dtype);
    let gpu = from.gpu().expect("the tensor lies on a GPU").clone();
    let n = from.len();
    let kernel = Convert { x: from, kind: number(from.dtype()), y: &mut to, n };
    // SAFETY: both have as many elements as the kernel is told.
    or_fault(&gpu, unsafe { kernel.launch(&gpu, number(dtype), Launch::elements(n)) });
    to
}

pub(crate) fn add_assign(sum: &mut Tensor, rhs: &Tensor) {
    if !sum.is_dense() {
        *sum = dense(sum);
    }
    let rhs = &rhs.dense();
    let gpu = sum.gpu().expect("the tensor lies on a GPU").clone();
    let (n, dtype) = (sum.len(), sum.dtype());
    let kernel = AddAssign { sum, x: rhs, kind: number(rhs.dtype()), n };
    // SAFETY: both have as many elements as the kernel is told.
    or_fault(&gpu, unsafe { kernel.launch(&gpu, number(dtype), Launch::packs(n, number(dtype))) });
}

pub(crate) fn is_finite(x: &Tensor) -> Result<bool> {
    let found = find_infinite(x)?;
    Ok(to_host(&found)?.data::<f32>()[0] == 0.0)
}

/// Looks for NaN and infinity, and does not wait for what is found: f32 `[1]` on the GPU, 0 if there are none.
///
/// # Errors
/// If the kernel cannot be started.
///
/// # Panics
/// If the tensor lies on no GPU.
pub fn find_infinite(x: &Tensor) -> Result<Tensor> {
    let x = &x.dense();
    let gpu = x.gpu().expect("the tensor lies on a GPU").clone();
    let mut found = zeros(&gpu, &[1], DType::F32);
    let kernel = FindInfinite { x, found: &mut found, n: x.len() };
    // SAFETY: the kernel reads as many elements as it is told, and writes one number.
    unsafe { kernel.launch(&gpu, number(x.dtype()), Launch::elements(x.len())) }?;
    Ok(found)
}

fn or_fault(gpu: &Arc<Gpu>, done: Result<()>) {
    if let Err(crate::Error::Cuda(error)) = done {
        gpu.fault(error);
    }
}
