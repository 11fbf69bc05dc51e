//! Options that are one of a few words.

use clap::ValueEnum;
use serde::de::{self, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;

/// What makes the energies of different linears comparable under `--allocation global`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum WeightRule {
    /// 1: energies as they are.
    Unit,
    /// 1 / ‖WX‖²: relative output error.
    Energy,
    /// The KL divergence measured when that linear alone is cut; of an encoder that predicts no tokens, 1 − the cosine of
    /// its final states.
    Kl,
}

/// Type the factors are stored in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum StoredType {
    /// That of the weight they replace.
    Auto,
    /// 32-bit floats.
    F32,
    /// 16-bit floats.
    F16,
    /// 16-bit brain floats.
    Bf16,
}

/// Which windows of the calibration text are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum SamplingRule {
    /// A seeded random choice.
    Random,
    /// The first ones.
    First,
}

/// Whether windows of text begin with the tokenizer's BOS. In a recipe `"auto"`, `true` or `false`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum BosRule {
    /// If the model cannot do without (Gemma 2 and 3) and its tokenizer puts one in front of a text
    #[default]
    Auto,
    /// Yes
    #[value(name = "true", aliases = ["yes", "on", "1"])]
    Always,
    /// No
    #[value(name = "false", aliases = ["no", "off", "0"])]
    Never,
}

impl Serialize for BosRule {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::Always => serializer.serialize_bool(true),
            Self::Never => serializer.serialize_bool(false),
        }
    }
}

impl<'de> Deserialize<'de> for BosRule {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Written;
        impl Visitor<'_> for Written {
            type Value = BosRule;

            fn expecting(&self, out: &mut fmt::Formatter) -> fmt::Result {
                out.write_str("\"auto\", true or false")
            }

            fn visit_bool<E: de::Error>(self, value: bool) -> Result<BosRule, E> {
                Ok(if value { BosRule::Always } else { BosRule::Never })
            }

            fn visit_str<E: de::Error>(self, value: &str) -> Result<BosRule, E> {
                BosRule::from_str(value, true).map_err(|_| E::invalid_value(Unexpected::Str(value), &self))
            }
        }
        deserializer.deserialize_any(Written)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn bos_is_a_word_or_a_switch() {
        let read = |value| serde_json::from_value::<BosRule>(value).map_err(|error| error.to_string());
        for (rule, written) in
            [(BosRule::Auto, json!("auto")), (BosRule::Always, json!(true)), (BosRule::Never, json!(false))]
        {
            assert_eq!(json!(rule), written);
            assert_eq!(read(written), Ok(rule));
        }
        assert_eq!((read(json!("true")), read(json!("off"))), (Ok(BosRule::Always), Ok(BosRule::Never)));
        let error = read(json!("maybe")).unwrap_err();
        assert!(error.contains("maybe") && error.contains("\"auto\", true or false"), "{error}");
        assert!(read(json!(3)).is_err());
    }
}
