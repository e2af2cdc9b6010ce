//! The optimizer on a GPU (or the CPU in the guise of one): paged equals unpaged bit for bit, and both the CPU's within rounding.

use std::sync::Arc;

use halfbyte_cuda::{Buffer, Gpu};
use halfbyte_paged_optim::{
    AdamW, AdamWConfig, Budget, CudaAdamW, CudaParamStep, ParamSpec, ParamStep, StateFormat, sums_of_squares,
};
use halfbyte_testkit::{
    cuda::{fresh_gpu, gpu},
    noise_vec,
};

const LENS: [usize; 5] = [1000, 64, 3000, 1, 777];

fn specs() -> Vec<ParamSpec> {
    let spec = |(i, len): (usize, &usize)| ParamSpec {
        name: format!("p{i}"),
        len: *len,
        decay: i != 1,
        state: StateFormat::F32,
    };
    LENS.iter().enumerate().map(spec).collect()
}

fn upload(gpu: &Arc<Gpu>, values: &[f32]) -> Buffer {
    let mut buffer = gpu.alloc(values.len() * 4).unwrap();
    buffer.upload(bytemuck::cast_slice(values)).unwrap();
    buffer
}

fn download(buffer: &Buffer) -> Vec<f32> {
    let mut values = vec![0.0f32; buffer.bytes() / 4];
    buffer.download(bytemuck::cast_slice_mut(&mut values)).unwrap();
    values
}

fn grads(step: usize) -> Vec<Vec<f32>> {
    LENS.iter().enumerate().map(|(i, len)| noise_vec(*len, (100 * step + i) as u64)).collect()
}

struct Run {
    values: Vec<Buffer>,
    adamw: CudaAdamW,
}

impl Run {
    fn new(gpu: &Arc<Gpu>, budget: (Option<usize>, usize)) -> Run {
        let values = LENS.iter().enumerate().map(|(i, len)| upload(gpu, &noise_vec(*len, i as u64))).collect();
        Run { values, adamw: CudaAdamW::new(gpu, AdamWConfig::default(), &specs(), budget).unwrap() }
    }

    fn steps(mut self, gpu: &Arc<Gpu>, range: std::ops::Range<usize>) -> Run {
        for n in range {
            let grads: Vec<Buffer> = grads(n).iter().map(|it| upload(gpu, it)).collect();
            let pairs = self.values.iter_mut().zip(&grads);
            let mut params: Vec<_> = pairs.map(|(value, grad)| CudaParamStep { value, grad }).collect();
            self.adamw.step(1e-2, 0.5, &mut params).unwrap();
        }
        self
    }

    fn bits(&self) -> Vec<u32> {
        self.values.iter().flat_map(download).map(f32::to_bits).collect()
    }
}

#[test]
fn paged_equals_unpaged_bit_for_bit_and_the_cpu_nearly() {
    let Some(gpu) = gpu() else { return };
    let whole = Run::new(&gpu, (None, 1 << 20)).steps(&gpu, 0..6);
    let state: usize = LENS.iter().sum::<usize>() * 8;
    for frames in [1, 2, 5, 15] {
        // What was never written is zeros, and nobody fetches those.
        let began = Run::new(&gpu, (Some(frames * 2048), 2048)).steps(&gpu, 0..1).adamw.stats();
        assert!(began.bytes_spilled > 0 && began.bytes_fetched == 0, "{began:?}");
        let paged = Run::new(&gpu, (Some(frames * 2048), 2048)).steps(&gpu, 0..6);
        assert_eq!(paged.bits(), whole.bits(), "{frames} frames");
        let stats = paged.adamw.stats();
        assert!(
            stats.bytes_spilled > 0 && stats.bytes_fetched > 0 && stats.resident_peak <= frames * 2048,
            "{stats:?}"
        );
        assert_eq!(stats.state_bytes, state);
    }
    assert_eq!(whole.adamw.stats().bytes_spilled, 0);
    assert_eq!((whole.adamw.steps(), whole.adamw.specs()), (6, &specs()[..]));

    let mut values: Vec<Vec<f32>> = LENS.iter().enumerate().map(|(i, len)| noise_vec(*len, i as u64)).collect();
    let mut adamw = AdamW::new(AdamWConfig::default(), &specs(), Budget::default()).unwrap();
    for n in 0..6 {
        let grads: Vec<Vec<f32>> = grads(n).into_iter().map(|it| it.iter().map(|g| g * 0.5).collect()).collect();
        let pairs = values.iter_mut().zip(&grads);
        let mut steps: Vec<_> = pairs.map(|(value, grad)| ParamStep { value, grad }).collect();
        adamw.step(1e-2, &mut steps).unwrap();
    }
    for (got, wanted) in whole.values.iter().flat_map(download).zip(values.iter().flatten()) {
        assert!((got - wanted).abs() < 1e-6, "{got} {wanted}");
    }
}

#[test]
fn a_state_that_came_in_half_is_not_stepped_until_it_came_in_whole() {
    let Some(gpu) = gpu() else { return };
    let mut run = Run::new(&gpu, (Some(4096), 2048));
    let refused = run.adamw.restore(1, &mut |place, _| match place.param {
        0 => Ok(()),
        _ => Err(std::io::Error::other("the file ends here")),
    });
    assert!(refused.unwrap_err().to_string().contains("the file ends here"));
    let (mut value, grad) = (upload(&gpu, &[1.0]), upload(&gpu, &[1.0]));
    let error = run.adamw.step(1e-2, 1.0, &mut [CudaParamStep { value: &mut value, grad: &grad }]).unwrap_err();
    assert!(matches!(error, halfbyte_paged_optim::Error::Broken { .. }), "{error}");
    run.adamw.restore(1, &mut |_, _| Ok(())).unwrap();
    assert_eq!(run.steps(&gpu, 0..1).adamw.steps(), 2);
}

#[test]
fn state_comes_out_and_goes_in_again() {
    let Some(gpu) = gpu() else { return };
    let straight = Run::new(&gpu, (Some(4096), 2048)).steps(&gpu, 0..5);
    let mut first = Run::new(&gpu, (Some(4096), 2048)).steps(&gpu, 0..3);
    let mut saved = Vec::new();
    first
        .adamw
        .visit_state(&mut |place, values| {
            saved.push((place.param, place.part, place.offset, values.to_vec()));
            Ok(())
        })
        .unwrap();
    assert_eq!(saved.iter().map(|it| it.3.len()).sum::<usize>(), 8 * LENS.iter().sum::<usize>());
    assert!(saved.iter().any(|it| it.3.iter().any(|v| *v != 0)));
    let mut second = Run::new(&gpu, (None, 2048));
    second.values = first.values;
    let mut next = saved.into_iter();
    second
        .adamw
        .restore(3, &mut |place, out| {
            let (param, part, offset, values) = next.next().unwrap();
            assert_eq!((place.param, place.part, place.offset, out.len()), (param, part, offset, values.len()));
            out.copy_from_slice(&values);
            Ok(())
        })
        .unwrap();
    assert_eq!(second.steps(&gpu, 3..5).bits(), straight.bits());
}

#[test]
fn sums_of_squares_are_those_of_f64() {
    let Some(gpu) = gpu() else { return };
    let grads = grads(1);
    let buffers: Vec<Buffer> = grads.iter().map(|it| upload(&gpu, it)).collect();
    let loss = upload(&gpu, &[-2.5]);
    let buffers: Vec<&Buffer> = buffers.iter().collect();
    let (sums, number) = sums_of_squares(&gpu, &buffers, Some(&loss)).unwrap();
    assert_eq!(number, Some(-2.5), "what lies beside them comes along");
    assert_eq!(sums_of_squares(&gpu, &buffers, None).unwrap(), (sums.clone(), None));
    for (sum, grad) in sums.iter().zip(&grads) {
        let wanted: f64 = grad.iter().map(|it| f64::from(*it).powi(2)).sum();
        assert!((sum / wanted - 1.0).abs() < 1e-12, "{sum} {wanted}");
    }
}

#[test]
fn a_gpu_without_memory_for_the_state_is_an_error() {
    let Some(gpu) = gpu() else { return };
    let spec = ParamSpec { name: "huge".into(), len: 1 << 36, decay: true, state: StateFormat::F32 };
    let error = CudaAdamW::new(&gpu, AdamWConfig::default(), &[spec], (None, 1 << 20)).unwrap_err().to_string();
    assert!(error.contains("out of memory"), "{error}");
}

#[test]
fn pages_that_are_there_are_one_launch() {
    let Some(gpu) = fresh_gpu() else { return };
    let mut run = Run::new(&gpu, (Some(15 * 2048), 2048)).steps(&gpu, 0..3);
    let grads: Vec<Buffer> = grads(3).iter().map(|it| upload(&gpu, it)).collect();
    let before = (gpu.counters(), run.adamw.stats());
    let pairs = run.values.iter_mut().zip(&grads);
    let mut params: Vec<_> = pairs.map(|(value, grad)| CudaParamStep { value, grad }).collect();
    run.adamw.step(1e-2, 0.5, &mut params).unwrap();
    let (asked, fetched) = (gpu.counters().since(&before.0), run.adamw.stats().bytes_fetched - before.1.bytes_fetched);
    // 19 pages, of which 15 have a frame: the others come one after the other, and what is between them goes together.
    let came = fetched.div_ceil(2048);
    assert!((4..=5).contains(&came) && asked.launches <= 2 * came + 1, "{} launches, {came} pages", asked.launches);
}

#[test]
fn a_step_over_all_parameters_is_one_launch_and_waits_for_nothing() {
    // Its own, since others would be counted, too.
    let Some(gpu) = fresh_gpu() else { return };
    let mut run = Run::new(&gpu, (None, 2048)).steps(&gpu, 0..1);
    let grads: Vec<Buffer> = grads(1).iter().map(|it| upload(&gpu, it)).collect();
    let before = gpu.counters();
    let (sums, _) = sums_of_squares(&gpu, &grads.iter().collect::<Vec<_>>(), None).unwrap();
    let asked = gpu.counters().since(&before);
    assert_eq!((sums.len(), asked.launches, asked.synchronisations), (LENS.len(), 1, 1));
    let before = gpu.counters();
    let pairs = run.values.iter_mut().zip(&grads);
    let mut params: Vec<_> = pairs.map(|(value, grad)| CudaParamStep { value, grad }).collect();
    run.adamw.step(1e-2, 0.5, &mut params).unwrap();
    let asked = gpu.counters().since(&before);
    assert_eq!((asked.launches, asked.uploads, asked.synchronisations), (1, 1, 0));
}
