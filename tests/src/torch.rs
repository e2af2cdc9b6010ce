//! Writing tensors as `torch.save` does, byte by byte: a zip archive of stored parts, with the table of tensors as a pickle.

use std::{fs, path::Path};

/// A tensor of f32: name, shape, values.
pub type TorchTensor = (String, Vec<usize>, Vec<f32>);

/// Writes a table of tensors.
pub fn write_torch(path: &Path, tensors: &[TorchTensor]) {
    let storages = tensors.iter().enumerate().map(|(i, it)| {
        let bytes = it.2.iter().flat_map(|v| v.to_le_bytes()).collect();
        (format!("archive/data/{i}"), bytes)
    });
    let parts: Vec<(String, Vec<u8>)> =
        [("archive/data.pkl".to_owned(), pickle(tensors))].into_iter().chain(storages).collect();
    fs::write(path, zip(&parts)).expect("a new file");
}

fn pickle(tensors: &[TorchTensor]) -> Vec<u8> {
    let mut out = b"\x80\x02}(".to_vec();
    let text = |it: &str| [&b"X"[..], &(it.len() as u32).to_le_bytes(), it.as_bytes()].concat();
    let number = |it: usize| [&b"J"[..], &(it as u32).to_le_bytes()].concat();
    let tuple =
        |items: &[usize]| [b"(".to_vec(), items.iter().flat_map(|it| number(*it)).collect(), b"t".to_vec()].concat();
    for (i, (name, shape, values)) in tensors.iter().enumerate() {
        let strides: Vec<usize> = (0..shape.len()).map(|it| shape[it + 1..].iter().product()).collect();
        out.extend(text(name));
        out.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        out.extend([text("storage"), b"ctorch\nFloatStorage\n".to_vec(), text(&i.to_string()), text("cpu")].concat());
        out.extend([number(values.len()), b"tQK\0".to_vec(), tuple(shape), tuple(&strides)].concat());
        out.extend(b"\x89ccollections\nOrderedDict\n)RtR");
    }
    out.extend(b"u.");
    out
}

/// Checksums are left at 0: who reads by position does not look at them.
fn zip(parts: &[(String, Vec<u8>)]) -> Vec<u8> {
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for (name, bytes) in parts {
        let at = (out.len() as u32).to_le_bytes();
        let size = (bytes.len() as u32).to_le_bytes();
        let common = [&[0; 12][..], &size, &size, &(name.len() as u16).to_le_bytes(), &[0; 2]].concat();
        out.extend([&b"PK\x03\x04\0\0"[..], &common, name.as_bytes(), bytes].concat());
        directory.extend([&b"PK\x01\x02\0\0\0\0"[..], &common, &[0; 10], &at, name.as_bytes()].concat());
    }
    let (at, size) = ((out.len() as u32).to_le_bytes(), (directory.len() as u32).to_le_bytes());
    out.extend(directory);
    let count = (parts.len() as u16).to_le_bytes();
    out.extend([&b"PK\x05\x06\0\0\0\0"[..], &count, &count, &size, &at, &[0; 2]].concat());
    out
}
