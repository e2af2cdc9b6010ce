//! Kernels as the host knows them: declared once beside their file, and compared with it while the crate compiles.
//!
//! A launch takes untyped addresses and numbers, and a kernel reads whatever comes. So a kernel is declared with the names and types
//! that its `KERNEL` line has; a declaration that differs from the line in number, type, order or name of a parameter does not
//! compile, on any machine. What is left for the caller to vouch for is sizes.

use crate::launch::Arg;
use crate::matmul::Number;

/// The element type that a file of kernels is compiled for.
#[derive(Debug)]
pub enum T {}

/// `f16`, in a kernel whose other elements may be of another type.
#[derive(Debug)]
pub enum F16 {}

/// `void`: elements of a type that the kernel is told.
#[derive(Debug)]
pub enum Any {}

/// The type of elements as `load_any` in the kernels counts it; an `int`.
#[derive(Debug)]
pub enum Kind {}

/// A parameter of which a launch has up to three, as of the matrices that it multiplies with: a `Three<...>` in the kernels, three values
/// here.
#[derive(Debug)]
pub struct Three<Q>(std::marker::PhantomData<Q>);

/// What lies in memory that a kernel is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holds {
    /// Floating-point numbers.
    Float(Number),
    /// Whole numbers of 32 bits.
    Word,
    /// Whole numbers of 8 bits.
    Byte,
    /// Only the caller knows.
    Untold,
}

/// Memory that a kernel may be given.
pub trait Memory {
    /// What a launch over such memory fails with.
    type Error: From<crate::Error>;

    /// Where it begins on its device.
    ///
    /// # Panics
    /// If it is on none.
    fn address(&self) -> u64;

    /// Where it begins, for a kernel that knows of gaps between its rows.
    ///
    /// # Panics
    /// If it is on none.
    fn address_in_rows(&self) -> u64 {
        self.address()
    }

    /// What lies there.
    fn holds(&self) -> Holds;

    /// The number of the device, if it is told.
    fn device(&self) -> Option<u32>;

    /// Whether nobody else holds it, so that it may be written.
    fn is_sole(&self) -> bool;
}

/// An address within a buffer, for kernels that get a part of one.
#[derive(Debug, Clone, Copy)]
pub struct Slice(pub u64);

impl Memory for Slice {
    type Error = crate::Error;

    fn address(&self) -> u64 {
        self.0
    }

    fn holds(&self) -> Holds {
        Holds::Untold
    }

    fn device(&self) -> Option<u32> {
        None
    }

    fn is_sole(&self) -> bool {
        true
    }
}

/// Where a launch goes: what its memory has to fit.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// What [`T`] stands for.
    pub element: Number,
    /// The device.
    pub device: u32,
}

/// What a pointer of a kernel leads to.
pub trait Pointee {
    /// A pointer that is read through.
    const READ: &'static str;
    /// A pointer that is written through.
    const WRITE: &'static str;
    /// Three of the first.
    const READ_THREE: &'static str;
    /// Three of the second.
    const WRITE_THREE: &'static str;

    /// Whether the kernel finds there what it expects.
    fn fits(held: Holds, element: Number) -> bool;
}

macro_rules! pointee {
    ($($type:ty, $cuda:literal, $fits:expr;)*) => {$(
        impl Pointee for $type {
            const READ: &'static str = concat!("const ", $cuda, "*");
            const WRITE: &'static str = concat!($cuda, "*");
            const READ_THREE: &'static str = concat!("Three<const ", $cuda, "*>");
            const WRITE_THREE: &'static str = concat!("Three<", $cuda, "*>");

            fn fits(held: Holds, element: Number) -> bool {
                let fits: fn(Holds, Number) -> bool = $fits;
                held == Holds::Untold || fits(held, element)
            }
        }
    )*};
}

pointee! {
    T, "T", |held, element| held == Holds::Float(element);
    F16, "f16", |held, _| held == Holds::Float(Number::F16);
    Any, "void", |held, _| matches!(held, Holds::Float(_));
    f32, "float", |held, _| held == Holds::Float(Number::F32);
    f64, "double", |_, _| false;
    u32, "unsigned", |held, _| held == Holds::Word;
    i32, "int", |held, _| held == Holds::Word;
    u8, "unsigned char", |held, _| held == Holds::Byte;
    i8, "signed char", |held, _| held == Holds::Byte;
    u64, "unsigned long long", |_, _| false;
}

/// A parameter of a kernel, of memory of type `M`. `*const P` and `*mut P` are pointers, null where an `Option` of one is `None`;
/// `i32` and [`Kind`] are an `int`, `u32` an `unsigned`, `u64` and `usize` an `unsigned long long`, `f32` a `float`. [`Three`] of any is a
/// `Three` of it.
pub trait Parameter<M> {
    /// What is given for it. An extent that is an `int` for the kernel is a `usize` here.
    type Value<'a>
    where
        M: 'a;
    /// Its type in CUDA C++.
    const CUDA: &'static str;
    /// That of three.
    const CUDA_THREE: &'static str;

    /// What the launch gets.
    ///
    /// # Panics
    /// If memory is of another type or device than the kernel's, or shared though it is written; or if an extent does not fit an `int`.
    fn arg(value: Self::Value<'_>, target: Target) -> Arg;
}

#[track_caller]
fn pointer<M: Memory, P: Pointee>(memory: &M, target: Target, address: fn(&M) -> u64) -> Arg {
    let held = memory.holds();
    assert!(P::fits(held, target.element), "a kernel of {} expects {}, not {held:?}", target.element.name(), P::READ);
    let here = memory.device().is_none_or(|it| it == target.device);
    assert!(here, "all operands of a kernel lie on the device that runs it");
    Arg::Ptr(address(memory))
}

/// A pointer to rows that may have room beside them: the kernel is told how far apart they are.
#[derive(Debug)]
pub struct InRows<P>(std::marker::PhantomData<P>);

/// A pointer to rows whose room beside them the kernel writes, and nothing else of them; so others may hold them.
#[derive(Debug)]
pub struct Beside<P>(std::marker::PhantomData<P>);

/// The type of a pointer, `mut` where what is given for it must be nobody else's, its types in CUDA C++, and where it leads.
macro_rules! pointers {
    ($($type:ty, ($($mutable:ident)?), $cuda:ident, $three:ident, $address:expr;)*) => {$(
        impl<M: Memory, P: Pointee> Parameter<M> for $type {
            type Value<'a> = &'a $($mutable)? M where M: 'a;
            const CUDA: &'static str = P::$cuda;
            const CUDA_THREE: &'static str = P::$three;

            fn arg(value: &$($mutable)? M, target: Target) -> Arg {
                let sole = stringify!($($mutable)?) == "mut";
                assert!(!sole || value.is_sole(), "a kernel writes what nobody else holds");
                pointer::<M, P>(value, target, $address)
            }
        }
    )*};
}

pointers! {
    *const P, (), READ, READ_THREE, M::address;
    *mut P, (mut), WRITE, WRITE_THREE, M::address;
    InRows<*const P>, (), READ, READ_THREE, M::address_in_rows;
    InRows<*mut P>, (mut), WRITE, WRITE_THREE, M::address_in_rows;
    Beside<*mut P>, (), WRITE, WRITE_THREE, M::address_in_rows;
}

impl<M, Q: Parameter<M>> Parameter<M> for Option<Q> {
    type Value<'a>
        = Option<Q::Value<'a>>
    where
        M: 'a;
    const CUDA: &'static str = Q::CUDA;
    const CUDA_THREE: &'static str = Q::CUDA_THREE;

    fn arg(value: Option<Q::Value<'_>>, target: Target) -> Arg {
        value.map_or(Arg::Ptr(0), |it| Q::arg(it, target))
    }
}

impl<M, Q: Parameter<M>> Parameter<M> for Three<Q> {
    type Value<'a>
        = [Q::Value<'a>; 3]
    where
        M: 'a;
    const CUDA: &'static str = Q::CUDA_THREE;
    const CUDA_THREE: &'static str = "three times three, which no kernel takes";

    fn arg(value: [Q::Value<'_>; 3], target: Target) -> Arg {
        match value.map(|it| Q::arg(it, target)) {
            [Arg::Ptr(a), Arg::Ptr(b), Arg::Ptr(c)] => Arg::Ptrs([a, b, c]),
            [Arg::I32(a), Arg::I32(b), Arg::I32(c)] => Arg::I32s([a, b, c]),
            [Arg::F32(a), Arg::F32(b), Arg::F32(c)] => Arg::F32s([a, b, c]),
            _ => unreachable!("kernels take three pointers, ints or floats"),
        }
    }
}

macro_rules! plain {
    ($($type:ty, $value:ty, $cuda:literal, $arg:expr;)*) => {$(
        impl<M> Parameter<M> for $type {
            type Value<'a> = $value where M: 'a;
            const CUDA: &'static str = $cuda;
            const CUDA_THREE: &'static str = concat!("Three<", $cuda, ">");

            fn arg(value: $value, _: Target) -> Arg {
                let arg: fn($value) -> Arg = $arg;
                arg(value)
            }
        }
    )*};
}

plain! {
    i32, usize, "int", |it| Arg::I32(i32::try_from(it).expect("an extent fits an int"));
    Kind, Number, "int", |it| Arg::I32(it.kind());
    u32, u32, "unsigned", Arg::U32;
    u64, u64, "unsigned long long", Arg::U64;
    usize, usize, "unsigned long long", |it| Arg::U64(it as u64);
    f32, f32, "float", Arg::F32;
}

/// Declares the kernels of a file, all of them, and gives each a struct of its arguments that can be launched:
///
/// ```text
/// kernels! {
///     const SOURCE = "rms_norm", "kernel.cu", over Tensor;
///     forward as Forward { x: *const T, w: *const f32, y: *mut T, rstd: *mut f32, c: i32, eps: f32 }
/// }
/// // SAFETY: a block a row, with a weight a channel.
/// unsafe { Forward { x, w, y: &mut y, rstd: &mut rstd, c, eps }.launch(gpu, element, Launch::rows(rows, 256)) }?;
/// ```
///
/// Parameters have the kernel's own names and order. `over` names the type of memory, a [`Memory`]. `"before.cuh" "kernel.cu"` puts
/// what the kernels share before them; in place of the file's name, `text "..."` gives the kernels themselves.
///
/// Where several `const`s stand before the kernels, each a line, each is a module of its own with all of them: the same files behind
/// another `.cuh`, say, which are compiled only where a launch is from that module. The launch says from which: `launch_from(&SOURCE, gpu, ...)`.
#[macro_export]
macro_rules! kernels {
    (const $source:ident = $name:literal, text $text:literal, over $($rest:tt)+) => {
        $crate::kernels! { @one ($source, $name, $text) $($rest)+ }
    };
    (const $source:ident = $name:literal, $($file:literal)+, over $memory:ty; const $($rest:tt)+) => {
        $crate::kernels! { @several ($memory) [($source, $name, concat!($(include_str!($file)),+))] const $($rest)+ }
    };
    (const $source:ident = $name:literal, $($file:literal)+, over $($rest:tt)+) => {
        $crate::kernels! { @one ($source, $name, concat!($(include_str!($file)),+)) $($rest)+ }
    };
    (
        @several ($over:ty) [$($before:tt)+]
        const $source:ident = $name:literal, $($file:literal)+, over $memory:ty; $($rest:tt)+
    ) => {
        $crate::kernels! { @several ($memory) [$($before)+ ($source, $name, concat!($(include_str!($file)),+))] $($rest)+ }
    };
    (@several ($memory:ty) [$source:tt $($more:tt)*] $($kernels:tt)+) => {
        $crate::kernels! { @source $source $($kernels)+ }
        $crate::kernels! { @several ($memory) [$($more)*] $($kernels)+ }
    };
    (@several ($memory:ty) [] $($kernels:tt)+) => {
        $crate::kernels! { @launches $memory; $($kernels)+ }
    };
    (@one ($source:ident, $name:literal, $text:expr) $memory:ty; $($kernels:tt)+) => {
        $crate::kernels! { @source ($source, $name, $text) $($kernels)+ }
        $crate::kernels! { @launches $memory; $($kernels)+ }
        $crate::kernels! { @launch $source $memory; $($kernels)+ }
    };
    (
        @source ($source:ident, $name:literal, $text:expr)
        $($(#[$doc:meta])* $kernel:ident as $launch:ident { $($fields:tt)+ })+
    ) => {
        const $source: $crate::Source = $crate::Source { name: $name, text: $text };
        const _: () = $crate::signature::check_all($source.text, &[$(stringify!($kernel)),+]);
        $(const _: () = $crate::signature::check($source.text, $launch::SIGNATURE);)+
    };
    (
        @launches $memory:ty;
        $($(#[$doc:meta])* $kernel:ident as $launch:ident { $($field:ident : $type:ty),+ $(,)? })+
    ) => {
        $(
            $(#[$doc])*
            struct $launch<'a> {
                $($field: <$type as $crate::Parameter<$memory>>::Value<'a>),+
            }

            impl $launch<'_> {
                /// The kernel's name, and the types and names of its parameters.
                const SIGNATURE: (&'static str, &'static [(&'static str, &'static str)]) = (
                    stringify!($kernel),
                    &[$((<$type as $crate::Parameter<$memory>>::CUDA, stringify!($field))),+],
                );

                /// Starts the kernel of a module.
                ///
                /// # Safety
                /// The module must be one that was declared with the kernel, and the memory as large as the kernel reads and writes
                /// when it is started like this.
                ///
                /// # Errors
                /// If the kernel does not compile or cannot be started.
                unsafe fn launch_from(
                    self,
                    source: &$crate::Source,
                    gpu: &$crate::Gpu,
                    element: $crate::Number,
                    launch: $crate::Launch,
                ) -> ::std::result::Result<(), <$memory as $crate::Memory>::Error> {
                    let target = $crate::Target { element, device: gpu.info().ordinal };
                    let args = [$(<$type as $crate::Parameter<$memory>>::arg(self.$field, target)),+];
                    // SAFETY: number, types and order of the arguments were compared with the kernel's when this was compiled, and
                    // the caller vouches for the sizes.
                    unsafe { gpu.launch_untyped((source, element), stringify!($kernel), launch, &args) }.map_err(Into::into)
                }
            }
        )+
    };
    (@launch $source:ident $memory:ty; $($(#[$doc:meta])* $kernel:ident as $launch:ident { $($fields:tt)+ })+) => {
        $(
            impl $launch<'_> {
                /// Starts the kernel.
                ///
                /// # Safety
                /// The memory must be as large as the kernel reads and writes when it is started like this.
                ///
                /// # Errors
                /// If the kernel does not compile or cannot be started.
                unsafe fn launch(
                    self,
                    gpu: &$crate::Gpu,
                    element: $crate::Number,
                    launch: $crate::Launch,
                ) -> ::std::result::Result<(), <$memory as $crate::Memory>::Error> {
                    // SAFETY: the caller's.
                    unsafe { self.launch_from(&$source, gpu, element, launch) }
                }
            }
        )+
    };
}
