use super::{Part, Skipped, Stored, parts, stored_format};
use crate::{Format, Quant};
use halfbyte_files::{Dtype, Reading, ShardedFiles, ShardedWriter, TensorSpec};
use halfbyte_ops::WeightFormat;
use halfbyte_tensor::{Device, Tensor};

const PATH: &str = "model.layers.0.mlp.up_proj";
const DIMS: (usize, usize) = (6, 64);

fn weight() -> Tensor {
    let wave = |i: usize| (i as f32 * 0.37).sin() * (1.0 + (i % 7) as f32);
    Tensor::from_vec(&[DIMS.0, DIMS.1], (0..DIMS.0 * DIMS.1).map(wave).collect())
}

fn formats() -> Vec<Format> {
    let four = |quant, block_size, double_quant| Format { quant, block_size, double_quant };
    vec![
        four(Quant::Nf4, 64, true),
        four(Quant::Nf4, 128, false),
        four(Quant::Fp4, 64, false),
        Format { quant: Quant::Int8, ..Format::DENSE },
    ]
}

/// A folder of these tensors and one that is dense.
fn folder(parts: &[Part]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let norm = Part { spec: TensorSpec::new("model.norm.weight", Dtype::F32, &[1]), bytes: vec![0; 4] };
    let all: Vec<&Part> = parts.iter().chain([&norm]).collect();
    let mut writer = ShardedWriter::create(dir.path(), all.iter().map(|it| it.spec.clone()).collect(), u64::MAX);
    all.iter().for_each(|it| writer.write(&it.spec.name, &it.bytes).unwrap());
    writer.finish().unwrap();
    dir
}

fn values(matrix: &dyn crate::FrozenMatrix) -> Vec<f32> {
    let source = matrix.source();
    let mut out = vec![0.0; DIMS.0 * DIMS.1];
    out.chunks_mut(DIMS.1).enumerate().for_each(|(i, row)| source.read_f32(i, 0, row));
    out
}

#[test]
fn what_is_written_is_taken_over_bit_for_bit() {
    for format in formats() {
        let dir = folder(&parts(PATH, &weight(), format).unwrap());
        let files = ShardedFiles::open(dir.path()).unwrap();
        let found = stored_format(&files).unwrap().unwrap();
        assert_eq!(found.quant, format.quant);
        let reading = Reading::new(&files);
        let all = Stored { format: found, skipped: Skipped::default() };
        let stored = all.stored(PATH, DIMS, &reading, &Device::Cpu).unwrap().expect("it is quantised");
        assert_eq!(values(stored.as_ref()), values(format.freeze(weight()).unwrap().as_ref()), "{format:?}");
        assert_eq!(reading.unused(), ["model.norm.weight"], "all its parts were asked for");
        assert!(all.stored("model.norm", (1, 1), &reading, &Device::Cpu).unwrap().is_none(), "dense");
    }
}

#[test]
fn what_is_dense_on_purpose_stays_dense_and_the_rest_is_quantised() {
    let skipped = Skipped::of(&serde_json::json!({ "llm_int8_skip_modules": ["lm_head", PATH] }));
    let stored = Stored { format: Format::QLORA, skipped };
    let freeze = |path: &str| WeightFormat::freeze(&stored, path, weight()).unwrap();
    assert_eq!(values(freeze(PATH).as_ref()), weight().to_f32_vec());
    let other = freeze("model.layers.1.mlp.up_proj");
    assert_eq!(values(other.as_ref()), values(Format::QLORA.freeze(weight()).unwrap().as_ref()));
}

#[test]
fn a_part_that_is_missing_or_of_another_size_is_named() {
    for format in formats() {
        let all = parts(PATH, &weight(), format).unwrap();
        for at in 0..all.len() {
            let (spec, name) = (&all[at].spec, all[at].spec.name.clone());
            let judge = |changed: &[Part], name: &str| {
                let dir = folder(changed);
                let files = ShardedFiles::open(dir.path()).unwrap();
                let stored = Stored { format, skipped: Skipped::default() };
                let found = stored.stored(PATH, DIMS, &Reading::new(&files), &Device::Cpu);
                match found {
                    Err(e) => assert!(!e.to_string().is_empty()),
                    Ok(None) => assert!(name.contains("bitsandbytes__") || name.ends_with(".SCB"), "{name}"),
                    // Files of old versions lack it.
                    Ok(Some(_)) => assert!(name.ends_with(".weight_format"), "{name} is missed by nobody"),
                }
            };
            let mut without = all.clone();
            without.remove(at);
            judge(&without, &name);
            if spec.shape.is_empty() {
                continue;
            }
            let mut longer = all.clone();
            let size = longer[at].spec.dtype.size();
            longer[at].spec.shape = vec![longer[at].bytes.len() / size + 1];
            longer[at].bytes.extend(vec![1; size]);
            judge(&longer, "");
        }
    }
}

#[test]
fn a_format_that_checkpoints_do_not_know_is_refused() {
    let format = Format { quant: Quant::Int4, ..Format::QLORA };
    assert!(parts(PATH, &weight(), format).unwrap_err().to_string().contains("Int4"));
}
