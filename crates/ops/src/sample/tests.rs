use super::{Draw, Sampling, sample};
use halfbyte_tensor::{DType, Device, Tensor, philox};
use halfbyte_testkit::{
    cuda::{fresh_gpu, gpu},
    noise_in,
};

const GREEDY: Sampling = Sampling { temperature: 0.0, top_k: 0, top_p: 1.0, repetition_penalty: 1.0 };
const PLAIN: Sampling = Sampling { temperature: 1.0, ..GREEDY };

fn ids(logits: &Tensor, vocab: usize, how: &Sampling, draws: &[Draw]) -> Option<Vec<u32>> {
    sample(logits.clone(), vocab, how, draws).unwrap().map(|it| {
        assert_eq!(it.there.to_device(&Device::Cpu).unwrap().data::<u32>(), it.ids);
        it.ids
    })
}

fn one(logits: &[f32], how: &Sampling, draw: Draw) -> u32 {
    ids(&Tensor::from_vec(&[1, logits.len()], logits.to_vec()), logits.len(), how, &[draw]).unwrap()[0]
}

fn drawn(seed: u64, at: u64) -> Draw {
    Draw { bits: philox::quad(seed, 0, at)[0], seen: Vec::new() }
}

/// Logits of which four tokens have these probabilities.
fn logits(probabilities: [f32; 4]) -> [f32; 4] {
    probabilities.map(f32::ln)
}

/// How often each of four tokens is chosen in many draws.
fn counts(logits: [f32; 4], how: &Sampling) -> [usize; 4] {
    let mut counts = [0; 4];
    (0..4000).for_each(|at| counts[one(&logits, how, drawn(7, at)) as usize] += 1);
    counts
}

#[test]
fn zero_temperature_takes_the_largest_logit_and_the_first_of_equals() {
    assert_eq!(one(&[0.1, 2.0, 2.0, -1.0], &GREEDY, Draw::default()), 1);
    assert_eq!(one(&[-1.0, -0.0, 0.0], &GREEDY, Draw::default()), 1);
}

#[test]
fn frequencies_follow_the_probabilities() {
    let counts = counts(logits([0.4, 0.3, 0.2, 0.1]), &PLAIN);
    // Five standard deviations of a binomial of 4000 draws are below 160.
    for (count, expected) in counts.iter().zip([1600usize, 1200, 800, 400]) {
        assert!(count.abs_diff(expected) < 160, "{counts:?}");
    }
}

#[test]
fn the_ends_of_the_distribution_are_drawn_by_the_ends_of_the_bits() {
    let four = logits([0.2, 0.4, 0.1, 0.3]);
    let of = |bits: u32| one(&four, &PLAIN, Draw { bits, seen: Vec::new() });
    // By falling probability: token 1 up to 0.4, token 3 up to 0.7, token 0 up to 0.9.
    let at = |part: f64| (part * 16_777_216.0) as u32 * 256;
    assert_eq!([0.0, 0.399, 0.401, 0.699, 0.701, 0.899, 0.901].map(|it| of(at(it))), [1, 1, 3, 3, 0, 0, 2]);
    assert_eq!(of(u32::MAX), 2);
}

#[test]
fn top_k_and_top_p_leave_the_tail_out() {
    let four = logits([0.4, 0.3, 0.2, 0.1]);
    assert_eq!(counts(four, &Sampling { top_k: 2, ..PLAIN })[2..], [0, 0]);
    let nucleus = counts(four, &Sampling { top_p: 0.65, ..PLAIN });
    assert!(nucleus[0] > 0 && nucleus[1] > 0 && nucleus[2..] == [0, 0], "{nucleus:?}");
    assert_eq!(counts(four, &Sampling { top_p: 0.0, ..PLAIN })[1..], [0, 0, 0], "one always stays");
    let both = counts(four, &Sampling { top_k: 3, top_p: 0.7, ..PLAIN });
    assert!(both[1] > 0 && both[2] == 0, "{both:?}: of the three 0.78 are in the first two");
}

#[test]
fn the_penalty_lowers_what_was_seen_whatever_its_sign() {
    let how = Sampling { repetition_penalty: 2.0, ..GREEDY };
    let seen = || Draw { bits: 0, seen: vec![0] };
    assert_eq!(one(&[3.0, 2.0, -9.0, -9.0], &how, seen()), 1);
    assert_eq!(one(&[-3.0, -4.0, -9.0, -9.0], &how, seen()), 1);
}

#[test]
fn what_holds_no_numbers_gives_no_token() {
    for (device, wrong) in
        devices().into_iter().flat_map(|it| [f32::NAN, f32::INFINITY].map(|wrong| (it.clone(), wrong)))
    {
        for at in [0, 5, 6] {
            let mut values = vec![0.5f32; 14];
            values[7 + at] = wrong;
            let logits = Tensor::from_vec(&[2, 7], values).to_device(&device).unwrap();
            // The last column is beyond the vocabulary.
            assert_eq!(ids(&logits, 6, &GREEDY, &[drawn(1, 1), drawn(1, 2)]), None, "{wrong} at {at}");
            assert_eq!(ids(&logits, 6, &PLAIN, &[drawn(1, 1), drawn(1, 2)]), None);
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let refused = |logits: Tensor, vocab, draws: &[Draw]| sample(logits, vocab, &PLAIN, draws).unwrap_err().to_string();
    let two = || Tensor::from_vec(&[2, 3], vec![0.0f32; 6]);
    assert!(refused(two(), 3, &[drawn(1, 1)]).contains("(rows, vocab)"));
    assert!(refused(two(), 4, &vec![drawn(1, 1); 2]).contains("4 tokens"));
    assert!(refused(two().to_dtype(DType::Bf16), 3, &vec![drawn(1, 1); 2]).contains("f32 logits"));
    let seen = Draw { bits: 0, seen: vec![3] };
    assert!(refused(two(), 3, &[drawn(1, 1), seen]).contains("token id 3"));
}

fn devices() -> Vec<Device> {
    [Some(Device::Cpu), gpu().map(Device::Cuda)].into_iter().flatten().collect()
}

/// Logits of any spread, with ties, over more columns than tokens and more tokens than threads.
#[test]
fn a_gpu_chooses_what_the_cpu_does() {
    let Some(gpu) = fresh_gpu() else { return };
    let device = Device::Cuda(gpu.clone());
    let settings = [
        GREEDY,
        PLAIN,
        Sampling { temperature: 0.3, top_p: 0.9, ..PLAIN },
        Sampling { temperature: 2.5, top_k: 17, ..PLAIN },
        Sampling { temperature: 1e-3, ..PLAIN },
        Sampling { temperature: 1e-40, top_p: 0.5, ..PLAIN },
        Sampling { temperature: 50.0, top_k: 1000, top_p: 0.95, repetition_penalty: 1.3 },
        Sampling { top_k: 1, ..PLAIN },
        Sampling { top_p: 0.0, ..PLAIN },
        Sampling { repetition_penalty: 0.7, ..GREEDY },
    ];
    for (case, how) in settings.iter().enumerate() {
        for (vocab, cols, spread) in [(1, 1, 1.0), (7, 8, 4.0), (700, 700, 0.0), (1500, 1504, 9.0), (5000, 5003, 30.0)]
        {
            for round in 0..4u64 {
                let seed = 1000 * case as u64 + round;
                let rows = 3;
                let mut logits = noise_in(&[rows, cols], DType::F32, seed, -1.0, 1.0);
                logits.data_mut::<f32>().iter_mut().for_each(|it| {
                    // Every other time on a grid, so that many are equal.
                    *it = if round % 2 == 0 { *it * spread } else { (*it * spread).round() };
                });
                let draws: Vec<Draw> = (0..rows as u64)
                    .map(|row| Draw { seen: (0..vocab as u32).step_by(3 + row as usize).collect(), ..drawn(seed, row) })
                    .collect();
                let expected = ids(&logits, vocab, how, &draws);
                let before = gpu.counters();
                let got = ids(&logits.to_device(&device).unwrap(), vocab, how, &draws);
                assert_eq!(got, expected, "{how:?}, {vocab} tokens, spread {spread}, seed {seed}");
                // The ids, and once more where this test looks at them.
                assert_eq!(gpu.counters().since(&before).downloaded, 2 * 4 * rows as u64);
            }
        }
    }
}

#[test]
fn the_most_and_the_least_probable_are_found_at_the_ends() {
    for device in devices() {
        let logits = Tensor::from_vec(&[1, 900], (0..900).map(|it| -0.01 * it as f32).collect::<Vec<f32>>());
        let logits = logits.to_device(&device).unwrap();
        let of = |bits: u32| ids(&logits, 900, &PLAIN, &[Draw { bits, seen: Vec::new() }]).unwrap()[0];
        assert_eq!((of(0), of(u32::MAX)), (0, 899));
    }
}
