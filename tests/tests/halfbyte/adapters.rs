//! What adapters are made of, and what is said about those that do not fit.

use e2e::{Finetune, Tensors, TinyModel, VOCAB, Work, run, write_torch};
use safetensors::Dtype;
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
};

const WEIGHTS: &str = "adapter_model.safetensors";
const PREFIX: &str = "base_model.model.";

fn tensors(adapter: &Path) -> Tensors {
    Tensors::read(&adapter.join(WEIGHTS))
}

fn config(adapter: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(adapter.join("adapter_config.json")).unwrap()).unwrap()
}

/// Changes an adapter's configuration.
fn set(adapter: &Path, key: &str, value: Value) {
    let mut all = config(adapter);
    all[key] = value;
    fs::write(adapter.join("adapter_config.json"), all.to_string()).unwrap();
}

fn names(it: &Tensors) -> Vec<&str> {
    it.0.keys().map(|key| key.strip_prefix(PREFIX).expect("PEFT's prefix")).collect()
}

/// An adapter after twenty steps, so that it matters, and the loss with it.
fn trained(work: &Work, flags: &str) -> (PathBuf, f64) {
    let folder = work.finetune().flags("--max-steps 20").flags(flags).done();
    let loss = work.loss(&work.model(&TinyModel::llama()), Some(&folder), "");
    (folder, loss)
}

#[test]
fn an_embedding_that_is_the_head_too_trains_as_one_and_is_saved_under_both_names() {
    let work = Work::new();
    let base = work.model(&TinyModel::llama());
    let (adapter, loss) = trained(&work, "--target-modules q_proj --modules-to-save embed_tokens");
    assert_eq!(config(&adapter)["ensure_weight_tying"], json!(true));
    let mut file = tensors(&adapter);
    let head = file.0.remove(&format!("{PREFIX}lm_head.weight")).expect("the head");
    assert_eq!(head.0, [VOCAB, 32]);
    assert_eq!(Some(&head), file.0.get(&format!("{PREFIX}model.embed_tokens.weight")), "one matrix");

    // Without the flag PEFT trains the embedding alone, and the head stays on the base.
    set(&adapter, "ensure_weight_tying", json!(false));
    file.write(&adapter.join(WEIGHTS), Dtype::F32);
    let apart = work.loss(&base, Some(&adapter), "");
    let alone = work.loss(&base, None, "--quant nf4");
    assert!((apart - loss).abs() > 0.01 && (apart - alone).abs() > 0.01, "{apart}, tied {loss}, base {alone}");
    let args = ["merge", "--model", base.to_str().unwrap(), "--adapter", adapter.to_str().unwrap(), "--output"];
    run(args.into_iter().chain([work.path("merged").to_str().unwrap()]))
        .user_error(&["ensure_weight_tying", "side by side"]);
    assert!(!work.path("merged").exists());
}

#[test]
fn saved_modules_are_found_by_the_end_of_their_names() {
    let work = Work::new();
    let (adapter, _) = trained(&work, "--target-modules q_proj --modules-to-save norm");
    let file = tensors(&adapter);
    let norms = names(&file).into_iter().filter(|it| it.ends_with("norm.weight")).count();
    assert_eq!(norms, 5, "two a layer and the last: {:?}", names(&file));
}

#[test]
fn all_biases_train_under_their_plain_names_and_those_of_adapted_layers_inside() {
    let work = Work::new();
    let model = work.model(&TinyModel::gpt_neo());
    let run = work.finetune().path("--model", &model).flags("--bias all --target-modules out_proj");
    let file = tensors(&run.done());
    let names = names(&file);
    for name in [
        "transformer.h.0.attn.attention.out_proj.base_layer.bias",
        "transformer.h.0.mlp.c_fc.bias",
        "transformer.h.0.ln_1.bias",
        "transformer.ln_f.bias",
    ] {
        assert!(names.contains(&name), "{name} is not among {names:?}");
    }
}

#[test]
fn patterns_give_their_layers_another_rank_and_excluded_layers_none() {
    let work = Work::new();
    let (adapter, _) = trained(&work, "--rank-pattern q_proj=2,down_proj=6 --exclude-modules k_proj,up_proj");
    let file = tensors(&adapter);
    let shape = |layer: &str| file.0.get(&format!("{PREFIX}model.layers.1.{layer}.weight")).map(|it| it.0.clone());
    assert_eq!(shape("self_attn.q_proj.lora_A"), Some(vec![2, 32]));
    assert_eq!(shape("self_attn.q_proj.lora_B"), Some(vec![32, 2]));
    assert_eq!(shape("mlp.down_proj.lora_B"), Some(vec![32, 6]));
    assert_eq!(shape("self_attn.v_proj.lora_A"), Some(vec![4, 32]));
    assert_eq!((shape("self_attn.k_proj.lora_A"), shape("mlp.up_proj.lora_A")), (None, None));
}

#[test]
fn adapters_in_half_precision_and_of_old_versions_are_read() {
    let work = Work::new();
    let base = work.model(&TinyModel::llama());
    let (adapter, loss) = trained(&work, "");
    let file = tensors(&adapter);
    // Weights rounded by 2^-8 and 2^-11 relatively move a loss by far less than the adapter did.
    for (dtype, tolerance) in [(Dtype::BF16, 0.05), (Dtype::F16, 0.005)] {
        file.write(&adapter.join(WEIGHTS), dtype);
        let rounded = work.loss(&base, Some(&adapter), "");
        assert!((rounded - loss).abs() < tolerance, "{dtype:?}: {rounded}, in f32 {loss}");
        assert_ne!(rounded, loss, "{dtype:?} was read as something else");
    }
    let old = file.0.into_iter().map(|(key, it)| (key.replace(".weight", ".default.weight"), it));
    Tensors(old.collect()).write(&adapter.join(WEIGHTS), Dtype::F32);
    assert_eq!(work.loss(&base, Some(&adapter), ""), loss);
}

#[test]
fn tensors_that_are_missing_left_over_or_misshapen_are_named() {
    let work = Work::new();
    let model = TinyModel { attention_bias: true, ..TinyModel::llama() };
    let base = work.model(&model);
    let run = work.finetune().path("--model", &base).flags("--bias lora_only --modules-to-save norm");
    let adapter = run.done();
    let whole = tensors(&adapter);
    let path = adapter.join(WEIGHTS);
    for name in [
        "model.norm.weight",
        "model.layers.0.self_attn.q_proj.base_layer.bias",
        "model.layers.1.mlp.up_proj.lora_B.weight",
    ] {
        let mut file = whole.clone();
        file.0.remove(&format!("{PREFIX}{name}")).expect(name);
        file.write(&path, Dtype::F32);
        let shown = name.replace(".base_layer", "");
        work.eval(&base, Some(&adapter), "").user_error(&[WEIGHTS, "lacks", &shown]);
    }
    let mut file = whole.clone();
    file.0.insert(format!("{PREFIX}model.layers.7.self_attn.q_proj.lora_A.weight"), (vec![1], vec![0.0]));
    file.write(&path, Dtype::F32);
    work.eval(&base, Some(&adapter), "").user_error(&[WEIGHTS, "no module", "model.layers.7.self_attn.q_proj"]);
    whole.write(&path, Dtype::F32);
    set(&adapter, "r", json!(3));
    work.eval(&base, Some(&adapter), "").user_error(&[WEIGHTS, "lora_A.weight has shape [4, 32]", "[3, 32]"]);
    set(&adapter, "r", json!(4));
}

#[test]
fn an_adapter_as_peft_wrote_it_before_safetensors_is_read() {
    let work = Work::new();
    let adapter = work.finetune().done();
    let model = work.model(&TinyModel::llama());
    let loss = work.loss(&model, Some(&adapter), "");
    let path = adapter.join(WEIGHTS);
    let tensors: Vec<_> =
        Tensors::read(&path).0.into_iter().map(|(name, (shape, values))| (name, shape, values)).collect();
    fs::remove_file(path).unwrap();
    write_torch(&adapter.join("adapter_model.bin"), &tensors);
    assert_eq!(work.loss(&model, Some(&adapter), ""), loss);
}

#[test]
fn flags_that_an_initial_adapter_overrules_are_named_and_not_recorded() {
    let work = Work::new();
    let first = work.finetune().flags("--target-modules q_proj,v_proj --rank-pattern v_proj=2").done();
    let again = |flags: &str, output: &str| -> (Finetune, String) {
        let run = work.finetune().path("--init-adapter", &first).output(&work.path(output)).flags(flags);
        let stderr = run.run().success().stderr;
        (run, stderr)
    };
    let (run, stderr) = again("--rank 8 --target-modules all-linear --quant fp4", "second");
    for part in ["--rank 8 is ignored, the adapter has 4", "14 layers, the adapter has 4", "nf4", "fp4"] {
        assert!(stderr.contains(part), "{part} is not in {stderr}");
    }
    let written: toml::Table = fs::read_to_string(run.folder().join("config.toml")).unwrap().parse().unwrap();
    assert_eq!(written["rank"].as_integer(), Some(4));
    assert_eq!(written["target_modules"].as_str(), Some("q_proj,v_proj"));
    assert_eq!(written["rank_pattern"].as_str(), Some("v_proj=2"));
    let (_, stderr) = again("--rank 4 --target-modules .*\\.[qv]_proj", "third");
    assert!(!stderr.contains("ignored") && !stderr.contains("keeps them"), "{stderr}");
}

#[test]
fn an_adapter_on_a_base_kept_in_another_way_is_pointed_out() {
    let work = Work::new();
    let base = work.model(&TinyModel::llama());
    let (adapter, _) = trained(&work, "");
    let other = work.eval(&base, Some(&adapter), "--quant none").success();
    assert!(other.stderr.contains("was trained on a base kept as nf4, blocks of 64, doubly quantised"), "{other}");
    assert!(!work.eval(&base, Some(&adapter), "").success().stderr.contains("kept as"));
}

#[test]
fn a_path_with_an_equals_sign_is_a_path() {
    let work = Work::new();
    let base = work.model(&TinyModel::llama());
    let folder = work.path("lr=2e-4");
    let adapter = work.finetune().output(&folder).done();
    let ask = |adapter: &Path| {
        let args =
            ["generate", "--prompt", "a", "--max-new-tokens", "1", "--model", base.to_str().unwrap(), "--adapter"];
        run(args.into_iter().chain([adapter.to_str().unwrap()]))
    };
    ask(&adapter).success();
    ask(&work.path("lr=3e-4")).user_error(&["lr=3e-4", "adapter_config.json"]);
}

#[test]
fn a_rank_beyond_all_matrices_is_a_slip() {
    let work = Work::new();
    for flags in ["--rank 1000000000000000000", "--rank 1000000000", "--rank-pattern q_proj=1000000000"] {
        work.finetune().flags(flags).run().user_error(&["rank must be at most 65536"]);
    }
}

/// A low-rank update of the embedding of a model, trained beside that of the queries.
fn with_embedding(work: &Work, model: &TinyModel) -> (PathBuf, PathBuf) {
    let base = work.model(model);
    let run = Finetune::new(&base, &work.rows(), &work.path("run")).without(&["--method"]);
    let flags = "--quant none --target-modules embed_tokens,q_proj --max-steps 20";
    (base, run.flags(flags).done())
}

#[test]
fn an_embedding_can_be_updated_too_and_merged_where_the_head_is_its_own() {
    let work = Work::new();
    let (base, adapter) = with_embedding(&work, &TinyModel { tied: false, ..TinyModel::llama() });
    let found = tensors(&adapter);
    let shape = |part: &str| found.0[&format!("base_model.model.model.embed_tokens.lora_embedding_{part}")].0.clone();
    assert_eq!((shape("A"), shape("B")[1]), (vec![4, VOCAB], 4), "as peft stores them");
    let (with, without) = (work.loss(&base, Some(&adapter), ""), work.loss(&base, None, ""));
    assert!(without - with > 0.3, "the adapter matters: {without} {with}");
    let merged = work.path("merged");
    let mut merge = e2e::halfbyte();
    merge.arg("merge").arg("--model").arg(&base).arg("--adapter").arg(&adapter).arg("--output").arg(&merged);
    e2e::Outcome::of(merge.args(["--dtype", "f32"])).success();
    let after = work.loss(&merged, None, "");
    assert!((after - with).abs() < 1e-4, "{after} {with}");
}

#[test]
fn a_tied_head_stays_on_the_base_and_such_an_adapter_cannot_be_merged() {
    let work = Work::new();
    let (base, adapter) = with_embedding(&work, &TinyModel { tied: true, ..TinyModel::llama() });
    let merged = work.path("merged");
    let mut merge = e2e::halfbyte();
    merge.arg("merge").arg("--model").arg(&base).arg("--adapter").arg(&adapter).arg("--output").arg(&merged);
    e2e::Outcome::of(&mut merge).user_error(&["embedding", "output head", "side by side"]);
}

#[test]
fn pefts_copy_of_the_embedding_must_be_that_of_the_base() {
    let work = Work::new();
    let (base, adapter) = with_embedding(&work, &TinyModel { tied: false, ..TinyModel::llama() });
    let loss = work.loss(&base, Some(&adapter), "");
    let mut all = tensors(&adapter);
    let embedding = Tensors::read(&base.join("model.safetensors")).0["model.embed_tokens.weight"].clone();
    let key = "base_model.model.model.embed_tokens.base_layer.weight";
    all.0.insert(key.to_owned(), embedding);
    all.write(&adapter.join(WEIGHTS), Dtype::F32);
    assert_eq!(work.loss(&base, Some(&adapter), ""), loss);
    all.0.get_mut(key).unwrap().1[7] += 0.5;
    all.write(&adapter.join(WEIGHTS), Dtype::F32);
    work.eval(&base, Some(&adapter), "").user_error(&["embed_tokens.base_layer.weight", "another one"]);
}

#[test]
fn norms_and_dora_on_embeddings_are_refused() {
    let work = Work::new();
    let run = |flags: &str| work.finetune().flags(flags).run();
    run("--target-modules q_proj,input_layernorm").user_error(&["input_layernorm", "norm", "linear layers"]);
    run("--target-modules embed_tokens --use-dora").user_error(&["embed_tokens", "use_dora"]);
}

/// Shape and values.
type Table = (Vec<usize>, Vec<f32>);

/// The embedding of a model's folder, and another one of its shape.
fn tables(base: &Path) -> [Table; 2] {
    let own = Tensors::read(&base.join("model.safetensors")).0["model.embed_tokens.weight"].clone();
    let other = (own.0.clone(), own.1.iter().map(|it| 0.5 - it).collect());
    [own, other]
}

/// A folder of a tied model with an embedding and a head of its own.
fn untied(work: &Work, embedding: &[f32], head: &[f32]) -> PathBuf {
    let (model, path) = (TinyModel { tied: false, ..TinyModel::llama() }, work.path("untied"));
    let mut tensors = TinyModel::llama().tensors();
    let at = tensors.iter().position(|it| it.name == "model.embed_tokens.weight").expect("the embedding");
    tensors[at].values = embedding.to_vec();
    let mut own = tensors[at].clone();
    (own.name, own.values) = ("lm_head.weight".into(), head.to_vec());
    tensors.push(own);
    model.write_with(&path, &tensors);
    path
}

const HEAD_KEY: &str = "base_model.model.lm_head.weight";
const EMBEDDING_KEY: &str = "base_model.model.model.embed_tokens.weight";

#[test]
fn a_saved_head_unties_a_tied_base_with_or_without_an_embedding() {
    let work = Work::new();
    let base = work.model(&TinyModel::llama());
    let adapter = work.finetune().without(&["--method"]).flags("--quant none --target-modules q_proj").done();
    let plain = tensors(&adapter);
    let [own, other] = tables(&base);
    let turned: Vec<f32> = own.1.iter().map(|it| -it).collect();
    for (saved, embedding) in [(json!(["lm_head"]), &own.1), (json!(["embed_tokens", "lm_head"]), &turned)] {
        let untied = untied(&work, embedding, &other.1);
        plain.write(&adapter.join(WEIGHTS), Dtype::F32);
        set(&adapter, "modules_to_save", Value::Null);
        let wanted = work.loss(&untied, Some(&adapter), "");
        let mut file = plain.clone();
        file.0.insert(HEAD_KEY.into(), other.clone());
        if saved.as_array().unwrap().len() > 1 {
            file.0.insert(EMBEDDING_KEY.into(), (own.0.clone(), embedding.clone()));
        }
        file.write(&adapter.join(WEIGHTS), Dtype::F32);
        set(&adapter, "modules_to_save", saved.clone());
        assert!((work.loss(&base, Some(&adapter), "") - wanted).abs() < 1e-6, "{saved}");
    }
}

#[test]
fn a_head_that_is_named_trains_apart_from_the_embedding_that_it_is_tied_to() {
    let work = Work::new();
    let base = work.model(&TinyModel::llama());
    for saved in ["lm_head", "embed_tokens,lm_head"] {
        let flags = format!("--target-modules q_proj --modules-to-save {saved} --overwrite");
        let (adapter, loss) = trained(&work, &flags);
        assert!(work.loss(&base, None, "--quant nf4") - loss > 0.3, "{saved}: it learns");
        assert_eq!(config(&adapter)["ensure_weight_tying"], json!(false));
        let file = tensors(&adapter);
        let head = &file.0[HEAD_KEY];
        assert!(file.0.get(EMBEDDING_KEY).is_none_or(|it| it != head), "{saved}: two matrices");
        let mut merge = e2e::halfbyte();
        merge.arg("merge").arg("--model").arg(&base).arg("--adapter").arg(&adapter).arg("--output");
        e2e::Outcome::of(merge.arg(work.path("merged"))).user_error(&["output head", "side by side"]);
    }
}

#[test]
fn matrices_that_a_file_holds_unlisted_count_as_the_bases_own() {
    let work = Work::new();
    for tied in [false, true] {
        let base = work.model(&TinyModel { tied, ..TinyModel::llama() });
        let run = Finetune::new(&base, &work.rows(), &work.path(&format!("run-{tied}"))).without(&["--method"]);
        let adapter = run.flags("--quant none --target-modules q_proj").done();
        let (plain, loss) = (tensors(&adapter), work.loss(&base, Some(&adapter), ""));
        let [own, other] = tables(&base);
        let with = |more: &[(&str, &Table)]| {
            let mut file = plain.clone();
            more.iter().for_each(|(key, it)| drop(file.0.insert((*key).to_owned(), (*it).clone())));
            file.write(&adapter.join(WEIGHTS), Dtype::F32);
            work.eval(&base, Some(&adapter), "")
        };
        let value = |it: e2e::Outcome| it.json()["loss"].as_f64().unwrap();
        assert_eq!(value(with(&[(EMBEDDING_KEY, &own)])), loss, "the base's own copy says nothing new");
        let head = value(with(&[(HEAD_KEY, &other)]));
        let both = value(with(&[(HEAD_KEY, &other), (EMBEDDING_KEY, &other)]));
        assert_ne!(head, loss);
        assert_eq!(head == both, tied, "one matrix where they are tied");
        let longer = (vec![VOCAB + 2, 32], [&own.1[..], &own.1[..64]].concat());
        if !tied {
            with(&[(EMBEDDING_KEY, &longer)]).user_error(&["embed_tokens", "resize_token_embeddings(34)"]);
        } else {
            with(&[(HEAD_KEY, &other), (EMBEDDING_KEY, &own)]).user_error(&["differ", "modules_to_save"]);
        }
    }
}

#[test]
fn rows_that_were_trained_alone_take_the_place_of_the_bases() {
    let work = Work::new();
    let rows = [2usize, 3];
    for tied in [false, true] {
        let model = TinyModel { tied, ..TinyModel::llama() };
        let base = work.model(&model);
        let run = Finetune::new(&base, &work.rows(), &work.path(&format!("run-{tied}"))).without(&["--method"]);
        let adapter = run.flags("--quant none --target-modules q_proj").done();
        let [own, other] = tables(&base);
        let row = |table: &[f32], at: usize| table[at * 32..][..32].to_vec();
        let mut changed = model.tensors();
        let table = changed.iter_mut().find(|it| it.name == "model.embed_tokens.weight").unwrap();
        rows.iter().for_each(|at| table.values[at * 32..][..32].copy_from_slice(&row(&other.1, *at)));
        let expected = work.path("expected");
        model.write_with(&expected, &changed);
        let wanted = work.loss(&expected, Some(&adapter), "");
        assert_ne!(wanted, work.loss(&base, Some(&adapter), ""));
        let mut file = tensors(&adapter);
        let delta = rows.iter().flat_map(|at| row(&other.1, *at)).collect();
        let key = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta";
        file.0.insert(key.to_owned(), (vec![2, 32], delta));
        file.write(&adapter.join(WEIGHTS), Dtype::F32);
        for listed in [json!(rows), json!({ "embed_tokens": rows })] {
            set(&adapter, "trainable_token_indices", listed);
            assert!((work.loss(&base, Some(&adapter), "") - wanted).abs() < 1e-6, "tied {tied}");
        }
        let merged = work.path(&format!("merged-{tied}"));
        let mut merge = e2e::halfbyte();
        merge.arg("merge").arg("--model").arg(&base).arg("--adapter").arg(&adapter).arg("--output").arg(&merged);
        e2e::Outcome::of(merge.args(["--dtype", "f32"])).success();
        assert!((work.loss(&merged, None, "") - wanted).abs() < 1e-4, "tied {tied}");
        let again = work.finetune().path("--model", &base).path("--init-adapter", &adapter).without(&["--method"]);
        again.flags("--quant none --overwrite").run().user_error(&["trainable_token_indices", "halfbyte merge"]);
        set(&adapter, "trainable_token_indices", json!([2, VOCAB]));
        work.eval(&base, Some(&adapter), "").user_error(&["trainable_tokens_delta", "does not fit"]);
        assert_eq!(own.0, other.0);
    }
}

#[test]
fn an_adapter_that_lies_elsewhere_is_pointed_out() {
    let work = Work::new();
    let base = work.model(&TinyModel::llama());
    let eval = |dir: &Path| work.eval(&base, Some(dir), "");
    let run = work.path("elsewhere");
    for name in ["checkpoint-9", "checkpoint-10", "other"] {
        fs::create_dir_all(run.join(name)).unwrap();
    }
    eval(&run).user_error(&["adapter_config.json", "is missing"]);
    for name in ["checkpoint-9", "checkpoint-10"] {
        fs::write(run.join(name).join("adapter_config.json"), "{}").unwrap();
    }
    eval(&run).user_error(&["elsewhere", "checkpoint-10", "name that folder"]);
    eval(&base).user_error(&["whole model", "--model"]);
    eval(&work.path("nowhere")).user_error(&["nowhere", "no such folder"]);
}
