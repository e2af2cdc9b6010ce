//! Adapters that were trained with tokens of their own, on bases that do not have them.

use e2e::{
    Finetune, NamedTensor, Outcome, ROWS, Tensors, TinyModel, VOCAB, Work, halfbyte, tokenizer_json, write_jsonl,
};
use safetensors::Dtype;
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
};

const TABLES: [&str; 2] = ["model.embed_tokens.weight", "lm_head.weight"];
const WEIGHTS: &str = "adapter_model.safetensors";

/// A model's folder with so many tokens more than [`VOCAB`] in its tables; the tokenizer knows as many words more.
pub(crate) fn with_tokens(work: &Work, model: &TinyModel, more: usize) -> PathBuf {
    let dir = work.path(&format!("base-{}-{more}", model.tied));
    let mut tensors = model.tensors();
    for table in tensors.iter_mut().filter(|it| TABLES.contains(&it.name.as_str())) {
        let NamedTensor { shape, values, .. } = table;
        let width = shape[1];
        // Of a size that weights have, however many.
        values.extend((0..more * width).map(|it| 0.01 * (it % 251) as f32 - 0.2));
        shape[0] += more;
    }
    model.write_with(&dir, &tensors);
    let mut config = model.config();
    config["vocab_size"] = json!(VOCAB + more);
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
    fs::write(dir.join("tokenizer.json"), tokenizer_json(more)).unwrap();
    dir
}

/// Rows in which words are that only some tokenizers know.
fn rows(work: &Work) -> PathBuf {
    let path = work.path("words.jsonl");
    let texts: Vec<String> = ROWS.iter().map(|it| format!("{it} surplus1 surplus0")).collect();
    write_jsonl(&path, &texts.iter().map(|it| Some(it.as_str())).collect::<Vec<_>>());
    path
}

fn eval(work: &Work, base: &Path, adapters: &[&Path]) -> Outcome {
    let mut command = halfbyte();
    command.args(["eval", "--json", "--compute-dtype", "f32", "--quant", "none", "--model"]).arg(base);
    command.arg("--data").arg(rows(work));
    for it in adapters {
        command.arg("--adapter").arg(it);
    }
    Outcome::of(&mut command)
}

fn loss(outcome: Outcome) -> f64 {
    outcome.json()["loss"].as_f64().expect("a loss")
}

/// An adapter that holds both tables, or the one of a tied model.
fn trained(work: &Work, base: &Path, output: &str) -> PathBuf {
    let run = Finetune::new(base, &rows(work), &work.path(output)).without(&["--method"]);
    run.flags("--quant none --target-modules q_proj --modules-to-save embed_tokens,lm_head --max-steps 20").done()
}

#[test]
fn an_adapter_with_tokens_of_its_own_is_used_on_the_base_without_them() {
    let work = Work::new();
    for tied in [false, true] {
        let model = TinyModel { tied, ..TinyModel::llama() };
        let (larger, base) = (with_tokens(&work, &model, 2), with_tokens(&work, &model, 0));
        let adapter = trained(&work, &larger, &format!("run-{tied}"));
        let wanted = loss(eval(&work, &larger, &[&adapter]));
        let found = eval(&work, &base, &[&adapter]);
        assert!(found.stderr.contains("34 tokens") && found.stderr.contains("tokenizer"), "{}", found.stderr);
        assert_eq!(loss(found), wanted, "tied {tied}");

        if !tied {
            let merged = work.path("merged");
            let mut merge = halfbyte();
            merge.arg("merge").arg("--model").arg(&base).arg("--adapter").arg(&adapter).arg("--output").arg(&merged);
            Outcome::of(merge.args(["--quant", "none", "--dtype", "f32"])).success();
            let config: Value = serde_json::from_str(&fs::read_to_string(merged.join("config.json")).unwrap()).unwrap();
            assert_eq!(config["vocab_size"], json!(VOCAB + 2));
            assert!((loss(eval(&work, &merged, &[])) - wanted).abs() < 1e-5, "with the adapter's tokenizer");
        }

        // It goes on, and what comes of it is used as it was.
        let more = Finetune::new(&base, &rows(&work), &work.path(&format!("more-{tied}"))).without(&["--method"]);
        let next = more.flags("--quant none --max-steps 5").path("--init-adapter", &adapter).done();
        assert_eq!(loss(eval(&work, &base, &[&next])), loss(eval(&work, &larger, &[&next])), "tied {tied}");
        assert!(loss(eval(&work, &base, &[&next])) < wanted);
    }
}

#[test]
fn an_adapter_of_fewer_tokens_takes_a_base_with_spare_rows() {
    let work = Work::new();
    let model = TinyModel { tied: false, ..TinyModel::llama() };
    let (base, padded) = (with_tokens(&work, &model, 2), with_tokens(&work, &model, 5));
    let adapter = trained(&work, &base, "run");
    assert_eq!(loss(eval(&work, &padded, &[&adapter])), loss(eval(&work, &base, &[&adapter])));
}

#[test]
fn tables_that_are_not_whole_and_adapters_that_do_not_go_together_are_refused() {
    let work = Work::new();
    let model = TinyModel { tied: false, ..TinyModel::llama() };
    let (larger, base) = (with_tokens(&work, &model, 2), with_tokens(&work, &model, 0));
    let (adapter, plain) = (trained(&work, &larger, "with-tokens"), trained(&work, &base, "plain"));
    eval(&work, &base, &[&plain, &adapter]).user_error(&["32 tokens", "34", "one after the other"]);
    eval(&work, &base, &[&adapter, &plain]).user_error(&["32", "34 tokens", "one after the other"]);
    // The rows of the other table would be nobody's.
    let mut file = Tensors::read(&adapter.join(WEIGHTS));
    file.0.remove("base_model.model.lm_head.weight").expect("the head");
    file.write(&adapter.join(WEIGHTS), Dtype::F32);
    fs::remove_file(adapter.join("tokenizer.json")).unwrap();
    eval(&work, &base, &[&adapter]).user_error(&["embed_tokens", "resize_token_embeddings(34)"]);
}

#[test]
fn words_that_an_adapter_brings_are_cut_by_its_tokenizer() {
    let work = Work::new();
    let model = TinyModel { tied: false, ..TinyModel::llama() };
    // As bases have it whose tables are longer than their vocabularies.
    let spare = with_tokens(&work, &model, 2);
    let adapter = trained(&work, &spare, "run");
    let wanted = loss(eval(&work, &spare, &[&adapter]));
    fs::write(spare.join("tokenizer.json"), tokenizer_json(0)).unwrap();
    assert_eq!(loss(eval(&work, &spare, &[&adapter])), wanted);
}
