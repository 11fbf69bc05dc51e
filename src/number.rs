//! Numbers in JSON that JSON has no form for.
//!
//! serde_json writes NaN and infinities as `null`: a reader cannot tell them from what was never measured, and many a
//! comparison takes `null` for less than any limit. Here they are the strings `"NaN"`, `"Infinity"` and `"-Infinity"`, as in
//! protobuf's JSON; JavaScript's `Number()` and Python's `float()` read them. `null` is read as NaN, which is what it stood
//! for in reports of softlm 0.1.
//!
//! ```ignore
//! #[serde(with = "crate::number")]
//! ppl: f64,
//! #[serde(default, with = "crate::number::optional")]
//! stderr: Option<f64>,
//! ```

use serde::de::{self, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Value, json};
use std::fmt;

const NAN: &str = "NaN";
const INFINITE: &str = "Infinity";
const MINUS_INFINITE: &str = "-Infinity";

/// A number of its own, such as inside `json!`.
pub fn value(x: f64) -> Value {
    json!(Number(x))
}

/// For people: `infinite`, `-infinite` or `not a number`; `None` for a number like others.
pub fn in_words(x: f64) -> Option<&'static str> {
    match x {
        f64::INFINITY => Some("infinite"),
        f64::NEG_INFINITY => Some("-infinite"),
        x if x.is_nan() => Some("not a number"),
        _ => None,
    }
}

struct Number(f64);

impl Serialize for Number {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            f64::INFINITY => serializer.serialize_str(INFINITE),
            f64::NEG_INFINITY => serializer.serialize_str(MINUS_INFINITE),
            x if x.is_nan() => serializer.serialize_str(NAN),
            x => serializer.serialize_f64(x),
        }
    }
}

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Written;
        impl Visitor<'_> for Written {
            type Value = Number;

            fn expecting(&self, out: &mut fmt::Formatter) -> fmt::Result {
                write!(out, "a number, {NAN:?}, {INFINITE:?} or {MINUS_INFINITE:?}")
            }

            fn visit_f64<E: de::Error>(self, x: f64) -> Result<Number, E> {
                Ok(Number(x))
            }

            fn visit_u64<E: de::Error>(self, x: u64) -> Result<Number, E> {
                Ok(Number(x as f64))
            }

            fn visit_i64<E: de::Error>(self, x: i64) -> Result<Number, E> {
                Ok(Number(x as f64))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Number, E> {
                match text {
                    NAN => Ok(Number(f64::NAN)),
                    INFINITE => Ok(Number(f64::INFINITY)),
                    MINUS_INFINITE => Ok(Number(f64::NEG_INFINITY)),
                    _ => Err(E::invalid_value(Unexpected::Str(text), &self)),
                }
            }

            fn visit_unit<E: de::Error>(self) -> Result<Number, E> {
                Ok(Number(f64::NAN))
            }
        }
        deserializer.deserialize_any(Written)
    }
}

/// See the module.
pub fn serialize<S: Serializer>(x: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    Number(*x).serialize(serializer)
}

/// See the module.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Number::deserialize(deserializer).map(|number| number.0)
}

/// A number that may be absent: then it is `null`, here and nowhere else.
pub mod optional {
    use super::{Deserialize, Deserializer, Number, Serialize, Serializer};

    /// See [`super`].
    pub fn serialize<S: Serializer>(x: &Option<f64>, serializer: S) -> Result<S::Ok, S::Error> {
        x.map(Number).serialize(serializer)
    }

    /// See [`super`].
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
        Option::<Number>::deserialize(deserializer).map(|number| number.map(|number| number.0))
    }
}

/// A number that is absent only when it was measured and is none: then it is `"NaN"`.
pub mod finite {
    use super::{Deserializer, Serializer};

    /// See [`super`].
    pub fn serialize<S: Serializer>(x: &Option<f64>, serializer: S) -> Result<S::Ok, S::Error> {
        super::serialize(&x.unwrap_or(f64::NAN), serializer)
    }

    /// See [`super`].
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
        super::deserialize(deserializer).map(|x| x.is_finite().then_some(x))
    }
}

/// Many numbers.
pub mod list {
    use super::{Deserialize, Deserializer, Number, Serializer};

    /// See [`super`].
    pub fn serialize<S: Serializer>(numbers: &[f64], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(numbers.iter().map(|&x| Number(x)))
    }

    /// See [`super`].
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<f64>, D::Error> {
        Ok(Vec::<Number>::deserialize(deserializer)?.into_iter().map(|number| number.0).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize, Deserialize)]
    struct Row {
        #[serde(with = "super")]
        own: f64,
        #[serde(default, with = "optional")]
        maybe: Option<f64>,
        #[serde(with = "finite")]
        sane: Option<f64>,
        #[serde(with = "list")]
        many: Vec<f64>,
    }

    #[test]
    fn what_is_no_number_has_a_name_and_comes_back() {
        let row =
            Row { own: f64::INFINITY, maybe: Some(f64::NAN), sane: None, many: vec![1.5, f64::NEG_INFINITY, f64::NAN] };
        let text = serde_json::to_string(&row).unwrap();
        assert_eq!(text, r#"{"own":"Infinity","maybe":"NaN","sane":"NaN","many":[1.5,"-Infinity","NaN"]}"#);
        let back: Row = serde_json::from_str(&text).unwrap();
        assert!(
            back.own == f64::INFINITY && back.maybe.unwrap().is_nan() && back.sane.is_none() && back.many[2].is_nan()
        );
        assert_eq!((value(f64::NAN), value(0.25)), (json!("NaN"), json!(0.25)));
    }

    #[test]
    fn what_is_absent_stays_absent_and_old_nulls_are_read() {
        let back: Row = serde_json::from_str(r#"{"own":null,"maybe":null,"sane":3,"many":[null,-2]}"#).unwrap();
        assert!(back.own.is_nan() && back.maybe.is_none() && back.many[0].is_nan() && back.many[1] == -2.0);
        assert_eq!(back.sane, Some(3.0));
        let back: Row = serde_json::from_str(r#"{"own":1,"sane":"Infinity","many":[]}"#).unwrap();
        assert_eq!((back.own, back.maybe, back.sane), (1.0, None, None));
        assert!(serde_json::from_str::<Row>(r#"{"own":"much","sane":1,"many":[]}"#).is_err());
    }
}
