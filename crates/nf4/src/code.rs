//! The three 4-bit codes: what a nibble means, and where a scaled value changes its nibble.

/// A 4-bit code: sixteen values in [-1, 1] (INT4: fifteen), by which a block is stored relative to its absmax.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum QuantType {
    /// NormalFloat: quantiles of a normal distribution, the code of QLoRA. Nibble 7 is zero.
    Nf4,
    /// A tiny float: sign bit, then magnitudes 0, 1/192, 1/6, 1/4, 1/3, 1/2, 2/3, 1 in the order of bitsandbytes.
    Fp4,
    /// A symmetric linear grid: nibble `k + 8` stands for `k / 7`, `k` in -7..=7. Nibble 0 is never written.
    Int4,
}

impl QuantType {
    /// All codes.
    pub const ALL: [QuantType; 3] = [QuantType::Nf4, QuantType::Fp4, QuantType::Int4];

    /// The value of each nibble, for absmax 1.
    pub fn code(self) -> &'static [f32; 16] {
        match self {
            QuantType::Nf4 => &NF4,
            QuantType::Fp4 => &FP4,
            QuantType::Int4 => &INT4,
        }
    }

    /// The name that checkpoints use: `nf4`, `fp4`, `int4`.
    pub fn name(self) -> &'static str {
        match self {
            QuantType::Nf4 => "nf4",
            QuantType::Fp4 => "fp4",
            QuantType::Int4 => "int4",
        }
    }

    /// How values become nibbles, for encoders elsewhere: `x / absmax` has as its rank the number of thresholds that it exceeds, and the
    /// nibble of that is stored; the last is what takes the place of NaN.
    pub fn encoding(self) -> (&'static [f32; 15], &'static [u8; 16], f32) {
        let Rule { thresholds, nibbles, nan_as } = self.rule();
        (thresholds, nibbles, *nan_as)
    }

    /// The inverse of [`QuantType::name`].
    pub fn from_name(name: &str) -> Option<QuantType> {
        Self::ALL.into_iter().find(|t| t.name() == name)
    }

    pub(crate) fn rule(self) -> &'static Rule {
        match self {
            QuantType::Nf4 => &NF4_RULE,
            QuantType::Fp4 => &FP4_RULE,
            QuantType::Int4 => &INT4_RULE,
        }
    }
}

/// How a scaled value `v = x / absmax` becomes a nibble: its rank is the number of thresholds that it *exceeds*
/// (so a tie goes down), and `nibbles[rank]` is stored. NaN is replaced by `nan_as` first.
#[derive(Debug)]
pub(crate) struct Rule {
    /// Ascending.
    pub(crate) thresholds: [f32; 15],
    pub(crate) nibbles: [u8; 16],
    /// In a block whose absmax is zero every scaled value is 0 * inf = NaN, so this decides zero blocks too.
    pub(crate) nan_as: f32,
}

const fn bits<const N: usize>(bits: [u32; N]) -> [f32; N] {
    let mut values = [0.0; N];
    let mut i = 0;
    while i < N {
        values[i] = f32::from_bits(bits[i]);
        i += 1;
    }
    values
}

// Bits, because a decimal literal that sits on a rounding midpoint may come out one ulp away.
static NF4: [f32; 16] = bits([
    0xbf80_0000,
    0xbf32_39b1,
    0xbf06_6b30,
    0xbeca_32a0,
    0xbe91_a24d,
    0xbe3d_353f,
    0xbdba_7871,
    0x0000_0000,
    0x3da2_faff,
    0x3e24_cae3,
    0x3e7c_04dd,
    0x3ead_033a,
    0x3ee1_a4b8,
    0x3f10_07ab,
    0x3f39_13b3,
    0x3f80_0000,
]);

/// The GPU's thresholds; four of them are one ulp away from the midpoints that the CPU code of bitsandbytes uses.
static NF4_RULE: Rule = Rule {
    thresholds: bits([
        0xbf59_1cd9,
        0xbf1c_5270,
        0xbeeb_8480,
        0xbead_ea76,
        0xbe70_3cec,
        0xbe0d_38bc,
        0xbd3a_7871,
        0x3d22_faff,
        0x3df6_4863,
        0x3e50_67e0,
        0x3e95_82d4,
        0x3ec7_53f9,
        0x3f00_6d03,
        0x3f24_8daf,
        0x3f5c_89d9,
    ]),
    nibbles: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
    nan_as: -1.0, // no threshold is exceeded: nibble 0, as on the GPU
};

static FP4: [f32; 16] = bits([
    0x0000_0000,
    0x3baa_aaab,
    0x3f2a_aaab,
    0x3f80_0000,
    0x3eaa_aaab,
    0x3f00_0000,
    0x3e2a_aaab,
    0x3e80_0000,
    0x8000_0000,
    0xbbaa_aaab,
    0xbf2a_aaab,
    0xbf80_0000,
    0xbeaa_aaab,
    0xbf00_0000,
    0xbe2a_aaab,
    0xbe80_0000,
]);

/// Magnitude thresholds of the GPU; the sign is a bit of its own.
const FP4_MAGNITUDES: [u32; 7] =
    [0x3b2a_aab9, 0x3db0_0000, 0x3e55_5555, 0x3e95_5555, 0x3ed5_5556, 0x3f15_5550, 0x3f55_5555];

static FP4_RULE: Rule =
    Rule { thresholds: fp4_thresholds(), nibbles: [11, 10, 13, 12, 15, 14, 9, 8, 0, 1, 6, 7, 4, 5, 2, 3], nan_as: 0.0 };

/// The GPU's rule, "sign bit if v < 0, then magnitude by |v| > t", written as one ascending list for signed values.
/// Below zero "|v| > t" fails from v = -t on, so the strict comparison needs the next float below -t; and since
/// subnormal products count as zero there, a value is negative from -MIN_POSITIVE down.
const fn fp4_thresholds() -> [f32; 15] {
    let mut t = [0.0; 15];
    let mut i = 0;
    while i < 7 {
        t[8 + i] = f32::from_bits(FP4_MAGNITUDES[i]);
        t[6 - i] = f32::from_bits((FP4_MAGNITUDES[i] | 0x8000_0000) + 1);
        i += 1;
    }
    t[7] = -f32::MIN_POSITIVE;
    t
}

static INT4: [f32; 16] = {
    let mut code = [0.0; 16];
    let mut i = 0;
    while i < 16 {
        code[i] = (i as f32 - 8.0) / 7.0;
        i += 1;
    }
    code
};

static INT4_RULE: Rule = {
    // Nothing scales to -inf, so the first threshold always counts and rank k is nibble k.
    let mut thresholds = [f32::NEG_INFINITY; 15];
    let mut i = 1;
    while i < 15 {
        thresholds[i] = (i as f32 - 7.5) / 7.0;
        i += 1;
    }
    Rule { thresholds, nibbles: [8, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15], nan_as: 0.0 }
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_ascend_and_separate_the_values_of_the_code() {
        for t in QuantType::ALL {
            let rule = t.rule();
            assert!(rule.thresholds.windows(2).all(|w| w[0] < w[1]), "{t:?}");
            for rank in 0..15 {
                let (low, high) = (t.code()[rule.nibbles[rank] as usize], t.code()[rule.nibbles[rank + 1] as usize]);
                let threshold = rule.thresholds[rank];
                // INT4's rank 0 exists only for the infinite first threshold; FP4's two zeros are parted just below 0.
                let special = threshold == f32::NEG_INFINITY || threshold == -f32::MIN_POSITIVE;
                assert!(special || (low <= threshold && threshold <= high), "{t:?} {rank}");
            }
        }
    }

    #[test]
    fn names_round_trip() {
        for t in QuantType::ALL {
            assert_eq!(QuantType::from_name(t.name()), Some(t));
        }
        assert_eq!(QuantType::from_name("nf5"), None);
    }
}
