//! Does the checkpoint hold what the config promises? Answered from headers, before any weight is read.

use super::layout::{DenseLayout, Layout, NormKind, NormSpec, Readout};
use super::spec::{LinearSpec, Stored};
use crate::checkpoint::Source;
use crate::user_bail;
use anyhow::Result;

/// Checks presence, shape and type of everything that the model reads.
pub(super) fn check(source: &Source, layout: &Layout) -> Result<()> {
    expect(source, &layout.embedding.tokens, &[Some(layout.vocab), Some(layout.hidden)])?;
    check_head(source, layout)?;
    if let Some(types) = &layout.embedding.types {
        expect(source, &types.name, &[Some(types.count), Some(layout.hidden)])?;
    }
    if let Some(positions) = &layout.embedding.positions {
        expect(source, &positions.name, &[Some(layout.context.saturating_add(positions.offset)), Some(layout.hidden)])?;
    }
    let norms = layout.blocks.iter().flat_map(|block| &block.norms).chain(&layout.embedding.norm);
    norms
        .chain(layout.token_head().and_then(|head| head.norm.as_ref()))
        .try_for_each(|norm| check_norm(source, norm))?;
    for tensor in layout.blocks.iter().flat_map(|block| &block.tensors) {
        expect(source, &tensor.name, &tensor.shape.iter().copied().map(Some).collect::<Vec<_>>())?;
    }
    layout.linears.iter().try_for_each(|spec| check_linear(source, spec))
}

fn check_head(source: &Source, layout: &Layout) -> Result<()> {
    let hidden = Some(layout.hidden);
    let square = |dense: &DenseLayout| -> Result<()> {
        expect(source, &format!("{}.weight", dense.name), &[hidden, hidden])?;
        expect(source, &format!("{}.bias", dense.name), &[hidden]).map(|_| ())
    };
    match &layout.head {
        Readout::Next(head) | Readout::Masked(head) => {
            expect(source, &head.weight, &[Some(layout.vocab), hidden])?;
            head.dense.as_ref().map(square).transpose()?;
            head.bias.as_ref().map(|bias| expect(source, bias, &[Some(layout.vocab)])).transpose()?;
        }
        Readout::Classes(head) => {
            square(&head.pooler)?;
            expect(source, &format!("{}.weight", head.name), &[Some(head.classes), hidden])?;
            expect(source, &format!("{}.bias", head.name), &[Some(head.classes)])?;
        }
        Readout::States => {}
    }
    Ok(())
}

fn check_norm(source: &Source, norm: &NormSpec) -> Result<()> {
    let [weight, bias] = norm.parts(source);
    let width = [Some(norm.width)];
    expect(source, &weight, &width)?;
    if matches!(norm.kind, NormKind::Layer(_)) {
        expect(source, &bias, &width)?;
    }
    Ok(())
}

/// The bias of a linear is its own, or a slice of the one that its matrix has.
fn check_bias(source: &Source, spec: &LinearSpec) -> Result<()> {
    let own = format!("{}.bias", spec.name);
    if !spec.bias {
        return Ok(());
    }
    let Some(matrix) = spec.fused().filter(|_| source.info(&own).is_none()) else {
        return expect(source, &own, &[Some(spec.out)]).map(|_| ());
    };
    let (whole, needed) = (format!("{matrix}.bias"), spec.row(spec.out - 1) + 1);
    let found = expect(source, &whole, &[None])?[0];
    if found < needed {
        user_bail!(
            "tensor `{whole}` has {found} entries, config.json asks for at least {needed}";
            "config and weights do not belong together"
        );
    }
    Ok(())
}

fn check_linear(source: &Source, spec: &LinearSpec) -> Result<()> {
    check_weight(source, spec)?;
    check_bias(source, spec)
}

fn check_weight(source: &Source, spec: &LinearSpec) -> Result<()> {
    let part = |part: &str| format!("{}.{part}.weight", spec.name);
    let (a, b) = (part("factor_a"), part("factor_b"));
    if source.info(&a).is_some() || source.info(&b).is_some() {
        let rank = expect(source, &a, &[None, Some(spec.input)])?[0];
        if rank == 0 {
            user_bail!("tensor `{a}` has no rows"; "a factor needs a rank of at least 1");
        }
        expect(source, &b, &[Some(spec.out), Some(rank)])?;
        return Ok(());
    }
    let own = format!("{}.weight", spec.name);
    match &spec.stored {
        Stored::Part { transposed, .. } if spec.fused().is_none() || source.info(&own).is_none() => {
            let whole = spec.weight_name();
            let alone = spec.fused().is_none().then_some(spec.out);
            let needed = spec.row(spec.out - 1) + 1;
            let (total, side) = if *transposed {
                (expect(source, &whole, &[Some(spec.input), alone])?[1], "columns")
            } else {
                (expect(source, &whole, &[alone, Some(spec.input)])?[0], "rows")
            };
            if total < needed {
                user_bail!(
                    "tensor `{whole}` has {total} {side}, config.json asks for at least {needed}";
                    "config and weights do not belong together"
                );
            }
        }
        _ => {
            expect(source, &own, &[Some(spec.out), Some(spec.input)])?;
        }
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
