//! Philox4x32-10: random bits as a pure function of (key, counter), after Salmon et al., "Parallel random numbers: as
//! easy as 1, 2, 3" (SC'11).
//!
//! A dropout mask or an initial weight is a function of the seed, the place and the element's index, so a replayed
//! forward, a resumed run and another number of threads all see the same bits, and no state has to be saved.

/// The four words at `counter` in the stream `key`.
#[inline]
pub fn block(key: u64, counter: [u32; 4]) -> [u32; 4] {
    let mut k = [key as u32, (key >> 32) as u32];
    let mut c = counter;
    for round in 0..10 {
        if round > 0 {
            k[0] = k[0].wrapping_add(0x9E37_79B9);
            k[1] = k[1].wrapping_add(0xBB67_AE85);
        }
        let p0 = u64::from(c[0]) * 0xD251_1F53;
        let p1 = u64::from(c[2]) * 0xCD9E_8D57;
        c = [(p1 >> 32) as u32 ^ c[1] ^ k[0], p1 as u32, (p0 >> 32) as u32 ^ c[3] ^ k[1], p0 as u32];
    }
    c
}

/// The four words that serve elements `4 * quad .. 4 * quad + 4` of the place `site` under `seed`.
#[inline]
pub fn quad(seed: u64, site: u64, quad: u64) -> [u32; 4] {
    block(seed, [quad as u32, (quad >> 32) as u32, site as u32, (site >> 32) as u32])
}

/// Fills `out` with uniform numbers from `[low, high)`, element `i` being a function of `(seed, site, i)` alone.
pub fn fill_uniform(seed: u64, site: u64, low: f32, high: f32, out: &mut [f32]) {
    for (q, chunk) in out.chunks_mut(4).enumerate() {
        for (o, bits) in chunk.iter_mut().zip(quad(seed, site, q as u64)) {
            *o = low + (high - low) * unit(bits);
        }
    }
}

/// Fills `out` with normal numbers of mean 0 and the given standard deviation (Box and Muller's transform).
pub fn fill_normal(seed: u64, site: u64, std: f32, out: &mut [f32]) {
    for (q, chunk) in out.chunks_mut(4).enumerate() {
        let w = quad(seed, site, q as u64);
        let mut values = [0.0; 4];
        for pair in 0..2 {
            // 1 - u lies in (0, 1], so the logarithm is finite.
            let radius = (-2.0 * (1.0 - f64::from(unit(w[2 * pair]))).ln()).sqrt();
            let angle = std::f64::consts::TAU * f64::from(unit(w[2 * pair + 1]));
            values[2 * pair] = (radius * angle.cos()) as f32 * std;
            values[2 * pair + 1] = (radius * angle.sin()) as f32 * std;
        }
        for (o, v) in chunk.iter_mut().zip(values) {
            *o = v;
        }
    }
}

/// A number from `[0, 1)` out of the upper 24 bits.
#[inline]
pub fn unit(bits: u32) -> f32 {
    (bits >> 8) as f32 * (1.0 / 16_777_216.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known-answer vectors published with Random123.
    #[test]
    fn known_answers() {
        assert_eq!(block(0, [0; 4]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(block(u64::MAX, [u32::MAX; 4]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        let key = u64::from(0xa409_3822u32) | u64::from(0x299f_31d0u32) << 32;
        assert_eq!(
            block(key, [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn normal_numbers_have_the_asked_moments_and_do_not_depend_on_the_length() {
        let mut long = vec![0.0; 40_000];
        fill_normal(7, 3, 2.0, &mut long);
        let mean = long.iter().map(|v| f64::from(*v)).sum::<f64>() / 40_000.0;
        let var = long.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / 40_000.0;
        // Five standard errors: 2 / sqrt(n) for the mean, 4 * sqrt(2 / n) for the variance.
        assert!(mean.abs() < 0.05, "{mean}");
        assert!((var - 4.0).abs() < 0.15, "{var}");
        let mut short = vec![0.0; 5];
        fill_normal(7, 3, 2.0, &mut short);
        assert_eq!(short, long[..5]);
    }
}
