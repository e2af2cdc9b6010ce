//! PiSSA: what the base loses is what the adapter holds; and what is saved is an update of the whole base.
//!
//! `fixtures/pissa.safetensors` holds what PEFT made of a layer `W` with rank 4 and alpha 6: the `residual` base and the `update`
//! taken from it, `A` and `B` after a few steps of training, and the output `y` for `x`.

mod support;

use halfbyte_autograd::{Tape, Var};
use halfbyte_lora::{
    Adapter, Context, Linear, LoraConfig, Modules, Prepare, Takeover, TargetModules, attach, read_adapter, save_adapter,
};
use halfbyte_tensor::{DType, Tensor};
use halfbyte_testkit::{assert_close, noise};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use std::sync::Arc;

const DIMS: [usize; 2] = [20, 32];

fn config(init: &str) -> LoraConfig {
    LoraConfig {
        rank: 4,
        lora_alpha: 6.0,
        target_modules: TargetModules::Names(vec!["q".into()]),
        init_lora_weights: Some(init.into()),
        ..LoraConfig::default()
    }
}

fn weight() -> Tensor {
    noise(&DIMS, DType::F32, 1)
}

fn output(layer: &Linear, adapter: Option<&Arc<Adapter>>) -> Vec<f32> {
    let x = Var::constant(noise(&[6, DIMS[1]], DType::F32, 9));
    layer.forward(&Tape::disabled(), &x, &Context::new(adapter.cloned())).unwrap().into_value().to_f32_vec()
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|it| f64::from(*it)).collect()
}

/// A layer on what is left of the base, and the adapter that holds the rest.
fn begun(config: &LoraConfig) -> (Linear, Arc<Adapter>) {
    let mut takeover = Takeover::fresh(config, None, 7).unwrap().unwrap();
    assert!(takeover.wants("block.q") && !takeover.wants("block.k"));
    let left = takeover.replace("block.q", weight()).unwrap();
    let mut layer = Linear::new("block.q", support::dense(left), None);
    let modules = Modules { linears: vec![&mut layer], ..Modules::default() };
    let adapter = takeover.attach(&modules, "mine").unwrap().0;
    (layer, Arc::new(adapter))
}

#[test]
fn base_and_adapter_begin_as_the_base_did() {
    let expected = wide(&output(&Linear::new("block.q", support::dense(weight()), None), None));
    for (init, use_rslora) in [("pissa", false), ("pissa_niter_8", false), ("pissa", true)] {
        let (layer, adapter) = begun(&LoraConfig { use_rslora, ..config(init) });
        // 32 products of size one: some units of 2^-24 of each.
        assert_close(init, &output(&layer, Some(&adapter)), &expected, 2e-5);
        let far =
            output(&layer, None).iter().zip(&expected).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max);
        assert!(far > 0.5, "{init}: the base has lost its largest part, {far}");
    }
}

#[test]
fn what_is_left_keeps_the_dtype_of_the_base() {
    let mut takeover = Takeover::fresh(&config("pissa"), None, 7).unwrap().unwrap();
    let left = takeover.replace("q", weight().to_dtype(DType::Bf16)).unwrap();
    assert_eq!((left.dtype(), left.shape()), (DType::Bf16, &DIMS[..]));
}

#[test]
fn what_is_saved_is_a_plain_update_of_the_whole_base() {
    for use_rslora in [false, true] {
        let config = LoraConfig {
            use_rslora,
            rank_pattern: vec![("q".into(), 3)],
            alpha_pattern: vec![("q".into(), 5.0)],
            ..config("pissa")
        };
        let (layer, adapter) = begun(&config);
        for param in adapter.params() {
            let moved: Vec<f32> = param.value().to_f32_vec().iter().map(|it| it * 1.25 + 0.01).collect();
            param.set(Tensor::from_vec(param.value().shape(), moved));
        }
        let trained = wide(&output(&layer, Some(&adapter)));
        let dir = tempfile::tempdir().unwrap();
        save_adapter(dir.path(), &adapter).unwrap();
        let file = read_adapter(dir.path()).unwrap();
        assert_eq!((file.config.rank, file.config.init_lora_weights.as_deref()), (8, None));
        assert_eq!(file.config.rank_pattern, [("q".to_owned(), 6)]);
        let mut whole = Linear::new("block.q", support::dense(weight()), None);
        let modules = Modules { linears: vec![&mut whole], ..Modules::default() };
        let loaded = Arc::new(halfbyte_lora::load_adapter(&modules, file, "theirs").unwrap());
        assert_close("converted", &output(&whole, Some(&loaded)), &trained, 1e-4);
    }
}

#[test]
fn one_thread_and_three_take_the_same_part() {
    let on = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            begun(&config("pissa_niter_4")).1.params().iter().map(|it| it.value().to_f32_vec()).collect::<Vec<_>>()
        })
    };
    assert_eq!(on(1), on(3));
}

#[test]
fn it_must_see_the_base_and_does_not_go_with_dora() {
    let mut layer = Linear::new("block.q", support::dense(weight()), None);
    let modules = Modules { linears: vec![&mut layer], ..Modules::default() };
    let error = attach(&modules, &config("pissa"), "mine", 7).unwrap_err().to_string();
    assert!(error.contains("Takeover"), "{error}");
    for (wrong, word) in [
        (LoraConfig { use_dora: true, ..config("pissa") }, "use_dora"),
        (LoraConfig { lora_alpha: -1.0, ..config("pissa") }, "positive"),
        (config("pissa_niter_"), "pissa_niter_N"),
    ] {
        let error = Takeover::fresh(&wrong, None, 7).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
    assert!(Takeover::fresh(&LoraConfig::default(), None, 7).unwrap().is_none());
}

fn fixture(name: &str) -> Tensor {
    let bytes = include_bytes!("fixtures/pissa.safetensors");
    let file = SafeTensors::deserialize(bytes).unwrap();
    let view = file.tensor(name).unwrap();
    let values = view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    Tensor::from_vec(view.shape(), values.collect())
}

#[test]
fn the_part_taken_and_the_rest_are_pefts() {
    for init in ["pissa", "pissa_niter_16"] {
        let config = LoraConfig { target_modules: TargetModules::Names(vec!["layer".into()]), ..config(init) };
        let mut takeover = Takeover::fresh(&config, None, 7).unwrap().unwrap();
        let left = takeover.replace("layer", fixture("W")).unwrap();
        assert_close(init, &left.to_f32_vec(), &wide(&fixture("residual").to_f32_vec()), 1e-5);
        let mut layer = Linear::new("layer", support::dense(Tensor::zeros(&[16, 24], DType::F32)), None);
        let adapter = takeover.attach(&Modules { linears: vec![&mut layer], ..Modules::default() }, "mine").unwrap().0;
        assert_close(
            init,
            &layer.dense(Some(&adapter)).unwrap().to_f32_vec(),
            &wide(&fixture("update").to_f32_vec()),
            1e-5,
        );
    }
}

#[test]
fn an_adapter_that_peft_saved_beside_what_was_left_is_read_for_the_whole_base() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (fixture("A"), fixture("B"));
    let bytes = |it: &Tensor| it.data::<f32>().iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    let (a_bytes, b_bytes) = (bytes(&a), bytes(&b));
    let view = |shape: &[usize], bytes| TensorView::new(Dtype::F32, shape.to_vec(), bytes).unwrap();
    let tensors = [
        ("base_model.model.layer.lora_A.weight", view(&[4, 24], &a_bytes)),
        ("base_model.model.layer.lora_B.weight", view(&[16, 4], &b_bytes)),
    ];
    let file = safetensors::serialize(tensors, None).unwrap();
    std::fs::write(dir.path().join("adapter_model.safetensors"), file).unwrap();
    let text =
        r#"{"peft_type": "LORA", "r": 4, "lora_alpha": 6, "target_modules": ["layer"], "init_lora_weights": "pissa"}"#;
    std::fs::write(dir.path().join("adapter_config.json"), text).unwrap();

    let mut layer = Linear::new("layer", support::dense(fixture("W")), None);
    let modules = Modules { linears: vec![&mut layer], ..Modules::default() };
    let error =
        halfbyte_lora::load_adapter(&modules, read_adapter(dir.path()).unwrap(), "peft").unwrap_err().to_string();
    assert!(error.contains("a base without a part of its weights"), "{error}");
    let file = read_adapter(dir.path()).unwrap();
    let mut takeover = Takeover::of_file(&file, None).unwrap().unwrap();
    let whole = takeover.replace("layer", fixture("W")).unwrap();
    assert_eq!(whole.to_f32_vec(), fixture("W").to_f32_vec(), "other adapters may use the same base");
    let adapter = Arc::new(file.load_beside(Some(&takeover), &modules, "peft").unwrap());
    assert_eq!(adapter.config.rank, 8);
    let y = layer.forward(&Tape::disabled(), &Var::constant(fixture("x")), &Context::new(Some(adapter))).unwrap();
    assert_close("y", &y.value().to_f32_vec(), &wide(&fixture("y").to_f32_vec()), 1e-5);
}
