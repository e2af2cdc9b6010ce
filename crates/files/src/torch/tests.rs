use crate::{Dtype, TensorFile};
use proptest::prelude::*;
use std::{fs, path::PathBuf};

/// Written by torch 2.15.
fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn refused(path: &std::path::Path) -> String {
    TensorFile::open(path).unwrap_err().to_string()
}

#[test]
fn a_table_of_tensors_is_read_from_its_places() {
    let file = TensorFile::open(&fixture("table.bin")).unwrap();
    let numbers = |name: &str| {
        let it = file.get(name).unwrap();
        let bytes = file.read(it).unwrap();
        (it.dtype, it.shape.clone(), bytes)
    };
    let f32s = |values: &[f32]| values.iter().flat_map(|it| it.to_le_bytes()).collect::<Vec<u8>>();
    assert_eq!(numbers("scalar"), (Dtype::F32, vec![], f32s(&[2.5])));
    assert_eq!(numbers("a.bias"), (Dtype::F32, vec![2], f32s(&[-0.011439145, 0.45777494])));
    assert_eq!(numbers("a.weight").1, [2, 3]);
    let longs = [1i64, -2, 300].iter().flat_map(|it| it.to_le_bytes()).collect();
    assert_eq!(numbers("n"), (Dtype::I64, vec![3], longs));
    assert_eq!(
        numbers("half"),
        (Dtype::F16, vec![2, 2], [0u16, 0x3c00, 0x4000, 0x4200].map(u16::to_le_bytes).concat())
    );
    assert_eq!(numbers("bf"), (Dtype::Bf16, vec![3], [0x4000u16, 0x4040, 0x4080].map(u16::to_le_bytes).concat()));
    assert_eq!(numbers("alias"), (Dtype::Bf16, vec![2], [0x4040u16, 0x4080].map(u16::to_le_bytes).concat()));
    assert_eq!(numbers("parameter").0, Dtype::F64);
    assert_eq!(numbers("flags"), (Dtype::Bool, vec![2], vec![1, 0]));
    assert_eq!(file.tensors().len(), 9);
}

#[test]
fn what_is_no_table_of_tensors_is_refused_with_what_helps() {
    for (name, parts) in [
        ("view.bin", ["t is stored as a view", "save_pretrained"]),
        ("nested.bin", ["\"optimizer\", which is no tensor", "save_pretrained"]),
        ("old.bin", ["before 1.6", "torch.load"]),
    ] {
        let said = refused(&fixture(name));
        assert!(parts.iter().all(|it| said.contains(it)), "{name}: {said}");
    }
}

/// The bytes of the table with those of its program changed, of which `change` must keep the number.
fn changed(change: impl FnOnce(&mut [u8])) -> String {
    let mut bytes = fs::read(fixture("table.bin")).unwrap();
    let at = bytes.windows(2).position(|it| it == [0x80, 2]).unwrap();
    change(&mut bytes[at..]);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pytorch_model.bin");
    fs::write(&path, bytes).unwrap();
    refused(&path)
}

fn put(program: &mut [u8], text: &[u8]) {
    program[..text.len()].copy_from_slice(text);
}

#[test]
fn nothing_is_run() {
    let said = changed(|it| put(it, b"\x80\x02cposix\nsystem\nX\x04\0\0\0true\x85R."));
    assert!(said.contains("posix.system") && said.contains("not run"), "{said}");
    let said = changed(|it| put(it, b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93."));
    assert!(said.contains("builtins.eval"), "{said}");
    // The instructions by which classes are made and modules are loaded.
    for code in [0x81u8, b'i', b'o', b'P', 0x82, 0x92] {
        let said = changed(|it| put(it, &[0x80, 2, code]));
        assert!(said.contains(&format!("0x{code:02x}")), "{said}");
    }
    let said = changed(|it| put(it, b"\x80\x02K\x01."));
    assert!(said.contains("something else than a table"), "{said}");
}

proptest! {
    /// Whatever is broken, it is an error or a table, and ends soon.
    #[test]
    fn damage_is_survived(at in 0usize..3569, value in any::<u8>(), cut in 0usize..8000) {
        let mut bytes = fs::read(fixture("table.bin")).unwrap();
        bytes[at] = value;
        bytes.truncate(cut.max(4));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.bin");
        fs::write(&path, bytes).unwrap();
        if let Ok(file) = TensorFile::open(&path) {
            for it in file.tensors().values() {
                prop_assert_eq!(file.read(it).unwrap().len(), it.bytes());
            }
        }
    }
}
