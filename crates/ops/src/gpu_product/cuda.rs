use super::{GpuScales, GpuWeight};
use crate::FrozenMatrix;
use halfbyte_cuda::{Gemm, Launch, Matrix, Source};
use halfbyte_tensor::{DType, Error, Result, Tensor, cuda};

const SOURCE: Source = Source { name: "gpu_product", text: include_str!("kernel.cu") };

/// A matrix, and whether the product takes it turned over.
#[derive(Clone, Copy, Debug)]
pub struct Operand<'a> {
    tensor: &'a Tensor,
    transposed: bool,
}

impl<'a> Operand<'a> {
    /// As it is stored.
    pub fn new(tensor: &'a Tensor) -> Operand<'a> {
        Operand { tensor, transposed: false }
    }

    /// Turned over.
    #[must_use]
    pub fn t(self) -> Operand<'a> {
        Operand { transposed: !self.transposed, ..self }
    }

    fn dims(&self) -> (usize, usize) {
        let (rows, cols) = (self.tensor.rows(), self.tensor.cols());
        if self.transposed { (cols, rows) } else { (rows, cols) }
    }

    fn matrix(&self) -> Matrix {
        Matrix { ptr: cuda::ptr(self.tensor), stride: self.tensor.cols(), transposed: self.transposed }
    }
}

/// `out (m, n) = alpha * a (m, k) b (k, n) + beta * out`; `a` and `b` have one dtype, `out` that dtype or f32.
///
/// Fails if the GPU does.
pub fn multiply(alpha: f32, a: Operand<'_>, b: Operand<'_>, beta: f32, out: &mut Tensor) -> Result<()> {
    let ((m, k), (inner, n)) = (a.dims(), b.dims());
    assert_eq!((k, m, n), (inner, out.rows(), out.cols()), "the operands of a product fit");
    assert!(!out.is_shared(), "a product writes what nobody else holds");
    let Some(gpu) = out.gpu().cloned().filter(|_| m * n > 0) else { return Ok(()) };
    assert_eq!(a.tensor.dtype(), b.tensor.dtype(), "both operands of a product have one dtype");
    let gemm = Gemm {
        m,
        n,
        k,
        a: a.matrix(),
        b: b.matrix(),
        input: cuda::number(a.tensor.dtype()),
        c: cuda::ptr(out),
        c_stride: n,
        output: cuda::number(out.dtype()),
        alpha,
        beta,
    };
    // SAFETY: the extents are those of live tensors.
    unsafe { gpu.gemm(&gemm) }?;
    Ok(())
}

/// `alpha * a b` in `dtype`, which is that of the operands or f32.
///
/// Fails if the GPU does.
pub fn product(alpha: f32, a: Operand<'_>, b: Operand<'_>, dtype: DType) -> Result<Tensor> {
    let mut out = a.tensor.scratch_like(&[a.dims().0, b.dims().1], dtype);
    multiply(alpha, a, b, 0.0, &mut out)?;
    Ok(out)
}

/// A frozen weight in `dtype`: itself if it is that, else decoded into memory of the pool, which the next one gets.
///
/// Fails if the GPU does.
pub fn decode(w: &dyn FrozenMatrix, dtype: DType) -> Result<Tensor> {
    let (rows, cols) = w.dims();
    let Some(stored) = w.on_gpu() else {
        return Err(Error::invalid("frozen_linear", "the weight lies in host memory, the activations on a GPU"));
    };
    let like = match stored {
        GpuWeight::Dense(weight) => return Ok(weight.to_dtype(dtype)),
        GpuWeight::FourBit { packed, .. } => packed,
        GpuWeight::Rows8 { codes, .. } => codes,
    };
    let n = rows * cols;
    let mut out = like.scratch_like(&[rows, cols], dtype);
    let Some(gpu) = like.gpu().filter(|_| n > 0) else { return Ok(out) };
    let call = cuda::Call::new(gpu, &SOURCE, dtype);
    match stored {
        GpuWeight::Dense(_) => unreachable!("returned above"),
        GpuWeight::FourBit { packed, code, scales, block_size } => {
            let call = call.read(packed).read(code);
            let call = match scales {
                GpuScales::Plain(absmax) => {
                    call.read(absmax).read_or_null(None).read_or_null(None).read_or_null(None).float(0.0)
                }
                GpuScales::Double { codes, map, nested_absmax, offset } => {
                    call.read_or_null(None).read(codes).read(map).read(nested_absmax).float(offset)
                }
            };
            let call = call.int(block_size).write(&mut out).long(n as u64);
            // SAFETY: the codes fill `n` elements, with an absmax for every block of them.
            unsafe { call.run("decode_4bit", Launch::elements(n.div_ceil(2))) }?;
        }
        GpuWeight::Rows8 { codes, absmax } => {
            let call = call.read(codes).read(absmax).int(cols).write(&mut out).long(n as u64);
            // SAFETY: a code an element, an absmax a row.
            unsafe { call.run("decode_8bit", Launch::elements(n)) }?;
        }
    }
    Ok(out)
}

pub(crate) fn add_bias(y: &mut Tensor, bias: Option<&Tensor>) -> Result<()> {
    let (n, cols, dtype) = (y.len(), y.cols(), y.dtype());
    let Some((bias, gpu)) = bias.zip(y.gpu().cloned()).filter(|_| n > 0) else { return Ok(()) };
    let call = cuda::Call::new(&gpu, &SOURCE, dtype).write(y).read(bias).kind(bias.dtype()).int(cols).long(n as u64);
    // SAFETY: a bias a column.
    unsafe { call.run("add_bias", Launch::elements(n)) }
}

/// The sums of the columns, f32.
pub(crate) fn column_sums(x: &Tensor) -> Result<Tensor> {
    let (rows, cols) = (x.rows(), x.cols());
    let mut sums = x.scratch_like(&[cols], DType::F32);
    let Some(gpu) = x.gpu() else { return Ok(sums) };
    let call = cuda::Call::new(gpu, &SOURCE, x.dtype()).read(x).write(&mut sums).int(rows).int(cols);
    // SAFETY: a thread a column, each over all rows.
    unsafe { call.run("column_sums", Launch::elements(cols)) }?;
    Ok(sums)
}
