//! A machine for the pickle programs of tables of tensors. Values that hold others are numbers into lists, so that a program can neither
//! nest deeply nor repeat itself at our cost.

use crate::Dtype;
use std::{borrow::Cow, collections::HashMap};

/// A tensor of a table.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Found<'a> {
    pub(super) name: &'a str,
    pub(super) view: View<'a>,
}

/// Part of a storage.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct View<'a> {
    /// The name of the storage's part.
    pub(super) storage: &'a str,
    pub(super) dtype: Dtype,
    /// In elements.
    pub(super) offset: usize,
    pub(super) shape: Vec<usize>,
    pub(super) strides: Vec<usize>,
}

type Parsed<T> = Result<T, String>;

#[derive(Clone, Copy, Debug)]
enum Value {
    /// `None`, a truth value or a fraction: nothing that a tensor is made of.
    Other,
    Int(i64),
    Text(usize),
    /// A tuple or a list.
    Items(usize),
    Table(usize),
    Function(Function),
    Storage(usize),
    Tensor(usize),
}

/// What a program may ask for by name.
#[derive(Clone, Copy, Debug)]
enum Function {
    /// `collections.OrderedDict`
    Table,
    /// `torch._utils._rebuild_tensor_v2`
    Tensor,
    /// `torch._utils._rebuild_parameter`
    Parameter,
    /// `torch.FloatStorage` and its like.
    Storage(Dtype),
}

impl Function {
    fn named(module: &str, name: &str) -> Parsed<Function> {
        let dtype = match (module, name) {
            ("collections", "OrderedDict") => return Ok(Function::Table),
            ("torch._utils", "_rebuild_tensor_v2") => return Ok(Function::Tensor),
            ("torch._utils", "_rebuild_parameter") => return Ok(Function::Parameter),
            ("torch", "FloatStorage") => Dtype::F32,
            ("torch", "HalfStorage") => Dtype::F16,
            ("torch", "BFloat16Storage") => Dtype::Bf16,
            ("torch", "DoubleStorage") => Dtype::F64,
            ("torch", "LongStorage") => Dtype::I64,
            ("torch", "IntStorage") => Dtype::I32,
            ("torch", "ShortStorage") => Dtype::I16,
            ("torch", "CharStorage") => Dtype::I8,
            ("torch", "ByteStorage") => Dtype::U8,
            ("torch", "BoolStorage") => Dtype::Bool,
            _ => {
                return Err(format!("asks for {module}.{name}, which is no part of a table of tensors and is not run"));
            }
        };
        Ok(Function::Storage(dtype))
    }
}

/// The tensors of the table that a program makes.
pub(super) fn table(program: &[u8]) -> Parsed<Vec<Found<'_>>> {
    let mut machine = Machine { rest: program, ..Machine::default() };
    while !machine.step()? {}
    let Some(Value::Table(root)) = machine.stack.pop() else {
        return Err("holds something else than a table of tensors".into());
    };
    let mut found = Vec::new();
    for (key, value) in &machine.tables[root] {
        let Value::Text(key) = key else { return Err("holds a table whose keys are no names".into()) };
        let name = machine.texts[*key];
        match value {
            Value::Tensor(at) => found.push(Found { name, view: machine.tensors[*at].clone() }),
            _ => return Err(format!("holds {name:?}, which is no tensor")),
        }
    }
    Ok(found)
}

#[derive(Default)]
struct Machine<'a> {
    rest: &'a [u8],
    stack: Vec<Value>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: HashMap<u32, Value>,
    texts: Vec<&'a str>,
    items: Vec<Vec<Value>>,
    tables: Vec<Vec<(Value, Value)>>,
    storages: Vec<(Dtype, &'a str)>,
    tensors: Vec<View<'a>>,
}

/// No tensor has more.
const MOST_SIZES: usize = 64;
const CUT_OFF: &str = "its table of tensors is cut off";

impl<'a> Machine<'a> {
    /// Carries an instruction out; true at the end.
    fn step(&mut self) -> Parsed<bool> {
        let [code] = self.take::<1>()?;
        match code {
            b'.' => return Ok(true),
            0x80 => drop(self.take::<1>()?),
            0x95 => drop(self.take::<8>()?),
            b'(' => self.marks.push(self.stack.len()),
            b'N' | 0x88 | 0x89 => self.stack.push(Value::Other),
            b'G' => {
                self.take::<8>()?;
                self.stack.push(Value::Other);
            }
            b'J' => {
                let value = i32::from_le_bytes(self.take()?);
                self.stack.push(Value::Int(value.into()));
            }
            b'K' => {
                let value = u8::from_le_bytes(self.take()?);
                self.stack.push(Value::Int(value.into()));
            }
            b'M' => {
                let value = u16::from_le_bytes(self.take()?);
                self.stack.push(Value::Int(value.into()));
            }
            0x8a => self.long()?,
            b'X' => {
                let len = u32::from_le_bytes(self.take()?);
                self.text(len as usize)?;
            }
            0x8c => {
                let [len] = self.take::<1>()?;
                self.text(len.into())?;
            }
            b')' => self.tuple(self.stack.len()),
            0x85..=0x87 => {
                let from = self.stack.len().checked_sub(usize::from(code - 0x84)).ok_or(CUT_OFF)?;
                self.tuple(from);
            }
            b't' => {
                let from = self.mark()?;
                self.tuple(from);
            }
            b']' => self.tuple(self.stack.len()),
            b'}' => self.new_table(),
            b'a' | b'e' => self.append(code == b'e')?,
            b's' | b'u' => self.set(code == b'u')?,
            b'q' => {
                let [at] = self.take::<1>()?;
                self.remember(at.into())?;
            }
            b'r' => {
                let at = u32::from_le_bytes(self.take()?);
                self.remember(at)?;
            }
            0x94 => self.remember(self.memo.len() as u32)?,
            b'h' => {
                let [at] = self.take::<1>()?;
                self.recall(at.into())?;
            }
            b'j' => {
                let at = u32::from_le_bytes(self.take()?);
                self.recall(at)?;
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.stack.push(Value::Function(Function::named(&module, &name)?));
            }
            0x93 => {
                let (name, module) = (self.pop_text()?, self.pop_text()?);
                self.stack.push(Value::Function(Function::named(module, name)?));
            }
            b'Q' => self.storage()?,
            b'R' => self.call()?,
            b'b' => self.set_state()?,
            other => return Err(format!("holds the pickle instruction 0x{other:02x}, which no table of tensors has")),
        }
        Ok(false)
    }

    fn take<const N: usize>(&mut self) -> Parsed<[u8; N]> {
        let (taken, rest) = self.rest.split_first_chunk::<N>().ok_or(CUT_OFF)?;
        self.rest = rest;
        Ok(*taken)
    }

    fn slice(&mut self, len: usize) -> Parsed<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(CUT_OFF)?;
        self.rest = rest;
        Ok(taken)
    }

    fn line(&mut self) -> Parsed<Cow<'a, str>> {
        let len = self.rest.iter().position(|it| *it == b'\n').ok_or(CUT_OFF)?;
        let line = String::from_utf8_lossy(self.slice(len)?);
        self.slice(1)?;
        Ok(line)
    }

    fn text(&mut self, len: usize) -> Parsed<()> {
        let text = std::str::from_utf8(self.slice(len)?).map_err(|_| "holds a name that is no UTF-8")?;
        self.texts.push(text);
        self.stack.push(Value::Text(self.texts.len() - 1));
        Ok(())
    }

    /// A whole number of up to eight bytes, the last of which has the sign.
    fn long(&mut self) -> Parsed<()> {
        let [len] = self.take::<1>()?;
        let bytes = self.slice(len.into())?;
        if bytes.len() > 8 {
            return Err("holds a number beyond any size".into());
        }
        let fill = if bytes.last().is_some_and(|it| *it >= 0x80) { 0xff } else { 0 };
        let mut wide = [fill; 8];
        wide[..bytes.len()].copy_from_slice(bytes);
        self.stack.push(Value::Int(i64::from_le_bytes(wide)));
        Ok(())
    }

    fn pop(&mut self) -> Parsed<Value> {
        self.stack.pop().ok_or_else(|| CUT_OFF.to_owned())
    }

    fn pop_text(&mut self) -> Parsed<&'a str> {
        match self.pop()? {
            Value::Text(at) => Ok(self.texts[at]),
            _ => Err("holds something else where a name is expected".into()),
        }
    }

    fn mark(&mut self) -> Parsed<usize> {
        self.marks.pop().filter(|it| *it <= self.stack.len()).ok_or_else(|| CUT_OFF.to_owned())
    }

    fn tuple(&mut self, from: usize) {
        let items = self.stack.split_off(from);
        self.items.push(items);
        self.stack.push(Value::Items(self.items.len() - 1));
    }

    fn new_table(&mut self) {
        self.tables.push(Vec::new());
        self.stack.push(Value::Table(self.tables.len() - 1));
    }

    fn append(&mut self, many: bool) -> Parsed<()> {
        let from = if many { self.mark()? } else { self.stack.len().checked_sub(1).ok_or(CUT_OFF)? };
        let more = self.stack.split_off(from);
        match self.stack.last() {
            Some(Value::Items(at)) => self.items[*at].extend(more),
            _ => return Err("adds to something that is no list".into()),
        }
        Ok(())
    }

    fn set(&mut self, many: bool) -> Parsed<()> {
        let from = if many { self.mark()? } else { self.stack.len().checked_sub(2).ok_or(CUT_OFF)? };
        let more = self.stack.split_off(from);
        match self.stack.last() {
            Some(Value::Table(at)) => self.tables[*at].extend(more.chunks_exact(2).map(|it| (it[0], it[1]))),
            _ => return Err("adds to something that is no table".into()),
        }
        Ok(())
    }

    fn remember(&mut self, at: u32) -> Parsed<()> {
        let top = *self.stack.last().ok_or(CUT_OFF)?;
        self.memo.insert(at, top);
        Ok(())
    }

    fn recall(&mut self, at: u32) -> Parsed<()> {
        let value = *self.memo.get(&at).ok_or("refers to something that it does not hold")?;
        self.stack.push(value);
        Ok(())
    }

    /// `("storage", torch.FloatStorage, "0", "cpu", 1024)`
    fn storage(&mut self) -> Parsed<()> {
        let id = self.pop()?;
        let (dtype, name) = match self.list(id)?[..] {
            [Value::Text(kind), Value::Function(Function::Storage(dtype)), Value::Text(name), ..]
                if self.texts[kind] == "storage" =>
            {
                (dtype, self.texts[name])
            }
            _ => return Err("refers to something that is no storage".into()),
        };
        self.storages.push((dtype, name));
        self.stack.push(Value::Storage(self.storages.len() - 1));
        Ok(())
    }

    fn list(&self, value: Value) -> Parsed<&Vec<Value>> {
        match value {
            Value::Items(at) => Ok(&self.items[at]),
            _ => Err("holds something else where a list is expected".into()),
        }
    }

    fn sizes(&self, value: Value) -> Parsed<Vec<usize>> {
        let size = |it: &Value| match it {
            Value::Int(it) => usize::try_from(*it).ok(),
            _ => None,
        };
        self.list(value)?
            .iter()
            .take(MOST_SIZES + 1)
            .map(|it| size(it).ok_or_else(|| "holds a size that is none".to_owned()))
            .collect()
    }

    fn call(&mut self) -> Parsed<()> {
        let (arguments, function) = (self.pop()?, self.pop()?);
        let arguments = self.list(arguments)?.clone();
        match (function, &arguments[..]) {
            (Value::Function(Function::Table), []) => self.new_table(),
            (Value::Function(Function::Parameter), [tensor @ Value::Tensor(_), ..]) => self.stack.push(*tensor),
            (Value::Function(Function::Tensor), [Value::Storage(at), Value::Int(offset), shape, strides, ..]) => {
                let (dtype, storage) = self.storages[*at];
                let offset = usize::try_from(*offset).map_err(|_| "holds an offset that is none")?;
                let (shape, strides) = (self.sizes(*shape)?, self.sizes(*strides)?);
                if shape.len() != strides.len() || shape.len() > MOST_SIZES {
                    return Err("holds a tensor whose sizes and strides make none".into());
                }
                self.tensors.push(View { storage, dtype, offset, shape, strides });
                self.stack.push(Value::Tensor(self.tensors.len() - 1));
            }
            _ => return Err("calls something otherwise than a table of tensors does".into()),
        }
        Ok(())
    }

    /// Tables carry notes on the modules that they are of; nothing else has a state.
    fn set_state(&mut self) -> Parsed<()> {
        self.pop()?;
        match self.stack.last() {
            Some(Value::Table(_)) => Ok(()),
            _ => Err("sets the state of something that has none".into()),
        }
    }
}
