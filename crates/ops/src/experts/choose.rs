//! What a router does on the host: probabilities, the largest of them, and the way back.

use super::{Choice, Routes};
use rayon::prelude::*;

/// The softmax of every row.
pub(super) fn softmax(logits: &[f32], experts: usize) -> Vec<f32> {
    let mut all = logits.to_vec();
    all.par_chunks_mut(experts).for_each(|row| {
        let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        row.iter_mut().for_each(|it| *it = (*it - largest).exp());
        let sum: f32 = row.iter().sum();
        row.iter_mut().for_each(|it| *it /= sum);
    });
    all
}

/// The routes, and the weight of every row in their order.
pub(super) fn sorted(probabilities: &[f32], (tokens, experts): (usize, usize), choice: Choice) -> (Routes, Vec<f32>) {
    let each = choice.each;
    let mut chosen = vec![0u32; tokens * each];
    chosen.par_chunks_mut(each).zip(probabilities.par_chunks(experts)).for_each(|(chosen, row)| {
        let mut all: Vec<u32> = (0..experts as u32).collect();
        // Of two that are alike the first; a probability that is no number comes last.
        all.sort_by(|a, b| row[*b as usize].total_cmp(&row[*a as usize]).then(a.cmp(b)));
        chosen.copy_from_slice(&all[..each]);
        chosen.sort_unstable();
    });
    let routes = Routes::new(&chosen, (experts, each));
    let (mut weights, expert) = (vec![0.0; tokens * each], routes.expert_of());
    for (token, row) in probabilities.chunks(experts).enumerate() {
        let rows = routes.rows_of(token);
        let of = |it: &u32| row[expert[*it as usize] as usize];
        let sum = if choice.normalised { rows.iter().map(of).sum() } else { 1.0 };
        rows.iter().for_each(|it| weights[*it as usize] = of(it) / sum);
    }
    (routes, weights)
}

/// The gradient of the logits, from that of the weights in the order of the rows.
pub(super) fn backward(
    probabilities: &[f32],
    dw: &[f32],
    slope: Option<&[f32]>,
    (routes, choice): (&Routes, Choice),
) -> Vec<f32> {
    let experts = probabilities.len() / routes.tokens().max(1);
    let (mut dl, expert) = (vec![0.0f32; probabilities.len()], routes.expert_of());
    let rows = dl.par_chunks_mut(experts.max(1)).zip(probabilities.par_chunks(experts.max(1)));
    rows.enumerate().for_each(|(token, (dl, p))| {
        let own = routes.rows_of(token).iter().map(|it| (expert[*it as usize] as usize, dw[*it as usize]));
        if let Some(slope) = slope {
            let mean: f32 = slope.iter().zip(p).map(|(d, p)| d * p).sum();
            dl.iter_mut().zip(slope).zip(p).for_each(|((dl, d), p)| *dl = p * (d - mean));
        }
        let sum: f32 = if choice.normalised { own.clone().map(|(e, _)| p[e]).sum() } else { 1.0 };
        let mean: f32 = own.clone().map(|(e, dw)| dw * p[e] / sum).sum();
        if !choice.normalised {
            dl.iter_mut().zip(p).for_each(|(dl, p)| *dl -= p * mean);
        }
        own.for_each(|(e, dw)| dl[e] += p[e] / sum * if choice.normalised { dw - mean } else { dw });
    });
    dl
}
