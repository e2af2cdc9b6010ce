//! `inspect --longest-row`: how many tokens a row may have on a card, by rehearsals.

use super::{Card, Rehearsal, rehearsal::Stage};
use crate::console::{mib, thousands};
use halfbyte_train::StepConfig;
use serde::Serialize;

/// One way to train, and the longest row that it has room for.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Longest {
    pub(crate) activations: &'static str,
    /// To one part in 64.
    pub(crate) tokens: usize,
    /// What the plan holds then.
    pub(crate) planned_bytes: usize,
    /// Host memory beside it.
    pub(crate) page_locked: usize,
}

/// Of a card's memory this much is taken to be free.
const FREE: (u64, u64) = (95, 100);

impl Longest {
    /// Of rows that are alone in a batch, of at most `limit` tokens; of each way to keep activations, that with the most memory first.
    pub(crate) fn of(rehearsal: &Rehearsal<'_>, card: Card, limit: usize) -> anyhow::Result<Vec<Longest>> {
        let ways = [
            ("kept", false, false),
            ("recomputed", true, false),
            ("recomputed from inputs in host memory", true, true),
        ];
        let one = |(activations, checkpointing, offloading)| {
            let step = StepConfig { checkpointing, offloading, keeps_cheap: false, ..rehearsal.step };
            let rehearsal = Rehearsal { step, ..rehearsal.clone() };
            search(&rehearsal, card, limit).map(|(tokens, planned_bytes, page_locked)| Longest {
                activations,
                tokens,
                planned_bytes,
                page_locked,
            })
        };
        ways.into_iter().map(one).collect()
    }

    /// Lines for people.
    pub(crate) fn lines(all: &[Longest], card: Card, limit: usize) -> Vec<String> {
        let mut lines =
            vec![format!("longest row on {}, of whose memory {} % are taken to be free:", card.name, FREE.0)];
        for it in all {
            let at_limit = if it.tokens == limit { ", all that the model has positions for" } else { "" };
            let beside = match it.page_locked {
                0 => String::new(),
                bytes => format!(" and {} page-locked", mib(bytes)),
            };
            let (tokens, planned) = (thousands(it.tokens), mib(it.planned_bytes));
            lines.push(format!(
                "  {:<38} {tokens:>10} tokens{at_limit}, planned {planned}{beside}",
                format!("activations {}", it.activations)
            ));
        }
        lines
    }
}

/// The most tokens that fit, with what is planned for them; zero where nothing fits.
fn search(rehearsal: &Rehearsal<'_>, card: Card, limit: usize) -> anyhow::Result<(usize, usize, usize)> {
    let plan = |tokens: usize| {
        let gpu = card.dry();
        let room = gpu.info().memory_bytes / FREE.1 * FREE.0;
        let plan = Rehearsal { lengths: vec![tokens], ..rehearsal.clone() }.plan(&Stage::Card(gpu))?;
        let fits = plan.total() as u64 <= room;
        Ok::<_, anyhow::Error>(fits.then_some((tokens, plan.total(), plan.page_locked)))
    };
    let (mut found, mut most) = ((0, 0, 0), 512.min(limit));
    while let Some(it) = plan(most)? {
        found = it;
        if most == limit {
            return Ok(found);
        }
        most = (2 * most).min(limit);
    }
    while most - found.0 > (most / 64).max(1) {
        let middle = usize::midpoint(found.0, most);
        match plan(middle)? {
            Some(it) => found = it,
            None => most = middle,
        }
    }
    Ok(found)
}
