use halfbyte_cuda::{Launch, Source};
use halfbyte_tensor::{DType, Result, Tensor, cuda};

const SOURCE: Source = Source { name: "embedding", text: include_str!("kernel.cu") };

pub(super) fn gather(table: &Tensor, ids: &[u32], dtype: DType) -> Result<Tensor> {
    let mut out = table.scratch_like(&[ids.len(), table.cols()], dtype);
    let Some(gpu) = table.gpu().filter(|_| !out.is_empty()) else { return Ok(out) };
    let rows = cuda::upload_u32(gpu, ids)?;
    let n = out.len();
    let call = cuda::Call::new(gpu, &SOURCE, dtype).read(table).kind(table.dtype()).read(&rows).write(&mut out);
    // SAFETY: all ids lie in the table, which the caller checked; `out` has a row an id.
    unsafe { call.int(table.cols()).long(n as u64).run("gather", Launch::elements(n)) }?;
    Ok(out)
}

/// The gradient of the table: every row the sum over its tokens, in their order.
pub(super) fn scatter_add(dy: &Tensor, ids: &[u32], vocab: usize) -> Result<Tensor> {
    let channels = dy.cols();
    let mut table = Tensor::zeros_on(&dy.device(), &[vocab, channels], DType::F32);
    let Some(gpu) = dy.gpu().filter(|_| !dy.is_empty()) else { return Ok(table) };
    let mut order: Vec<u32> = (0..ids.len() as u32).collect();
    order.sort_by_key(|i| ids[*i as usize]);
    let (mut starts, mut rows): (Vec<u32>, Vec<u32>) = (Vec::new(), Vec::new());
    for (at, i) in order.iter().enumerate() {
        let id = ids[*i as usize];
        if rows.last() != Some(&id) {
            rows.push(id);
            starts.push(at as u32);
        }
    }
    starts.push(ids.len() as u32);
    let (order, starts) = (cuda::upload_u32(gpu, &order)?, cuda::upload_u32(gpu, &starts)?);
    let on_gpu = cuda::upload_u32(gpu, &rows)?;
    let call = cuda::Call::new(gpu, &SOURCE, dy.dtype()).read(dy).read(&order).read(&starts).read(&on_gpu);
    // SAFETY: a block a row that occurs; tokens and rows lie in their tensors.
    unsafe { call.write(&mut table).int(channels).run("scatter_add", Launch::rows(rows.len(), 256)) }?;
    Ok(table)
}
