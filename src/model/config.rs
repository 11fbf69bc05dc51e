//! Reading `config.json`: every missing or odd value is named.

use crate::error::UserError;
use crate::ops::Activation;
use crate::user_bail;
use anyhow::Result;
use serde_json::{Map, Value};

impl Activation {
    /// Reads the activation a config names under `key`.
    pub(super) fn from_config(config: &Config, key: &str, default: &str) -> Result<Self> {
        let name = config.str_or(key, default)?;
        Ok(match name.as_str() {
            "silu" | "swish" => Activation::Silu,
            "gelu" | "gelu_python" => Activation::Gelu,
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_python_tanh" | "gelu_accurate" | "gelu_fast" => {
                Activation::GeluTanh
            }
            "relu" => Activation::Relu,
            _ => {
                user_bail!("config.json: `{key}` is \"{name}\", which softlm does not know"; "known are silu, gelu, gelu_new, relu")
            }
        })
    }
}

/// Typed access to a model's `config.json`.
pub struct Config<'a>(pub &'a Map<String, Value>);

impl<'a> Config<'a> {
    /// The value of `key`, with `null` treated as absent.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.0.get(key).filter(|v| !v.is_null())
    }

    /// A positive integer that must be there.
    pub fn usize(&self, key: &str) -> Result<usize> {
        match self.get(key) {
            None => user_bail!("config.json has no `{key}`"; "the file is incomplete; download it again"),
            Some(v) => positive(key, v),
        }
    }

    /// A positive integer, or `default` when the key is absent.
    pub fn usize_or(&self, key: &str, default: usize) -> Result<usize> {
        self.get(key).map_or(Ok(default), |v| positive(key, v))
    }

    /// An integer that may be 0, or `default` when the key is absent.
    pub fn count_or(&self, key: &str, default: usize) -> Result<usize> {
        let count = |v: &Value| v.as_u64().map(|x| x as usize).ok_or_else(|| odd(key, v, "an integer of at least 0"));
        self.get(key).map_or(Ok(default), count)
    }

    /// A finite number, or `default` when the key is absent.
    pub fn f64_or(&self, key: &str, default: f64) -> Result<f64> {
        match self.get(key) {
            None => Ok(default),
            Some(v) => v.as_f64().filter(|x| x.is_finite()).ok_or_else(|| odd(key, v, "a number")),
        }
    }

    /// A finite number above 0 that must be there.
    pub fn positive(&self, key: &str) -> Result<f64> {
        match self.get(key) {
            None => user_bail!("config.json has no `{key}`"; "the file is incomplete; download it again"),
            Some(v) => v.as_f64().filter(|x| x.is_finite() && *x > 0.0).ok_or_else(|| odd(key, v, "a positive number")),
        }
    }

    /// A finite number above 0; `None` when the key is absent or null.
    pub fn positive_if_any(&self, key: &str) -> Result<Option<f64>> {
        self.get(key).map(|_| self.positive(key)).transpose()
    }

    /// A positive integer; `None` when the key is null, `default` when it is absent.
    pub fn usize_or_null(&self, key: &str, default: Option<usize>) -> Result<Option<usize>> {
        match self.0.get(key) {
            None => Ok(default),
            Some(Value::Null) => Ok(None),
            Some(v) => positive(key, v).map(Some),
        }
    }

    /// Fails unless the boolean `key` has the one value that is supported, which is also its default.
    pub fn only(&self, key: &str, supported: bool) -> Result<()> {
        if self.bool_or(key, supported)? != supported {
            user_bail!(
                "config.json: `{key}` = {} is not supported for {}", !supported, self.str_or("model_type", "this family")?;
                "softlm runs this family with `{key}` = {supported}"
            );
        }
        Ok(())
    }

    /// A boolean, or `default` when the key is absent.
    pub fn bool_or(&self, key: &str, default: bool) -> Result<bool> {
        self.get(key).map_or(Ok(default), |v| v.as_bool().ok_or_else(|| odd(key, v, "true or false")))
    }

    /// A string, or `default` when the key is absent.
    pub fn str_or(&self, key: &str, default: &str) -> Result<String> {
        match self.get(key) {
            None => Ok(default.to_string()),
            Some(v) => v.as_str().map(str::to_string).ok_or_else(|| odd(key, v, "a string")),
        }
    }
}

fn positive(key: &str, v: &Value) -> Result<usize> {
    v.as_u64().filter(|&x| x > 0).map(|x| x as usize).ok_or_else(|| odd(key, v, "a positive integer"))
}

fn odd(key: &str, v: &Value, wanted: &str) -> anyhow::Error {
    UserError::new(format!("config.json: `{key}` is {v}, expected {wanted}"))
        .hint("get the model's original config.json")
        .into()
}
