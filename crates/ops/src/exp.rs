//! `exp`, the logistic function and `tanh` in arithmetic without branches or calls, so that loops over them vectorise
//! on every processor and give the same bits on all of them. The C library's are exact enough but one call an element.

/// `exp(x)` within 2 ulp for every f32: subnormal results, 0 and infinity included; a NaN stays one.
///
/// `exp(x) = 2^n exp(r)` with `n = round(x / ln 2)` and `|r| <= ln(2) / 2`. Adding `SHIFT` rounds to an integer and
/// leaves it in the low bits, where no instruction of newer processors is needed to get at it.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    /// Below, even the smallest subnormal is too large; above, the result is infinite.
    const RANGE: (f32, f32) = (-104.0, 89.0);
    /// 1.5 * 2^23: there the numbers are the integers.
    const SHIFT: f32 = 12_582_912.0;
    /// ln 2 in two parts, the upper of 9 bits, so that its product with `n` is exact.
    const LN_2: (f32, f32) = (355.0 / 512.0, -2.121_944_4e-4);
    /// `(exp(r) - 1 - r) / r^2`, interpolated at the Chebyshev nodes: off by 1.1e-8 relative to exp(r).
    const Q: [f32; 5] = [0.5, 0.166_665_76, 0.041_666_552, 0.008_363_233, 0.001_392_625];

    // Written so that a NaN passes through.
    let x = if x < RANGE.0 { RANGE.0 } else { x };
    let x = if x > RANGE.1 { RANGE.1 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + SHIFT;
    let n = shifted - SHIFT;
    let r = (x - n * LN_2.0) - n * LN_2.1;
    let q = Q[0] + r * (Q[1] + r * (Q[2] + r * (Q[3] + r * Q[4])));
    // 2^n in two factors, since n reaches from -150 to 128 and a factor alone only from -126 to 127.
    let n = shifted.to_bits().wrapping_sub(SHIFT.to_bits()) as i32;
    let half = n >> 1;
    (1.0 + (r + r * r * q)) * power_of_two(half) * power_of_two(n.wrapping_sub(half))
}

/// `1 / (1 + exp(-x))`, within 3 ulp where the result is a normal number.
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// `tanh(x)` within 12 ulp: a series near 0, where the logistic function would cancel.
#[inline(always)]
pub(crate) fn tanh(x: f32) -> f32 {
    /// Up to here the terms beyond x^11 are below a rounding.
    const NEAR: f32 = 0.35;
    let s = x * x;
    let series = -1.0 / 3.0 + s * (2.0 / 15.0 + s * (-17.0 / 315.0 + s * (62.0 / 2835.0 - s * (1382.0 / 155_925.0))));
    let far = 2.0 * sigmoid(2.0 * x) - 1.0;
    if x.abs() < NEAR { x + x * s * series } else { far }
}

/// `2^n` for `n` from -126 to 127.
#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) as u32) << 23)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Floats over the whole range, denser than any test could list: every 9973rd bit pattern.
    fn floats() -> impl Iterator<Item = f32> {
        (0..=u32::MAX).step_by(9973).map(f32::from_bits).filter(|x| !x.is_nan())
    }

    /// How far `got` is from `exact`, in units of the last place of `exact` as f32.
    fn ulps(got: f32, exact: f64) -> f64 {
        let near = exact as f32;
        if got == near {
            return 0.0;
        }
        let unit = f64::from(f32::from_bits((near.abs().to_bits() + 1).min(0x7f80_0000)) - near.abs());
        (f64::from(got) - exact).abs() / unit
    }

    #[test]
    fn exp_is_within_two_ulp_over_the_whole_range() {
        for x in floats().chain((-1200..1000).map(|i| i as f32 * 0.093)) {
            let (got, exact) = (exp(x), f64::from(x).exp());
            assert!(ulps(got, exact) <= 2.0, "exp({x}) = {got}, not {exact}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn tanh_is_within_twelve_ulp() {
        for x in floats().chain((-4000..4000).map(|i| i as f32 * 0.0031)) {
            let exact = f64::from(x).tanh();
            assert!(ulps(tanh(x), exact) <= 12.0, "tanh({x}) = {}, not {exact}", tanh(x));
        }
        // The series alone.
        for x in (1..3500).map(|i| i as f32 * 0.0001) {
            let exact = f64::from(x).tanh();
            assert!(ulps(tanh(x), exact) <= 2.0 && tanh(-x) == -tanh(x), "tanh({x}) = {}, not {exact}", tanh(x));
        }
        assert!(tanh(f32::NAN).is_nan());
        assert_eq!((tanh(f32::NEG_INFINITY), tanh(f32::INFINITY)), (-1.0, 1.0));
    }

    #[test]
    fn sigmoid_is_within_three_ulp() {
        for x in floats().chain((-4000..4000).map(|i| i as f32 * 0.011)) {
            let exact = 1.0 / (1.0 + (-f64::from(x)).exp());
            if exact >= f64::from(f32::MIN_POSITIVE) {
                assert!(ulps(sigmoid(x), exact) <= 3.0, "sigmoid({x}) = {}, not {exact}", sigmoid(x));
            }
        }
        assert!(sigmoid(f32::NAN).is_nan());
        assert_eq!((sigmoid(f32::NEG_INFINITY), sigmoid(f32::INFINITY)), (0.0, 1.0));
    }
}
