//! State in 8 bits: against bitsandbytes' rule, paged against unpaged, interrupted against not, on a GPU against the CPU.

use std::{collections::HashMap, ops::Range};

use halfbyte_nf4::blockwise8::DynamicMap;
use halfbyte_paged_optim::{AdamW, AdamWConfig, Budget, Error, ParamSpec, ParamStep, StateFormat, StatePart};
use halfbyte_testkit::noise_vec;
use safetensors::SafeTensors;

const FIXTURE: &[u8] = include_bytes!("../fixtures/bnb_adamw8.safetensors");

fn bytes(name: &str) -> Vec<u8> {
    let file = SafeTensors::deserialize(FIXTURE).expect("fixture parses");
    file.tensor(name).expect("fixture holds the tensor").data().to_vec()
}

fn numbers(name: &str) -> Vec<f32> {
    bytes(name).chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

fn spec(name: &str, len: usize, state: StateFormat) -> ParamSpec {
    ParamSpec { name: name.into(), len, decay: true, state }
}

/// All state as it would lie in a file.
fn saved(adamw: &mut AdamW) -> Vec<(usize, StatePart, usize, Vec<u8>)> {
    let mut pieces = Vec::new();
    let visit = adamw.visit_state(&mut |place, bytes| {
        pieces.push((place.param, place.part, place.offset, bytes.to_vec()));
        Ok(())
    });
    visit.expect("visits");
    pieces
}

/// Longer than what a thread takes at a time.
#[test]
fn a_long_parameter_is_its_blocks_one_after_the_other() {
    let (len, block) = (40_000, 256);
    let grads = [noise_vec(len, 1), noise_vec(len, 2)];
    let trained = |specs: &[ParamSpec]| {
        let mut values = noise_vec(len, 3);
        let mut adamw = AdamW::new(AdamWConfig::default(), specs, Budget::default()).expect("valid");
        for grad in &grads {
            let parts = values.chunks_mut(specs[0].len).zip(grad.chunks(specs[0].len));
            let mut steps: Vec<_> = parts.map(|(value, grad)| ParamStep { value, grad }).collect();
            adamw.step(1e-2, &mut steps).expect("steps");
        }
        values
    };
    let whole = trained(&[spec("p", len, StateFormat::Blockwise8)]);
    let block_of = |at: usize| spec(&format!("p{at}"), block.min(len - at), StateFormat::Blockwise8);
    let blocks: Vec<_> = (0..len).step_by(block).map(block_of).collect();
    assert!(whole == trained(&blocks));
    assert!(whole.iter().zip(noise_vec(len, 3)).all(|(now, before)| *now != before), "each of them moved");
}

/// Whoever writes a file makes room for parts by these numbers.
#[test]
fn parts_have_the_lengths_and_the_widths_that_they_say() {
    for state in [StateFormat::F32, StateFormat::Blockwise8] {
        let specs = [spec("a", 1000, state), spec("b", 256, state), spec("c", 3, state)];
        let budget = Budget { resident_bytes: None, page_bytes: 1040, ..Budget::default() };
        let all = saved(&mut AdamW::new(AdamWConfig::default(), &specs, budget).expect("valid"));
        for (i, spec) in specs.iter().enumerate() {
            for part in StatePart::of(state) {
                let bytes: usize = all.iter().filter(|it| (it.0, it.1) == (i, *part)).map(|it| it.3.len()).sum();
                assert_eq!(bytes, part.len(spec.len) * part.element_bytes(state), "{part} of {}", spec.name);
            }
        }
    }
    assert_eq!((StatePart::First.len(257), StatePart::FirstAbsmax.len(257)), (257, 2));
}

/// Three steps, with a block of zero gradients in the second, where a first moment of zero becomes code 255.
#[test]
fn three_steps_are_those_of_bitsandbytes() {
    let config = AdamWConfig { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1 };
    let mut p = numbers("p0");
    let specs = [spec("p", p.len(), StateFormat::Blockwise8)];
    let mut adamw = AdamW::new(config, &specs, Budget::default()).expect("valid");
    for g in ["g0", "g1", "g2"] {
        adamw.step(1e-2, &mut [ParamStep { value: &mut p, grad: &numbers(g) }]).expect("steps");
    }
    let state: HashMap<StatePart, Vec<u8>> = saved(&mut adamw).into_iter().map(|it| (it.1, it.3)).collect();
    for (part, name) in [(StatePart::First, "state1"), (StatePart::Second, "state2")] {
        assert_eq!(state[&part], bytes(&format!("bnb_adamw8_gpu.{name}")), "{name}");
    }
    let near = |got: &[f32], name: &str| {
        for (i, (got, want)) in got.iter().zip(numbers(name)).enumerate() {
            assert!((got - want).abs() <= 2.0 * f32::EPSILON * want.abs(), "{name}[{i}]: {got} {want}");
        }
    };
    near(&p, "bnb_adamw8_gpu.p");
    for (part, name) in [(StatePart::FirstAbsmax, "absmax1"), (StatePart::SecondAbsmax, "absmax2")] {
        near(bytemuck::cast_slice(&state[&part]), &format!("bnb_adamw8_gpu.{name}"));
    }
}

/// A step from zero with `beta1` of a half, so that the first moments are half the gradients exactly: every middle between two
/// values of the map (whose largest is 1), moments too small for it, its own values, and a block of zeros. With their codes.
fn ties_and_signs() -> (AdamWConfig, Vec<f32>, Vec<u8>) {
    let map = DynamicMap::Signed.values();
    let mut grads: Vec<f32> = map.windows(2).map(|pair| pair[0] + pair[1]).collect();
    let mut codes: Vec<u8> = (0..255u8).map(|i| i + i % 2).collect();
    grads.push(2.0);
    codes.push(255);
    // Zero is 127; a negative moment that would become zero takes 126.
    grads.extend([2.0, 1e-9, -1e-9, 0.0]);
    codes.extend([255, 127, 126, 127]);
    grads.extend((4..256).map(|i| 2.0 * map[i]));
    codes.extend(4..=255u8);
    // Nothing divided by nothing takes code 0, whose value is negative; its neighbour below is 255.
    grads.resize(700, 0.0);
    codes.resize(700, 255);
    (AdamWConfig { beta1: 0.5, ..AdamWConfig::default() }, grads, codes)
}

#[test]
fn ties_go_to_the_even_code_and_no_moment_changes_its_sign() {
    let (config, grad, codes) = ties_and_signs();
    let specs = [spec("p", grad.len(), StateFormat::Blockwise8)];
    let mut adamw = AdamW::new(config, &specs, Budget::default()).expect("valid");
    adamw.step(0.1, &mut [ParamStep { value: &mut vec![1.0; grad.len()], grad: &grad }]).expect("steps");
    let pieces = saved(&mut adamw);
    assert_eq!(pieces[0].3, codes);
    assert_eq!(bytemuck::cast_slice::<u8, f32>(&pieces[2].3), [1.0, 1.0, 0.0]);
}

const LENS: [usize; 5] = [1000, 64, 5000, 1, 777];

/// Both formats, and lengths that are no multiple of a block.
fn specs() -> Vec<ParamSpec> {
    let state = |i: usize| if i == 1 || i == 3 { StateFormat::F32 } else { StateFormat::Blockwise8 };
    LENS.iter().enumerate().map(|(i, len)| spec(&format!("p{i}"), *len, state(i))).collect()
}

fn values() -> Vec<Vec<f32>> {
    LENS.iter().enumerate().map(|(i, len)| noise_vec(*len, i as u64)).collect()
}

fn grads(step: usize) -> Vec<Vec<f32>> {
    LENS.iter().enumerate().map(|(i, len)| noise_vec(*len, (100 * step + i) as u64 + 7)).collect()
}

fn paged(pages: usize) -> Budget {
    Budget { resident_bytes: Some(pages * 1600), page_bytes: 1600, ..Budget::default() }
}

fn steps(adamw: &mut AdamW, values: &mut [Vec<f32>], range: Range<usize>) {
    for n in range {
        let grads = grads(n);
        let pairs = values.iter_mut().zip(&grads);
        let mut steps: Vec<_> = pairs.map(|(value, grad)| ParamStep { value, grad }).collect();
        adamw.step(1e-2, &mut steps).expect("steps");
    }
}

fn bits(values: &[Vec<f32>]) -> Vec<u32> {
    values.iter().flatten().map(|it| it.to_bits()).collect()
}

#[test]
fn paging_and_interruption_do_not_change_a_bit() {
    let mut straight = values();
    let mut adamw = AdamW::new(AdamWConfig::default(), &specs(), Budget::default()).expect("valid");
    steps(&mut adamw, &mut straight, 0..6);
    // 4 + 20 + 4 blocks of 520 bytes, and 65 elements of 8.
    assert_eq!((adamw.stats().state_bytes, adamw.stats().bytes_spilled), (28 * 520 + 65 * 8, 0));
    for pages in [1, 2, 5] {
        let mut interrupted = values();
        let mut first = AdamW::new(AdamWConfig::default(), &specs(), paged(pages)).expect("valid");
        steps(&mut first, &mut interrupted, 0..4);
        assert!(first.stats().bytes_spilled > 0 && first.stats().resident_peak <= pages * 1600);
        let mut file = HashMap::new();
        for (param, part, _, bytes) in saved(&mut first) {
            file.entry((param, part)).or_insert_with(Vec::new).extend(bytes);
        }
        assert_eq!(file[&(2, StatePart::Second)].len(), 5000);
        assert_eq!(file[&(2, StatePart::SecondAbsmax)].len(), 4 * 20);
        let mut second = AdamW::new(AdamWConfig::default(), &specs(), paged(3)).expect("valid");
        let specs = specs();
        let restore = second.restore(4, &mut |place, bytes| {
            let at = place.offset * place.part.element_bytes(specs[place.param].state);
            bytes.copy_from_slice(&file[&(place.param, place.part)][at..at + bytes.len()]);
            Ok(())
        });
        restore.expect("restores");
        steps(&mut second, &mut interrupted, 4..6);
        assert_eq!(bits(&interrupted), bits(&straight), "{pages} pages");
    }
}

#[test]
fn what_does_not_suit_8_bits_is_refused() {
    let small = Budget { page_bytes: 512, ..Budget::default() };
    let error = AdamW::new(AdamWConfig::default(), &specs(), small).expect_err("too small").to_string();
    assert!(error.contains("page_bytes is 512") && error.contains("520"), "{error}");
    let mut adamw = AdamW::new(AdamWConfig::default(), &specs(), Budget::default()).expect("valid");
    assert!(matches!(adamw.export(), Err(Error::NotF32 { name }) if name == "p0"));
}

/// As in the kernel of bitsandbytes.
#[test]
fn a_gradient_that_is_no_number_touches_its_element_alone() {
    let mut adamw =
        AdamW::new(AdamWConfig::default(), &[spec("p", 3, StateFormat::Blockwise8)], Budget::default()).expect("valid");
    let mut value = [1.0f32; 3];
    for grad in [[0.5, f32::NAN, 0.5], [0.5, f32::INFINITY, 0.5]] {
        adamw.step(0.1, &mut [ParamStep { value: &mut value, grad: &grad }]).expect("steps");
    }
    assert!(value[1] == 1.0 && value[0] < 1.0 && value[2] == value[0], "{value:?}");
}

#[cfg(target_os = "linux")]
mod cuda {
    use std::sync::Arc;

    use halfbyte_cuda::{Buffer, Gpu};
    use halfbyte_paged_optim::{CudaAdamW, CudaParamStep};
    use halfbyte_testkit::cuda::gpu;

    use super::*;

    fn upload(gpu: &Arc<Gpu>, values: &[f32]) -> Buffer {
        let mut buffer = gpu.alloc(values.len() * 4).unwrap();
        buffer.upload(bytemuck::cast_slice(values)).unwrap();
        buffer
    }

    fn on_gpu(gpu: &Arc<Gpu>, budget: (Option<usize>, usize), range: Range<usize>) -> (Vec<Vec<f32>>, CudaAdamW) {
        let mut values: Vec<Buffer> = values().iter().map(|it| upload(gpu, it)).collect();
        let mut adamw = CudaAdamW::new(gpu, AdamWConfig::default(), &specs(), budget).unwrap();
        for n in range {
            let grads: Vec<Buffer> = grads(n).iter().map(|it| upload(gpu, it)).collect();
            let pairs = values.iter_mut().zip(&grads);
            let mut params: Vec<_> = pairs.map(|(value, grad)| CudaParamStep { value, grad }).collect();
            adamw.step(1e-2, 1.0, &mut params).unwrap();
        }
        let download = |buffer: &Buffer| {
            let mut values = vec![0.0f32; buffer.bytes() / 4];
            buffer.download(bytemuck::cast_slice_mut(&mut values)).unwrap();
            values
        };
        (values.iter().map(download).collect(), adamw)
    }

    fn state(adamw: &mut CudaAdamW) -> HashMap<(usize, StatePart), Vec<u8>> {
        let mut all = HashMap::new();
        let visit = adamw.visit_state(&mut |place, bytes| {
            all.entry((place.param, place.part)).or_insert_with(Vec::new).extend_from_slice(bytes);
            Ok(())
        });
        visit.expect("visits");
        all
    }

    #[test]
    fn the_same_ties_and_signs() {
        let Some(gpu) = gpu() else { return };
        let (config, grad, codes) = ties_and_signs();
        let specs = [spec("p", grad.len(), StateFormat::Blockwise8)];
        let mut adamw = CudaAdamW::new(&gpu, config, &specs, (None, 1 << 20)).unwrap();
        let (mut value, grad) = (upload(&gpu, &vec![1.0; grad.len()]), upload(&gpu, &grad));
        adamw.step(0.1, 1.0, &mut [CudaParamStep { value: &mut value, grad: &grad }]).unwrap();
        assert_eq!(state(&mut adamw)[&(0, StatePart::First)], codes);
    }

    /// A device may fuse multiplications and additions, and a moment between two codes then takes the other one: rarely, and what
    /// it moves is a small part of a step.
    #[test]
    fn a_gpu_does_the_same() {
        let Some(gpu) = gpu() else { return };
        let mut there = values();
        let mut adamw = AdamW::new(AdamWConfig::default(), &specs(), Budget::default()).expect("valid");
        steps(&mut adamw, &mut there, 0..6);
        let (here, mut whole) = on_gpu(&gpu, (None, 1 << 20), 0..6);
        let differences = here.iter().flatten().zip(there.iter().flatten()).map(|(a, b)| (a - b).abs());
        let (mut many, mut most) = (0, 0.0f32);
        for difference in differences {
            many += usize::from(difference > 1e-6);
            most = most.max(difference);
        }
        assert!(many <= LENS.iter().sum::<usize>() / 100 && most <= 1e-3, "{many} differ, by {most} at most");
        let (paged, mut cut) = on_gpu(&gpu, (Some(3200), 1600), 0..6);
        assert_eq!(bits(&paged), bits(&here));
        assert!(cut.stats().bytes_spilled > 0 && cut.stats().resident_peak <= 3200, "{:?}", cut.stats());
        assert_eq!(state(&mut whole), state(&mut cut));
    }
}
