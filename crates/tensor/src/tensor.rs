use crate::{
    DType, Device, Element, Error, Ledger, Place, Result, cuda,
    ledger::DryBuffer,
    storage::{Buffer, Storage},
};
use halfbyte_cuda::Gpu;
use std::{fmt, sync::Arc};

/// A row-major array, without gaps but for two cases: on a GPU, rows may have room for more columns beside them
/// ([`Tensor::scratch_with_room`]), or columns of other tensors ([`Tensor::scratch_side_by_side`]). Cloning shares the storage.
#[derive(Clone)]
pub struct Tensor {
    shape: Vec<usize>,
    storage: Arc<Storage>,
    /// Columns that are free between one row and the next.
    room: usize,
    /// Columns of others between one row and the next.
    others: usize,
}

impl Tensor {
    /// A tensor that takes over `data`, whose length must be the product of `shape`.
    pub fn from_vec<T: Element>(shape: &[usize], data: Vec<T>) -> Tensor {
        assert_eq!(shape.iter().product::<usize>(), data.len(), "a tensor's data must fill its shape {shape:?}");
        Tensor::of(shape, Storage::new(data))
    }

    /// A scalar of shape `[1]`.
    pub fn scalar(value: f32) -> Tensor {
        Tensor::from_vec(&[1], vec![value])
    }

    /// A tensor of unspecified contents, for an op that writes every element.
    pub fn scratch(shape: &[usize], dtype: DType) -> Tensor {
        let len = shape.iter().product();
        let storage = match dtype {
            DType::F32 => Storage::scratch::<f32>(len),
            DType::Bf16 => Storage::scratch::<half::bf16>(len),
            DType::F16 => Storage::scratch::<half::f16>(len),
            DType::U8 => Storage::scratch::<u8>(len),
            DType::U32 => Storage::scratch::<u32>(len),
        };
        Tensor::of(shape, storage)
    }

    /// A tensor of zeros.
    pub fn zeros(shape: &[usize], dtype: DType) -> Tensor {
        Tensor::zeros_on(&Device::Cpu, shape, dtype)
    }

    /// A tensor of unspecified contents on a device. Where the device has no memory left the next op on it fails and says so.
    pub fn scratch_on(device: &Device, shape: &[usize], dtype: DType) -> Tensor {
        match device {
            Device::Cpu => Tensor::scratch(shape, dtype),
            Device::Cuda(gpu) => cuda::scratch(gpu, shape, dtype),
            Device::Dry(ledger) => Tensor::dry(ledger, shape, dtype),
        }
    }

    /// A tensor of a dry run: its bytes are counted, and it has no elements that could be read.
    pub fn dry(ledger: &Arc<Ledger>, shape: &[usize], dtype: DType) -> Tensor {
        let buffer = DryBuffer::new(ledger, shape.iter().product(), dtype);
        Tensor::of(shape, Storage::Dry(buffer))
    }

    /// A tensor of unspecified contents on the device of this one.
    pub fn scratch_like(&self, shape: &[usize], dtype: DType) -> Tensor {
        match self.place() {
            Place::Host => Tensor::scratch(shape, dtype),
            Place::Gpu(gpu) => cuda::scratch(gpu, shape, dtype),
            Place::Dry(ledger) => Tensor::dry(ledger, shape, dtype),
        }
    }

    /// [`Tensor::scratch_like`] whose rows have room for so many more columns beside them, for the op that takes this one together
    /// with something narrow, as one operand. Only on a GPU; elsewhere it is a tensor like any other.
    ///
    /// The room holds anything, and is written by who reads it. Ops that know nothing of it refuse such a tensor.
    pub fn scratch_with_room(&self, shape: &[usize], dtype: DType, room: usize) -> Tensor {
        match self.place() {
            Place::Gpu(gpu) => cuda::scratch_with_room(gpu, shape, dtype, room),
            Place::Host | Place::Dry(_) => self.scratch_like(shape, dtype),
        }
    }

    /// Tensors of unspecified contents, of so many rows and columns each, for the op that takes all of them as one operand: on a GPU their
    /// rows lie beside each other, with room for so many more columns behind the last. Each is written and let go of by itself. Elsewhere
    /// they are tensors like any others.
    ///
    /// Ops that know nothing of it refuse such a tensor, as they do one that has room.
    pub fn scratch_side_by_side(&self, (rows, columns): (usize, &[usize]), dtype: DType, room: usize) -> Vec<Tensor> {
        match self.place() {
            Place::Gpu(gpu) => cuda::scratch_side_by_side(gpu, (rows, columns), dtype, room),
            Place::Host | Place::Dry(_) => columns.iter().map(|it| self.scratch_like(&[rows, *it], dtype)).collect(),
        }
    }

    /// Whether the rows of `next` begin where those of this one end, as [`Tensor::scratch_side_by_side`] makes them.
    pub fn is_beside(&self, next: &Tensor) -> bool {
        let (Some(a), Some(b)) = (self.cuda_buffer(), next.cuda_buffer()) else { return false };
        let end = a.ptr() + (self.cols() * self.dtype().size()) as u64;
        a.shares_rows_with(b) && self.room == 0 && end == b.ptr()
    }

    /// Columns that are free between one row and the next.
    pub fn room(&self) -> usize {
        self.room
    }

    /// Elements from the beginning of a row to that of the next.
    pub fn stride(&self) -> usize {
        self.cols() + self.room + self.others
    }

    /// Whether nothing lies between one row and the next.
    pub fn is_dense(&self) -> bool {
        self.room + self.others == 0
    }

    fn of(shape: &[usize], storage: Storage) -> Tensor {
        Tensor { shape: shape.to_vec(), storage: Arc::new(storage), room: 0, others: 0 }
    }

    /// A tensor of zeros on a device.
    pub fn zeros_on(device: &Device, shape: &[usize], dtype: DType) -> Tensor {
        match device {
            Device::Cpu => {}
            Device::Cuda(gpu) => return cuda::zeros(gpu, shape, dtype),
            Device::Dry(ledger) => return Tensor::dry(ledger, shape, dtype),
        }
        let mut it = Tensor::scratch(shape, dtype);
        it.buffer_mut().bytes_mut().fill(0);
        it
    }

    /// The extents, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The number of rows when all but the last extent are folded together.
    pub fn rows(&self) -> usize {
        self.len() / self.cols().max(1)
    }

    /// The last extent.
    pub fn cols(&self) -> usize {
        *self.shape.last().unwrap_or(&1)
    }

    /// The dtype of the elements.
    pub fn dtype(&self) -> DType {
        match &*self.storage {
            Storage::Cpu(buffer) => buffer.dtype(),
            Storage::Cuda(_, dtype) => *dtype,
            Storage::Dry(it) => it.dtype(),
        }
    }

    /// Where the elements live.
    pub fn device(&self) -> Device {
        match self.place() {
            Place::Host => Device::Cpu,
            Place::Gpu(gpu) => Device::Cuda(gpu.clone()),
            Place::Dry(ledger) => Device::Dry(ledger.clone()),
        }
    }

    /// The GPU that holds the elements, if one does.
    pub fn gpu(&self) -> Option<&Arc<Gpu>> {
        self.cuda_buffer().map(|it| it.gpu())
    }

    /// The memory of a GPU behind the tensor.
    pub fn cuda_buffer(&self) -> Option<&halfbyte_cuda::Buffer> {
        match &*self.storage {
            Storage::Cuda(buffer, _) => Some(buffer),
            Storage::Cpu(_) | Storage::Dry(_) => None,
        }
    }

    /// With so much room beside its rows.
    pub(crate) fn roomy(self, room: usize) -> Tensor {
        Tensor { room, ..self }
    }

    /// With so many columns of others between its rows.
    pub(crate) fn among(self, others: usize) -> Tensor {
        Tensor { others, ..self }
    }

    pub(crate) fn from_cuda(shape: &[usize], dtype: DType, buffer: halfbyte_cuda::Buffer) -> Tensor {
        Tensor::of(shape, Storage::Cuda(buffer, dtype))
    }

    /// That memory, for writing; `None` also where the tensor is shared.
    pub fn cuda_buffer_mut(&mut self) -> Option<&mut halfbyte_cuda::Buffer> {
        match Arc::get_mut(&mut self.storage) {
            Some(Storage::Cuda(buffer, _)) => Some(buffer),
            _ => None,
        }
    }

    /// Bytes of the elements.
    pub fn bytes(&self) -> usize {
        self.len() * self.dtype().size()
    }

    /// The elements as a slice. Panics if `T` is not the tensor's dtype: ops check dtypes where user input comes in.
    #[track_caller]
    pub fn data<T: Element>(&self) -> &[T] {
        match T::slice(self.buffer()) {
            Some(it) => it,
            None => panic!("tensor of dtype {} read as {}", self.dtype(), T::DTYPE),
        }
    }

    /// The elements for writing. Panics if the storage is shared ([`Tensor::into_unique`] first) or of another dtype.
    #[track_caller]
    pub fn data_mut<T: Element>(&mut self) -> &mut [T] {
        let dtype = self.dtype();
        match T::slice_mut(self.buffer_mut()) {
            Some(it) => it,
            None => panic!("tensor of dtype {dtype} written as {}", T::DTYPE),
        }
    }

    /// A view of the elements in another shape of as many, sharing storage.
    pub fn reshape(&self, shape: &[usize]) -> Result<Tensor> {
        if shape.iter().product::<usize>() != self.len() {
            return Err(Error::shape("reshape", format!("{} elements in all", self.len()), shape));
        }
        let keeps_rows = self.is_dense() || shape.last() == Some(&self.cols());
        assert!(keeps_rows, "rows with something beside them stay rows: {:?} is no view of {:?}", shape, self.shape);
        Ok(Tensor { shape: shape.to_vec(), ..self.clone() })
    }

    /// The tensor as sole owner of its storage: itself if nobody shares it, else a copy.
    #[must_use]
    pub fn into_unique(mut self) -> Tensor {
        self.make_unique();
        self
    }

    /// Whether another tensor shares the storage.
    pub fn is_shared(&self) -> bool {
        Arc::strong_count(&self.storage) > 1
    }

    /// The memory of a GPU behind a tensor that nobody shares; else the tensor.
    pub(crate) fn into_cuda_buffer(self) -> std::result::Result<halfbyte_cuda::Buffer, Tensor> {
        if self.is_shared() || self.cuda_buffer().is_none() {
            return Err(self);
        }
        let Tensor { shape, storage, room, others } = self;
        match Arc::try_unwrap(storage) {
            Ok(Storage::Cuda(buffer, _)) => Ok(buffer),
            Ok(other) => Err(Tensor { shape, storage: Arc::new(other), room, others }),
            Err(storage) => Err(Tensor { shape, storage, room, others }),
        }
    }

    pub(crate) fn storage(&self) -> &Storage {
        &self.storage
    }

    pub(crate) fn make_unique(&mut self) {
        if Arc::get_mut(&mut self.storage).is_some() {
            return;
        }
        match self.place() {
            Place::Host => {}
            Place::Gpu(_) => {
                *self = cuda::copy(self);
                return;
            }
            Place::Dry(ledger) => {
                *self = Tensor::dry(ledger, &self.shape, self.dtype());
                return;
            }
        }
        let mut copy = Tensor::scratch(&self.shape, self.dtype());
        copy.buffer_mut().bytes_mut().copy_from_slice(self.buffer().bytes());
        *self = copy;
    }

    /// The elements in host memory, as they lie there.
    #[track_caller]
    pub(crate) fn host_bytes(&self) -> &[u8] {
        self.buffer().bytes()
    }

    /// [`Tensor::host_bytes`] for writing.
    #[track_caller]
    pub(crate) fn host_bytes_mut(&mut self) -> &mut [u8] {
        self.buffer_mut().bytes_mut()
    }

    #[track_caller]
    fn buffer(&self) -> &Buffer {
        match &*self.storage {
            Storage::Cpu(it) => it,
            Storage::Cuda(..) => panic!("a tensor on a GPU has no slice; to_device(&Device::Cpu) copies it"),
            Storage::Dry(_) => panic!("a tensor of a dry run has no elements"),
        }
    }

    #[track_caller]
    fn buffer_mut(&mut self) -> &mut Buffer {
        let Some(Storage::Cpu(it)) = Arc::get_mut(&mut self.storage) else {
            panic!(
                "a tensor that is shared or not in host memory has no slice to write; into_unique or to_device first"
            );
        };
        it
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tensor({:?}, {}", self.shape, self.dtype())?;
        if matches!(self.place(), Place::Host) && self.dtype().is_float() && self.len() <= 8 {
            write!(f, ", {:?}", self.to_f32_vec())?;
        }
        write!(f, ")")
    }
}
