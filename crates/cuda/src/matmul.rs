//! Matrix products by cuBLASLt, of row-major matrices, summed in f32.

use std::collections::HashMap;
use std::ffi::c_void;
use std::hash::{Hash, Hasher};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use cudarc::cublaslt::{result, sys};

use crate::algorithms::{Algorithm, Shape, choose};
use crate::buffer::{Buffer, Held};
use crate::counters::count;
use crate::dry::{Dry, product_traffic};
use crate::error::Error;
use crate::gpu::Gpu;

/// The type of a matrix' elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Number {
    /// IEEE single precision.
    F32,
    /// The upper half of an f32.
    Bf16,
    /// IEEE half precision.
    F16,
}

impl Number {
    /// All of them.
    pub const ALL: [Number; 3] = [Number::F32, Number::Bf16, Number::F16];

    /// What kernels call it.
    pub fn name(self) -> &'static str {
        match self {
            Number::F32 => "f32",
            Number::Bf16 => "bf16",
            Number::F16 => "f16",
        }
    }

    /// What `load_any` in the kernels calls it.
    pub fn kind(self) -> i32 {
        match self {
            Number::F32 => 0,
            Number::Bf16 => 1,
            Number::F16 => 2,
        }
    }

    /// Bytes an element takes.
    pub fn size(self) -> usize {
        if self == Number::F32 { 4 } else { 2 }
    }
}

/// A row-major operand.
#[derive(Debug, Clone, Copy, Hash)]
pub struct Matrix {
    /// Where it begins on the device.
    pub ptr: u64,
    /// Elements from the beginning of a stored row to that of the next.
    pub stride: usize,
    /// Whether the product takes it turned over: stored `(columns, rows)`.
    pub transposed: bool,
}

/// `c (m, n) = alpha * a (m, k) b (k, n) + beta * c`; `a` and `b` of one type.
#[derive(Debug, Clone, Copy)]
pub struct Gemm {
    /// Rows of the result.
    pub m: usize,
    /// Columns of the result.
    pub n: usize,
    /// What is summed over.
    pub k: usize,
    /// The left operand.
    pub a: Matrix,
    /// The right operand.
    pub b: Matrix,
    /// The type of both.
    pub input: Number,
    /// Where the result begins.
    pub c: u64,
    /// Elements from row to row of the result.
    pub c_stride: usize,
    /// The type of the result: that of the operands, or f32.
    pub output: Number,
    /// On the product.
    pub alpha: f32,
    /// On what the result held; 0 does not read it.
    pub beta: f32,
    /// Where that lies if not in the result's place: with as many elements from row to row, and of its type.
    pub onto: Option<u64>,
}

impl Hash for Gemm {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let Gemm { m, n, k, a, b, input, c, c_stride, output, alpha, beta, onto } = self;
        ((m, n, k), (a, b, input), (c, c_stride, output, onto)).hash(state);
        (alpha.to_bits(), beta.to_bits()).hash(state);
    }
}

/// The largest power of two, up to what the library takes for granted, of which an address is a multiple.
fn alignment(ptr: u64) -> u32 {
    1 << ptr.trailing_zeros().min(8)
}

pub(crate) struct Blas {
    handle: sys::cublasLtHandle_t,
    workspace: Buffer,
    algorithms: HashMap<Shape, Algorithm>,
}

/// As NVIDIA advises: 32 MiB from Hopper on, 4 MiB before.
fn workspace_bytes(major: u32) -> usize {
    if major >= 9 { 32 << 20 } else { 4 << 20 }
}

impl Gpu {
    /// Multiplies after everything that was asked of the device before.
    ///
    /// # Safety
    /// All matrices must lie in live memory.
    ///
    /// # Errors
    /// [`Error::Blas`] with the shape, if the library refuses or fails.
    pub unsafe fn gemm(self: &Arc<Gpu>, gemm: &Gemm) -> Result<(), Error> {
        self.bind()?;
        self.tally.operations.fetch_add(2 * (gemm.m * gemm.n * gemm.k) as u64, Ordering::Relaxed);
        if !self.says(gemm)? {
            return Ok(());
        }
        count(&self.tally.products);
        if let Some(dry) = &self.dry {
            let bytes = product_traffic(gemm);
            self.tally.bytes.fetch_add(bytes, Ordering::Relaxed);
            dry.pass_product(2 * (gemm.m * gemm.n * gemm.k) as u64, bytes);
            return self.reserve_workspace(dry);
        }
        let mut guard = self.blas.lock().unwrap_or_else(PoisonError::into_inner);
        if guard.is_none() {
            let handle = result::create_handle().map_err(|e| failed(gemm, &e))?;
            let workspace = self.alloc(workspace_bytes(self.info().compute_capability.major))?;
            *guard = Some(Blas { handle, workspace, algorithms: HashMap::new() });
        }
        let Some(blas) = guard.as_mut() else { unreachable!("made above") };
        // SAFETY: the caller vouches for the memory; the descriptors are made from the same numbers.
        unsafe { blas.run(self, gemm) }.map_err(|e| failed(gemm, &e))
    }

    /// Counts what the first product takes for the library. It stays taken, as there.
    fn reserve_workspace(self: &Arc<Gpu>, dry: &Dry) -> Result<(), Error> {
        if dry.workspace.get().is_none() {
            let mut taken = self.alloc(workspace_bytes(self.info().compute_capability.major))?;
            // Out of the buffer's hands, which would give it back.
            if let Held::Own(block) = &mut taken.held {
                block.take().map(|it| dry.workspace.set(it));
            }
        }
        Ok(())
    }
}

fn failed(gemm: &Gemm, e: &result::CublasError) -> Error {
    Error::Blas { m: gemm.m, n: gemm.n, k: gemm.k, status: format!("{:?}", e.0) }
}

impl Blas {
    /// The library is column-major: what it sees of a row-major matrix is its transpose, so it computes `cᵀ = bᵀ aᵀ`.
    ///
    /// # Safety
    /// As for [`Gpu::gemm`].
    unsafe fn run(&mut self, gpu: &Arc<Gpu>, g: &Gemm) -> Result<(), result::CublasError> {
        let strides = [g.a.stride, g.b.stride, g.c_stride];
        // A matrix may begin anywhere in a buffer; the library supposes 256 bytes unless it is told.
        let mut aligned = [g.b.ptr, g.a.ptr, g.c].map(alignment);
        aligned[2] = aligned[2].min(g.onto.map_or(u32::MAX, alignment));
        let kinds = [g.a.transposed, g.b.transposed, g.beta != 0.0];
        let shape = (g.m, g.n, g.k, kinds, g.input, g.output, strides, aligned);
        let call = Call {
            gemm: g,
            handle: self.handle,
            desc: Description::new(g.b.transposed, g.a.transposed)?,
            left: Layout::of(&g.b, (g.k, g.n), g.input)?,
            right: Layout::of(&g.a, (g.m, g.k), g.input)?,
            out: Layout::new((g.m, g.n), g.c_stride, g.output)?,
            aligned,
            workspace: &self.workspace,
            stream: gpu.compute.cast(),
        };
        let algorithm = match self.algorithms.get(&shape) {
            Some(known) => *known,
            None => {
                // SAFETY: as the caller vouches.
                let chosen = unsafe { choose(gpu, &call, &shape) }?;
                self.algorithms.insert(shape, chosen);
                chosen
            }
        };
        // SAFETY: as the caller vouches.
        unsafe { call.start(&algorithm, g.c) }
    }
}

/// A product as the library is asked for it.
pub(crate) struct Call<'a> {
    pub(crate) gemm: &'a Gemm,
    pub(crate) handle: sys::cublasLtHandle_t,
    pub(crate) desc: Description,
    pub(crate) left: Layout,
    pub(crate) right: Layout,
    pub(crate) out: Layout,
    aligned: [u32; 3],
    workspace: &'a Buffer,
    stream: sys::cudaStream_t,
}

impl Call<'_> {
    /// What an algorithm may count on.
    pub(crate) fn preference(&self) -> Result<Preference, result::CublasError> {
        Preference::new(self.workspace.bytes(), self.aligned)
    }

    /// Starts it, with the result at `c`.
    ///
    /// # Safety
    /// As for [`Gpu::gemm`], with the result there.
    pub(crate) unsafe fn start(&self, algorithm: &Algorithm, c: u64) -> Result<(), result::CublasError> {
        let g = self.gemm;
        let held = g.onto.unwrap_or(c);
        // SAFETY: the caller vouches for the memory, everything else lives until the call returns.
        unsafe {
            result::matmul(
                self.handle,
                self.desc.0,
                std::ptr::from_ref(&g.alpha).cast(),
                std::ptr::from_ref(&g.beta).cast(),
                g.b.ptr as *const c_void,
                self.left.0,
                g.a.ptr as *const c_void,
                self.right.0,
                held as *const c_void,
                self.out.0,
                c as *mut c_void,
                self.out.0,
                std::ptr::from_ref(algorithm),
                self.workspace.ptr() as *mut c_void,
                self.workspace.bytes(),
                self.stream,
            )
        }
    }
}

fn data_type(number: Number) -> sys::cudaDataType {
    match number {
        Number::F32 => sys::cudaDataType::CUDA_R_32F,
        Number::Bf16 => sys::cudaDataType::CUDA_R_16BF,
        Number::F16 => sys::cudaDataType::CUDA_R_16F,
    }
}

/// A matrix as it is stored.
pub(crate) struct Layout(pub(crate) sys::cublasLtMatrixLayout_t);

impl Layout {
    /// An operand that the product takes as `(rows, cols)`.
    fn of(matrix: &Matrix, (rows, cols): (usize, usize), number: Number) -> Result<Layout, result::CublasError> {
        let stored = if matrix.transposed { (cols, rows) } else { (rows, cols) };
        Layout::new(stored, matrix.stride, number)
    }

    /// Row-major `(rows, cols)` is column-major `(cols, rows)`.
    fn new((rows, cols): (usize, usize), stride: usize, number: Number) -> Result<Layout, result::CublasError> {
        result::create_matrix_layout(data_type(number), cols as u64, rows as u64, stride as i64).map(Layout)
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: created by the library and destroyed once.
        let _ = unsafe { result::destroy_matrix_layout(self.0) };
    }
}

pub(crate) struct Description(pub(crate) sys::cublasLtMatmulDesc_t);

impl Description {
    fn new(turn_left: bool, turn_right: bool) -> Result<Description, result::CublasError> {
        let compute = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let desc = Description(result::create_matmul_desc(compute, sys::cudaDataType::CUDA_R_32F)?);
        let which = [
            (sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA, turn_left),
            (sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSB, turn_right),
        ];
        for (attribute, turn) in which {
            // CUBLAS_OP_N and CUBLAS_OP_T.
            let operation = i32::from(turn);
            // SAFETY: the value outlives the call and has the attribute's size.
            unsafe {
                result::set_matmul_desc_attribute(desc.0, attribute, std::ptr::from_ref(&operation).cast(), 4)?;
            }
        }
        Ok(desc)
    }
}

impl Drop for Description {
    fn drop(&mut self) {
        // SAFETY: created by the library and destroyed once.
        let _ = unsafe { result::destroy_matmul_desc(self.0) };
    }
}

/// Of the library's ways to add the parts of a split sum, the one in the type that products are summed in.
pub(crate) const REDUCTION_IN_FULL: u32 = sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;

pub(crate) struct Preference(pub(crate) sys::cublasLtMatmulPreference_t);

impl Preference {
    /// For a workspace of so many bytes, and the alignments of the library's A, B and result.
    fn new(workspace: usize, [a, b, c]: [u32; 3]) -> Result<Preference, result::CublasError> {
        use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
        let preference = Preference(result::create_matmul_pref()?);
        let which = Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
        // SAFETY: the value outlives the call and has the attribute's size.
        unsafe {
            result::set_matmul_pref_attribute(preference.0, which, std::ptr::from_ref(&workspace).cast(), 8)?;
        }
        let alignments = [
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, a),
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, b),
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, c),
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, c),
        ];
        // Parts of a sum that are rounded to the result's type before they are added lose what is smaller than that.
        let in_full = (Attribute::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, REDUCTION_IN_FULL);
        for (which, value) in alignments.into_iter().chain([in_full]) {
            // SAFETY: as above.
            unsafe { result::set_matmul_pref_attribute(preference.0, which, std::ptr::from_ref(&value).cast(), 4)? };
        }
        Ok(preference)
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: created by the library and destroyed once.
        let _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}
