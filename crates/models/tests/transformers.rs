//! Model folders and adapters as transformers and peft write them: logits, loss and every gradient of the adapter in f32,
//! against `tests/fixtures/models`. With `HALFBYTE_FIXTURES`, against those of another folder of that layout.
//!
//! Each comparison prints a line `parity | what | largest error | allowed`.

// What was compared is read by `cargo xtask parity`.
#![allow(clippy::print_stdout)]

use halfbyte_autograd::{Grads, Param, Tape};
use halfbyte_lora::{Context, Update, load_adapter, read_adapter};
use halfbyte_matmul::{Dense, Source};
use halfbyte_models::{GenerateConfig, Loading, Model, ModelFolder, Pass, SUPPORTED, generate};
use halfbyte_ops::{
    FrozenMatrix, IGNORE, Ids, Layout, Refusal, Targets, WeightFormat,
    cross_entropy::{cross_entropy, logits},
    experts::Balance,
};
use halfbyte_tensor::{DType, Device, Tensor};
use safetensors::SafeTensors;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

#[derive(Debug)]
struct Matrix(Tensor);

impl FrozenMatrix for Matrix {
    fn dims(&self) -> (usize, usize) {
        (self.0.shape()[0], self.0.shape()[1])
    }

    fn source<'a>(&'a self) -> Box<dyn Source + 'a> {
        let (out, inner) = self.dims();
        Box::new(Dense::new(out, inner, self.0.data::<f32>()))
    }

    fn bytes(&self) -> usize {
        self.0.bytes()
    }

    fn format(&self) -> String {
        "f32".into()
    }
}

/// Every matrix as it is, widened.
struct InF32;

impl WeightFormat for InF32 {
    fn freeze(&self, _path: &str, weight: Tensor) -> Result<Arc<dyn FrozenMatrix>, Refusal> {
        Ok(Arc::new(Matrix(weight.to_dtype(DType::F32))))
    }

    fn keep(&self, path: &str, weight: Tensor) -> Result<Arc<dyn FrozenMatrix>, Refusal> {
        self.freeze(path, weight)
    }
}

struct Expected(Vec<u8>);

impl Expected {
    fn has(&self, name: &str) -> bool {
        SafeTensors::deserialize(&self.0).unwrap().tensor(name).is_ok()
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let view = file.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        view.data().chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    }

    fn rows(&self, name: &str) -> Vec<Vec<i64>> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let view = file.tensor(name).unwrap();
        let values: Vec<i64> = view.data().chunks(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect();
        values.chunks(view.shape()[1]).map(<[i64]>::to_vec).collect()
    }
}

fn fixtures() -> PathBuf {
    let own = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures");
    std::env::var_os("HALFBYTE_FIXTURES").map_or_else(own, PathBuf::from).join("models")
}

fn open(dir: &Path) -> Box<dyn Model> {
    let folder = ModelFolder::open(dir).unwrap();
    folder.load(Loading::Frozen { format: &InF32, prepare: None }, &Device::Cpu, &mut |_| {}).unwrap()
}

/// The largest difference, relative to the largest magnitude.
fn error(got: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(got.len(), expected.len());
    let largest = expected.iter().fold(0.0f32, |m, it| m.max(it.abs()));
    assert!(largest > 0.0, "zeros prove nothing");
    got.iter().zip(expected).fold(0.0f32, |m, (g, e)| m.max((g - e).abs())) / largest
}

fn judge(what: &str, error: f32, allowed: f32) {
    println!("parity | {what} | {error:.1e} | {allowed:.0e}");
    assert!(error <= allowed, "{what}: {error}, at most {allowed} is allowed");
}

fn check(name: &str) {
    // Small models differ by the order of sums. Over the thirty layers of a real one the same rounding grows.
    let [logits_allowed, loss_allowed, gradients_allowed] =
        if name == "existing" { [1e-4, 1e-5, 1e-3] } else { [1e-5, 1e-6, 1e-5] };
    let dir = fixtures().join(name);
    let expected = Expected(std::fs::read(dir.join("expected.safetensors")).unwrap());
    let mut model = open(&dir);
    let file = read_adapter(&dir.join("adapter")).unwrap();
    let adapter = Arc::new(load_adapter(&model.modules(), file, "peft").unwrap());
    let ctx = Context::new(Some(adapter.clone()));
    let (rows, mask) = (expected.rows("ids"), expected.rows("mask"));
    let ids: Vec<u32> = rows.iter().flatten().map(|it| u32::try_from(*it).unwrap()).collect();
    let lengths: Vec<usize> = mask.iter().map(|row| row.iter().filter(|it| **it == 1).count()).collect();
    let time = rows[0].len();
    let real = lengths.iter().enumerate().flat_map(|(row, length)| (0..*length).map(move |t| (row, t)));
    let target = |row: usize, t: usize| if t + 1 < lengths[row] { ids[row * time + t + 1] } else { IGNORE };
    let targets = Targets::new(real.clone().map(|(row, t)| target(row, t)).collect());
    let (ids, layout) = (Ids::new(real.map(|(row, t)| ids[row * time + t]).collect()), Layout::new(&lengths).unwrap());

    let tape = Tape::recording();
    let balance = model.config().balance().map(|(experts, factor)| (Balance::new(experts), factor));
    let of_pass = balance.as_ref().map(|it| it.0.clone());
    let mut pass = Pass { balance: of_pass, ..Pass::new(&ids, &layout, &ctx, DType::F32) };
    let hidden = model.forward(&tape, &mut pass).unwrap();
    let vocab = model.config().vocab_size;
    // What stands at padding is never used.
    let real = |all: Vec<f32>| -> Vec<f32> {
        let row = |(row, length): (usize, &usize)| all[row * time * vocab..][..length * vocab].to_vec();
        lengths.iter().enumerate().flat_map(row).collect()
    };
    let scores = logits(hidden.value(), model.head(&Tape::disabled(), &ctx).as_head()).unwrap();
    judge(&format!("{name}: logits"), error(&scores.to_f32_vec(), &real(expected.floats("logits"))), logits_allowed);
    let counted = targets.rows().len() as f32;
    let loss = cross_entropy(&tape, &hidden, model.head(&tape, &ctx).as_head(), &targets, counted).unwrap();
    let loss = match balance {
        Some((balance, factor)) => balance.join(&tape, &loss, factor).unwrap(),
        None => loss,
    };
    judge(&format!("{name}: loss"), error(loss.value().data(), &expected.floats("loss")), loss_allowed);
    drop(hidden);
    let grads = tape.backward(loss).unwrap();
    let mut worst = 0.0f32;
    let mut count = 0;
    for (_, update) in adapter.updates() {
        for (name, gradient) in of_files(update, &grads) {
            worst = worst.max(error(gradient.data(), &expected.floats(&format!("grad.{name}"))));
            count += 1;
        }
    }
    assert!(count >= 12, "{count} gradients were compared");
    judge(&format!("{name}: {count} gradients of A and B"), worst, gradients_allowed);
    if expected.has("greedy") {
        let (greedy, prompt) = (expected.rows("greedy"), &rows[0][..PROMPT]);
        let ids = |row: &[i64]| row.iter().map(|it| u32::try_from(*it).unwrap()).collect::<Vec<u32>>();
        let config = GenerateConfig { max_new_tokens: greedy[0].len(), ..GenerateConfig::default() };
        let found = generate(model.as_ref(), &[ids(prompt)], (&config, &ctx), &mut |_, _| true).unwrap();
        let right = found[0].ids.iter().zip(ids(&greedy[0])).filter(|it| *it.0 == it.1).count();
        judge(
            &format!("{name}: wrong ones of {} greedy tokens", greedy[0].len()),
            (greedy[0].len() - right) as f32,
            0.0,
        );
    }
}

/// The gradients of an update's tensors, by the names and in the shapes of PEFT's files.
fn of_files(update: &dyn Update, grads: &Grads) -> Vec<(String, Tensor)> {
    let of = |param: &Param| grads.get(param).unwrap().clone();
    match update.stacked() {
        Some(it) => it.as_stored(of(&it.a), &of(&it.b)),
        None => update.params().iter().map(|it| (it.name().to_owned(), of(it))).collect(),
    }
}

/// Ids that are continued greedily, as in fixtures.py.
const PROMPT: usize = 5;

#[test]
fn every_model_has_the_logits_and_gradients_of_transformers() {
    let entries = std::fs::read_dir(fixtures()).unwrap().map(|it| it.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = entries.collect();
    names.sort();
    for kind in ["default", "linear", "dynamic", "llama3", "yarn", "head-dim"] {
        assert!(names.contains(&format!("llama-{kind}")), "{names:?}");
    }
    let text = |name: &String| std::fs::read_to_string(fixtures().join(name).join("config.json")).unwrap();
    for architecture in SUPPORTED {
        assert!(names.iter().any(|it| text(it).contains(architecture)), "no fixture shows {architecture}");
    }
    names.iter().for_each(|it| check(it));
}
