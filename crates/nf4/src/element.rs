//! The three float types that weights come in.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use crate::kernels::{Kernels, Run};

/// `f32`, [`half::f16`] or [`half::bf16`]: what can be quantised and decoded to. Everything is computed in `f32`;
/// the way back rounds once, to nearest, ties to even.
pub trait Element: sealed::Sealed + Copy + Default + Send + Sync + 'static {
    /// Exact.
    fn to_f32(self) -> f32;
    /// Rounded to nearest, ties to even.
    fn from_f32(x: f32) -> Self;
}

pub(crate) mod sealed {
    use super::{Kernels, Run};

    /// Loops over slices of an element type; private, so that the kernels can be changed.
    #[allow(private_interfaces, reason = "the trait cannot be named outside the crate")]
    pub trait Sealed: Sized {
        /// The values as `f32`, converted into `buffer` (of the same length) unless they already are.
        fn widen<'a>(k: &Kernels, x: &'a [Self], buffer: &'a mut [f32]) -> &'a [f32];
        fn narrow(k: &Kernels, x: &[f32], out: &mut [Self]);
        fn decode4(k: &Kernels, run: Run<'_>, out: &mut [Self]);
    }
}

#[allow(private_interfaces, reason = "see the trait")]
impl sealed::Sealed for f32 {
    fn widen<'a>(_: &Kernels, x: &'a [f32], _: &'a mut [f32]) -> &'a [f32] {
        x
    }
    fn narrow(_: &Kernels, x: &[f32], out: &mut [f32]) {
        out.copy_from_slice(x);
    }
    fn decode4(k: &Kernels, run: Run<'_>, out: &mut [f32]) {
        k.decode4_f32(run, out);
    }
}

#[allow(private_interfaces, reason = "see the trait")]
impl sealed::Sealed for bf16 {
    fn widen<'a>(k: &Kernels, x: &'a [bf16], buffer: &'a mut [f32]) -> &'a [f32] {
        k.widen_bf16(x.reinterpret_cast(), buffer);
        buffer
    }
    fn narrow(k: &Kernels, x: &[f32], out: &mut [bf16]) {
        k.narrow_bf16(x, out.reinterpret_cast_mut());
    }
    fn decode4(k: &Kernels, run: Run<'_>, out: &mut [bf16]) {
        k.decode4_bf16(run, out.reinterpret_cast_mut());
    }
}

// `half` converts slices of f16 with the CPU's own instructions where it has them.
#[allow(private_interfaces, reason = "see the trait")]
impl sealed::Sealed for f16 {
    fn widen<'a>(_: &Kernels, x: &'a [f16], buffer: &'a mut [f32]) -> &'a [f32] {
        x.convert_to_f32_slice(buffer);
        buffer
    }
    fn narrow(_: &Kernels, x: &[f32], out: &mut [f16]) {
        out.convert_from_f32_slice(x);
    }
    fn decode4(k: &Kernels, run: Run<'_>, out: &mut [f16]) {
        k.decode4_f16(run, out.reinterpret_cast_mut());
    }
}

impl Element for f32 {
    fn to_f32(self) -> f32 {
        self
    }
    fn from_f32(x: f32) -> f32 {
        x
    }
}

impl Element for bf16 {
    fn to_f32(self) -> f32 {
        bf16::to_f32(self)
    }
    fn from_f32(x: f32) -> bf16 {
        bf16::from_f32(x)
    }
}

impl Element for f16 {
    fn to_f32(self) -> f32 {
        f16::to_f32(self)
    }
    fn from_f32(x: f32) -> f16 {
        f16::from_f32(x)
    }
}

/// Elements that are widened at a time: 16 KiB of f32, and a multiple of every 4-bit block size.
pub(crate) const PIECE: usize = 4096;

/// Calls `f` with consecutive pieces of `x` as `f32`: `(index of the first element, values)`. A piece has
/// `PIECE / unit * unit` elements (`unit` if that is more), so units are never cut.
pub(crate) fn for_each_piece<T: Element>(k: &Kernels, x: &[T], unit: usize, mut f: impl FnMut(usize, &[f32])) {
    let piece = (PIECE / unit * unit).max(unit);
    let mut buffer = vec![0.0; piece.min(x.len())];
    for (i, values) in x.chunks(piece).enumerate() {
        f(i * piece, T::widen(k, values, &mut buffer[..values.len()]));
    }
}
