use std::fmt;

/// The type of a stored tensor's elements, by the names that safetensors files use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// A byte that is 0 or 1.
    Bool,
    /// Unsigned bytes.
    U8,
    /// Signed bytes.
    I8,
    /// 8-bit floating point: 4 bits of exponent, 3 of mantissa.
    F8E4M3,
    /// 8-bit floating point: 5 bits of exponent, 2 of mantissa.
    F8E5M2,
    /// Unsigned 16-bit integers.
    U16,
    /// Signed 16-bit integers.
    I16,
    /// IEEE half precision.
    F16,
    /// The upper half of an f32.
    Bf16,
    /// Unsigned 32-bit integers.
    U32,
    /// Signed 32-bit integers.
    I32,
    /// IEEE single precision.
    F32,
    /// Unsigned 64-bit integers.
    U64,
    /// Signed 64-bit integers.
    I64,
    /// IEEE double precision.
    F64,
}

/// Name and size of each.
const ALL: [(Dtype, &str, usize); 15] = [
    (Dtype::Bool, "BOOL", 1),
    (Dtype::U8, "U8", 1),
    (Dtype::I8, "I8", 1),
    (Dtype::F8E4M3, "F8_E4M3", 1),
    (Dtype::F8E5M2, "F8_E5M2", 1),
    (Dtype::U16, "U16", 2),
    (Dtype::I16, "I16", 2),
    (Dtype::F16, "F16", 2),
    (Dtype::Bf16, "BF16", 2),
    (Dtype::U32, "U32", 4),
    (Dtype::I32, "I32", 4),
    (Dtype::F32, "F32", 4),
    (Dtype::U64, "U64", 8),
    (Dtype::I64, "I64", 8),
    (Dtype::F64, "F64", 8),
];

impl Dtype {
    /// Bytes an element takes.
    pub fn size(self) -> usize {
        self.row().2
    }

    /// The name in a header.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// The dtype of a name in a header.
    pub fn parse(name: &str) -> Option<Dtype> {
        ALL.iter().find(|it| it.1 == name).map(|it| it.0)
    }

    fn row(self) -> (Dtype, &'static str, usize) {
        *ALL.iter().find(|it| it.0 == self).expect("every dtype has a row")
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
