//! The inner loops, chosen once at run time. Every set gives the same bits as [`portable`]: the rule is a list of IEEE
//! operations on single elements (no sums), so lanes cannot change it. All `unsafe` of this crate is in this folder.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub(crate) mod portable;
#[cfg(test)]
mod tests;

use std::sync::OnceLock;

use crate::code::Rule;

/// A run of 4-bit blocks to decode, beginning at a block's first byte.
#[derive(Clone, Copy)]
pub(crate) struct Run<'a> {
    pub(crate) packed: &'a [u8],
    /// One absmax a block.
    pub(crate) scales: &'a [f32],
    pub(crate) code: &'a [f32; 16],
    /// Elements a block, even.
    pub(crate) block_size: usize,
}

impl Run<'_> {
    fn check(&self, len: usize) {
        assert!(self.block_size > 0 && self.block_size.is_multiple_of(2), "a 4-bit block has whole bytes");
        assert!(self.packed.len() >= len.div_ceil(2), "a run has a byte for every two elements");
        assert!(self.scales.len() >= len.div_ceil(self.block_size), "a run has a scale for every block");
    }
}

type Encode4 = unsafe fn(&[f32], usize, &Rule, &mut [u8], &mut [f32]);

/// One set of inner loops. The pointers are unsafe because they need the CPU features that [`available`] looked for.
pub(crate) struct Kernels {
    pub(crate) name: &'static str,
    encode4: Encode4,
    decode4_f32: unsafe fn(Run<'_>, &mut [f32]),
    decode4_bf16: unsafe fn(Run<'_>, &mut [u16]),
    decode4_f16: unsafe fn(Run<'_>, &mut [u16]),
    absmax: unsafe fn(&[f32]) -> f32,
    widen_bf16: unsafe fn(&[u16], &mut [f32]),
    narrow_bf16: unsafe fn(&[f32], &mut [u16]),
    encode_i8: unsafe fn(&[f32], f32, &mut [i8]),
    decode_i8: unsafe fn(&[i8], f32, &mut [f32]),
}

// SAFETY (all calls below): a `Kernels` is only ever handed out by `available`, which has seen its CPU features. The
// loops themselves take slices and are asked for nothing beyond the lengths asserted here.
impl Kernels {
    /// Quantises `x`, cut into blocks, to `packed` (two a byte) and `absmax` (one a block).
    pub(crate) fn encode4(&self, x: &[f32], block_size: usize, rule: &Rule, packed: &mut [u8], absmax: &mut [f32]) {
        assert!(block_size > 0 && block_size.is_multiple_of(2), "a 4-bit block has whole bytes");
        assert_eq!(packed.len(), x.len().div_ceil(2), "there is a byte for every two elements");
        assert_eq!(absmax.len(), x.len().div_ceil(block_size), "there is an absmax for every block");
        // SAFETY: the features were detected; lengths checked above.
        unsafe { (self.encode4)(x, block_size, rule, packed, absmax) }
    }

    pub(crate) fn decode4_f32(&self, run: Run<'_>, out: &mut [f32]) {
        run.check(out.len());
        // SAFETY: the features were detected; lengths checked above.
        unsafe { (self.decode4_f32)(run, out) }
    }

    pub(crate) fn decode4_bf16(&self, run: Run<'_>, out: &mut [u16]) {
        run.check(out.len());
        // SAFETY: the features were detected; lengths checked above.
        unsafe { (self.decode4_bf16)(run, out) }
    }

    pub(crate) fn decode4_f16(&self, run: Run<'_>, out: &mut [u16]) {
        run.check(out.len());
        // SAFETY: the features were detected; lengths checked above.
        unsafe { (self.decode4_f16)(run, out) }
    }

    /// The largest magnitude, NaN ignored, subnormals taken as zero; 0 if there is none.
    pub(crate) fn absmax(&self, x: &[f32]) -> f32 {
        // SAFETY: the features were detected.
        unsafe { (self.absmax)(x) }
    }

    pub(crate) fn widen_bf16(&self, x: &[u16], out: &mut [f32]) {
        assert_eq!(x.len(), out.len(), "a conversion keeps the length");
        // SAFETY: the features were detected.
        unsafe { (self.widen_bf16)(x, out) }
    }

    pub(crate) fn narrow_bf16(&self, x: &[f32], out: &mut [u16]) {
        assert_eq!(x.len(), out.len(), "a conversion keeps the length");
        // SAFETY: the features were detected.
        unsafe { (self.narrow_bf16)(x, out) }
    }

    /// `out = round_ties_even(x * scale)`, clamped to -127..=127; NaN becomes 0.
    pub(crate) fn encode_i8(&self, x: &[f32], scale: f32, out: &mut [i8]) {
        assert_eq!(x.len(), out.len(), "a conversion keeps the length");
        // SAFETY: the features were detected.
        unsafe { (self.encode_i8)(x, scale, out) }
    }

    /// `out = code * absmax * (1 / 127)`, in this order.
    pub(crate) fn decode_i8(&self, codes: &[i8], absmax: f32, out: &mut [f32]) {
        assert_eq!(codes.len(), out.len(), "a conversion keeps the length");
        // SAFETY: the features were detected.
        unsafe { (self.decode_i8)(codes, absmax, out) }
    }
}

/// The sets that this CPU can run, slowest first; never empty.
pub(crate) fn available() -> Vec<&'static Kernels> {
    #[cfg_attr(not(target_arch = "x86_64"), expect(unused_mut, reason = "only x86-64 has more than one set"))]
    let mut sets = vec![&portable::KERNELS];
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c") {
        sets.push(&avx2::KERNELS);
        if is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
        {
            sets.push(&avx512::KERNELS);
        }
    }
    sets
}

/// The fastest set, or the one that `HALFBYTE_NF4_KERNEL` names if this CPU can run it. All give the same bits, so a
/// name that does not fit is passed over; `kernel_name` tells what runs.
pub(crate) fn selected() -> &'static Kernels {
    static SELECTED: OnceLock<&'static Kernels> = OnceLock::new();
    SELECTED.get_or_init(|| {
        let sets = available();
        let wanted = std::env::var("HALFBYTE_NF4_KERNEL").unwrap_or_default();
        sets.iter().find(|k| k.name == wanted).copied().unwrap_or(sets[sets.len() - 1])
    })
}
