//! Does the checkpoint hold what the config promises? Answered from headers, before any weight is read.

use super::layout::Layout;
use super::needed::{Form, Needed};
use super::spec::LinearSpec;
use crate::checkpoint::Source;
use crate::user_bail;
use anyhow::Result;

/// Checks presence and shape of everything that the layout needs, linears dense or factorised.
pub(super) fn check(source: &Source, layout: &Layout) -> Result<()> {
    for needed in layout.needed(source) {
        match needed {
            Needed::Tensor(tensor) => {
                let shape: Vec<_> = tensor.shape.iter().copied().map(Some).collect();
                expect(source, &tensor.name, &shape)?;
            }
            Needed::Linear(spec) => check_linear(source, spec)?,
        }
    }
    Ok(())
}

fn check_linear(source: &Source, spec: &LinearSpec) -> Result<()> {
    match spec.form(source) {
        Form::Factors => {
            let [a, b] = spec.factor_names();
            let rank = expect(source, &a, &[None, Some(spec.input)])?[0];
            if rank == 0 {
                user_bail!("tensor `{a}` has no rows"; "a factor needs a rank of at least 1");
            }
            expect(source, &b, &[Some(spec.out), Some(rank)])?;
        }
        Form::Own => drop(expect(source, &spec.own_weight_name(), &[Some(spec.out), Some(spec.input)])?),
        Form::Matrix => {
            let whole = spec.weight_name();
            let alone = spec.fused().is_none().then_some(spec.out);
            if spec.transposed() {
                enough(expect(source, &whole, &[Some(spec.input), alone])?[1], spec, &whole, "columns")?;
            } else {
                enough(expect(source, &whole, &[alone, Some(spec.input)])?[0], spec, &whole, "rows")?;
            }
        }
    }
    if spec.bias {
        let bias = spec.bias_name(source);
        let own = bias == format!("{}.bias", spec.name);
        enough(expect(source, &bias, &[own.then_some(spec.out)])?[0], spec, &bias, "entries")?;
    }
    Ok(())
}

/// A matrix, or its bias, must reach as far as the last row of its part.
fn enough(total: usize, spec: &LinearSpec, name: &str, side: &str) -> Result<()> {
    let own = name == format!("{}.bias", spec.name);
    let needed = if own { spec.out } else { spec.row(spec.out - 1) + 1 };
    if total < needed {
        user_bail!(
            "tensor `{name}` has {total} {side}, config.json asks for at least {needed}";
            "config and weights do not belong together"
        );
    }
    Ok(())
}

/// The shape of `name`, which must hold numbers and have these sizes where they are given.
pub(super) fn expect<'s>(source: &'s Source, name: &str, sizes: &[Option<usize>]) -> Result<&'s [usize]> {
    let Some(info) = source.info(name) else {
        user_bail!("tensor `{name}` is missing"; "the checkpoint is incomplete, or config.json belongs to another model")
    };
    let fits = |(&found, wanted): (&usize, &Option<usize>)| wanted.is_none_or(|wanted| wanted == found);
    if info.shape.len() != sizes.len() || !info.shape.iter().zip(sizes).all(fits) {
        let wanted: Vec<String> = sizes.iter().map(|s| s.map_or("any".to_string(), |s| s.to_string())).collect();
        user_bail!(
            "tensor `{name}` has shape {:?}, config.json asks for ({})", info.shape, wanted.join(", ");
            "config and weights do not belong together"
        );
    }
    if !info.is_float() {
        user_bail!(
            "tensor `{name}` is stored as {}: the checkpoint is quantised", info.dtype;
            "use the checkpoint it was made from, with weights in BF16, F16 or F32"
        );
    }
    Ok(&info.shape)
}
