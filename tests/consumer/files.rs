//! A stranger's program: tensors into a file and back, and a file that was cut off.

use halfbyte_files::{Dtype, TensorFile, TensorSpec, TensorWriter, write_atomic};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::temp_dir().join(format!("halfbyte-consumer-{}.safetensors", std::process::id()));
    let mut writer = TensorWriter::create(&path, vec![TensorSpec::new("weight", Dtype::Bf16, &[2, 2])])?;
    writer.write("weight", &[1, 2, 3, 4])?;
    writer.write("weight", &[5, 6, 7, 8])?;
    writer.finish()?;

    let file = TensorFile::open(&path)?;
    let place = file.get("weight").ok_or("it was written")?;
    assert_eq!((&place.shape[..], place.dtype), (&[2, 2][..], Dtype::Bf16));
    assert_eq!(file.read(place)?, [1, 2, 3, 4, 5, 6, 7, 8]);

    let whole = std::fs::read(&path)?;
    write_atomic(&path, &whole[..whole.len() - 1])?;
    let refused = TensorFile::open(&path);
    std::fs::remove_file(&path)?;
    let message = refused.err().ok_or("a file that was cut off is no file")?.to_string();
    assert!(message.contains("weight") && message.contains("truncated"), "{message}");
    Ok(())
}
