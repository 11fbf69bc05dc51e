//! Options that one method knows: declared once, beside its equations.
//!
//! A [`MethodOption`] says what an option is called, which values it takes and what it means. The command line, the
//! environment, recipe files, defaults, `softlm methods NAME` and the report are made from it. Values travel by key
//! ([`OptionValues`]) until the method is known and [`OptionValues::resolve`] checks them and fills in the defaults; from then
//! on they are typed.

use super::{METHODS, Method};
use crate::user_bail;
use anyhow::{Context, Result};
use clap::ValueEnum;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::ops::Bound::{self, Excluded, Included, Unbounded};
use toml::{Table, Value};

/// One option of a method.
#[derive(Debug)]
pub struct MethodOption {
    /// Name in recipes and of `--set`.
    pub key: &'static str,
    /// Table of a recipe that it stands in; `None` for its top level.
    pub table: Option<&'static str>,
    /// What the paper calls it; empty if nothing.
    pub symbol: &'static str,
    /// Values that it takes.
    pub domain: Domain,
    /// Value if none is given.
    pub default: DefaultValue,
    /// Meaning, in a line.
    pub help: &'static str,
    /// Key of the option that this is another way to give: one of them replaces the other, and both at once are refused.
    pub instead_of: Option<&'static str>,
}

/// Values that an option takes.
#[derive(Debug, Clone, Copy)]
pub enum Domain {
    /// A number in this range.
    Number(Bound<f64>, Bound<f64>),
    /// A whole number from 1.
    Count,
    /// True or false.
    Switch,
    /// One of these words, each with its meaning: [`words`] of a type.
    OneOf(fn() -> Vec<(String, String)>),
}

/// Numbers above 0.
pub const POSITIVE: Domain = Domain::Number(Excluded(0.0), Unbounded);
/// Numbers from 0.
pub const NOT_NEGATIVE: Domain = Domain::Number(Included(0.0), Unbounded);
/// Numbers above 0 and below 1.
pub const BELOW_ONE: Domain = Domain::Number(Excluded(0.0), Excluded(1.0));

impl Domain {
    /// The value in its own type, or nothing if it is none of these.
    fn read(self, value: &Value) -> Option<Value> {
        match (self, value) {
            (Self::Number(least, most), _) => {
                let number = value.as_float().or_else(|| value.as_integer().map(|whole| whole as f64))?;
                let inside = number.is_finite() && std::ops::RangeBounds::contains(&(least, most), &number);
                inside.then_some(Value::Float(number))
            }
            (Self::Count, Value::Integer(count)) => (*count >= 1).then(|| value.clone()),
            (Self::Switch, Value::Boolean(_)) => Some(value.clone()),
            (Self::OneOf(words), Value::String(word)) => {
                words().iter().any(|(known, _)| known == word).then(|| value.clone())
            }
            _ => None,
        }
    }

    /// In words, as in "it takes …".
    pub fn describe(self) -> String {
        match self {
            Self::Number(least, most) => {
                let least = match least {
                    Excluded(least) => format!("above {least}"),
                    Included(least) => format!("from {least}"),
                    Unbounded => String::new(),
                };
                let most = match most {
                    Excluded(most) => format!("below {most}"),
                    Included(most) => format!("up to {most}"),
                    Unbounded => String::new(),
                };
                let limits: Vec<String> = [least, most].into_iter().filter(|limit| !limit.is_empty()).collect();
                format!("a number {}", limits.join(" and ")).trim_end().to_string()
            }
            Self::Count => "a whole number from 1".into(),
            Self::Switch => "true or false".into(),
            Self::OneOf(words) => words().into_iter().map(|(word, _)| word).collect::<Vec<_>>().join(", "),
        }
    }
}

/// The words of a type and what they mean, for [`Domain::OneOf`].
pub fn words<T: ValueEnum>() -> Vec<(String, String)> {
    let values = T::value_variants().iter().filter_map(ValueEnum::to_possible_value);
    values
        .map(|value| (value.get_name().into(), value.get_help().map(ToString::to_string).unwrap_or_default()))
        .collect()
}

/// The value of an option that nobody gave. Values are written as in a recipe.
#[derive(Debug, Clone, Copy)]
pub enum DefaultValue {
    /// Always this one.
    Fixed(&'static str),
    /// The first, or the second where `--task` trains on labelled examples.
    OrWithTask(&'static str, &'static str),
    /// What follows from the run and the options listed before; `says` how.
    Derived {
        /// In words.
        says: &'static str,
        /// By calculation.
        value: fn(&OptionValues, &RunFacts) -> Result<Value>,
    },
    /// No value; what happens without one.
    Absent(&'static str),
}

impl DefaultValue {
    fn value(self, before: &OptionValues, run: &RunFacts) -> Result<Option<Value>> {
        Ok(match self {
            Self::Fixed(text) => Some(value_of(text)),
            Self::OrWithTask(plain, labelled) => Some(value_of(if run.labelled { labelled } else { plain })),
            Self::Derived { value, .. } => Some(value(before, run)?),
            Self::Absent(_) => None,
        })
    }

    /// In words, for the method's page.
    pub fn describe(self) -> String {
        match self {
            Self::Fixed(text) | Self::Derived { says: text, .. } | Self::Absent(text) => text.into(),
            Self::OrWithTask(plain, labelled) => format!("{plain}, with `--task` {labelled}"),
        }
    }
}

/// What defaults depend on beside other options.
#[derive(Debug, Clone, Copy, Default)]
pub struct RunFacts {
    /// Whether `--task` trains on labelled examples.
    pub labelled: bool,
    /// Tokens per calibration window, if it is given.
    pub window: Option<usize>,
}

impl MethodOption {
    /// An option at the top level of a recipe, without a symbol.
    pub const fn new(key: &'static str, domain: Domain, default: DefaultValue, help: &'static str) -> Self {
        Self { key, table: None, symbol: "", domain, default, help, instead_of: None }
    }

    /// The same with a symbol.
    pub const fn symbol(self, symbol: &'static str) -> Self {
        Self { symbol, ..self }
    }

    /// The same in a table of a recipe.
    pub const fn in_table(self, table: &'static str) -> Self {
        Self { table: Some(table), ..self }
    }

    /// The same as another way to give the option `key`.
    pub const fn instead_of(self, key: &'static str) -> Self {
        Self { instead_of: Some(key), ..self }
    }

    /// `value` in the option's own type.
    ///
    /// # Errors
    /// A value that the option does not take.
    pub fn read(&self, value: &Value) -> Result<Value> {
        match self.domain.read(value) {
            Some(value) => Ok(value),
            None => user_bail!("{} = {value}: it takes {}", self.key, self.domain.describe(); "{}", self.help),
        }
    }

    /// The default of an option that always has the same.
    ///
    /// # Errors
    /// An option whose default is none or another from run to run.
    pub fn fixed<T: DeserializeOwned>(&self) -> Result<T> {
        let DefaultValue::Fixed(text) = self.default else { anyhow::bail!("{} has no fixed default", self.key) };
        Ok(self.read(&value_of(text))?.try_into()?)
    }
}

/// `--calib-windows` of `calib_windows`.
pub fn flag(key: &str) -> String {
    format!("--{}", key.replace('_', "-"))
}

/// `SOFTLM_CALIB_WINDOWS` of `calib_windows`.
pub fn variable(key: &str) -> String {
    format!("SOFTLM_{}", key.to_ascii_uppercase())
}

/// Every option of any method, each key once.
pub fn all_options() -> impl Iterator<Item = &'static MethodOption> {
    let all: BTreeMap<&str, &MethodOption> =
        METHODS.iter().flat_map(|method| method.options()).map(|option| (option.key, *option)).collect();
    all.into_values()
}

/// What a text on the command line means: a number, true, false or a word.
pub fn value_of(text: &str) -> Value {
    let integer = text.parse().map(Value::Integer).ok();
    let number = || text.parse().map(Value::Float).ok();
    let switch = || text.parse().map(Value::Boolean).ok();
    integer.or_else(number).or_else(switch).unwrap_or_else(|| Value::String(text.into()))
}

/// Values of options by key.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct OptionValues(BTreeMap<String, Value>);

impl OptionValues {
    /// The same and one value more.
    pub fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.set(key, value);
        self
    }

    /// Sets the value of an option.
    pub fn set(&mut self, key: &str, value: impl Into<Value>) -> Option<Value> {
        self.0.insert(key.into(), value.into())
    }

    /// Fills in what only `below` has. An option replaces the one that it stands for, and the other way round.
    pub fn or(self, below: Self) -> Self {
        let mut merged = below;
        for option in all_options() {
            let pair = option.instead_of.map(|other| [option.key, other]);
            if let Some(pair) = pair.filter(|pair| pair.iter().any(|key| self.0.contains_key(*key))) {
                pair.iter().for_each(|key| drop(merged.0.remove(*key)));
            }
        }
        merged.0.extend(self.0);
        merged
    }

    /// The value of an option, if it has one.
    pub fn value(&self, option: &MethodOption) -> Option<&Value> {
        self.0.get(option.key)
    }

    /// The same in its type, of a resolved option.
    ///
    /// # Errors
    /// The method does not declare it, or it has no value.
    pub fn get<T: DeserializeOwned>(&self, option: &MethodOption) -> Result<T> {
        let value = self.value(option).with_context(|| format!("{} has no value", option.key))?;
        Ok(value.clone().try_into()?)
    }

    /// All options of `method`: the values given, checked, and defaults for the others.
    ///
    /// # Errors
    /// An option that the method does not declare, a value that an option does not take.
    pub fn resolve(&self, method: &dyn Method, run: &RunFacts) -> Result<Self> {
        let declared = |key: &str, method: &dyn Method| method.options().iter().any(|option| option.key == key);
        if let Some(key) = self.0.keys().find(|key| !declared(key, method)) {
            let name = method.card().name;
            let of = METHODS.iter().filter(|other| declared(key, **other)).map(|other| other.card().name);
            let (of, page) = (of.collect::<Vec<_>>().join(" and "), format!("`softlm methods {name}`"));
            if of.is_empty() {
                user_bail!("no method has an option {key}"; "{page} lists those of {name}, `softlm compress --help` those of every run");
            }
            user_bail!("{key} is an option of {of}, but the method is {name}"; "leave it out; {page} lists the options of {name}");
        }
        let mut all = Self::default();
        for option in method.options() {
            let given = self.0.get(option.key).map(|value| option.read(value)).transpose()?;
            let other = option.instead_of.filter(|other| given.is_some() && self.0.contains_key(*other));
            if let Some(other) = other {
                user_bail!("{} and {other} are both set", option.key; "one is another way to give the other");
            }
            let value = match given {
                Some(value) => Some(value),
                None => option.default.value(&all, run)?.map(|value| option.read(&value)).transpose()?,
            };
            value.map(|value| all.set(option.key, value));
        }
        // What they stand for has its value now.
        all.0.retain(|key, _| method.options().iter().any(|option| option.key == key && option.instead_of.is_none()));
        Ok(all)
    }

    /// All values as one table.
    pub fn table(&self) -> Table {
        self.0.clone().into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::method::{Unit, by_name};

    #[test]
    fn domains_know_their_values_and_say_them() {
        let reads = |domain: Domain, text: &str| domain.read(&value_of(text)).is_some();
        for (domain, inside, outside, says) in [
            (POSITIVE, ["1e-9", "3"], ["0", "inf"], "a number above 0"),
            (NOT_NEGATIVE, ["0", "2.5"], ["-1", "nan"], "a number from 0"),
            (BELOW_ONE, ["0.3", "1e-9"], ["1", "true"], "a number above 0 and below 1"),
            (Domain::Number(Unbounded, Included(2.0)), ["-5", "2"], ["2.1", "two"], "a number up to 2"),
            (Domain::Count, ["1", "300"], ["0", "1.5"], "a whole number from 1"),
            (Domain::Switch, ["true", "false"], ["1", "yes"], "true or false"),
            (Domain::OneOf(words::<Unit>), ["raw", "median"], ["Raw", "1"], "raw, median, sensitivity"),
        ] {
            assert!(inside.iter().all(|text| reads(domain, text)), "{domain:?}");
            assert!(!outside.iter().any(|text| reads(domain, text)), "{domain:?}");
            assert_eq!(domain.describe(), says);
        }
    }

    #[test]
    fn a_key_means_the_same_values_for_every_method_and_defaults_are_among_them() {
        for option in METHODS.iter().flat_map(|method| method.options()) {
            let other = all_options().find(|other| other.key == option.key).unwrap();
            assert_eq!(format!("{:?}", option.domain), format!("{:?}", other.domain), "{}", option.key);
            assert_eq!((option.table, option.instead_of), (other.table, other.instead_of), "{}", option.key);
            let texts = match option.default {
                DefaultValue::Fixed(text) => vec![text],
                DefaultValue::OrWithTask(plain, labelled) => vec![plain, labelled],
                DefaultValue::Derived { .. } | DefaultValue::Absent(_) => vec![],
            };
            for text in texts {
                option.read(&value_of(text)).unwrap_or_else(|e| panic!("{e}"));
            }
            assert!(!option.help.is_empty() && !option.default.describe().is_empty(), "{}", option.key);
        }
    }

    #[test]
    fn one_way_to_give_an_option_replaces_the_other() {
        let (steps, tokens) = (OptionValues::default().with("steps", 5), OptionValues::default().with("tokens", 640));
        assert_eq!(tokens.clone().or(steps.clone().with("batch", 2)), tokens.clone().with("batch", 2));
        assert_eq!(steps.clone().or(tokens.clone()), steps);
        let soft = by_name("soft").unwrap();
        let error = steps.or(OptionValues::default()).with("tokens", 640).resolve(soft, &RunFacts::default());
        assert!(error.unwrap_err().to_string().contains("tokens and steps are both set"));
        let run = RunFacts { window: Some(64), ..RunFacts::default() };
        let resolved = tokens.with("batch", 2).resolve(soft, &run).unwrap();
        assert_eq!(resolved.table()["steps"], Value::Integer(5));
        assert!(!resolved.table().contains_key("tokens"), "it is said by steps");
    }
}
