//! A stranger's program: an adapter on a matrix of its own, one step of training with an op of its own, and the saved files.

use std::sync::Arc;

use halfbyte_autograd::{Tape, Var};
use halfbyte_lora::{
    Base, Context, Linear, LoraConfig, Modules, TargetModules, attach, load_adapter, read_adapter, save_adapter,
};
use halfbyte_matmul::{Dense, Source};
use halfbyte_ops::FrozenMatrix;
use halfbyte_tensor::Tensor;

const OUT: usize = 6;
const IN: usize = 8;

#[derive(Debug)]
struct Weights(Vec<f32>);

impl FrozenMatrix for Weights {
    fn dims(&self) -> (usize, usize) {
        (OUT, IN)
    }

    fn source<'a>(&'a self) -> Box<dyn Source + 'a> {
        Box::new(Dense::new(OUT, IN, &self.0))
    }

    fn bytes(&self) -> usize {
        4 * self.0.len()
    }

    fn format(&self) -> String {
        "the stranger's".into()
    }
}

fn layer() -> Linear {
    let weights = Weights((0..OUT * IN).map(|i| (i as f32).sin()).collect());
    Linear::new("block.0.proj", Base::Frozen(Arc::new(weights)), None)
}

fn input() -> Var {
    Var::constant(Tensor::from_vec(&[2, IN], (0..2 * IN).map(|i| (i as f32).cos()).collect::<Vec<f32>>()))
}

/// The sum of all elements, recorded with its derivative as any op is.
fn sum<'m>(tape: &Tape<'m>, x: &Var) -> Var {
    let (len, shape) = (x.value().len(), x.value().shape().to_vec());
    let total: f32 = x.value().data::<f32>().iter().sum();
    tape.record("sum", [x], Tensor::scalar(total), move |dy, [_]| {
        Ok([Some(Tensor::from_vec(&shape, vec![dy.data::<f32>()[0]; len]))])
    })
}

fn output(layer: &Linear, ctx: &Context) -> Result<Vec<f32>, Box<dyn std::error::Error>> {
    let tape = Tape::disabled();
    Ok(layer.forward(&tape, &input(), ctx)?.value().data::<f32>().to_vec())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut layer = layer();
    let base = output(&layer, &Context::default())?;
    let names = TargetModules::Names(vec!["proj".into()]);
    let config = LoraConfig { rank: 2, lora_alpha: 4.0, target_modules: names, ..LoraConfig::default() };
    let modules = Modules { linears: vec![&mut layer], ..Modules::default() };
    let (adapter, _) = attach(&modules, &config, "mine", 42)?;
    let params = adapter.params();
    assert_eq!(params.len(), 2, "only A and B can train");
    let adapted = Context::new(Some(Arc::new(adapter)));
    assert_eq!(output(&layer, &adapted)?, base, "a fresh adapter changes nothing");

    let tape = Tape::recording();
    let loss = sum(&tape, &layer.forward(&tape, &input(), &adapted)?);
    let grads = tape.backward(loss)?;
    for param in &params {
        let grad = grads.get(param).ok_or("every parameter gets a gradient")?.data::<f32>().to_vec();
        param.update(|value| {
            for (x, g) in value.data_mut::<f32>().iter_mut().zip(&grad) {
                *x -= 0.1 * g;
            }
        });
    }
    let trained = output(&layer, &adapted)?;
    assert!(trained.iter().sum::<f32>() < base.iter().sum::<f32>(), "a step down the gradient lowers the sum");

    let dir = std::env::temp_dir().join(format!("halfbyte-consumer-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    let adapter = adapted.routing.adapter().ok_or("the context holds the adapter")?;
    save_adapter(&dir, adapter)?;
    let modules = Modules { linears: vec![&mut layer], ..Modules::default() };
    let theirs = load_adapter(&modules, read_adapter(&dir)?, "theirs")?;
    std::fs::remove_dir_all(&dir)?;
    assert_eq!(output(&layer, &Context::new(Some(Arc::new(theirs))))?, trained, "what was saved is what was trained");
    assert_eq!(output(&layer, &Context::default())?, base, "the base never changed");
    Ok(())
}
