//! What becomes of a folder's weights on their way into a model: who keeps them, who changes them first, what is left over.

use halfbyte_files::Reading;
use halfbyte_lora::{Base, Prepare};
use halfbyte_matmul::{Dense, Source};
use halfbyte_models::{Loading, Model, ModelFolder};
use halfbyte_ops::{FrozenMatrix, Refusal, WeightFormat};
use halfbyte_tensor::{DType, Device, Tensor};
use std::{cell::RefCell, path::Path, sync::Arc};

const QUERY: &str = "model.layers.0.self_attn.q_proj";
const HEAD: &str = "lm_head";

#[derive(Debug)]
struct Matrix(Tensor);

impl FrozenMatrix for Matrix {
    fn dims(&self) -> (usize, usize) {
        (self.0.shape()[0], self.0.shape()[1])
    }

    fn source<'a>(&'a self) -> Box<dyn Source + 'a> {
        Box::new(Dense::new(self.0.shape()[0], self.0.shape()[1], self.0.data::<f32>()))
    }

    fn bytes(&self) -> usize {
        self.0.bytes()
    }

    fn format(&self) -> String {
        "f32".into()
    }
}

/// Takes note of what it keeps, and says of one path that the folder holds it in few bits.
#[derive(Default)]
struct Noting {
    stored: Option<&'static str>,
    frozen: RefCell<Vec<String>>,
    kept: RefCell<Vec<String>>,
}

impl WeightFormat for Noting {
    fn freeze(&self, path: &str, weight: Tensor) -> Result<Arc<dyn FrozenMatrix>, Refusal> {
        self.frozen.borrow_mut().push(path.to_owned());
        Ok(Arc::new(Matrix(weight.to_dtype(DType::F32))))
    }

    fn keep(&self, path: &str, weight: Tensor) -> Result<Arc<dyn FrozenMatrix>, Refusal> {
        self.kept.borrow_mut().push(path.to_owned());
        Ok(Arc::new(Matrix(weight.to_dtype(DType::F32))))
    }

    fn stored(
        &self,
        path: &str,
        dims: (usize, usize),
        files: &Reading<'_>,
        _: &Device,
    ) -> Result<Option<Arc<dyn FrozenMatrix>>, Refusal> {
        if self.stored != Some(path) {
            return Ok(None);
        }
        files.take(&format!("{path}.weight")).ok_or("it is not there")?;
        Ok(Some(Arc::new(Matrix(Tensor::zeros(&[dims.0, dims.1], DType::F32)))))
    }
}

/// Doubles the weights of some paths.
struct Doubling(fn(&str) -> bool, Vec<String>);

impl Prepare for Doubling {
    fn wants(&self, path: &str) -> bool {
        self.0(path)
    }

    fn replace(&mut self, path: &str, weight: Tensor) -> halfbyte_lora::Result<Tensor> {
        self.1.push(path.to_owned());
        let doubled = weight.to_f32_vec().iter().map(|it| 2.0 * it).collect();
        Ok(Tensor::from_vec(weight.shape(), doubled))
    }
}

fn folder() -> ModelFolder {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/models");
    ModelFolder::open(&fixtures.join("llama-default")).unwrap()
}

fn load<'a>(format: &'a dyn WeightFormat, prepare: Option<&'a mut dyn Prepare>) -> Result<Box<dyn Model>, String> {
    let loading = Loading::Frozen { format, prepare };
    folder().load(loading, &Device::Cpu, &mut |_| {}).map_err(|e| e.to_string())
}

/// The first row of a layer's matrix.
fn row(model: &dyn Model, path: &str) -> Vec<f32> {
    let linear = model.parts().0.into_iter().find(|it| it.path() == path).unwrap();
    let Base::Frozen(matrix) = linear.base() else { panic!("{path} trains") };
    let mut row = vec![0.0; matrix.dims().1];
    matrix.source().read_f32(0, 0, &mut row);
    row
}

#[test]
fn linear_layers_are_frozen_and_the_head_is_kept() {
    let format = Noting::default();
    load(&format, None).unwrap();
    let frozen = format.frozen.into_inner();
    assert!(frozen.contains(&QUERY.to_owned()) && !frozen.contains(&HEAD.to_owned()), "{frozen:?}");
    assert_eq!(format.kept.into_inner(), [HEAD]);
}

#[test]
fn a_wanted_weight_is_changed_before_it_is_frozen_and_no_other() {
    let plain = load(&Noting::default(), None).unwrap();
    let mut all = Doubling(|_| true, Vec::new());
    let format = Noting::default();
    load(&format, Some(&mut all)).unwrap();
    assert_eq!(all.1, format.frozen.into_inner(), "every linear layer is offered, the head is not");
    let mut query = Doubling(|path| path.ends_with("q_proj"), Vec::new());
    let changed = load(&Noting::default(), Some(&mut query)).unwrap();
    assert_eq!(query.1, [QUERY]);
    let twice: Vec<f32> = row(plain.as_ref(), QUERY).iter().map(|it| 2.0 * it).collect();
    assert_eq!(row(changed.as_ref(), QUERY), twice);
    let other = "model.layers.0.mlp.up_proj";
    assert_eq!(row(changed.as_ref(), other), row(plain.as_ref(), other));
}

#[test]
fn a_weight_that_is_stored_in_few_bits_is_taken_over_but_cannot_be_changed() {
    let format = Noting { stored: Some(QUERY), ..Noting::default() };
    let mut other = Doubling(|path| path.ends_with("k_proj"), Vec::new());
    let model = load(&format, Some(&mut other)).unwrap();
    assert!(row(model.as_ref(), QUERY).iter().all(|it| *it == 0.0));
    assert!(!format.frozen.into_inner().contains(&QUERY.to_owned()));
    let format = Noting { stored: Some(QUERY), ..Noting::default() };
    let error = load(&format, Some(&mut Doubling(|_| true, Vec::new()))).err().unwrap();
    assert!(error.contains(QUERY) && error.contains("init_lora_weights"), "{error}");
}
