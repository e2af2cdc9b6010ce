//! A format is one file and one line: nothing else in this crate's sources, and no crate above it, may tell formats apart.

use halfbyte_frozen::Quant;
use std::{fs, path::Path};

#[test]
fn a_format_is_a_file_and_a_line_of_the_table() {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let table = fs::read_to_string(sources.join("quant.rs")).unwrap();
    let table = table.split_once("\nformats! {").and_then(|it| it.1.split_once("\n}")).expect("the table is there").0;
    let lines: Vec<&str> = table.lines().filter(|it| it.contains("=>")).collect();
    assert_eq!(lines.len(), Quant::ALL.len(), "a line a format");
    for (line, quant) in lines.iter().zip(Quant::ALL) {
        assert!(line.contains(&format!("\"{}\"", quant.name())), "{line}");
        // What stands at the end is defined in one file, which the table's own imports name.
        let store = line.split("=>").nth(1).unwrap().trim().split(['(', ';']).next().unwrap();
        let files = ["dense.rs", "four_bit.rs", "int8.rs"];
        let defined =
            |file: &&str| fs::read_to_string(sources.join(file)).unwrap().contains(&format!("impl Store for {store}"));
        assert_eq!(files.iter().filter(|it| defined(it)).count(), 1, "{store} has one file");
    }
    // What formats share, and the products, know none of them.
    for shared in ["coded/mod.rs", "coded/cuda.rs", "coded/kernel.cu"] {
        let text = fs::read_to_string(sources.join(shared)).unwrap();
        let code = text.lines().filter(|it| !it.trim_start().starts_with("//")).collect::<String>();
        for name in ["Quant::", "QuantType", "Nf4", "Fp4", "Int4"] {
            assert!(!code.contains(name), "{shared} tells formats apart by {name}");
        }
    }
}
