//! `trainable_token_indices`: some rows of a table that were trained, and take the place of the base's.

use crate::{Modules, files::WEIGHT};
use halfbyte_autograd::Result as OpResult;
use halfbyte_tensor::{DType, Device, Tensor};
use std::collections::BTreeMap;

/// How the name of such rows goes on after their table's.
const ROWS: &str = ".token_adapter.trainable_tokens_delta";

/// Puts whole tables into the place of the rows among a file's `tensors`. `listed` are the rows of each table by its name; none is
/// the embedding. Gives whether there were any; fails, saying why, where rows and tables do not go together.
pub(crate) fn into_tables(
    modules: &Modules<'_>,
    listed: &[(Option<String>, Vec<usize>)],
    tensors: &mut BTreeMap<String, Tensor>,
) -> Result<bool, String> {
    let keys: Vec<String> = tensors.keys().filter(|it| it.ends_with(ROWS)).cloned().collect();
    if keys.len() < listed.len() {
        return Err(format!("lacks the rows of trainable_token_indices ({ROWS})"));
    }
    for key in &keys {
        let path = &key[..key.len() - ROWS.len()];
        let means = |name: &Option<String>| {
            name.as_ref()
                .is_none_or(|it| path.strip_suffix(it.as_str()).is_some_and(|it| it.is_empty() || it.ends_with('.')))
        };
        let indices = listed.iter().find(|it| means(&it.0)).map(|it| &it.1);
        let indices = indices.ok_or(format!("holds {key}, which trainable_token_indices does not name"))?;
        let table = table(modules, path).ok_or(format!("holds {key}, but this model has no table {path}"))?;
        let table = table.map_err(|e| e.to_string())?;
        let (Some(rows), cols) = (tensors.remove(key), table.cols()) else { continue };
        if rows.shape() != [indices.len(), cols] || indices.iter().any(|it| *it >= table.rows()) {
            return Err(format!(
                "{key} of shape {:?} does not fit the {} indices of trainable_token_indices and a table of shape {:?}",
                rows.shape(),
                indices.len(),
                table.shape()
            ));
        }
        let mut values = table.to_f32_vec();
        for (row, at) in rows.data::<f32>().chunks(cols).zip(indices) {
            values[at * cols..][..cols].copy_from_slice(row);
        }
        tensors.insert(format!("{path}{WEIGHT}"), Tensor::from_vec(table.shape(), values));
    }
    Ok(!keys.is_empty())
}

/// The base's table of a module, in f32 in host memory.
fn table(modules: &Modules<'_>, path: &str) -> Option<OpResult<Tensor>> {
    if let Some(weight) = modules.weights.iter().find(|it| it.module() == path && it.role().is_table()) {
        return Some(weight.value().to_device(&Device::Cpu).map(|it| it.to_dtype(DType::F32)).map_err(Into::into));
    }
    modules.linears.iter().find(|it| it.path() == path).map(|it| it.dense(None))
}
