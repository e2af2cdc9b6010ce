//! The committed files are what the generator makes, and small.

use std::path::Path;

const FILES: [&str; 4] =
    ["reviews-train.parquet", "reviews-test.parquet", "instructions.parquet", "instructions-test.parquet"];
const LIMIT_BYTES: usize = 300 * 1024;

#[test]
fn committed_files_equal_the_generators_output() {
    let fresh = tempfile::tempdir().expect("a temporary folder");
    halfbyte_datasets::generate(fresh.path()).expect("the generator writes into an empty folder");
    let mut total = 0;
    for name in FILES {
        let committed = std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).expect(name);
        let made = std::fs::read(fresh.path().join(name)).expect(name);
        assert!(
            committed == made,
            "{name} is not what `halfbyte-datasets generate` writes: run it and commit the files"
        );
        total += committed.len();
    }
    assert!(total < LIMIT_BYTES, "the committed files have {total} bytes together, the limit is {LIMIT_BYTES}");
}

#[test]
fn a_folder_that_cannot_be_made_is_named() {
    let fresh = tempfile::tempdir().expect("a temporary folder");
    let blocked = fresh.path().join("file");
    std::fs::write(&blocked, "x").expect("a small file");
    let error = halfbyte_datasets::generate(&blocked.join("sub")).expect_err("a file is not a folder");
    assert!(format!("{error:#}").contains("file"), "{error:#}");
}
