//! Comparison of a compressed checkpoint with its base, tensor by tensor.

use super::super::needed::{Needed, Single};
use super::super::spec::LinearSpec;
use super::{Described, Verification};
use std::collections::{BTreeMap, BTreeSet};

/// Adds a problem for everything of the base that the output lacks or has in another shape, and for every tensor of the
/// output that the base does not explain.
pub(super) fn compare(output: &Described, base: &Described, found: &mut Verification) {
    if output.layout.family != base.layout.family {
        let (own, other) = (output.layout.family, base.layout.family);
        found.problems.push(format!("The checkpoint is of the family {own}, the base of {other}."));
        return;
    }
    compare_linears(output, base, found);
    compare_singles(output, base, found);
    compare_unused(output, base, found);
}

fn compare_linears(output: &Described, base: &Described, found: &mut Verification) {
    let of = |described: &Described| -> BTreeMap<String, LinearSpec> {
        described.layout.linears.iter().map(|spec| (spec.name.clone(), spec.clone())).collect()
    };
    let (own, other) = (of(output), of(base));
    for (name, base) in &other {
        match own.get(name) {
            None => found.problems.push(format!("{name} is missing.")),
            Some(own) => {
                let (shape, wanted) = ((own.out, own.input), (base.out, base.input));
                if shape != wanted && !(output.is_softlm() && own.is_within(base)) {
                    found.problems.push(format!("{name} has shape {shape:?}, but {wanted:?} in the base."));
                }
            }
        }
    }
    let new = own.keys().filter(|name| !other.contains_key(*name));
    found.problems.extend(new.map(|name| format!("{name} has no counterpart in the base.")));
}

fn compare_singles(output: &Described, base: &Described, found: &mut Verification) {
    let of = |described: &Described| -> BTreeMap<String, Single> {
        let needed = described.layout.needed(&described.source).into_iter();
        let singles = needed.filter_map(|needed| match needed {
            Needed::Tensor(tensor) => Some((tensor.name.clone(), tensor)),
            Needed::Linear(_) => None,
        });
        singles.collect()
    };
    let (own, other) = (of(output), of(base));
    for (name, base) in &other {
        match own.get(name) {
            None => found.problems.push(format!("{name} is missing.")),
            Some(own) if own.shape != base.shape => {
                found.problems.push(format!("{name} has shape {:?}, but {:?} in the base.", own.shape, base.shape));
            }
            Some(_) => {}
        }
    }
    let new = own.keys().filter(|name| !other.contains_key(*name));
    found.problems.extend(new.map(|name| format!("{name} has no counterpart in the base.")));
}

/// What nothing reads is copied, and nothing else is added. That some of it is gone is no harm to the model.
fn compare_unused(output: &Described, base: &Described, found: &mut Verification) {
    let (own, other) = (&output.source, &base.source);
    let unused: BTreeSet<&str> = output.layout.unused(own).into_iter().collect();
    let mut gone = Vec::new();
    for name in base.layout.unused(other) {
        match (own.info(name), other.info(name)) {
            (Some(have), Some(wanted)) if unused.contains(name) => {
                if have.shape != wanted.shape {
                    let (have, wanted) = (&have.shape, &wanted.shape);
                    found.problems.push(format!("{name} has shape {have:?}, but {wanted:?} in the base."));
                } else if have.dtype != wanted.dtype && !(have.is_float() && wanted.is_float()) {
                    let (have, wanted) = (have.dtype, wanted.dtype);
                    found.problems.push(format!("{name} has dtype {have}, but {wanted} in the base."));
                }
            }
            (None, Some(_)) => gone.push(name),
            _ => {}
        }
    }
    if let Some(first) = gone.first() {
        let count = gone.len();
        found.notes.push(format!("of the base's tensors that nothing reads, {count} are not there, {first} for one"));
    }
    // A tied matrix may be stored under both its names.
    let tied = output.layout.token_head().and_then(|head| head.weight.tied.as_deref());
    for name in unused.into_iter().filter(|name| !other.is_stored(name) && Some(*name) != tied) {
        found.problems.push(format!("{name} has no counterpart in the base."));
    }
}
