//! Does the checkpoint hold what the config promises? Answered from headers, before any weight is read.

use super::layout::{DenseLayout, Layout, Readout};
use super::spec::{LinearSpec, Stored};
use crate::checkpoint::Source;
use crate::user_bail;
use anyhow::Result;

/// Checks presence and shape of the embedding, the head and every linear, dense or factorised.
pub(super) fn check(source: &Source, layout: &Layout) -> Result<()> {
    expect(source, &layout.embedding.tokens, &[Some(layout.vocab), Some(layout.hidden)])?;
    check_head(source, layout)?;
    if let Some(types) = &layout.embedding.types {
        expect(source, &types.name, &[Some(types.count), Some(layout.hidden)])?;
    }
    if let Some(positions) = &layout.embedding.positions {
        expect(source, &positions.name, &[Some(layout.context + positions.offset), Some(layout.hidden)])?;
    }
    for tensor in layout.blocks.iter().flat_map(|block| &block.tensors) {
        expect(source, &tensor.name, &tensor.shape.iter().copied().map(Some).collect::<Vec<_>>())?;
    }
    layout.linears.iter().try_for_each(|spec| check_linear(source, spec))
}

fn check_head(source: &Source, layout: &Layout) -> Result<()> {
    let hidden = Some(layout.hidden);
    let square = |dense: &DenseLayout| expect(source, &format!("{}.weight", dense.name), &[hidden, hidden]);
    match &layout.head {
        Readout::Next(head) | Readout::Masked(head) => {
            expect(source, &head.weight, &[Some(layout.vocab), hidden])?;
            head.dense.as_ref().map(square).transpose()?;
        }
        Readout::Classes(head) => {
            square(&head.pooler)?;
            expect(source, &format!("{}.weight", head.name), &[Some(head.classes), hidden])?;
        }
        Readout::States => {}
    }
    Ok(())
}

fn check_linear(source: &Source, spec: &LinearSpec) -> Result<()> {
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

/// The shape of `name`, which must have these sizes where they are given.
fn expect<'s>(source: &'s Source, name: &str, sizes: &[Option<usize>]) -> Result<&'s [usize]> {
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
    Ok(&info.shape)
}
