//! Against what bitsandbytes stored, bit for bit. `_gpu` tensors follow the CUDA rule (read from its machine code, with
//! an IEEE reciprocal) and exist where the CPU's result differs; the CUDA rule is the one this crate promises.

mod fixture;

use fixture::Fixture;
use half::{bf16, f16};
use halfbyte_nf4::blockwise8::{self, DynamicMap};
use halfbyte_nf4::{Blocks4, Element, QuantType, Scales, quantize_rows8, quantize4};

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|v| if v.is_nan() { f32::NAN.to_bits() } else { v.to_bits() }).collect()
}

fn rounded<T: Element>(x: &[T]) -> Vec<u32> {
    bits(&x.iter().map(|v| v.to_f32()).collect::<Vec<_>>())
}

#[test]
fn code_tables() {
    let maps = Fixture::open("maps");
    assert_eq!(bits(QuantType::Nf4.code()), bits(&maps.f32("nf4")));
    assert_eq!(bits(QuantType::Fp4.code()), bits(&maps.f32("fp4")));
    assert_eq!(bits(DynamicMap::Signed.values()), bits(&maps.f32("dynamic_signed")));
    assert_eq!(bits(DynamicMap::Unsigned.values()), bits(&maps.f32("dynamic_unsigned")));
}

#[test]
fn four_bits() {
    assert_eq!(four_bit_file("q4"), 34);
}

#[test]
fn four_bits_at_the_edges() {
    assert_eq!(four_bit_file("q4_edge"), 28);
}

/// The number of cases that were compared.
fn four_bit_file(name: &str) -> usize {
    let file = Fixture::open(name);
    let cases = file.cases();
    for case in &cases {
        match case["dtype"].as_str().unwrap() {
            "float32" => four_bit_case::<f32>(&file, case),
            "float16" => four_bit_case::<f16>(&file, case),
            "bfloat16" => four_bit_case::<bf16>(&file, case),
            other => panic!("{other}"),
        }
    }
    cases.len()
}

fn four_bit_case<T: Element>(file: &Fixture, case: &serde_json::Value) {
    let name = case["name"].as_str().unwrap();
    let tensor = |suffix: &str| format!("{name}.{suffix}");
    let quant_type = QuantType::from_name(case["quant_type"].as_str().unwrap()).unwrap();
    let block_size = case["blocksize"].as_u64().unwrap() as usize;
    let double = case["double_quant"].as_bool().unwrap();
    let input: Vec<T> = file.f32(&tensor("input")).into_iter().map(T::from_f32).collect();

    let plain = quantize4(&input, quant_type, block_size, false).unwrap();
    let same = case["gpu_equals_cpu"].as_bool().unwrap();
    let packed_cpu = file.u8(&tensor("packed_cpu"));
    let packed = if same { packed_cpu.clone() } else { file.u8(&tensor("packed_gpu")) };
    let absmax = match (same, double) {
        (false, _) => file.f32(&tensor("absmax_gpu")),
        (true, true) => file.f32(&tensor("absmax_raw")),
        (true, false) => file.f32(&tensor("absmax_cpu")),
    };
    assert_eq!(plain.packed, packed, "{name}");
    assert_eq!(bits(&plain.absmax()), bits(&absmax), "{name}");

    // The stored dequantised values belong to what the CPU stored.
    let scales = if double {
        let raw = file.f32(&tensor("absmax_raw"));
        let offset = file.f32(&tensor("offset"))[0];
        double_quantised(file, name, &raw, offset)
    } else {
        Scales::Plain(file.f32(&tensor("absmax_cpu")))
    };
    let stored = Blocks4::from_parts(quant_type, block_size, input.len(), packed_cpu, scales).unwrap();
    if file.has(&tensor("dequant")) {
        let mut decoded = vec![T::default(); input.len()];
        stored.dequantize(&mut decoded);
        assert_eq!(rounded(&decoded), bits(&file.f32(&tensor("dequant"))), "{name}");
    }
}

/// Compares double quantisation by the CUDA rule and returns what the CPU stored.
fn double_quantised(file: &Fixture, name: &str, raw: &[f32], offset: f32) -> Scales {
    let tensor = |suffix: &str| format!("{name}.{suffix}");
    let nested = file.f32(&tensor("nested_absmax"));
    let Scales::Double { codes, nested_absmax, .. } = Scales::double_around(raw, offset) else { unreachable!() };
    assert_eq!(codes, file.u8(&tensor("absmax_u8_gpu")), "{name}");
    assert_eq!(bits(&nested_absmax), bits(&nested), "{name}");
    let Scales::Double { offset: ours, .. } = Scales::double(raw) else { unreachable!() };
    assert!(ours.to_bits().abs_diff(offset.to_bits()) <= 2, "{name}: offset {ours:e}, expected about {offset:e}");

    let stored = Scales::Double { codes: file.u8(&tensor("absmax_u8_cpu")), nested_absmax: nested, offset };
    assert_eq!(bits(&stored.to_f32()), bits(&file.f32(&tensor("absmax_dequant_cpu"))), "{name}");
    stored
}

#[test]
fn eight_bits_by_the_dynamic_map() {
    let file = Fixture::open("q8");
    for case in file.cases() {
        let name = case["name"].as_str().unwrap();
        let map = if case["signed"].as_bool().unwrap() { DynamicMap::Signed } else { DynamicMap::Unsigned };
        let input = file.f32(&format!("{name}.input"));
        let blocks = blockwise8::quantize(&input, map, case["blocksize"].as_u64().unwrap() as usize).unwrap();
        assert_eq!(blocks.codes, file.u8(&format!("{name}.q_gpu")), "{name}");
        assert_eq!(bits(&blocks.absmax), bits(&file.f32(&format!("{name}.absmax"))), "{name}");
    }
}

#[test]
fn eight_bits_by_rows() {
    let file = Fixture::open("int8");
    let compare = |name: &str, weight: &str, rows: usize, cols: usize| {
        let weight = file.f32(&format!("{name}.{weight}"));
        let ours = quantize_rows8(&weight, rows, cols).unwrap();
        let codes: Vec<u8> = ours.codes.iter().map(|&c| c as u8).collect();
        assert_eq!(codes, file.u8(&format!("{name}.CB")), "{name}");
        assert_eq!(bits(&ours.absmax), bits(&file.f32(&format!("{name}.SCB"))), "{name}");
        let mut decoded = vec![0.0f32; rows * cols];
        ours.dequantize(&mut decoded);
        if file.has(&format!("{name}.dequant_f32")) {
            assert_eq!(bits(&decoded), bits(&file.f32(&format!("{name}.dequant_f32"))), "{name}");
        }
    };
    for dtype in ["float32", "float16", "bfloat16"] {
        compare(&format!("int8w_{dtype}"), "weight", 6, 40);
    }
    compare("llmint8_thr0", "W", 12, 32);
}

#[test]
fn half_of_a_rows_absmax_rounds_as_in_bitsandbytes() {
    // Its scale is the reciprocal of the absmax times 127, which here is an ulp below 127 divided by it; so
    // 0.71484375 becomes 63.499996 and not 63.500004. Found in a real model's weights.
    let rows = quantize_rows8(&[0.714_843_75f32, 1.429_687_5], 1, 2).unwrap();
    assert_eq!(rows.codes, [63, 127]);
}
