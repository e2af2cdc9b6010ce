//! Which of the library's algorithms a product runs with: the one that it suggests first, or, for products that are worth it, the
//! fastest of those that it suggests, tried out once for each shape.
//!
//! Algorithms differ in the order of their sums, so what was chosen is kept: for the process, and in the cache on disk for those after
//! it. With another cache, or none, two runs may differ in their last bits.

use std::collections::HashMap;
use std::mem::{MaybeUninit, size_of};
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::cublaslt::{result::CublasError, sys};

use crate::cache::CacheEntry;
use crate::counters::count;
use crate::gpu::Gpu;
use crate::matmul::{Call, Gemm, Number, REDUCTION_IN_FULL};
use crate::stream::Event;

/// The shape of a product, whether it adds to what is there, and how its matrices are aligned: by which algorithms are remembered.
pub(crate) type Shape = (usize, usize, usize, [bool; 3], Number, Number, [usize; 3], [u32; 3]);

/// An algorithm as the library describes it: plain bytes, good for this version of it.
pub(crate) type Algorithm = sys::cublasLtMatmulAlgo_t;

/// Suggestions that are tried out.
const TRIED: usize = 8;
/// Products a measurement.
const REPEATS: usize = 3;
/// How much faster than the library's first suggestion another has to be, for measurements have an error.
const CLEARLY: f64 = 0.98;

/// For which products algorithms are tried out.
#[derive(Clone, Copy)]
pub(crate) struct Measuring {
    /// Floating-point operations from which on.
    pub(crate) from: u64,
    /// Whether the choice is kept on disk.
    pub(crate) kept: bool,
}

impl Default for Measuring {
    /// A product of fewer operations takes less time than its launch.
    fn default() -> Measuring {
        Measuring { from: 1 << 28, kept: true }
    }
}

/// What a device found out serves all that are opened after it.
static MEASURED: Mutex<Option<HashMap<(String, Shape), Algorithm>>> = Mutex::new(None);

/// The algorithm for a call whose shape is new to the device.
///
/// # Safety
/// As for [`Gpu::gemm`].
pub(crate) unsafe fn choose(gpu: &Arc<Gpu>, call: &Call<'_>, shape: &Shape) -> Result<Algorithm, CublasError> {
    let g = call.gemm;
    let Measuring { from, kept } = *gpu.measuring.lock().unwrap_or_else(PoisonError::into_inner);
    let worth = 2 * (g.m * g.n * g.k) as u64 >= from;
    let suggested = call.suggested(if worth { TRIED } else { 1 })?;
    let first = suggested[0];
    if suggested.len() == 1 {
        return Ok(first);
    }
    let name = gpu.info().name.clone();
    let mut measured = MEASURED.lock().unwrap_or_else(PoisonError::into_inner);
    let measured = measured.get_or_insert_default();
    if let Some(known) = measured.get(&(name.clone(), *shape)) {
        return Ok(*known);
    }
    // SAFETY: the library is loaded, since a call could be described.
    let version = unsafe { sys::cublasLtGetVersion() };
    let named = format!("{}x{}x{}", g.m, g.n, g.k);
    let entry =
        kept.then(|| CacheEntry::new("products", &named, "algorithm", &(version, &name, shape, REDUCTION_IN_FULL)));
    let known = entry.as_ref().and_then(CacheEntry::read);
    let known = known.and_then(|bytes| suggested.iter().find(|it| bytes_of(it) == bytes).copied());
    let chosen = known.unwrap_or_else(|| {
        // SAFETY: as the caller vouches.
        let found = unsafe { fastest(gpu, call, &suggested) };
        entry.iter().for_each(|it| it.write(&bytes_of(&found)));
        found
    });
    measured.insert((name, *shape), chosen);
    Ok(chosen)
}

/// The fastest of the suggestions, and the first of them where nothing can be measured.
///
/// # Safety
/// As for [`Gpu::gemm`].
unsafe fn fastest(gpu: &Arc<Gpu>, call: &Call<'_>, suggested: &[Algorithm]) -> Algorithm {
    count(&gpu.tally.searches);
    let Gemm { m, c_stride, output, beta, onto, .. } = *call.gemm;
    // What a product adds to must not change; elsewhere the last product overwrites what the others left.
    let aside = if beta == 0.0 || onto.is_some() { None } else { Some(gpu.alloc(m * c_stride * output.size())) };
    let result = match &aside {
        None => call.gemm.c,
        Some(Ok(aside)) => aside.ptr(),
        Some(Err(_)) => return suggested[0],
    };
    // SAFETY: as the caller vouches, and the result is as large.
    let seconds: Vec<Option<f64>> = suggested.iter().map(|it| unsafe { measure(gpu, call, it, result) }).collect();
    suggested[best(&seconds)]
}

/// Seconds that the products took; none if the algorithm cannot do it.
///
/// # Safety
/// As for [`Gpu::gemm`], with the result at `result`.
unsafe fn measure(gpu: &Arc<Gpu>, call: &Call<'_>, algorithm: &Algorithm, result: u64) -> Option<f64> {
    let (from, to) = (Event::timed(gpu).ok()?, Event::timed(gpu).ok()?);
    let stream = gpu.compute_stream();
    for repeat in 0..=REPEATS {
        if repeat == 1 {
            stream.record(&from).ok()?;
        }
        // SAFETY: as the caller vouches.
        unsafe { call.start(algorithm, result) }.ok()?;
    }
    stream.record(&to).ok()?;
    gpu.wait(&to).ok()?;
    gpu.seconds_between(&from, &to).ok()
}

/// The place of the least time, unless the first comes close to it.
fn best(seconds: &[Option<f64>]) -> usize {
    let measured = seconds.iter().enumerate().filter_map(|(i, it)| Some((i, (*it)?)));
    let Some((place, least)) = measured.min_by(|a, b| a.1.total_cmp(&b.1)) else { return 0 };
    match seconds[0] {
        Some(first) if least > CLEARLY * first => 0,
        _ => place,
    }
}

fn bytes_of(algorithm: &Algorithm) -> Vec<u8> {
    algorithm.data.iter().flat_map(|it| it.to_le_bytes()).collect()
}

impl Call<'_> {
    /// What the library suggests for it, best first, at most so many.
    fn suggested(&self, count: usize) -> Result<Vec<Algorithm>, CublasError> {
        let preference = self.preference()?;
        let mut found = [const { MaybeUninit::<sys::cublasLtMatmulHeuristicResult_t>::uninit() }; TRIED];
        let mut there = 0;
        // SAFETY: all descriptors are alive, and there is room for as many as are asked for.
        unsafe {
            sys::cublasLtMatmulAlgoGetHeuristic(
                self.handle,
                self.desc.0,
                self.left.0,
                self.right.0,
                self.out.0,
                self.out.0,
                preference.0,
                count.min(TRIED) as i32,
                found.as_mut_ptr().cast(),
                &raw mut there,
            )
        }
        .result()?;
        // SAFETY: the library filled so many.
        let found = found.iter().take(there.max(0) as usize).map(|it| unsafe { it.assume_init_ref() });
        let works = found.filter(|it| it.state == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS).map(|it| it.algo);
        let works: Vec<Algorithm> = works.collect();
        if works.is_empty() { Err(CublasError(sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED)) } else { Ok(works) }
    }
}

const _: () = assert!(size_of::<Algorithm>() == 64, "the cache keeps an algorithm whole");

#[cfg(test)]
mod tests {
    use super::best;

    #[test]
    fn another_than_the_first_must_be_clearly_faster() {
        assert_eq!(best(&[Some(1.0), Some(0.99), Some(1.2)]), 0);
        assert_eq!(best(&[Some(1.0), Some(0.9), Some(0.8)]), 2);
        assert_eq!(best(&[None, Some(2.0), None]), 1);
        assert_eq!(best(&[None, None]), 0);
    }
}
