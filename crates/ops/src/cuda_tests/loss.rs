//! The loss and the logits.

use super::*;

#[test]
fn the_loss_and_the_logits() {
    for dtype in FLOATS {
        // The sums over a long vocabulary differ by their order, in f32 by more than what is asked of the rest.
        let long = [(2, 16500, 8), (3, 16501, 8)].into_iter().filter(|_| dtype != DType::F32);
        for (rows, vocab, channels) in [(1, 2, 1), (13, 300, 20), (40, 33, 64)].into_iter().chain(long) {
            let target = |i: u32| if i % 5 == 3 { IGNORE } else { i * 7 % vocab as u32 };
            let targets = Targets::new((0..rows as u32).map(target).collect());
            let [h, w] = [noise(&[rows, channels], dtype, 1), noise(&[vocab, channels], DType::F32, 2)];
            let shapings = [Shaping::default(), Shaping { factor: 0.4, cap: Some(1.5) }];
            for shaping in shapings {
                compare("cross_entropy", &[h.clone(), w.clone()], |tape, p| {
                    cross_entropy(tape, &p[0], Head::trainable(&p[1]).shaped(shaping), &targets, 3.0)
                });
            }
            let bias = noise(&[vocab], DType::F32, 3);
            compare("cross_entropy with a bias", &[h.clone(), w.clone(), bias.clone()], |tape, p| {
                cross_entropy(tape, &p[0], Head::trainable(&p[1]).biased(Some(&p[2])), &targets, 3.0)
            });
            let Some(gpu) = gpu() else { return };
            let there = |t: &Tensor| Var::constant(t.to_device(&Device::Cuda(gpu.clone())).unwrap());
            let (w, on_gpu) = (Var::constant(w.clone()), there(&w));
            let got_h = there(&h).value().clone();
            for shaping in shapings {
                let got = logits(there(&h).value(), Head::trainable(&on_gpu).shaped(shaping)).unwrap();
                let expected = logits(&h, Head::trainable(&w).shaped(shaping)).unwrap();
                near("logits", &got, &expected, 4.0 * tolerance(dtype));
            }
            let (bias, there) = (Var::constant(bias.clone()), there(&bias));
            let got = logits(&got_h, Head::trainable(&on_gpu).biased(Some(&there))).unwrap();
            let expected = logits(&h, Head::trainable(&w).biased(Some(&bias))).unwrap();
            near("logits with a bias", &got, &expected, 4.0 * tolerance(dtype));
        }
    }
}

/// A head that does not train, on either device.
fn picked(h: &Tensor, (there, here): (&'static Stored, &'static Plain)) -> &'static dyn FrozenMatrix {
    if on_gpu(h) { there } else { here }
}

/// More logits than are held at a time: those of 16 rows, and of two more.
#[test]
fn a_loss_of_more_logits_than_are_held() {
    let Some(device) = gpu().map(Device::Cuda) else { return };
    let (rows, vocab, channels) = (22, 1 << 20, 2);
    let target = |i: u32| if i % 5 == 3 { IGNORE } else { i * 47_701 };
    let targets = Targets::new((0..rows as u32).map(target).collect());
    let (there, here) = weights(vocab, channels, &device).remove(0);
    let here = Plain::leaked(here);
    compare("a long loss", &[noise(&[rows, channels], DType::Bf16, 1)], |tape, p| {
        cross_entropy(tape, &p[0], Head::frozen(picked(p[0].value(), (there, here))), &targets, 3.0)
    });
}

/// f16 holds no gradient that is divided by as many targets as a large batch has, before it is scaled.
#[test]
fn gradients_of_a_large_batch_are_not_lost() {
    for dtype in FLOATS {
        let targets = Targets::new((0..13).map(|it| it * 7 % 300).collect());
        let (many, params) = (1048576.0, [noise(&[13, 20], dtype, 1), noise(&[300, 20], DType::F32, 2)]);
        compare("a large batch", &params, |tape, p| {
            let loss = cross_entropy(tape, &p[0], Head::trainable(&p[1]), &targets, many)?;
            scale(tape, &loss, many)
        });
    }
}

/// As in generation: few rows, and logits that are never rounded to the dtype of what they are made of.
#[test]
fn logits_of_a_frozen_head_are_of_f32() {
    let Some(device) = gpu().map(Device::Cuda) else { return };
    for (dtype, rows) in FLOATS.into_iter().flat_map(|it| [(it, 1), (it, 20)]) {
        for (there, here) in weights(65, 40, &device) {
            let (h, here) = (noise(&[rows, 40], dtype, 1), Plain::leaked(here));
            let of = |h: &Tensor| logits(h, Head::frozen(picked(h, (there, here)))).unwrap();
            near("logits", &of(&h.to_device(&device).unwrap()), &of(&h), 4.0 * tolerance(dtype));
        }
    }
}
