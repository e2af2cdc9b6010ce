//! Adapters from files: what is refused leaves nothing behind, and what is dropped is gone.

mod support;

use halfbyte_autograd::{Tape, Var};
use halfbyte_lora::{
    Adapter, Bias, Context, Error, Linear, LoraConfig, Modules, Role, TargetModules, Weight, attach, load_adapter,
    read_adapter, save_adapter,
};
use halfbyte_tensor::{DType, Tensor};
use halfbyte_testkit::noise;
use std::{path::Path, sync::Arc};

fn layer(path: &str) -> Linear {
    let bias = Weight::frozen(format!("{path}.bias"), Role::Bias, noise(&[6], DType::F32, 2));
    Linear::new(path, support::dense(noise(&[6, 8], DType::F32, 1)), Some(bias))
}

fn config() -> LoraConfig {
    let target_modules = TargetModules::Names(vec!["q".into(), "k".into()]);
    LoraConfig { rank: 2, target_modules, bias: Bias::LoraOnly, ..LoraConfig::default() }
}

fn fresh(layers: &mut [Linear]) -> Result<Adapter, Error> {
    let modules = Modules { linears: layers.iter_mut().collect(), ..Modules::default() };
    let (adapter, _) = attach(&modules, &config(), "mine", 7)?;
    // As if it had trained, so that it does something.
    for param in adapter.params() {
        let shape = param.value().shape().to_vec();
        param.set(Tensor::from_vec(&shape, noise(&shape, DType::F32, 5).to_f32_vec()));
    }
    Ok(adapter)
}

fn load(layers: &mut [Linear], dir: &Path) -> Result<Adapter, Error> {
    let modules = Modules { linears: layers.iter_mut().collect(), ..Modules::default() };
    load_adapter(&modules, read_adapter(dir)?, "mine")
}

fn output(layer: &Linear, adapter: Option<&Arc<Adapter>>) -> Vec<f32> {
    let x = Var::constant(noise(&[5, 8], DType::F32, 9));
    layer.forward(&Tape::disabled(), &x, &Context::new(adapter.cloned())).unwrap().into_value().to_f32_vec()
}

#[test]
fn a_refused_file_leaves_nothing_behind_and_its_name_is_free() {
    let dir = tempfile::tempdir().unwrap();
    let mut layers = [layer("block.q"), layer("block.k")];
    save_adapter(dir.path(), &fresh(&mut layers).unwrap()).unwrap();
    let before = output(&layers[0], None);
    // The last layer is larger than the file's, which is seen after the first has been read.
    let mut other = [layer("block.q"), Linear::new("block.k", support::dense(noise(&[6, 9], DType::F32, 1)), None)];
    let error = load(&mut other, dir.path()).unwrap_err().to_string();
    assert!(error.contains("block.k.lora_A.weight has shape [2, 8]"), "{error}");
    assert_eq!(output(&other[0], None), before);
    let mut one = [layer("block.q")];
    let error = load(&mut one, dir.path()).unwrap_err().to_string();
    assert!(error.contains("belong to no module of this model: block.k"), "{error}");
    let adapter = Arc::new(load(&mut layers, dir.path()).unwrap());
    assert_ne!(output(&layers[0], Some(&adapter)), before);
    assert_eq!(output(&layers[0], None), before, "a pass that names no adapter uses none");
}

#[test]
fn a_dropped_adapter_gives_its_tensors_back() {
    let mut layers = [layer("block.q"), layer("block.k")];
    let adapter = Arc::new(fresh(&mut layers).unwrap());
    let weak = Arc::downgrade(&adapter);
    let ctx = Context::new(Some(adapter));
    drop(ctx);
    assert!(weak.upgrade().is_none(), "neither the layers nor anything else holds on to it");
}

#[test]
fn an_adapter_that_holds_no_numbers_is_not_saved() {
    let mut layers = [layer("block.q"), layer("block.k")];
    let adapter = fresh(&mut layers).unwrap();
    for bad in [f32::NAN, f32::INFINITY] {
        let dir = tempfile::tempdir().unwrap();
        let param = adapter.params().remove(0);
        let whole = param.value();
        let mut values = whole.to_f32_vec();
        values[1] = bad;
        param.set(Tensor::from_vec(whole.shape(), values));
        let Err(Error::NotFinite { name }) = save_adapter(dir.path(), &adapter) else { panic!("{bad} was saved") };
        assert!(name.ends_with(param.name()), "{name}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is written");
        param.set(whole);
        save_adapter(dir.path(), &adapter).unwrap();
    }
}

#[test]
fn parameters_come_in_the_order_of_creation() {
    let mut layers = [layer("block.q"), layer("block.k")];
    let adapter = fresh(&mut layers).unwrap();
    let names = |adapter: &Adapter| adapter.params().iter().map(|it| it.name().to_owned()).collect::<Vec<_>>();
    let [aq, bq] = ["block.q.lora_A.weight", "block.q.lora_B.weight"];
    let [ak, bk] = ["block.k.lora_A.weight", "block.k.lora_B.weight"];
    assert_eq!(names(&adapter), [aq, bq, ak, bk, "block.q.bias", "block.k.bias"]);
    let dir = tempfile::tempdir().unwrap();
    save_adapter(dir.path(), &adapter).unwrap();
    let loaded = load(&mut layers, dir.path()).unwrap();
    assert_eq!(names(&loaded), [aq, bq, "block.q.bias", ak, bk, "block.k.bias"], "a file's follow the model");
    for (a, b) in adapter.params().iter().map(|it| (it, loaded.params())) {
        let b = b.iter().find(|it| it.name() == a.name()).unwrap();
        assert_eq!(a.value().to_f32_vec(), b.value().to_f32_vec(), "{}", a.name());
    }
}
