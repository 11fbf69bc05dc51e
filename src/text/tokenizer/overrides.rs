//! What the settings change in a tokenizer, as transformers does when it loads one.

use super::class::Class;
use super::failed;
use super::sentencepiece;
use super::settings::{SPECIAL, Settings};
use super::structure;
use super::vocabulary::{bert_normalizer, template};
use crate::user_bail;
use anyhow::Result;
use std::collections::HashSet;
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::{AddedToken, ModelWrapper, Tokenizer};

/// Applies the settings to a tokenizer. `whole` says that it was read from a `tokenizer.json`.
pub(super) fn apply(label: &str, tokenizer: &mut Tokenizer, settings: &Settings, whole: bool) -> Result<()> {
    switch_chance_off(tokenizer);
    tokenizer.with_truncation(None).map_err(failed)?;
    tokenizer.with_padding(None);
    add_tokens(label, tokenizer, settings)?;
    // A class that was only guessed from the model has made the tokenizer, or has no say.
    if settings.name.is_some() && whole {
        prefix_space(label, tokenizer, settings)?;
        if settings.class == Class::Bert
            && matches!(tokenizer.get_normalizer(), Some(NormalizerWrapper::BertNormalizer(_)))
        {
            tokenizer.with_normalizer(Some(bert_normalizer(settings)?)).map_err(failed)?;
        }
    }
    if settings.name.is_some() || !whole {
        frame(label, tokenizer, settings, whole)?;
    }
    if settings.flag("split_special_tokens")?.unwrap_or(false) {
        tokenizer.set_encode_special_tokens(true);
    }
    Ok(())
}

/// Dropout and sampling are for training: here a text has one encoding.
fn switch_chance_off(tokenizer: &mut Tokenizer) {
    match tokenizer.get_model() {
        ModelWrapper::BPE(model) if model.dropout.is_some() => {
            let mut model = model.clone();
            model.dropout = None;
            tokenizer.with_model(model);
        }
        ModelWrapper::Unigram(model) if model.alpha.is_some() || model.nbest_size.is_some() => {
            let mut model = model.clone();
            (model.alpha, model.nbest_size) = (None, None);
            tokenizer.with_model(model);
        }
        _ => {}
    }
}

/// Tokens that the files beside `tokenizer.json` have and it has not, and special tokens of the vocabulary, which are never
/// taken apart.
fn add_tokens(label: &str, tokenizer: &mut Tokenizer, settings: &Settings) -> Result<()> {
    let known = tokenizer.get_added_tokens_decoder();
    let mut texts: HashSet<&str> = known.values().map(|token| token.content.as_str()).collect();
    // Those that are listed with their properties replace what the tokenizer has, those that are but named do not.
    let new = |(id, token): &&(u32, AddedToken)| match settings.bare {
        true => !texts.contains(token.content.as_str()),
        false => known.get(id) != Some(token),
    };
    let mut tokens: Vec<AddedToken> = settings.added.iter().filter(new).map(|(_, token)| token.clone()).collect();
    texts.extend(settings.added.iter().map(|(_, token)| token.content.as_str()));
    // The class's own, where the vocabulary has them: others are tokens that no model has a row for.
    let own = SPECIAL.iter().filter_map(|name| settings.special(name));
    let own = own.filter(|text| tokenizer.token_to_id(text).is_some()).map(|text| AddedToken::from(text, true));
    let named = settings.all_special().into_iter().chain(own);
    tokens.extend(named.filter(|token| !texts.contains(token.content.as_str())));
    let missing: Vec<&(u32, AddedToken)> =
        settings.added.iter().filter(|(_, token)| tokenizer.token_to_id(&token.content).is_none()).collect();
    if !tokens.is_empty() {
        structure::check_added(label, tokenizer, &tokens)?;
        tokenizer.add_tokens(tokens).map_err(failed)?;
    }
    for (id, token) in missing {
        let (text, found) = (&token.content, tokenizer.token_to_id(&token.content));
        if found != Some(*id) {
            let list = settings.list();
            user_bail!(
                "{label}: {list} gives {text:?} the id {id}, but the vocabulary ends at {}", found.unwrap_or_default();
                "ids of added tokens go on where the vocabulary ends: get the {list} that belongs to it"
            );
        }
    }
    Ok(())
}

/// `add_prefix_space` of the settings, false where they do not say. (5.x leaves the tokenizer's own there.)
fn prefix_space(label: &str, tokenizer: &mut Tokenizer, settings: &Settings) -> Result<()> {
    let asked = settings.flag("add_prefix_space")?;
    if settings.class == Class::Llama {
        // Only a tokenizer of that kind can be made again by its rules.
        let spaces = !matches!(tokenizer.get_pre_tokenizer(), None | Some(PreTokenizerWrapper::Metaspace(_)));
        return match asked {
            None => Ok(()),
            Some(asked) if spaces => user_bail!(
                "{label}: add_prefix_space: {asked} of tokenizer_config.json does not fit its tokenizer.json, which is no \
                 Llama tokenizer";
                "take it out of tokenizer_config.json, or name the tokenizer_class that the tokenizer is of"
            ),
            Some(_) => sentencepiece::rules(tokenizer, Class::Llama, settings),
        };
    }
    if let Some(PreTokenizerWrapper::ByteLevel(bytes)) = tokenizer.get_pre_tokenizer()
        && bytes.add_prefix_space != asked.unwrap_or(false)
    {
        let bytes = bytes.add_prefix_space(!bytes.add_prefix_space);
        tokenizer.with_pre_tokenizer(Some(bytes));
    }
    Ok(())
}

/// The post-processor of classes that make their own: BOS in front and EOS behind, as `add_bos_token` and `add_eos_token`
/// say.
fn frame(label: &str, tokenizer: &mut Tokenizer, settings: &Settings, whole: bool) -> Result<()> {
    let begins = match settings.class.frames() {
        Some(begins) => begins,
        // Of GPT-2's only what is made from its vocabulary.
        None if settings.class == Class::Gpt2 && !whole && settings.flag("add_bos_token")? == Some(true) => true,
        None => return Ok(()),
    };
    let mut tokens = Vec::new();
    let mut token = |name: &str, default: bool| -> Result<Option<String>> {
        if !settings.flag(&format!("add_{name}_token"))?.unwrap_or(default) {
            return Ok(None);
        }
        let text = settings.special(name);
        match text.and_then(|text| Some((text, tokenizer.token_to_id(text)?))) {
            Some((text, id)) => {
                tokens.push((text.to_string(), id));
                Ok(Some(text.to_string()))
            }
            None => user_bail!(
                "{label}: texts begin or end with {name}_token ({}), which the tokenizer has not", text.unwrap_or("null");
                "name a token of the vocabulary in tokenizer_config.json, or set add_{name}_token to false"
            ),
        }
    };
    let bos = token("bos", begins)?;
    let eos = if settings.class == Class::Gpt2 { None } else { token("eos", false)? };
    let around = |sequence: &str, kind: usize| -> Vec<String> {
        let mark = |token: &Option<String>| token.as_ref().map(|token| format!("{token}:{kind}"));
        [mark(&bos), Some(format!("{sequence}:{kind}")), mark(&eos)].into_iter().flatten().collect()
    };
    let (first, second) = (around("$A", 0), around("$B", 1));
    let single: Vec<&str> = first.iter().map(String::as_str).collect();
    let pair: Vec<&str> = first.iter().chain(&second).map(String::as_str).collect();
    tokenizer.with_post_processor(Some(template(&single, &pair, tokens)?));
    Ok(())
}
