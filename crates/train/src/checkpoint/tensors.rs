//! Parameters and optimizer state in one safetensors file. What it holds, and in which order, is said once, for writing
//! and for checking.

use super::sound::Sound;
use crate::{Error as TrainError, Optim, Result};
use halfbyte_autograd::Param;
use halfbyte_files::{Dtype, Error, Placed, TensorFile, TensorSpec, TensorWriter};
use halfbyte_paged_optim::{ParamSpec, StateFormat, StatePart};
use halfbyte_tensor::{DType, Device, Tensor};
use std::{io, path::Path};

pub(super) fn write(path: &Path, optim: &mut Optim) -> Result<()> {
    for param in optim.params() {
        if !param.value().is_finite()? {
            return Err(TrainError::NotFinite { name: param.name().to_owned() });
        }
    }
    let mut writer = TensorWriter::create(path, announced(optim))?;
    for param in optim.params() {
        writer.write(&value_name(param), &param.value().to_device(&Device::Cpu)?.le_bytes())?;
    }
    // Pieces of a tensor follow each other.
    let specs = optim.specs().to_vec();
    let mut diverged = None;
    let visited = optim.visit_state(&mut |place, piece| {
        let (part, spec) = (place.part, &specs[place.param]);
        if Sound::of(part, spec.state).offence(piece).is_some() {
            diverged = Some(part_name(part, spec));
            return Err(io::ErrorKind::InvalidData.into());
        }
        writer.write(&part_name(part, spec), piece).map_err(io::Error::other)
    });
    if let Some(name) = diverged {
        return Err(TrainError::NotFinite { name });
    }
    visited?;
    Ok(writer.finish()?)
}

/// Everything is checked before the first parameter changes.
pub(super) fn read(path: &Path, step: usize, optim: &mut Optim) -> Result<()> {
    let file = TensorFile::open(path).map_err(|error| match error {
        Error::File { path, message } => Error::File { path, message: with_remedy(message) },
        other => other,
    })?;
    for (wanted, sound) in announced(optim).iter().zip(numbers(optim)) {
        check(&file, find(&file, wanted)?, (&wanted.name, sound))?;
    }
    let place = |name: String| file.get(&name).unwrap_or_else(|| unreachable!("{name} was found just now"));
    for param in optim.params() {
        let (old, from) = (param.value(), place(value_name(param)));
        let value = Tensor::filled(old.shape(), DType::F32, |bytes| file.read_part(from, 0, bytes))?;
        param.set(value.to_device(&old.device())?);
    }
    let specs = optim.specs().to_vec();
    optim.restore(step as u64, &mut |piece, out| {
        let spec = &specs[piece.param];
        let begin = piece.offset * piece.part.element_bytes(spec.state);
        file.read_part(place(part_name(piece.part, spec)), begin, out).map_err(io::Error::other)
    })
}

/// Where a tensor lies that must be in the file.
fn find<'f>(file: &'f TensorFile, wanted: &TensorSpec) -> Result<&'f Placed> {
    let TensorSpec { name, dtype, shape } = wanted;
    let wrong = |message: String| Error::File { path: file.path().to_owned(), message: with_remedy(message) };
    let found = file.get(name).ok_or_else(|| wrong(format!("lacks {name}")))?;
    if (found.dtype, &found.shape) == (*dtype, shape) {
        return Ok(found);
    }
    let (is, has) = (found.dtype, &found.shape);
    Err(wrong(format!("{name} is {} of shape {has:?}, expected {} of {shape:?}", is.name(), dtype.name())).into())
}

/// Refuses numbers that training cannot have left there.
fn check(file: &TensorFile, tensor: &Placed, (name, sound): (&str, Sound)) -> Result<()> {
    let mut piece = vec![0; tensor.bytes().min(1 << 20)];
    let mut offset = 0;
    while offset < tensor.bytes() {
        let piece = &mut piece[..(tensor.bytes() - offset).min(1 << 20)];
        file.read_part(tensor, offset, piece)?;
        if let Some((at, value)) = sound.offence(piece) {
            let at = offset / size_of::<f32>() + at;
            let message = format!("{name} holds {value} at element {at}, expected {sound}");
            return Err(Error::File { path: file.path().to_owned(), message: with_remedy(message) }.into());
        }
        offset += piece.len();
    }
    Ok(())
}

fn with_remedy(message: String) -> String {
    format!("{message}; remove this checkpoint to go on from an earlier one")
}

/// Every tensor, in the order of the file.
fn announced(optim: &Optim) -> Vec<TensorSpec> {
    let value = |param: &Param| TensorSpec::new(value_name(param), Dtype::F32, param.value().shape());
    let mut all: Vec<TensorSpec> = optim.params().iter().map(value).collect();
    for (param, spec) in optim.params().iter().zip(optim.specs()) {
        for &part in StatePart::of(spec.state) {
            let dtype = if part.element_bytes(spec.state) == 1 { Dtype::U8 } else { Dtype::F32 };
            all.push(TensorSpec::new(part_name(part, spec), dtype, &part_shape(part, spec, param)));
        }
    }
    all
}

/// What numbers each tensor may hold, in the order of the file.
fn numbers(optim: &Optim) -> Vec<Sound> {
    let state =
        optim.specs().iter().flat_map(|spec| StatePart::of(spec.state).iter().map(|it| Sound::of(*it, spec.state)));
    optim.params().iter().map(|_| Sound::Finite).chain(state).collect()
}

/// Numbers of an element have its parameter's shape, those of a block stand in a row.
fn part_shape(part: StatePart, spec: &ParamSpec, param: &Param) -> Vec<usize> {
    match part.len(spec.len) {
        len if len == spec.len => param.value().shape().to_vec(),
        len => vec![len],
    }
}

fn value_name(param: &Param) -> String {
    format!("value.{}", param.name())
}

/// Torch's names of the moments, and those of bitsandbytes for what is in 8 bits.
fn part_name(part: StatePart, spec: &ParamSpec) -> String {
    let prefix = match (spec.state, part) {
        (StateFormat::F32, StatePart::First) => "exp_avg",
        (StateFormat::F32, _) => "exp_avg_sq",
        (_, StatePart::First) => "state1",
        (_, StatePart::Second) => "state2",
        (_, StatePart::FirstAbsmax) => "absmax1",
        (_, StatePart::SecondAbsmax) => "absmax2",
    };
    format!("{prefix}.{}", spec.name)
}
