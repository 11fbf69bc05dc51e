//! What a checkpoint's tensors add up to, from their headers.

use super::stored::stored_dtype;
use crate::checkpoint::Source;
use crate::model::{LinearSpec, Model};
use crate::recipe::Recipe;
use anyhow::Result;
use std::collections::BTreeSet;

/// Parameters and bytes of all tensors that are stored.
pub fn checkpoint_sizes(source: &Source) -> (u64, u64) {
    let infos = source.names().filter_map(|name| source.info(name));
    infos.fold((0, 0), |(params, bytes), info| (params + info.elements() as u64, bytes + info.bytes() as u64))
}

/// Parameters of the block linears, and the bytes they take in the type factors are stored in.
pub fn linear_storage(recipe: &Recipe, model: &Model) -> Result<(u64, u64)> {
    let mut sum = (0, 0);
    for spec in model.linears() {
        let params = spec.params() as u64;
        sum.0 += params;
        sum.1 += params * stored_dtype(model.source(), spec, recipe.dtype)?.bitsize() as u64 / 8;
    }
    Ok(sum)
}

/// Bytes of everything but the block linears' weights.
pub fn other_bytes(model: &Model) -> Result<u64> {
    let names: BTreeSet<String> = model.linears().iter().map(LinearSpec::weight_name).collect();
    let linears: u64 = names.iter().filter_map(|name| model.source().info(name)).map(|info| info.bytes() as u64).sum();
    Ok(checkpoint_sizes(model.source()).1 - linears)
}
