//! One file per family: its tensor names and how its `config.json` maps onto a [`Layout`] over the shared block shapes.

mod bert;
mod gated;
mod gemma;
mod gpt2;
mod gpt_neox;
mod llama;
mod mamba;
mod mistral;
mod mixtral;
mod opt;
mod phi3;
mod qwen;

use super::config::Config;
use super::layout::Layout;
use crate::checkpoint::{Source, family_config};
use crate::user_bail;
use anyhow::Result;
use candle_core::Device;

type Describe = fn(&mut Source, &Config, &Device) -> Result<Layout>;

/// What describes a model, by its `model_type`.
const FAMILIES: [(&str, Describe); 17] = [
    ("llama", llama::layout),
    ("gpt2", |source, config, _| gpt2::layout(source, config)),
    ("mistral", mistral::layout),
    ("qwen2", qwen::layout2),
    ("qwen3", qwen::layout3),
    ("mixtral", mixtral::layout),
    ("qwen2_moe", qwen::layout2_moe),
    ("qwen3_moe", qwen::layout3_moe),
    ("gemma2", gemma::layout2),
    ("gemma3_text", gemma::layout3),
    ("phi3", phi3::layout),
    ("gpt_neox", gpt_neox::layout),
    ("mamba", |source, config, _| mamba::layout1(source, config)),
    ("mamba2", |source, config, _| mamba::layout2(source, config)),
    ("opt", |source, config, _| opt::layout(source, config)),
    ("bert", |source, config, _| bert::layout(source, config)),
    ("distilbert", |source, config, _| bert::layout_distil(source, config)),
];

/// Values of `model_type` that softlm runs.
pub fn known_families() -> impl Iterator<Item = &'static str> {
    FAMILIES.iter().map(|(family, _)| *family)
}

/// Recognises the family by `model_type` and reads its layout.
pub(super) fn layout(source: &mut Source, device: &Device) -> Result<Layout> {
    let map = family_config(source.config());
    let config = Config(&map);
    let family = config.str_or("model_type", "")?;
    if family.is_empty() {
        user_bail!("config.json has no `model_type`"; "softlm needs it to recognise the model family");
    }
    let Some((_, describe)) = FAMILIES.iter().find(|(known, _)| *known == family) else {
        let known = known_families().collect::<Vec<_>>().join(", ");
        user_bail!("model family \"{family}\" is not supported"; "known families: {known}")
    };
    describe(source, &config, device)
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

/// Makes sure that the embedding and the head can be read: a tied checkpoint may store either or both. Returns the
/// name to read the head by.
fn resolve_head(source: &mut Source, embedding: &str, head: &str, tied: bool) -> Result<String> {
    match (source.info(embedding).is_some(), source.info(head).is_some(), tied) {
        (true, _, true) => Ok(embedding.to_string()),
        (false, true, true) => {
            source.alias(embedding, head);
            Ok(embedding.to_string())
        }
        (true, true, false) => Ok(head.to_string()),
        (true, false, false) => user_bail!(
            "tensor `{head}` is missing and config.json does not tie it to the embedding";
            "if the model ties them, set \"tie_word_embeddings\": true in config.json"
        ),
        (false, _, _) => user_bail!(
            "tensor `{embedding}` is missing";
            "the checkpoint is incomplete or its tensors are named in another way"
        ),
    }
}
