//! What must not change the numbers: threads, paging, recomputation. And what may change them by rounding only.

use e2e::{Finetune, Tensors, Work};

/// Runs both and expects the same adapter, byte for byte.
#[track_caller]
fn same(a: &Finetune, b: &Finetune) {
    a.done();
    b.done();
    assert_eq!(a.losses(), b.losses());
    assert!(a.adapter_bytes() == b.adapter_bytes(), "the adapters differ");
}

#[test]
fn the_same_command_twice_gives_the_same_bits_and_another_seed_does_not() {
    let work = Work::new();
    let run = work.finetune().flags("--lora-dropout 0.2");
    same(&run, &run.clone().output(&work.path("other")));
    let third = run.clone().flags("--seed 43").output(&work.path("third"));
    third.done();
    assert!(run.adapter_bytes() != third.adapter_bytes());
}

#[test]
fn one_thread_and_several_give_the_same_bits() {
    let work = Work::new();
    // Long rows and a large batch, so that there is something to share out.
    let run = work.finetune().flags("--per-device-train-batch-size 8 --lora-dropout 0.1 --compute-dtype bf16");
    same(&run.clone().flags("--threads 1"), &run.clone().flags("--threads 2").output(&work.path("two")));
    same(&run.clone().flags("--threads 5").output(&work.path("five")), &run.flags("--threads 1 --overwrite"));
}

#[test]
fn recomputed_activations_give_the_same_bits() {
    let work = Work::new();
    let run = work.finetune().flags("--lora-dropout 0.1 --gradient-checkpointing off");
    same(&run, &run.clone().flags("--gradient-checkpointing on").output(&work.path("other")));
}

#[test]
fn a_paged_optimizer_gives_the_same_bits_within_its_budget() {
    let work = Work::new();
    let run = work.finetune().flags("--rank 16");
    let trainable = 16 * 512 * 2;
    let budget = 8 * trainable / 4;
    let mib = budget as f64 / f64::from(1 << 20);
    let paged = run.clone().flags(&format!("--optim-resident-mib {mib}")).output(&work.path("paged"));
    same(&run, &paged);
    let pages =
        |run: &Finetune, key: &str| run.summary()["optimizer_pages"][key].as_u64().unwrap_or_else(|| panic!("{key}"));
    assert_eq!(pages(&run, "bytes_spilled"), 0);
    assert_eq!(pages(&paged, "state_bytes"), 8 * trainable);
    assert!(pages(&paged, "bytes_spilled") > 0);
    assert!(pages(&paged, "resident_peak") <= budget, "{:#}", paged.summary());
    assert!(pages(&paged, "resident_peak") > 0);
}

/// Large enough for 8 bits: 4096 numbers and more in most of the adapter's matrices.
#[test]
fn an_8_bit_optimizer_pages_and_pauses_without_a_trace() {
    let work = Work::new();
    let full = work.finetune().flags("--rank 128 --max-steps 6");
    let run = full.clone().flags("--optim paged_adamw_8bit").output(&work.path("in_8_bits"));
    let paged = run.clone().flags("--optim-resident-mib 0.01").output(&work.path("paged"));
    same(&run, &paged);
    full.done();
    let bytes = |run: &Finetune, key: &str| run.summary()["optimizer_pages"][key].as_u64().unwrap();
    assert!(bytes(&paged, "bytes_spilled") > 0);
    let (few, many) = (bytes(&run, "state_bytes"), bytes(&full, "state_bytes"));
    assert!(4 * few > many && 2 * few < many, "{few} of {many}");
    let parts = run.clone().flags("--max-steps 4 --save-steps 4").output(&work.path("parts"));
    parts.done();
    let other = parts.clone().flags("--max-steps 6 --resume --optim adamw_torch");
    other.run().user_error(&["optim was", "adamw_8bit", "is now", "adamw_torch"]);
    parts.clone().flags("--max-steps 6 --resume").done();
    assert!(parts.adapter_bytes() == run.adapter_bytes(), "a pause does not show");
    assert!(run.adapter_bytes() != full.adapter_bytes(), "8 bits are not 32");
    for (coarse, fine) in run.losses().iter().zip(full.losses()) {
        assert!((coarse / fine - 1.0).abs() < 0.02, "{coarse} {fine}");
    }
}

#[test]
fn two_accumulated_batches_are_one_batch_of_both() {
    let work = Work::new();
    let large = work.finetune().flags("--per-device-train-batch-size 4 --max-steps 2");
    let small = large
        .clone()
        .flags("--per-device-train-batch-size 2 --gradient-accumulation-steps 2")
        .output(&work.path("small"));
    large.done();
    small.done();
    // Sums of about a hundred f32 in another order: 100 * 2^-24 = 6e-6, relatively.
    let near = |a: f64, b: f64| (a - b).abs() <= 1e-5 * a.abs();
    let (a, b) = (large.metrics(), small.metrics());
    for key in ["loss", "grad_norm"] {
        let (x, y) = (a[0][key].as_f64().unwrap(), b[0][key].as_f64().unwrap());
        assert!(near(x, y), "{key} of the first step: {x} and {y}");
    }
    let (x, y) = (large.losses()[1], small.losses()[1]);
    // Adam divides by the gradient's size, so that an element near zero may step by up to twice the learning rate otherwise.
    assert!((x - y).abs() < 1e-2, "the second step: {x} and {y}");
    assert!(large.losses()[0] != x, "there was a step between");
}

#[test]
fn the_learning_rate_warms_up_and_falls() {
    let work = Work::new();
    let run = work.finetune().flags("--lr-scheduler-type linear --warmup-steps 2 --max-steps 6");
    run.done();
    let rates: Vec<f64> = run.metrics().iter().map(|it| it["learning_rate"].as_f64().unwrap() / 1e-2).collect();
    let expected = [0.0, 0.5, 1.0, 0.75, 0.5, 0.25];
    assert!(rates.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12), "{rates:?}");
}

#[test]
fn file_order_and_shuffled_order_differ() {
    let work = Work::new();
    let shuffled = work.finetune();
    let in_order = shuffled.clone().flags("--no-shuffle").output(&work.path("other"));
    shuffled.done();
    in_order.done();
    let read = |run: &Finetune| Tensors::read(&run.folder().join("adapter_model.safetensors"));
    assert!(read(&shuffled).largest_difference(&read(&in_order)) > 0.0);
}
