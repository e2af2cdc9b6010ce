//! Adapters of experts as PEFT wrote them with transformers 4, where every expert's matrix was a module: a low-rank update each. Side by
//! side, those of gate and up are one of the parameter that holds both, of twice the rank; that is how PEFT reads them today.

use crate::{Linear, Modules, files::WEIGHT, variants::StackPlace};
use halfbyte_tensor::Tensor;
use std::collections::BTreeMap;

/// A factor's name in files, without the module's.
const FACTORS: [&str; 2] = [".lora_A", ".lora_B"];

/// Gives the tensors of routers and of experts under `stack` the names and shapes of today.
pub(crate) fn into_stack(modules: &Modules<'_>, stack: &StackPlace<'_>, tensors: &mut BTreeMap<String, Tensor>) {
    let members = modules.linears.iter().filter(|it| it.member().is_some_and(|it| it.stack == stack.member.stack));
    let members: Vec<&Linear> = members.map(|it| &**it).collect();
    let name = |it: &Linear, factor: usize| format!("{}{}{WEIGHT}", it.path(), FACTORS[factor]);
    // All of them or none: what is missing is reported under today's name.
    let fits = |it: &&Linear| {
        let [a, b] = [0, 1].map(|factor| tensors.get(&name(it, factor)));
        let (Some(a), Some(b)) = (a, b) else { return None };
        let (out, inner) = it.dims();
        let is_matrix = |it: &Tensor| it.shape().len() == 2;
        (is_matrix(a) && is_matrix(b) && (a.cols(), b.rows()) == (inner, out) && a.rows() == b.cols()).then(|| a.rows())
    };
    let Some(rank) = members.first().and_then(fits) else { return };
    if !members.iter().all(|it| fits(it) == Some(rank)) {
        return;
    }
    let ((out, inner), experts) = (stack.dims(), stack.member.expert.1);
    let per = members.len() / experts;
    let wide = per * rank;
    let mut a = vec![0.0; experts * wide * inner];
    let mut b = vec![0.0; out * wide * experts];
    for it in members {
        let Some(member) = it.member() else { continue };
        let (e, first) = (member.expert.0, member.rows.0);
        let block = first / it.dims().0 * rank;
        let own = [0, 1].map(|factor| tensors.remove(&name(it, factor)));
        let [Some(own_a), Some(own_b)] = own else { continue };
        a[(e * wide + block) * inner..][..rank * inner].copy_from_slice(own_a.data());
        for (row, values) in own_b.data::<f32>().chunks(rank).enumerate() {
            for (r, value) in values.iter().enumerate() {
                b[(first + row) * wide * experts + (block + r) * experts + e] = *value;
            }
        }
    }
    let [name_a, name_b] = stack.names();
    tensors.insert(name_a, Tensor::from_vec(&[experts * wide, inner], a));
    tensors.insert(name_b, Tensor::from_vec(&[out, wide * experts], b));
}

/// The tensors of modules that files call otherwise than adapters do today.
pub(crate) fn rename(modules: &Modules<'_>, tensors: &mut BTreeMap<String, Tensor>) {
    for linear in modules.linears.iter().filter(|it| it.member().is_none() && it.module() != it.path()) {
        for factor in FACTORS {
            if let Some(it) = tensors.remove(&format!("{}{factor}{WEIGHT}", linear.path())) {
                tensors.insert(format!("{}{factor}{WEIGHT}", linear.module()), it);
            }
        }
    }
}
