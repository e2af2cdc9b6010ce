//! The dynamic map: 256 values, dense near one and reaching down seven decades, and the search for the nearest.

use std::sync::LazyLock;

use crate::kernels::portable::flush;

/// Which 256 values an 8-bit code stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DynamicMap {
    /// -0.993 to 1, for absmax differences and first moments.
    Signed,
    /// 0 to 1, for second moments.
    Unsigned,
}

impl DynamicMap {
    /// The values, ascending.
    pub fn values(self) -> &'static [f32; 256] {
        &self.table().values
    }

    pub(super) fn table(self) -> &'static Table {
        static SIGNED: LazyLock<Table> = LazyLock::new(|| Table::new(build(true)));
        static UNSIGNED: LazyLock<Table> = LazyLock::new(|| Table::new(build(false)));
        match self {
            DynamicMap::Signed => &SIGNED,
            DynamicMap::Unsigned => &UNSIGNED,
        }
    }
}

/// Decade `i` of seven is cut into `2^i` (unsigned: `2^(i+1)`) equal steps from 0.1 to 1, whose midpoints, times
/// `10^(i-6)`, are in the map; then 0 and 1.
fn build(signed: bool) -> [f32; 256] {
    const POWERS: [f32; 7] = [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0];
    let mut values = vec![0.0, 1.0];
    for (i, power) in POWERS.into_iter().enumerate() {
        let points = linspace(if signed { 1 << i } else { 2 << i });
        for pair in points.windows(2) {
            let value = (pair[0] + pair[1]) * 0.5 * power;
            values.push(value);
            if signed {
                values.push(-value);
            }
        }
    }
    values.sort_by(f32::total_cmp);
    values.try_into().expect("seven decades, zero and one make 256 values")
}

/// `steps + 1` points from 0.1 to 1 as PyTorch computes them: from the nearer end, with fused multiply-adds.
fn linspace(steps: usize) -> Vec<f32> {
    let step = (1.0f32 - 0.1) / steps as f32;
    let point = |k: usize| match k < steps.div_ceil(2) {
        true => step.mul_add(k as f32, 0.1),
        false => (-step).mul_add((steps - k) as f32, 1.0),
    };
    (0..=steps).map(point).collect()
}

/// Mantissa bits by which a value finds its bucket.
const MANTISSA_BITS: u32 = 6;
const SHIFT: u32 = 23 - MANTISSA_BITS;
/// Values below 2^-24 share the first bucket, values from 1 on the last; no threshold lies in either.
const FIRST: u32 = (127 - 24) << MANTISSA_BITS;
const LAST: u32 = 127 << MANTISSA_BITS;
const BUCKETS: usize = (LAST - FIRST + 1) as usize;

/// A map with the means to find the nearest entry fast: a bucket by sign, exponent and six bits of the mantissa says
/// which codes come into question, and at most two comparisons decide.
pub(super) struct Table {
    pub(super) values: [f32; 256],
    /// The code of `v` is the number of these that `v` exceeds. Two infinite ones follow, so that looking ahead is safe.
    thresholds: [f32; 258],
    /// For each bucket, positive ones first, the code of its lowest value.
    first_code: Vec<u8>,
}

impl Table {
    fn new(values: [f32; 256]) -> Table {
        let mut thresholds = [f32::INFINITY; 258];
        for (i, pair) in values.windows(2).enumerate() {
            let middle = (pair[0] + pair[1]) * 0.5;
            // A tie takes the even one of the codes i and i + 1. If that is i + 1, the middle itself must exceed.
            thresholds[i] = if i % 2 == 0 { middle } else { middle.next_down() };
        }
        let mut table = Table { values, thresholds, first_code: vec![0; 2 * BUCKETS] };
        for bucket in 0..BUCKETS as u32 {
            let (low, high) = bounds(bucket);
            let codes = table.count(low)..=table.count(high);
            table.set(bucket as usize, codes);
            let codes = table.count(-high)..=table.count(-low);
            table.set(BUCKETS + bucket as usize, codes);
        }
        table
    }

    fn set(&mut self, bucket: usize, codes: std::ops::RangeInclusive<usize>) {
        assert!(codes.end() - codes.start() <= 2, "two comparisons decide within a bucket");
        self.first_code[bucket] = *codes.start() as u8;
    }

    /// The code by the definition.
    fn count(&self, v: f32) -> usize {
        self.thresholds.iter().filter(|&&t| v > t).count()
    }

    /// Codes of `x * scale`.
    pub(super) fn encode(&self, x: &[f32], scale: f32, codes: &mut [u8]) {
        for (code, &x) in codes.iter_mut().zip(x) {
            *code = self.code(flush(x) * scale);
        }
    }

    #[inline]
    fn code(&self, v: f32) -> u8 {
        let key = ((v.to_bits() & 0x7fff_ffff) >> SHIFT).clamp(FIRST, LAST) - FIRST;
        let bucket = key as usize + if v.is_sign_negative() { BUCKETS } else { 0 };
        let first = usize::from(self.first_code[bucket]);
        let code = first + usize::from(v > self.thresholds[first]) + usize::from(v > self.thresholds[first + 1]);
        if v.is_nan() { 0 } else { code as u8 }
    }
}

/// The least and the greatest magnitude of a bucket.
fn bounds(bucket: u32) -> (f32, f32) {
    let low = if bucket == 0 { 0.0 } else { f32::from_bits((bucket + FIRST) << SHIFT) };
    let high =
        if bucket + FIRST == LAST { f32::MAX } else { f32::from_bits((bucket + FIRST + 1) << SHIFT).next_down() };
    (low, high)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_agree_with_the_definition() {
        for map in [DynamicMap::Signed, DynamicMap::Unsigned] {
            let table = map.table();
            let near = |t: f32| [t.next_down(), t, t.next_up()];
            let mut probes: Vec<f32> = table.thresholds.iter().chain(&table.values).copied().flat_map(near).collect();
            probes.extend((0..=u32::MAX).step_by(65_521).map(f32::from_bits));
            for v in probes {
                assert_eq!(usize::from(table.code(v)), if v.is_nan() { 0 } else { table.count(v) }, "{map:?} {v:e}");
            }
        }
    }

    #[test]
    fn every_entry_is_its_own_nearest() {
        for map in [DynamicMap::Signed, DynamicMap::Unsigned] {
            for (i, &v) in map.values().iter().enumerate() {
                assert_eq!(usize::from(map.table().code(v)), i);
            }
        }
    }
}
