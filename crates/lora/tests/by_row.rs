//! Rows of one batch with different adapters: each has the bits, forwards and backwards, that it has with its adapter alone.

mod support;

use halfbyte_autograd::{Param, Tape, Var};
use halfbyte_lora::{Adapter, Context, Dora, EmbeddingLora, Full, Linear, Lora, LoraConfig, Role, Update, Weight};
use halfbyte_ops::{Ids, Layout, RowGroups, deal_rows};
use halfbyte_tensor::{DType, Tensor};
use halfbyte_testkit::noise;
use std::sync::Arc;

const IN: usize = 24;
const OUT: usize = 40;
const VOCAB: usize = 16;

/// A table, a layer with a bias, and two layers of one input: what a model is made of, as far as adapters see it.
struct Small {
    table: Weight,
    first: Linear,
    pair: [Linear; 2],
}

fn small() -> Small {
    let linear = |path: &str, dims: [usize; 2], seed: u64| {
        let bias = Weight::frozen(format!("{path}.bias"), Role::Bias, noise(&[dims[0]], DType::F32, seed + 50));
        Linear::new(path, support::dense(noise(&dims, DType::F32, seed)), Some(bias))
    };
    Small {
        table: Weight::frozen("embed.weight", Role::Embedding, noise(&[VOCAB, IN], DType::F32, 1)),
        first: linear("first", [IN, IN], 2),
        pair: [linear("q", [OUT, IN], 3), linear("k", [OUT, IN], 4)],
    }
}

impl Small {
    /// `(rows, 2 * OUT)`, after all of it.
    fn forward<'m>(&'m self, tape: &Tape<'m>, ids: &Ids, dtype: DType, ctx: &Context) -> [Var; 2] {
        let x = self.table.rows(tape, ids, dtype, ctx).unwrap();
        let h = self.first.forward(tape, &x, ctx).unwrap();
        Linear::forward_all([&self.pair[0], &self.pair[1]], tape, &h, ctx).unwrap()
    }
}

fn param(name: &str, shape: &[usize], seed: u64) -> Param {
    Param::new(name, noise(shape, DType::F32, seed))
}

fn lora(path: &str, (out, inner): (usize, usize), rank: usize, seed: u64) -> Lora {
    let (a, b) =
        (param(&format!("{path}.A"), &[rank, inner], seed), param(&format!("{path}.B"), &[out, rank], seed + 1));
    Lora { a, b, scaling: 0.5, dropout: 0.25, site: seed }
}

fn adapter(name: &str, updates: Vec<(&str, Role, Box<dyn Update>)>) -> Arc<Adapter> {
    let updates = updates.into_iter().map(|(path, role, update)| (path.to_owned(), role, update)).collect();
    Arc::new(Adapter::new(name, LoraConfig::default(), updates))
}

/// LoRA of two ranks on some layers, DoRA, full copies of matrix, bias and table, and an updated embedding.
fn adapters() -> Vec<Arc<Adapter>> {
    let dora = Dora { lora: lora("q", (OUT, IN), 2, 30), magnitude: param("q.m", &[OUT], 32) };
    let embedding = EmbeddingLora { a: param("e.A", &[VOCAB, 3], 40), b: param("e.B", &[IN, 3], 41), scaling: 0.5 };
    let full = |name: &str, shape: &[usize], seed: u64| Box::new(Full::new(param(name, shape, seed)));
    vec![
        adapter("narrow", vec![("first", Role::Linear, Box::new(lora("first", (IN, IN), 2, 10)))]),
        adapter(
            "wide",
            vec![
                ("first", Role::Linear, Box::new(lora("first", (IN, IN), 7, 20))),
                ("k", Role::Linear, Box::new(lora("k", (OUT, IN), 5, 22))),
            ],
        ),
        adapter("dora", vec![("q", Role::Linear, Box::new(dora)), ("embed", Role::Embedding, Box::new(embedding))]),
        adapter(
            "full",
            vec![
                ("q", Role::Linear, full("q.weight", &[OUT, IN], 60)),
                ("q.bias", Role::Bias, full("q.bias", &[OUT], 61)),
                ("embed.weight", Role::Embedding, full("embed.weight", &[VOCAB, IN], 62)),
            ],
        ),
    ]
}

/// Outputs, and the gradients of `Σ y · dy` for the parameters of an adapter, with `dy` by row of the whole batch.
fn run(
    model: &Small,
    (ids, dy): (&[u32], &[Tensor; 2]),
    dtype: DType,
    (ctx, of): (&Context, Option<&Adapter>),
) -> ([Tensor; 2], Vec<Option<Vec<f32>>>) {
    let tape = Tape::recording();
    let ys = model.forward(&tape, &Ids::new(ids.to_vec()), dtype, ctx);
    let values = ys.clone().map(Var::into_value);
    if !ys.iter().any(Var::requires_grad) {
        return (values, Vec::new());
    }
    let dys: Vec<Tensor> = dy.iter().map(|it| it.to_dtype(dtype)).collect();
    let loss = tape.record_many("weighted", &[&ys[0], &ys[1]], vec![Tensor::scalar(0.0)], move |_, needs| {
        Ok(dys.into_iter().zip(needs).map(|(dy, need)| need.then_some(dy)).collect())
    });
    drop(ys);
    let grads = tape.backward(loss.into_iter().next().unwrap()).unwrap();
    let params = of.map(Adapter::params).unwrap_or_default();
    (values, params.iter().map(|it| grads.get(it).map(Tensor::to_f32_vec)).collect())
}

/// The rows of one group.
fn part(x: &Tensor, groups: &RowGroups, group: usize) -> Tensor {
    deal_rows(&Tape::disabled(), &Var::constant(x.clone()), groups).unwrap().swap_remove(group).into_value()
}

fn bits(it: &Tensor) -> Vec<u32> {
    it.to_f32_vec().iter().map(|it| it.to_bits()).collect()
}

/// A batch of these sequences, each with the adapter of that number (the one beyond the last is the base alone), beside a
/// batch of each adapter's sequences alone.
fn compare(lengths: &[usize], chosen: &[usize], dtype: DType, dropout: Option<u64>) {
    let (model, adapters, layout) = (small(), adapters(), Layout::new(lengths).unwrap());
    let rows = layout.tokens();
    let ids: Vec<u32> = (0..rows as u32).map(|i| i * 7 % VOCAB as u32).collect();
    let dy = [noise(&[rows, OUT], DType::F32, 70), noise(&[rows, OUT], DType::F32, 71)];
    let choice: Vec<Option<usize>> = chosen.iter().map(|it| Some(*it).filter(|it| *it < adapters.len())).collect();
    let mixed = Context { dropout, ..Context::by_row(adapters.clone(), &choice, &layout).unwrap() };
    let groups = RowGroups::new(&layout, chosen.iter().copied());
    for (group, adapter) in adapters.iter().map(Some).chain([None]).enumerate().take(groups.count()) {
        if groups.size(group) == 0 {
            continue;
        }
        let name = adapter.map_or("base", |it| &it.name);
        let of = adapter.map(AsRef::as_ref);
        let (all, gradients) = run(&model, (&ids, &dy), dtype, (&mixed, of));
        let own: Vec<u32> = groups.rows(group).iter().flat_map(|it| ids[it.clone()].to_vec()).collect();
        let own_dy = [part(&dy[0], &groups, group), part(&dy[1], &groups, group)];
        let alone = Context { dropout, ..Context::new(adapter.cloned()) };
        let (expected, wanted) = run(&model, (&own, &own_dy), dtype, (&alone, of));
        for (i, (all, expected)) in all.iter().zip(&expected).enumerate() {
            assert_eq!(bits(&part(all, &groups, group)), bits(expected), "{name}, {dtype}: output {i}");
        }
        let params = of.map(Adapter::params).unwrap_or_default();
        assert_eq!(gradients.len(), params.len());
        for ((param, got), wanted) in params.iter().zip(&gradients).zip(&wanted) {
            assert!(
                wanted.as_ref().is_some_and(|it| it.iter().any(|v| *v != 0.0)),
                "{}: nothing to compare",
                param.name()
            );
            assert_eq!(got, wanted, "{name}, {dtype}: the gradient of {}", param.name());
        }
    }
}

#[test]
fn every_kind_of_update_beside_every_other_has_the_bits_that_it_has_alone() {
    for dtype in [DType::F32, DType::Bf16, DType::F16] {
        compare(&[9, 6, 5, 8, 7, 11, 5], &[0, 1, 2, 3, 4, 0, 2], dtype, None);
        compare(&[9, 6, 5, 8, 7, 11, 5], &[0, 1, 2, 3, 4, 0, 2], dtype, Some(99));
    }
}

#[test]
fn in_generation_too_where_each_sequence_has_one_row() {
    for dtype in [DType::F32, DType::Bf16] {
        compare(&[1, 1, 1, 1], &[2, 0, 1, 4], dtype, None);
    }
}

#[test]
fn a_batch_of_one_adapter_is_that_of_the_adapter_alone() {
    compare(&[5, 6], &[1, 1], DType::F32, None);
    compare(&[5, 6], &[4, 4], DType::F32, None);
}

#[test]
fn a_choice_that_does_not_exist_is_refused() {
    let layout = Layout::new(&[2, 3]).unwrap();
    for choice in [&[Some(4), None][..], &[None], &[None, None, None]] {
        let error = Context::by_row(adapters(), choice, &layout).unwrap_err().to_string();
        assert!(error.contains("2 sequences"), "{error}");
    }
}
