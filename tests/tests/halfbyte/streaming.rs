//! Rows that are read as training goes: the bits of a run that never stopped, memory that does not grow with the data, and what is
//! refused.

use e2e::{Finetune, ROWS, Work, write_jsonl, write_parquet};
use std::{
    fs::{self, File},
    io::{BufWriter, Write},
    path::PathBuf,
};

/// Forty rows in a file that tells how many there are, and in one that does not.
fn files(work: &Work) -> [PathBuf; 2] {
    let rows: Vec<String> = (0..40).map(|it| format!("{} and {}", ROWS[it % 8], ROWS[it / 8])).collect();
    let rows: Vec<Option<&str>> = rows.iter().map(|it| Some(it.as_str())).collect();
    let paths = [work.path("rows.parquet"), work.path("rows.jsonl")];
    write_parquet(&paths[0], &rows);
    write_jsonl(&paths[1], &rows);
    paths
}

fn streaming(work: &Work) -> Finetune {
    work.finetune().flags("--streaming --shuffle-buffer 9 --save-steps 3")
}

#[test]
fn a_run_on_a_stream_resumes_with_the_bits_of_one_that_never_stopped_on_any_number_of_threads() {
    let work = Work::new();
    for (data, flags) in [(0, ""), (1, ""), (1, "--packing on --max-length 32"), (0, "--gradient-accumulation-steps 3")]
    {
        let data = &files(&work)[data];
        let run = |name: &str| {
            let run = streaming(&work).path("--data", data).flags(flags).output(&work.path(name));
            run.flags("--max-steps 24 --overwrite")
        };
        let (whole, parts) = (run("whole").flags("--threads 1"), run("parts").flags("--threads 3"));
        whole.done();
        // Twice, once in the second pass over the rows.
        parts.clone().flags("--max-steps 3").done();
        let parts = parts.without(&["--overwrite"]).flags("--resume");
        parts.clone().flags("--max-steps 21 --shuffle-buffer 9").done();
        parts.done();
        assert!(whole.adapter_bytes() == parts.adapter_bytes(), "{flags}: the adapters differ");
        assert_eq!(whole.losses(), parts.losses());
        let other = parts.clone().flags("--max-steps 30 --shuffle-buffer 10").run();
        other.user_error(&["checkpoint of another run", "shuffle_buffer was 9 and is now 10"]);
    }
}

#[test]
fn counted_rows_make_an_epoch() {
    let work = Work::new();
    let run = streaming(&work).path("--data", &files(&work)[0]).without(&["--max-steps"]);
    let said = run.run().success().stderr;
    // Buffers of 9, 9, 9, 9 and 4 rows in batches of 2.
    for part in [
        "22 steps on 40 rows, which are read as training goes; 9 at a time are shuffled together",
        "rows.parquet, the first rows: 40 rows read, 40 used",
        "read on the way: 40 rows read, 40 used",
    ] {
        assert!(said.contains(part), "`{part}` is not in {said}");
    }
    assert_eq!(run.metrics().last().unwrap()["epoch"], 1.0);
    assert_eq!(run.summary()["data"]["rows_read"], 40);
}

#[cfg(target_os = "linux")]
#[test]
fn a_data_set_larger_than_memory() {
    let work = Work::new();
    let write = |name: &str, rows: usize| {
        let path = work.path(name);
        let mut file = BufWriter::new(File::create(&path).unwrap());
        let text = format!("{} ", ROWS[1]).repeat(4);
        for row in 0..rows {
            writeln!(file, "{{\"text\": \"{} {text}\"}}", ROWS[row % 8]).unwrap();
        }
        file.into_inner().unwrap();
        path
    };
    let run = |data: &PathBuf| work.finetune().path("--data", data).flags("--threads 1 --max-length 32 --overwrite");
    let streamed = |data: &PathBuf| {
        let run = run(data).flags("--streaming --shuffle-buffer 500 --per-device-train-batch-size 100");
        run.flags("--logging-steps 1000")
    };
    // What it takes does not depend on how much is read.
    let peak = |rows: usize| {
        let run = streamed(&write("many.jsonl", rows)).flags(&format!("--max-steps {}", rows / 100));
        run.done();
        assert_eq!(run.summary()["data"]["rows_read"].as_u64().unwrap() / 1000, rows as u64 / 1000);
        run.summary()["peak_rss_mib"].as_f64().unwrap()
    };
    let (small, large) = (peak(2_000), peak(20_000));
    assert!(large < small + 1.5, "{large} MiB instead of {small}, where all the tokens take 3");
    // And where they would not fit, that is said before anything is trained.
    let large = write("large.jsonl", 200_000);
    let refused = run(&large).within(158_000);
    refused.user_error(&["of memory are free", "for the rows", "--streaming, which reads rows as training goes"]);
    streamed(&large).flags("--max-steps 10").within(158_000).success();
}

#[test]
fn streams_that_make_no_sense() {
    let work = Work::new();
    let [counted, uncounted] = files(&work);
    let refused = |run: Finetune, parts: &[&str]| {
        run.run().user_error(parts);
        assert!(!work.path("run").exists(), "nothing was written");
    };
    let of = |data: &PathBuf| streaming(&work).path("--data", data);
    refused(of(&uncounted).without(&["--max-steps"]), &["rows.jsonl", "do not tell how many", "--max-steps"]);
    refused(of(&counted).without(&["--max-steps"]).flags("--packing on"), &["packed rows", "--max-steps"]);
    refused(of(&uncounted).flags("--save-steps epoch"), &["--save-steps 1/epoch", "give a number of steps"]);
    refused(of(&counted).flags("--shuffle-buffer 0"), &["--shuffle-buffer must be at least 1", "--no-shuffle"]);
    refused(of(&counted).without(&["--streaming"]), &["--shuffle-buffer 9", "add --streaming"]);
    refused(of(&counted).flags("--eval-split 0.1"), &["--eval-split", "--streaming", "--eval-data"]);
    refused(of(&counted).path("--data", format!("{}:1", counted.display())), &["--streaming", "has a weight"]);
    refused(of(&counted).flags("--max-length 100000"), &["positions for", "--max-length"]);
    refused(of(&work.path("nowhere.parquet")), &["nowhere.parquet: no such file"]);
    write_jsonl(&work.path("empty.jsonl"), &[Some(" "), None]);
    work.finetune().path("--data", work.path("empty.jsonl")).flags("--streaming").run().user_error(&["no usable rows"]);
}

#[test]
fn a_row_that_is_wrong_far_from_the_beginning_stops_a_run_that_can_go_on() {
    let work = Work::new();
    let data = work.path("late.jsonl");
    let good = "{\"text\": \"the cat sat on the mat\"}\n".repeat(600);
    fs::write(&data, format!("{good}{{\"text\": 7}}\n{good}")).unwrap();
    let run = work.finetune().path("--data", &data).flags("--streaming --shuffle-buffer 100 --save-steps 100");
    let run = run.flags("--max-steps 400 --per-device-train-batch-size 2 --logging-steps 1000");
    let stopped = run.run().user_error(&["training stopped at step 251", "checkpoint-200 is intact", "line 601"]);
    assert!(stopped.stderr.contains("--resume goes on"), "{stopped}");
    fs::write(&data, good.repeat(2)).unwrap();
    run.flags("--resume").run().success();
}

#[test]
fn doubtful_rows_are_counted_as_they_come() {
    let work = Work::new();
    let data = work.path("late.jsonl");
    let good = "{\"text\": \"the cat sat on the mat\"}\n";
    fs::write(&data, good.repeat(1000) + &"{\"text\": \"cat\"}\n".repeat(400)).unwrap();
    let run = work.finetune().path("--data", &data).flags("--streaming --shuffle-buffer 100 --max-steps 800");
    let run = run.flags("--logging-steps 1000");
    run.run().user_error(&["late.jsonl: of the first 1200 rows 200 teach nothing", "more than a share of 0.1"]);
    run.flags("--overwrite --max-doubtful-rows 0.5").done();
}
