//! Mixtures of experts: the rows that go to each, and the sums that come back.

use super::*;
use crate::experts::{Choice, from_experts, route, to_experts, weigh};

#[test]
fn experts_get_their_rows_and_tokens_their_sums() {
    let choice = Choice { each: 3, normalised: true };
    for (dtype, channels) in FLOATS.into_iter().flat_map(|it| [(it, 5), (it, 264)]) {
        let logits = noise(&[11, 7], DType::F32, 2).to_dtype(dtype);
        compare("experts", &[noise(&[11, channels], dtype, 1), logits], |tape, p| {
            let (routes, weights) = route(tape, &p[1], choice, None)?;
            let xs = to_experts(tape, &p[0], &routes)?;
            let one = |((e, x), w): ((usize, &Var), &Var)| weigh(tape, &scale(tape, x, e as f32 + 0.5)?, w);
            let ys: Vec<Var> = routes.busy().zip(&xs).zip(&weights).map(one).collect::<Result<_>>()?;
            from_experts(tape, &ys, &routes, &[])
        });
    }
}
