//! Held-out rows that are taken from those to train on.

use e2e::{Finetune, ROWS, Work, write_jsonl};
use serde_json::{Value, json};

/// Sixteen rows of which no two are equal.
fn finetune(work: &Work) -> Finetune {
    let rows: Vec<String> = ROWS.iter().flat_map(|it| [(*it).to_owned(), format!("{it} and slept")]).collect();
    write_jsonl(&work.path("many.jsonl"), &rows.iter().map(|it| Some(it.as_str())).collect::<Vec<_>>());
    work.finetune().path("--data", work.path("many.jsonl")).flags("--num-train-epochs 1").without(&["--max-steps"])
}

fn counts(summary: &Value) -> (u64, u64) {
    let number = |key: &str| summary["data"][key].as_u64().unwrap();
    (number("rows_used"), number("held_out"))
}

#[test]
fn held_out_rows_are_measured_and_not_trained_on() {
    let work = Work::new();
    let by_number = finetune(&work).flags("--eval-split 4");
    let said = by_number.run().success().stderr;
    assert!(said.contains("4 of 16 examples are held out by what they say (--eval-split 4)"), "{said}");
    assert!(said.contains("16 rows read, 16 used, 4 held out"), "{said}");
    assert!(said.contains("before: held-out loss") && said.contains("each of 12 examples once"), "{said}");
    let summary = by_number.summary();
    assert_eq!((counts(&summary), &summary["steps"]), ((16, 4), &json!(6)));
    assert!(summary["eval_loss_before"].as_f64() > summary["eval_loss_after"].as_f64());
    // By a share, and in the words of other programs.
    let by_share = finetune(&work).flags("--val_size 0.5 --eval-steps 2").output(&work.path("share"));
    by_share.done();
    let (used, held_out) = counts(&by_share.summary());
    assert!(used == 16 && (3..14).contains(&held_out), "{held_out} of 16");
}

#[test]
fn a_run_with_held_out_rows_resumes_bit_for_bit() {
    let work = Work::new();
    let run =
        |name: &str| finetune(&work).flags("--eval-split 4 --save-steps 3 --max-steps 6").output(&work.path(name));
    let (whole, parts) = (run("whole"), run("parts"));
    whole.done();
    parts.clone().flags("--max-steps 3 --threads 1").done();
    parts.clone().flags("--resume").done();
    assert!(whole.adapter_bytes() == parts.adapter_bytes(), "the adapters differ");
    let other = parts.flags("--resume --max-steps 9 --eval-split 5").run();
    other.user_error(&["checkpoint of another run", "eval_split was 4.0 and is now 5.0"]);
}

#[test]
fn splits_that_make_no_sense() {
    let work = Work::new();
    let refused = |flags: &str, parts: &[&str]| {
        finetune(&work).flags(flags).run().user_error(parts);
        assert!(!work.path("run").exists(), "nothing was written");
    };
    for number in ["0", "-0.1", "1.5", "nan"] {
        refused(&format!("--eval-split={number} --max-steps 1"), &["--eval-split", "0.05 or 500"]);
    }
    refused("--eval-split 16", &["16 rows are to be held out of 16", "take fewer"]);
    refused("--eval-split 0.00000001", &["none would be held out"]);
    refused("--eval-split 0.1 --eval-rows 0..4", &["--eval-rows", "--eval-data FILE"]);
    refused("--eval-steps 2", &["--eval-steps", "--eval-split 0.05"]);
    let both = finetune(&work).path("--eval-data", work.rows()).flags("--eval-split 0.1").run();
    both.user_error(&["--eval-split", "--eval-data", "leave one out"]);
}
