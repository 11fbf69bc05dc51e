//! Comparison of a compressed checkpoint with its base, tensor by tensor.

use super::convert;
use super::section::Section;
use super::source::Source;
use super::verify::{Channels, WEIGHT, channels, fused_of, is_buffer, linear_of, shape_of};

/// Names under which families store the one matrix that serves as embedding and as head when they are tied.
const TIED: &[&str] = &[
    "model.embed_tokens.weight",
    "transformer.wte.weight",
    "wte.weight",
    "model.decoder.embed_tokens.weight",
    "decoder.embed_tokens.weight",
    "lm_head.weight",
    "gpt_neox.embed_in.weight",
    "embed_out.weight",
    "bert.embeddings.word_embeddings.weight",
    "embeddings.word_embeddings.weight",
    "cls.predictions.decoder.weight",
    "distilbert.embeddings.word_embeddings.weight",
    "vocab_projector.weight",
    "backbone.embeddings.weight",
];

/// Adds a problem for every tensor of the base that the output lacks or has in another shape, and for every tensor of
/// the output that the base does not explain.
pub(super) fn compare(output: &Source, base: &Source, problems: &mut Vec<String>) {
    for name in base.names() {
        if let Some(problem) = check_present(output, base, name) {
            problems.push(problem);
        }
    }
    for name in output.names() {
        if !is_explained(output, base, name) {
            problems.push(format!("{name} has no counterpart in the base."));
        }
    }
}

fn check_present(output: &Source, base: &Source, name: &str) -> Option<String> {
    let expected = base.info(name)?;
    if let Some(linear) = name.strip_suffix(WEIGHT)
        && let (Some(shape), true) = (shape_of(output, linear), expected.shape.len() == 2)
    {
        return check_linear(output, base, linear, shape);
    }
    match output.info(name) {
        Some(found) => {
            let (have, want) = (found.dtype, expected.dtype);
            if have != want && (convert::float_size(want).is_none() || convert::float_size(have).is_none()) {
                return Some(format!("{name} has dtype {have}, but {want} in the base."));
            }
            let narrower = || {
                let linear = name.strip_suffix(".bias")?;
                let width = shape_of(output, linear)?.0;
                (channels(base, linear) == Channels::Out && found.shape == [width] && is_softlm(output)).then_some(())
            };
            (found.shape != expected.shape && narrower().is_none())
                .then(|| format!("{name} has shape {:?}, but {:?} in the base.", found.shape, expected.shape))
        }
        None if is_buffer(name) => None,
        None => match tied_partner(output, base, name) {
            Some(_) => None,
            None => Some(format!("{name} is missing: it is neither stored dense nor as factors.")),
        },
    }
}

/// A linear has the base's shape, or fewer channels if it belongs to a feed-forward layer of a compressed model.
fn check_linear(output: &Source, base: &Source, linear: &str, (out, input): (usize, usize)) -> Option<String> {
    let (base_out, base_input) = shape_of(base, linear)?;
    let fewer = |have: usize, want: usize| (1..want).contains(&have) && is_softlm(output);
    let fits = match channels(base, linear) {
        Channels::Out => input == base_input && (out == base_out || fewer(out, base_out)),
        Channels::In => out == base_out && (input == base_input || fewer(input, base_input)),
        Channels::Neither => (out, input) == (base_out, base_input),
    };
    (!fits).then(|| format!("{linear} has shape ({out}, {input}), but ({base_out}, {base_input}) in the base."))
}

fn is_softlm(output: &Source) -> bool {
    Section::of(output.config()).is_some()
}

/// Where the output stores a matrix that the base stores under another of the tied names.
fn tied_partner(output: &Source, base: &Source, name: &str) -> Option<&'static str> {
    if !TIED.contains(&name) {
        return None;
    }
    // Without the key, families differ in what they assume; a base that stores one matrix for both can only be tied.
    let tied = output.config().get("tie_word_embeddings").and_then(|tied| tied.as_bool());
    if !tied.unwrap_or(TIED.iter().filter(|name| base.is_stored(name)).count() == 1) {
        return None;
    }
    let shape = &base.info(name)?.shape;
    TIED.iter()
        .copied()
        .find(|other| output.is_stored(other) && output.info(other).is_some_and(|info| &info.shape == shape))
}

/// Whether a tensor of the output stands for one of the base.
fn is_explained(output: &Source, base: &Source, name: &str) -> bool {
    let in_base = |linear: &str| base.info(&format!("{linear}{WEIGHT}")).is_some();
    let linear = linear_of(name);
    base.info(name).is_some()
        || linear.is_some_and(|linear| in_base(linear) || fused_of(linear).is_some_and(in_base))
        || is_new_bias(output, base, name)
        || (TIED.contains(&name) && TIED.iter().any(|other| tied_partner(output, base, other) == Some(name)))
}

/// Whether a linear has the bias that its family does without, or a part of a fused matrix its own: learned methods store
/// such ones.
fn is_new_bias(output: &Source, base: &Source, name: &str) -> bool {
    let Some(linear) = name.strip_suffix(".bias") else { return false };
    let known = |linear: &str| base.info(&format!("{linear}{WEIGHT}")).is_some();
    let width = shape_of(output, linear).map(|(out, _)| out);
    let found = output.info(name).map(|info| info.shape.as_slice());
    let fits = width.is_some() && found == width.as_slice().get(0..1);
    is_softlm(output) && fits && (known(linear) || fused_of(linear).is_some_and(known))
}
