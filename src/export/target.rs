//! The config.json that a plain export is to have, and the linears under it.

use super::linears::{Held, Pair, pairs, uneven};
use crate::checkpoint::{FORMAT, Section, Source, base_config, family_config};
use crate::model::{BIAS_KEYS, Description, FfnPart};
use crate::user_bail;
use anyhow::Result;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

/// A config and the linears under it.
pub(super) struct Target {
    pub config: Map<String, Value>,
    pub pairs: Vec<Pair>,
    /// Keys that were set to make room for biases that the base does without.
    pub bias_keys: Vec<&'static str>,
}

/// The base's shapes again: products dense, removed channels zero.
pub(super) fn dense(source: &mut Source, have: &Description, held: &[Held]) -> Result<Target> {
    let config = original(source, have)?;
    with_biases(source, held, config)
}

/// The base's shapes but for the feed-forward layers, which stay as narrow as they are; heads have all their dimensions again.
pub(super) fn plain(source: &mut Source, have: &Description, held: &[Held]) -> Result<Target> {
    // The width that the stored layers have, where config.json has the base's for those that are smaller each by itself.
    let mut config = family_config(source.config());
    let mut smaller = narrowed(source, have);
    for (linear, described) in held.iter().zip(have.linears()) {
        if let Some(channels) = linear.channels().filter(|&channels| Some(channels) < described.inner()) {
            let key = have.width_key(described.id);
            have.config_in(&mut config).insert(key.to_string(), json!(channels));
            smaller.insert(key);
        }
    }
    if smaller.is_empty() {
        user_bail!(
            "no feed-forward layer of {} is narrower than the base's: as a plain model it would be as large as the base", source.label();
            "--to dense writes it; other forms than fewer channels save only with softlm or the loading code"
        );
    }
    if let Some((a, b)) = uneven(held, have) {
        let width = |linear: &Held| linear.channels().unwrap_or(0);
        user_bail!(
            "{} has {} channels, {} has {}: a plain config.json has one `{}` for both",
            a.spec.name, width(a), b.spec.name, width(b), have.width_key(a.spec.id);
            "--to dense puts the removed channels back as zeros; `softlm compress --method lorap` gives all layers one width"
        );
    }
    with_biases(source, held, config)
}

/// Adds to `config` what it takes to have a place for every bias of the output; learned methods add some.
fn with_biases(source: &mut Source, held: &[Held], mut config: Map<String, Value>) -> Result<Target> {
    let mut want = Description::new(source, &config)?;
    let mut bias_keys = Vec::new();
    for key in BIAS_KEYS {
        let missing = without_place(held, &want).count();
        if missing == 0 {
            break;
        }
        let mut other = config.clone();
        want.config_in(&mut other).insert(key.to_string(), json!(true));
        // A family may refuse a key that means something else to it.
        let Ok(under) = Description::new(source, &other) else { continue };
        if without_place(held, &under).count() < missing {
            bias_keys.push(key);
            (config, want) = (other, under);
        }
    }
    if let Some(linear) = without_place(held, &want).next() {
        user_bail!(
            "{} has a bias, and no config.json of the family {} has a place for it", linear.spec.name, want.family();
            "the method added it: `softlm compress --deviation false` adds none, and --to factors keeps them"
        );
    }
    Ok(Target { config, pairs: pairs(held, &want)?, bias_keys })
}

/// The linears with a bias that `want` does not have.
fn without_place<'h>(held: &'h [Held], want: &Description) -> impl Iterator<Item = &'h Held> {
    held.iter().zip(want.linears()).filter(|(have, want)| have.spec.bias && !want.bias).map(|(have, _)| have)
}

/// The config of the base with the base's feed-forward widths.
fn original(source: &Source, have: &Description) -> Result<Map<String, Value>> {
    let mut config = base_config(source.config());
    if Section::of(source.config()).is_some_and(|section| section.format >= FORMAT) {
        return Ok(config);
    }
    // Format 1 has the base's widths in the report only.
    let report = source.side_file("report.json")?.and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
    let linears = report.as_ref().and_then(|report| report["linears"].as_array()).map_or(&[][..], Vec::as_slice);
    for key in narrowed(source, have) {
        let width = have.linears().iter().filter(|spec| have.width_key(spec.id) == key).find_map(|spec| {
            let linear = linears.iter().find(|linear| linear["name"] == *spec.name)?;
            let side = usize::from(spec.id.role.ffn_part()? == FfnPart::Down);
            linear["shape"][side].as_u64()
        });
        let Some(width) = width else {
            user_bail!(
                "what `{key}` was before {} was pruned is recorded nowhere: its report.json is missing or damaged", source.label();
                "--to plain keeps the layers as narrow as they are"
            );
        };
        have.config_in(&mut config).insert(key.to_string(), json!(width));
    }
    Ok(config)
}

/// Keys of the feed-forward widths that are smaller than the base's.
fn narrowed(source: &Source, have: &Description) -> BTreeSet<&'static str> {
    let (mut stored, mut base) = (family_config(source.config()), base_config(source.config()));
    let (stored, base) = (have.config_in(&mut stored), have.config_in(&mut base));
    let first_format = Section::of(source.config()).is_none_or(|section| section.format < FORMAT);
    // Format 1 says so of every linear.
    let linears = &source.config().get("softlm").and_then(|section| section.get("linears"));
    let says = |name: &str| linears.is_some_and(|linears| linears[name].get("width").is_some());
    let of_layers = have.linears().iter().filter(|spec| spec.id.role.ffn_part().is_some());
    let keys = of_layers.map(|spec| (spec, have.width_key(spec.id)));
    keys.filter(|(spec, key)| if first_format { says(&spec.name) } else { stored.get(*key) != base.get(*key) })
        .map(|(_, key)| key)
        .collect()
}
