//! Tokens that are kept from one command to the next.

use e2e::{Finetune, Outcome, ROWS, Work, halfbyte, write_jsonl};
use std::{fs, path::PathBuf};

const KEPT: &str = "tokens as an earlier command made them";

/// Runs with a cache of the test's own.
fn run(work: &Work, finetune: &Finetune) -> Outcome {
    let finetune = finetune.clone().flags("--max-steps 2 --overwrite");
    Outcome::of(halfbyte().args(finetune.args()).env("HALFBYTE_CACHE", work.path("cache")))
}

fn entries(work: &Work) -> Vec<PathBuf> {
    let folder = fs::read_dir(work.path("cache/tokens"));
    folder.map_or_else(|_| Vec::new(), |it| it.map(|it| it.unwrap().path()).collect())
}

#[test]
fn a_second_start_takes_the_tokens_of_the_first_and_trains_the_same_adapter() {
    let work = Work::new();
    let finetune = work.finetune();
    let first = run(&work, &finetune).success().stderr;
    let bytes = finetune.adapter_bytes();
    assert!(!first.contains(KEPT) && entries(&work).len() == 1, "{first}");
    let second = run(&work, &finetune).success().stderr;
    assert!(second.contains(KEPT) && second.contains("8 rows read, 8 used"), "{second}");
    assert!(finetune.adapter_bytes() == bytes, "the adapters differ");
    // Whatever the file is called above it, and whichever command asks.
    fs::create_dir(work.path("elsewhere")).unwrap();
    fs::copy(work.path("rows.jsonl"), work.path("elsewhere/rows.jsonl")).unwrap();
    let moved = run(&work, &finetune.clone().path("--data", work.path("elsewhere/rows.jsonl"))).success();
    assert!(moved.stderr.contains(KEPT), "{moved}");
    let split = run(&work, &finetune.clone().flags("--eval-split 2")).success();
    assert!(split.stderr.contains(KEPT) && split.stderr.contains("2 held out"), "{split}");
    let without = run(&work, &finetune.clone().flags("--no-token-cache")).success();
    assert!(!without.stderr.contains(KEPT), "{without}");
    assert_eq!(entries(&work).len(), 1);
}

#[test]
fn whatever_changes_the_tokens_misses() {
    let work = Work::new();
    let finetune = work.finetune();
    run(&work, &finetune).success();
    let mut count = 1;
    let mut misses = |finetune: &Finetune| {
        let said = run(&work, finetune).success().stderr;
        count += 1;
        assert!(!said.contains(KEPT) && entries(&work).len() == count, "{said}");
    };
    for flags in ["--max-length 12", "--append-eos on", "--excess-length-strategy split --max-length 8", "--rows 0..6"]
    {
        misses(&finetune.clone().flags(flags));
    }
    // A letter of a row, the name that tells the format, a byte of the tokenizer's files.
    let mut rows = ROWS.map(Some);
    rows[7] = Some("the big fish swam in the tea");
    write_jsonl(&work.path("other.jsonl"), &ROWS.map(Some));
    misses(&finetune.clone().path("--data", work.path("other.jsonl")));
    write_jsonl(&work.path("other.jsonl"), &rows);
    misses(&finetune.clone().path("--data", work.path("other.jsonl")));
    let model = work.model(&e2e::TinyModel::llama());
    let tokenizer = fs::read_to_string(model.join("tokenizer.json")).unwrap();
    fs::write(model.join("tokenizer.json"), tokenizer + "\n").unwrap();
    let args = finetune.clone().flags("--max-steps 2 --overwrite").args();
    let said = Outcome::of(halfbyte().args(args).env("HALFBYTE_CACHE", work.path("cache"))).success().stderr;
    assert!(!said.contains(KEPT), "{said}");
}

#[test]
fn another_template_or_another_loss_misses() {
    let work = Work::new();
    let row = r#"{"messages": [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "sat"}]}"#;
    fs::write(work.path("talks.jsonl"), format!("{row}\n").repeat(8)).unwrap();
    let template = |text: &str| {
        let turns = "{% for m in messages %}{{ m.role }}WORD{{ m.content }}{{ eos_token }}{% endfor %}";
        fs::write(work.path("t.jinja"), turns.replace("WORD", text)).unwrap();
        work.finetune().path("--data", work.path("talks.jsonl")).path("--chat-template", work.path("t.jinja"))
    };
    let kept = |finetune: &Finetune| run(&work, finetune).success().stderr.contains(KEPT);
    let first = template(" : ");
    assert!(!kept(&first) && kept(&first));
    assert!(!kept(&template(" - ")), "the file has the name that it had");
    let first = template(" : ");
    assert!(kept(&first));
    assert!(!kept(&first.clone().flags("--loss-on all")));
    assert!(!kept(&first.clone().path("--chat-template-kwargs", r#"{"x": 1}"#)));
}

#[test]
fn a_damaged_entry_is_made_anew_and_a_cache_that_cannot_be_written_costs_time_alone() {
    let work = Work::new();
    let finetune = work.finetune();
    run(&work, &finetune).success();
    let bytes = finetune.adapter_bytes();
    let entry = entries(&work).remove(0);
    let whole = fs::read(&entry).unwrap();
    for at in [0, 8, 16, 24, whole.len() / 2, whole.len() - 20, whole.len() - 1] {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x40;
        fs::write(&entry, damaged).unwrap();
        let said = run(&work, &finetune).success().stderr;
        assert!(!said.contains(KEPT), "byte {at}: {said}");
        assert!(fs::read(&entry).unwrap() == whole && finetune.adapter_bytes() == bytes, "byte {at}: it is made anew");
    }
    for length in [0, 7, 20, whole.len() - 1] {
        fs::write(&entry, &whole[..length]).unwrap();
        assert!(!run(&work, &finetune).success().stderr.contains(KEPT), "{length} bytes");
    }
    fs::remove_dir_all(work.path("cache")).unwrap();
    fs::write(work.path("cache"), "a file in its place").unwrap();
    run(&work, &finetune).success();
    assert!(finetune.adapter_bytes() == bytes);
}
