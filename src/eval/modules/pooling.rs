//! From the states of a text's tokens to one vector.

use crate::user_bail;
use anyhow::Result;
use serde_json::{Map, Value};

/// How the states of a text become one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// The state at its first token.
    First,
    /// The largest value over its tokens, in each place.
    Max,
    /// The mean over all its tokens, special ones included.
    Mean,
    /// The sum over all its tokens by the square root of their number.
    MeanSqrtLen,
    /// The mean over its tokens, weighted 1, 2, 3, …
    WeightedMean,
    /// The state at its last token.
    Last,
}

impl Pooling {
    /// All of them in the order in which several are joined: name here, name and older key in a folder.
    const ALL: [(Pooling, &'static str, &'static str, &'static str); 6] = [
        (Pooling::First, "first", "cls", "pooling_mode_cls_token"),
        (Pooling::Max, "max", "max", "pooling_mode_max_tokens"),
        (Pooling::Mean, "mean", "mean", "pooling_mode_mean_tokens"),
        (Pooling::MeanSqrtLen, "sqrt-length", "mean_sqrt_len_tokens", "pooling_mode_mean_sqrt_len_tokens"),
        (Pooling::WeightedMean, "weighted-mean", "weightedmean", "pooling_mode_weightedmean_tokens"),
        (Pooling::Last, "last", "lasttoken", "pooling_mode_lasttoken"),
    ];

    pub(super) fn name(self) -> &'static str {
        Self::ALL.iter().find(|(pooling, ..)| *pooling == self).map_or("", |(_, name, ..)| name)
    }

    /// The vector of states, one row per token.
    pub(super) fn of(self, states: &[Vec<f32>]) -> Vec<f64> {
        let count = states.len() as f64;
        let width = states.first().map_or(0, Vec::len);
        let sum = |weight: &dyn Fn(usize) -> f64| -> Vec<f64> {
            let at = |j: usize| states.iter().enumerate().map(|(i, state)| weight(i) * f64::from(state[j])).sum();
            (0..width).map(at).collect()
        };
        let row = |row: Option<&Vec<f32>>| row.map_or(Vec::new(), |row| row.iter().map(|&x| f64::from(x)).collect());
        match self {
            Self::First => row(states.first()),
            Self::Last => row(states.last()),
            Self::Max => {
                let at = |j: usize| states.iter().map(|state| f64::from(state[j])).fold(f64::NEG_INFINITY, f64::max);
                (0..width).map(at).collect()
            }
            Self::Mean => sum(&|_| 1.0 / count),
            Self::MeanSqrtLen => sum(&|_| 1.0 / count.sqrt()),
            Self::WeightedMean => sum(&|i| (i + 1) as f64 / (count * (count + 1.0) / 2.0)),
        }
    }
}

/// The settings of a Pooling module.
pub(super) struct Pooled {
    pub modes: Vec<Pooling>,
    /// Width of the states; 0 where it does not say.
    pub width: usize,
    /// Whether the tokens of a prompt count.
    pub with_prompt: bool,
}

impl Pooled {
    pub fn read(path: &str, settings: &Map<String, Value>) -> Result<Self> {
        const NAMES: [&str; 4] = ["word_embedding_dimension", "embedding_dimension", "pooling_mode", "include_prompt"];
        let mut modes = Vec::new();
        let known = |key: &str| NAMES.contains(&key) || Pooling::ALL.iter().any(|(.., older)| *older == key);
        for (key, value) in settings.iter().filter(|(key, _)| !known(key)) {
            if !matches!(value, Value::Null | Value::Bool(false)) {
                user_bail!("{path}/config.json asks for `{key}`, which is not supported"; "take it out to measure without it");
            }
        }
        let named: Vec<&Value> = match settings.get("pooling_mode") {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::Array(modes)) => modes.iter().collect(),
            Some(mode) => vec![mode],
        };
        for mode in named {
            match Pooling::ALL.iter().find(|(_, _, name, _)| mode.as_str() == Some(name)) {
                Some((pooling, ..)) => modes.push(*pooling),
                None => user_bail!(
                    "{path}/config.json asks for the pooling mode {mode}, which is not known";
                    "known are {}", Pooling::ALL.map(|(_, _, name, _)| name).join(", ")
                ),
            }
        }
        if modes.is_empty() {
            let on = |key: &str| settings.get(key).and_then(Value::as_bool).unwrap_or(false);
            modes = Pooling::ALL.iter().filter(|(.., older)| on(older)).map(|(pooling, ..)| *pooling).collect();
        }
        if modes.is_empty() {
            modes.push(Pooling::Mean);
        }
        let number = |key: &str| settings.get(key).and_then(Value::as_u64);
        let width = number("embedding_dimension").or(number("word_embedding_dimension")).unwrap_or(0) as usize;
        let with_prompt = settings.get("include_prompt").and_then(Value::as_bool).unwrap_or(true);
        Ok(Self { modes, width, with_prompt })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn poolings_are_those_of_sentence_transformers() {
        let states = [[1f32, -4.0], [3.0, 2.0], [5.0, 8.0], [7.0, -2.0]].map(Vec::from);
        for (pooling, expected) in [
            (Pooling::First, [1.0, -4.0]),
            (Pooling::Max, [7.0, 8.0]),
            (Pooling::Mean, [4.0, 1.0]),
            (Pooling::MeanSqrtLen, [8.0, 2.0]),
            (Pooling::WeightedMean, [5.0, 1.6]),
            (Pooling::Last, [7.0, -2.0]),
        ] {
            let found = pooling.of(&states);
            let off = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(found.len() == 2 && off < 1e-12, "{pooling:?}: {found:?}");
        }
    }

    #[test]
    fn settings_of_a_pooling_are_read_in_either_form() {
        let read =
            |settings: Value| Pooled::read("1_Pooling", settings.as_object().unwrap()).map(|pooled| pooled.modes);
        use serde_json::json;
        let older =
            json!({"pooling_mode_mean_tokens": true, "pooling_mode_cls_token": true, "pooling_mode_max_tokens": false});
        assert_eq!(read(older).unwrap(), [Pooling::First, Pooling::Mean]);
        assert_eq!(read(json!({"pooling_mode": "lasttoken"})).unwrap(), [Pooling::Last]);
        assert_eq!(read(json!({"pooling_mode": ["mean", "cls"]})).unwrap(), [Pooling::Mean, Pooling::First]);
        assert_eq!(read(json!({})).unwrap(), [Pooling::Mean]);
        assert!(read(json!({"pooling_mode": "sum"})).unwrap_err().to_string().contains("\"sum\""));
        assert!(read(json!({"pooling_mode_new": true})).unwrap_err().to_string().contains("pooling_mode_new"));
    }
}
