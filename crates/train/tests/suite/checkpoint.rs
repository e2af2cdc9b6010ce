use halfbyte_autograd::Param;
use halfbyte_lora::{Role, Trained};
use halfbyte_paged_optim::StateFormat;
use halfbyte_tensor::{Device, Tensor};
use halfbyte_train::{Best, Checkpoints, Error, LossScale, Optim, OptimConfig, RunState, StateConfig, Update};
use serde_json::json;
use std::{fs, path::Path};

fn param(name: &str, shape: &[usize], first: f32) -> Param {
    let values = (0..shape.iter().product()).map(|i| first + i as f32).collect();
    Param::new(name, Tensor::from_vec(shape, values))
}

/// The larger one has its state in 8 bits.
fn params(first: f32) -> Vec<Param> {
    vec![param("small", &[2, 3], first), param("large", &[64, 96], first)]
}

fn optim(params: &[Param]) -> Optim {
    let state = StateConfig { in_8_bits: true, resident: None };
    Optim::new(&Device::Cpu, &trained(params), &OptimConfig { state, ..OptimConfig::default() }).unwrap()
}

fn trained(params: &[Param]) -> Vec<Trained> {
    params.iter().map(|it| Trained { param: it.clone(), role: Role::Linear }).collect()
}

fn take_steps(optim: &mut Optim, count: usize) {
    for n in 0..count {
        let grad = |it: &Param| {
            let values = it.value().to_f32_vec().iter().map(|x| (x + n as f32).sin()).collect();
            Tensor::from_vec(it.value().shape(), values)
        };
        let update = Update { lr: 0.1, max_norm: 1.0, unscale: 1.0 };
        let grads = optim.params().iter().map(grad).collect();
        optim.step(update, grads, &Tensor::scalar(1.0)).unwrap();
    }
}

fn state(step: usize) -> RunState {
    RunState {
        step,
        optimizer_steps: Some(step),
        epoch: 1,
        row: 0,
        batch: 2,
        examples: 3,
        seconds: 0.5,
        reached: vec![true, false],
        loss_scale: Some(LossScale::new(halfbyte_tensor::DType::F16)),
        best: Some(Best { step: 2, loss: 0.25, since: 1 }),
        notes: serde_json::Map::from_iter([("settings".to_owned(), json!({ "rank": 4 }))]),
    }
}

fn save(folder: &Path, step: usize, optim: &mut Optim) -> std::path::PathBuf {
    let checkpoints = Checkpoints::new(folder);
    let path = checkpoints.save(&state(step), optim, &mut |_| Ok(())).unwrap();
    checkpoints.prune(2, None).unwrap();
    path
}

fn bits(params: &[Param]) -> Vec<u32> {
    params.iter().flat_map(|it| it.value().to_f32_vec()).map(f32::to_bits).collect()
}

#[test]
fn what_was_saved_goes_on_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let first = params(1.0);
    let mut whole = optim(&first);
    assert_eq!(whole.specs()[1].state, StateFormat::Blockwise8);
    take_steps(&mut whole, 3);
    let path = save(folder.path(), 3, &mut whole);
    take_steps(&mut whole, 2);

    let second = params(7.0);
    let mut again = optim(&second);
    again.load(&path, 3).unwrap();
    assert_eq!(again.steps(), 3);
    take_steps(&mut again, 2);
    assert_eq!(bits(&second), bits(&first));
    assert_eq!(RunState::read(&path).unwrap(), state(3));
}

/// Restores into other parameters; gives the message and asserts that nothing changed.
fn refusal(path: &Path, params: &[Param]) -> String {
    let (mut optim, before) = (optim(params), bits(params));
    let error = optim.load(path, 1).unwrap_err();
    assert!(matches!(error, Error::Files(halfbyte_files::Error::File { .. })), "{error:?}");
    assert_eq!((bits(params), optim.steps()), (before, 0), "nothing has changed");
    take_steps(&mut optim, 1);
    error.to_string()
}

#[test]
fn tensors_of_another_run_are_refused_before_anything_changes() {
    let folder = tempfile::tempdir().unwrap();
    let own = params(1.0);
    let path = save(folder.path(), 1, &mut optim(&own));
    let turned = [param("small", &[2, 3], 0.0), param("large", &[96, 64], 0.0)];
    let longer = [param("small", &[2, 4], 0.0), param("large", &[64, 96], 0.0)];
    let renamed = [param("small", &[2, 3], 0.0), param("largest", &[64, 96], 0.0)];
    for (params, parts) in [
        (turned, ["value.large is F32 of shape [64, 96]", "expected F32 of [96, 64]"]),
        (longer, ["value.small is F32 of shape [2, 3]", "expected F32 of [2, 4]"]),
        (renamed, ["lacks value.largest", "remove this checkpoint"]),
    ] {
        let message = refusal(&path, &params);
        assert!(parts.iter().all(|it| message.contains(it)), "{message}");
    }
}

#[test]
fn state_in_another_form_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let own = params(1.0);
    let mut in_32_bits = Optim::new(&Device::Cpu, &trained(&own), &OptimConfig::default()).unwrap();
    let path = save(folder.path(), 1, &mut in_32_bits);
    let message = refusal(&path, &params(2.0));
    assert!(message.contains("lacks state1.large"), "{message}");
}

#[test]
fn a_file_that_was_cut_off_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let own = params(1.0);
    let path = save(folder.path(), 1, &mut optim(&own));
    let file = path.join("training_state.safetensors");
    let bytes = fs::read(&file).unwrap();
    fs::write(&file, &bytes[..bytes.len() - 1]).unwrap();
    assert!(refusal(&path, &params(2.0)).contains("training_state.safetensors"));
}

#[test]
fn a_checkpoint_that_cannot_be_finished_leaves_the_others_whole() {
    let folder = tempfile::tempdir().unwrap();
    let own = params(1.0);
    let mut optim = optim(&own);
    let path = save(folder.path(), 1, &mut optim);
    let checkpoints = Checkpoints::new(folder.path());
    let mut full = |_: &Path| Err(Error::Caller("disk full".into()));
    assert_eq!(checkpoints.save(&state(2), &mut optim, &mut full).unwrap_err().to_string(), "disk full");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no draft is left");
    optim.load(&path, 1).unwrap();
}

#[test]
fn the_oldest_go_and_drafts_of_a_killed_run_are_cleared_away() {
    let folder = tempfile::tempdir().unwrap();
    let own = params(1.0);
    let mut optim = optim(&own);
    for step in [2, 10, 10, 11] {
        save(folder.path(), step, &mut optim);
    }
    let checkpoints = Checkpoints::new(folder.path());
    let steps = || checkpoints.all().unwrap().iter().map(|it| it.0).collect::<Vec<_>>();
    assert_eq!(steps(), [10, 11]);
    fs::create_dir(folder.path().join(".tmp-checkpoint-x")).unwrap();
    checkpoints.clear_drafts().unwrap();
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
}

#[test]
fn the_state_that_the_version_before_wrote_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let text = r#"{
  "step": 3, "epoch": 0, "batch": 3, "examples": 8, "eval_loss_before": 4.25, "seconds": 0.75, "reached": [true],
  "loss_scale": { "value": 1.0, "good_steps": 3, "dynamic": false }, "settings": { "rank": 4, "lora_dropout": 0.1 }
}"#;
    fs::write(folder.path().join("trainer_state.json"), text).unwrap();
    let state = RunState::read(folder.path()).unwrap();
    assert_eq!((state.step, state.position().batch, state.examples), (3, 3, 8));
    assert_eq!(state.taken(), 3, "it did not tell skipped steps apart");
    assert_eq!(state.notes["eval_loss_before"], json!(4.25));
    assert_eq!(state.notes["settings"]["lora_dropout"], json!(0.1));
}

#[test]
fn what_is_no_number_is_not_kept() {
    let folder = tempfile::tempdir().unwrap();
    let own = params(1.0);
    let mut optim = optim(&own);
    save(folder.path(), 1, &mut optim);
    own[1].set(Tensor::from_vec(&[64, 96], vec![f32::INFINITY; 64 * 96]));
    let saved = Checkpoints::new(folder.path()).save(&state(2), &mut optim, &mut |_| Ok(()));
    assert!(matches!(saved, Err(Error::NotFinite { name }) if name == "large"));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "neither a checkpoint nor a draft");
}

#[test]
fn moments_that_are_no_numbers_are_not_kept() {
    let folder = tempfile::tempdir().unwrap();
    let own = params(1.0);
    let mut optim = optim(&own);
    optim
        .restore(1, &mut |_, out| {
            out.fill(0xff);
            Ok(())
        })
        .unwrap();
    let saved = Checkpoints::new(folder.path()).save(&state(1), &mut optim, &mut |_| Ok(()));
    assert!(matches!(saved, Err(Error::NotFinite { name }) if name == "exp_avg.small"));
}

/// Overwrites the first number of a tensor of the checkpoint.
fn plant(path: &Path, tensor: &str, value: f32) {
    let file = path.join("training_state.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let entries: serde_json::Value = serde_json::from_slice(&bytes[8..header]).unwrap();
    let at = header + entries[tensor]["data_offsets"][0].as_u64().unwrap() as usize;
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    fs::write(file, bytes).unwrap();
}

#[test]
fn numbers_that_training_cannot_have_left_are_refused() {
    let own = params(1.0);
    for (tensor, value) in [
        ("value.small", f32::NAN),
        ("exp_avg.small", f32::NEG_INFINITY),
        ("exp_avg_sq.small", -1.0),
        ("exp_avg_sq.small", f32::NAN),
        ("absmax1.large", -1.0),
        ("absmax2.large", f32::INFINITY),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let mut optim = optim(&own);
        take_steps(&mut optim, 1);
        let path = save(folder.path(), 1, &mut optim);
        plant(&path, tensor, value);
        let message = refusal(&path, &params(2.0));
        assert!(message.contains(&format!("{tensor} holds {value} at element 0")), "{message}");
        assert!(message.contains("remove this checkpoint"), "{message}");
    }
}

#[test]
fn a_state_of_another_step_than_its_folder_says_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = save(folder.path(), 2, &mut optim(&params(1.0)));
    let renamed = folder.path().join("checkpoint-3");
    fs::rename(path, &renamed).unwrap();
    let message = RunState::read(&renamed).unwrap_err().to_string();
    assert!(message.contains("is of step 2") && message.contains("says 3"), "{message}");
    let elsewhere = folder.path().join("mine");
    fs::rename(renamed, &elsewhere).unwrap();
    assert_eq!(RunState::read(&elsewhere).unwrap().step, 2, "a name that says nothing contradicts nothing");
    fs::write(elsewhere.join("trainer_state.json"), b"\xff").unwrap();
    let error = RunState::read(&elsewhere).unwrap_err();
    assert!(matches!(error, Error::Files(halfbyte_files::Error::File { .. })), "{error:?}");
}
