//! One file per family: its tensor names and how its `config.json` maps onto a [`Layout`] over the shared block shapes.

mod bert;
mod gated;
mod gemma;
mod gpt2;
mod gpt_neox;
mod keys;
mod llama;
mod mamba;
mod mistral;
mod mixtral;
mod multimodal;
mod opt;
mod phi3;
mod qwen;

pub(super) use keys::unknown_keys;
pub(super) use multimodal::{TextModel, is_known, text_model};

use super::config::Config;
use super::layout::{HeadWeight, Layout};
use super::tensors::Tensors;
use crate::checkpoint::Source;
use crate::user_bail;
use anyhow::Result;
use std::borrow::Cow;

/// Key of whether the head is the embedding.
const TIED: &str = "tie_word_embeddings";

/// What is known of a family: its names in checkpoints and configs, and who describes its models.
pub(super) struct Family {
    /// `model_type` of its configs.
    pub model_type: &'static str,
    /// In front of every tensor but those of the head, in a checkpoint of the class with a head.
    pub prefix: &'static str,
    /// The embedding, behind that prefix.
    pub embedding: &'static str,
    /// What the layers are numbered behind, behind that prefix.
    pub layers: &'static str,
    /// The head's matrix.
    pub head: &'static str,
    /// Keys that the configuration class knows under a second name, and that name.
    pub synonyms: &'static [(&'static str, &'static str)],
    /// Every other key of the configuration class, whether softlm reads it or inference does without.
    pub keys: &'static [&'static [&'static str]],
    /// Sizes that the configuration class assumes. A config of its own gives them; one inside that of a multimodal model
    /// leaves out what is as usual.
    pub sizes: &'static [(&'static str, u64)],
    pub describe: fn(&mut Tensors, &Config) -> Result<Layout>,
}

const FAMILIES: [&Family; 17] = [
    &llama::LLAMA,
    &gpt2::GPT2,
    &mistral::MISTRAL,
    &qwen::QWEN2,
    &qwen::QWEN3,
    &mixtral::MIXTRAL,
    &qwen::QWEN2_MOE,
    &qwen::QWEN3_MOE,
    &gemma::GEMMA2,
    &gemma::GEMMA3,
    &phi3::PHI3,
    &gpt_neox::GPT_NEOX,
    &mamba::MAMBA,
    &mamba::MAMBA2,
    &opt::OPT,
    &bert::BERT,
    &bert::DISTILBERT,
];

/// Values of `model_type` that softlm runs.
pub fn known_families() -> impl Iterator<Item = &'static str> {
    FAMILIES.iter().map(|family| family.model_type)
}

/// Keys of config.json by which families give their linears biases. What one means in a family its layout says.
pub const BIAS_KEYS: [&str; 5] = ["attention_bias", "mlp_bias", "qkv_bias", "use_bias", "enable_bias"];

/// The family that a config names.
pub(super) fn family(config: &Config) -> Result<&'static Family> {
    let named = config.str_or("model_type", "")?;
    if named.is_empty() {
        user_bail!("config.json has no `model_type`"; "softlm needs it to recognise the model family");
    }
    match FAMILIES.iter().find(|family| family.model_type == named) {
        Some(family) => Ok(family),
        None => {
            let known = known_families().collect::<Vec<_>>().join(", ");
            user_bail!("model family \"{named}\" is not supported"; "known families: {known}")
        }
    }
}

/// The layout of a model, under the names that its tensors have in `source`.
pub(super) fn layout(source: &mut Source, text: &TextModel) -> Result<Layout> {
    keys::refuse_options(&Config(&text.config))?;
    let mut tensors = Tensors::new(source, text.family);
    let mut config = Cow::Borrowed(&text.config);
    if text.tied_outside && !tensors.is_there(text.family.head) {
        config.to_mut().insert(TIED.into(), true.into());
    }
    let mut layout = (text.family.describe)(&mut tensors, &Config(&config))?;
    tensors.rename(&mut layout);
    Ok(layout)
}

/// Fails with a hint when `whole` is not a multiple of `part`.
fn must_divide(whole_name: &str, whole: usize, part_name: &str, part: usize) -> Result<()> {
    if part == 0 || !whole.is_multiple_of(part) {
        user_bail!(
            "config.json: `{whole_name}` = {whole} is not divisible by `{part_name}` = {part}";
            "the config does not describe a usable model"
        );
    }
    Ok(())
}

/// Makes sure that the embedding and the head can be read: a tied checkpoint may store either or both.
fn resolve_head(tensors: &mut Tensors, embedding: &str, head: &str, tied: bool) -> Result<HeadWeight> {
    let shared = || HeadWeight { name: embedding.to_string(), tied: Some(head.to_string()) };
    let is_there = |name: &str| tensors.is_there(name) || tensors.are_to_come();
    match (is_there(embedding), is_there(head), tied) {
        (true, _, true) => Ok(shared()),
        (false, true, true) => {
            tensors.alias(embedding, head);
            Ok(shared())
        }
        (true, true, false) => Ok(HeadWeight { name: head.to_string(), tied: None }),
        (true, false, false) => user_bail!(
            "tensor `{}` is missing and config.json does not tie it to the embedding", tensors.stored_name(head);
            "if the model ties them, set \"tie_word_embeddings\": true in config.json; a checkpoint of the model without its head cannot be run"
        ),
        (false, _, _) => user_bail!(
            "tensor `{}` is missing", tensors.stored_name(embedding);
            "the checkpoint is incomplete or its tensors are named in another way"
        ),
    }
}
