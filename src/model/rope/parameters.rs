//! What a config says about the rotation, in each of its spellings.
//!
//! Older configs have `rope_scaling` beside `rope_theta`, newer ones gather everything under `rope_parameters`; the kind
//! is called `rope_type` or `type`. A value may stand inside that object or beside it. Where two places contradict each
//! other the config is refused: versions of transformers differ in which of them they believe.

use super::super::config::Config;
use crate::error::UserError;
use crate::user_bail;
use anyhow::Result;
use serde_json::{Map, Value};

const ORIGINAL: &str = "get the model's original config.json";
/// Everything that scaling parameters may hold. What a kind does not use is ignored, as in transformers.
const KEYS: &[&str] = &[
    "rope_type",
    "type",
    "rope_theta",
    "partial_rotary_factor",
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
    "truncate",
    "short_factor",
    "long_factor",
    // Written by the authors of YaRN; it changes nothing.
    "finetuned",
];

/// How positions are rotated.
#[derive(Debug, Clone, PartialEq)]
pub struct Rotation {
    /// θ, the base.
    pub theta: f64,
    /// Dimensions of each head that are rotated, the first ones.
    pub rotated: usize,
    pub scaling: Scaling,
}

/// How frequencies are stretched over a longer context.
#[derive(Debug, Clone, PartialEq)]
pub enum Scaling {
    None,
    /// Other frequencies behind the context alone.
    Dynamic,
    /// All are divided.
    Linear {
        factor: f64,
    },
    Llama3(Llama3),
    Yarn(Yarn),
    LongRope(LongRope),
}

/// Llama 3's scaling: low frequencies are divided by `factor`, high ones kept, those between blended.
#[derive(Debug, Clone, PartialEq)]
pub struct Llama3 {
    pub(super) factor: f64,
    pub(super) low: f64,
    pub(super) high: f64,
    pub(super) original: f64,
}

/// YaRN (arXiv 2309.00071): dimensions that turn often within the original context keep their frequency, those that turn
/// rarely are divided by `factor`, those between are blended; queries and keys grow a little.
#[derive(Debug, Clone, PartialEq)]
pub struct Yarn {
    pub(super) factor: f64,
    /// By default the context.
    pub(super) original: Option<f64>,
    /// Turns within the original context from which on a frequency is kept, and below which it is divided.
    pub(super) fast: f64,
    pub(super) slow: f64,
    /// Whether the dimensions between which is blended are whole numbers.
    pub(super) truncate: bool,
    /// How much queries and keys grow with the logarithm of the factor, in two parts that are divided.
    pub(super) mscale: Option<(f64, f64)>,
    /// What cosines and sines are multiplied by, where that is given.
    pub(super) times: Option<f64>,
}

/// LongRoPE (arXiv 2402.13753): every frequency is divided by a factor of its own, by another one in sequences longer than
/// the original context; queries and keys grow a little.
#[derive(Debug, Clone, PartialEq)]
pub struct LongRope {
    pub(super) short: Vec<f64>,
    pub(super) long: Vec<f64>,
    /// By default the context.
    pub(super) original: Option<usize>,
    /// By how much the context has grown; by default what the two contexts say.
    pub(super) factor: Option<f64>,
    /// What cosines and sines are multiplied by, where that is given.
    pub(super) times: Option<f64>,
}

/// What a family calls its parameters outside the common object, and its defaults.
#[derive(Debug, Clone, Copy)]
pub struct Spelling {
    /// Key of the base.
    pub theta_key: &'static str,
    pub theta: f64,
    /// Key and default of the fraction of each head that is rotated; `None` for families that rotate whole heads.
    pub fraction: Option<(&'static str, f64)>,
    /// What the original context is where nothing is said, for families that say so.
    pub original: Option<usize>,
    /// Whether LongRoPE is the only scaling, with older names for it.
    pub only_long: bool,
    /// Whether the usual keys beside the parameters are not read, as the family has its own.
    pub foreign: bool,
}

impl Spelling {
    /// That of most families.
    pub const USUAL: Self = Self {
        theta_key: "rope_theta",
        theta: 10_000.0,
        fraction: None,
        original: None,
        only_long: false,
        foreign: false,
    };
}

/// The object with the parameters of the rotation, whichever of its two names it has.
pub fn parameters<'a>(config: &Config<'a>) -> Result<Option<&'a Map<String, Value>>> {
    let object = |key: &str| match config.get(key) {
        None => Ok(None),
        Some(Value::Object(map)) => Ok(Some(map).filter(|map| !map.is_empty())),
        Some(other) => user_bail!("config.json: `{key}` is {other}, expected an object"; "{ORIGINAL}"),
    };
    match (object("rope_scaling")?, object("rope_parameters")?) {
        (Some(scaling), Some(parameters)) if scaling != parameters => user_bail!(
            "config.json has both `rope_scaling` and `rope_parameters`, and they differ";
            "remove the one that the model was not trained with"
        ),
        (scaling, parameters) => Ok(scaling.or(parameters)),
    }
}

impl Rotation {
    /// The rotation of heads of dimension `d`.
    pub fn read(config: &Config, d: usize, spelling: Spelling) -> Result<Self> {
        Self::of(config, parameters(config)?, d, spelling)
    }

    /// The same with these parameters, of which some may stand beside them in the config.
    pub fn of(config: &Config, object: Option<&Map<String, Value>>, d: usize, spelling: Spelling) -> Result<Self> {
        let none = Map::new();
        let object = Object { map: object.unwrap_or(&none), config };
        object.check_keys()?;
        let theta = object.either("rope_theta", spelling.theta_key)?.unwrap_or(spelling.theta);
        let key = "partial_rotary_factor";
        let fraction = match spelling.fraction {
            Some((outside, default)) => object.either(key, outside)?.unwrap_or(default),
            None => match object.either(key, key)?.unwrap_or(1.0) {
                1.0 => 1.0,
                part => user_bail!(
                    "config.json: `{key}` = {part} is not supported for {}", config.str_or("model_type", "this family")?;
                    "softlm runs this family with whole heads rotated"
                ),
            },
        };
        if fraction > 1.0 {
            let key = spelling.fraction.map_or(key, |(outside, _)| outside);
            user_bail!("config.json: `{key}` = {fraction} is not a fraction of a head"; "{ORIGINAL}");
        }
        if spelling.foreign {
            object.must_agree("rope_theta", spelling.theta_key, theta)?;
            spelling.fraction.map_or(Ok(()), |(outside, _)| object.must_agree(key, outside, fraction))?;
        }
        let rotated = (d as f64 * fraction) as usize;
        Ok(Self { theta, rotated, scaling: object.scaling(rotated, spelling)? })
    }
}

/// The parameters, and the config that may hold some of them outside.
struct Object<'a> {
    map: &'a Map<String, Value>,
    config: &'a Config<'a>,
}

impl Object<'_> {
    fn get(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    fn check_keys(&self) -> Result<()> {
        match self.map.keys().find(|key| !KEYS.contains(&key.as_str())) {
            Some(key) => user_bail!(
                "config.json: rope parameter `{key}` = {} is not supported", self.map[key];
                "softlm would have to ignore it; remove it if it changes nothing"
            ),
            None => Ok(()),
        }
    }

    /// A positive number that stands inside under one key or outside under another.
    fn either(&self, inside: &str, outside: &str) -> Result<Option<f64>> {
        let inner = self.positive(inside)?;
        let outer = self.config.positive_if_any(outside)?;
        match (inner, outer) {
            (Some(a), Some(b)) if a != b => user_bail!(
                "config.json: `{inside}` of the rope parameters is {a}, but `{outside}` beside them is {b}";
                "remove the one that the model was not trained with"
            ),
            (inner, outer) => Ok(inner.or(outer)),
        }
    }

    /// Fails where `key` outside, which the family does not read, stands alone and says something else than what acts.
    /// Beside the key that is read it is that one's copy, as transformers writes it.
    fn must_agree(&self, key: &str, acting: &str, value: f64) -> Result<()> {
        match self.config.positive_if_any(key)? {
            Some(found) if found != value && self.config.get(acting).is_none() && self.get(key).is_none() => {
                user_bail!(
                    "config.json: `{key}` = {found}, but {} reads `{acting}`, which is {value}",
                    self.config.str_or("model_type", "this family")?;
                    "remove `{key}`, or set `{acting}` if that is what the model was trained with"
                )
            }
            _ => Ok(()),
        }
    }

    fn positive(&self, key: &str) -> Result<Option<f64>> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => match value.as_f64().filter(|x| x.is_finite() && *x > 0.0) {
                Some(number) => Ok(Some(number)),
                None => {
                    user_bail!("config.json: `{key}` of the rope scaling is {value}, expected a positive number"; "{ORIGINAL}")
                }
            },
        }
    }

    /// A positive number, with 0 treated as absent.
    fn positive_or_zero(&self, key: &str) -> Result<Option<f64>> {
        if self.get(key).and_then(Value::as_f64) == Some(0.0) { Ok(None) } else { self.positive(key) }
    }

    fn needed(&self, key: &str) -> Result<f64> {
        let error = || UserError::new(format!("config.json: rope scaling has no positive `{key}`")).hint(ORIGINAL);
        self.positive(key)?.ok_or_else(|| error().into())
    }

    /// The kind under either of its names.
    fn kind(&self, only_long: bool) -> Result<Option<&str>> {
        let named = |key: &str| match self.get(key) {
            None => Ok(None),
            Some(Value::String(kind)) if only_long && (kind == "su" || kind == "yarn") => Ok(Some("longrope")),
            Some(Value::String(kind)) => Ok(Some(kind.as_str())),
            Some(other) => {
                user_bail!("config.json: `{key}` of the rope scaling is {other}, expected a string"; "{ORIGINAL}")
            }
        };
        match (named("rope_type")?, named("type")?) {
            (Some(a), Some(b)) if a != b => user_bail!(
                "config.json: rope scaling has `rope_type` \"{a}\" and `type` \"{b}\"";
                "remove the one that the model was not trained with"
            ),
            (a, b) => Ok(a.or(b)),
        }
    }

    /// The context before it was extended.
    fn original(&self, default: Option<usize>) -> Result<Option<usize>> {
        let key = "original_max_position_embeddings";
        let read = |value: Option<&Value>| match value {
            None => Ok(None),
            Some(value) => match value.as_f64().filter(|x| x.fract() == 0.0 && (0.0..1e18).contains(x)) {
                Some(length) => Ok(Some(length as usize)),
                None => user_bail!("config.json: `{key}` is {value}, expected a positive integer"; "{ORIGINAL}"),
            },
        };
        let (inner, outer) = (read(self.get(key))?, read(self.config.get(key))?);
        if let (Some(a), Some(b)) = (inner, outer)
            && a != b
        {
            user_bail!(
                "config.json: `{key}` of the rope parameters is {a}, but beside them it is {b}";
                "remove the one that the model was not trained with"
            );
        }
        // Zero means absent here.
        Ok(inner.or(outer).or(default).filter(|length| *length > 0))
    }

    fn scaling(&self, rotated: usize, spelling: Spelling) -> Result<Scaling> {
        let kind = self.kind(spelling.only_long)?;
        if let Some(kind) = kind.filter(|kind| spelling.only_long && !["default", "longrope"].contains(kind)) {
            user_bail!(
                "config.json: rope scaling \"{kind}\" is not supported for {}", self.config.str_or("model_type", "this family")?;
                "this family knows longrope alone"
            );
        }
        Ok(match kind {
            None if self.get("factor").is_some() => user_bail!(
                "config.json: rope scaling has a `factor`, but no `rope_type`"; "{ORIGINAL}"
            ),
            None | Some("default") => Scaling::None,
            Some("dynamic") => {
                self.needed("factor")?;
                Scaling::Dynamic
            }
            Some("linear") => Scaling::Linear { factor: self.needed("factor")? },
            Some("llama3") => Scaling::Llama3(self.llama3(spelling)?),
            Some("yarn") => Scaling::Yarn(self.yarn(spelling)?),
            Some("longrope") => Scaling::LongRope(self.long_rope(rotated, spelling)?),
            Some(other) => user_bail!(
                "config.json: rope scaling \"{other}\" is not supported";
                "known are default, linear, dynamic, llama3, yarn and longrope"
            ),
        })
    }

    fn llama3(&self, spelling: Spelling) -> Result<Llama3> {
        let (factor, low) = (self.needed("factor")?, self.needed("low_freq_factor")?);
        let high = self.needed("high_freq_factor")?;
        match self.original(spelling.original)? {
            Some(original) => Ok(Llama3 { factor, low, high, original: original as f64 }),
            None => user_bail!(
                "config.json: rope scaling has no positive `original_max_position_embeddings`"; "{ORIGINAL}"
            ),
        }
    }

    fn yarn(&self, spelling: Spelling) -> Result<Yarn> {
        // Zero means absent here.
        let mscale = self.positive_or_zero("mscale")?.zip(self.positive_or_zero("mscale_all_dim")?);
        let truncate = match self.map.get("truncate") {
            None => true,
            Some(Value::Bool(truncate)) => *truncate,
            Some(Value::Null) => false,
            Some(other) => {
                user_bail!("config.json: `truncate` of the rope scaling is {other}, expected true or false"; "{ORIGINAL}")
            }
        };
        Ok(Yarn {
            factor: self.needed("factor")?,
            original: self.original(spelling.original)?.map(|length| length as f64),
            fast: self.positive_or_zero("beta_fast")?.unwrap_or(32.0),
            slow: self.positive_or_zero("beta_slow")?.unwrap_or(1.0),
            truncate,
            mscale,
            times: self.positive("attention_factor")?,
        })
    }

    fn long_rope(&self, rotated: usize, spelling: Spelling) -> Result<LongRope> {
        let factors = |key: &str| -> Result<Vec<f64>> {
            let list = self.map.get(key).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
            let factors: Vec<f64> =
                list.iter().filter_map(Value::as_f64).filter(|x| *x > 0.0 && x.is_finite()).collect();
            let wanted = rotated / 2;
            if factors.len() != list.len() || factors.len() != wanted {
                user_bail!(
                    "config.json: `{key}` of the rope scaling holds {} positive numbers, {wanted} are needed", factors.len();
                    "{ORIGINAL}"
                );
            }
            Ok(factors)
        };
        let (short, long) = (factors("short_factor")?, factors("long_factor")?);
        let (original, factor) = (self.original(spelling.original)?, self.positive("factor")?);
        let times = self.positive("attention_factor")?;
        let context = self.config.usize_or("max_position_embeddings", 0)?;
        match (original, factor) {
            (None, None) if times.is_none() => user_bail!(
                "config.json: rope scaling has neither `factor` nor `original_max_position_embeddings`"; "{ORIGINAL}"
            ),
            (Some(original), Some(factor))
                if times.is_none()
                    && context > 0
                    && (context as f64 / original as f64 - factor).abs() > 1e-6 * factor =>
            {
                user_bail!(
                    "config.json: rope scaling has a `factor` of {factor}, but the context grew from {original} to {context}";
                    "remove the one that the model was not trained with"
                )
            }
            _ => Ok(LongRope { short, long, original, factor, times }),
        }
    }
}
