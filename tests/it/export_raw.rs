//! Outputs as raw factors: the description obeys its schema, and says enough to read every linear.

use crate::export::{options, rows};
use crate::families::{compress_so, folders, open};
use crate::program::tensors;
use half::f16;
use serde_json::{Value, json};
use softlm::checkpoint::{Dtype, Source};
use softlm::export::{ExportOptions, FACTORS_SCHEMA, Form, export};
use softlm::model::{Linear, Model};
use softlm::recipe::StoredType;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// Fails unless a description obeys its schema.
pub fn assert_obeys(facts: &Value) {
    let schema: Value = serde_json::from_str(FACTORS_SCHEMA).expect("JSON");
    if let Err(error) = obeys(facts, &schema, &schema) {
        panic!("{error}: {facts}");
    }
}

#[test]
fn the_description_of_raw_factors_obeys_its_schema() {
    let place = tempfile::tempdir().expect("a scratch folder");
    let schema: Value = serde_json::from_str(FACTORS_SCHEMA).expect("JSON");
    for folder in folders() {
        for method in ["rom", "lorap"] {
            let name = folder.file_name().expect("a name").to_string_lossy().into_owned();
            let case = format!("{method} on {name}");
            let (output, raw) = (place.path().join(&case), place.path().join(format!("{case} raw")));
            compress_so(&folder, method, &output, None);
            let limited = ExportOptions { max_shard_bytes: 8_000, ..options(Form::Factors, &raw, StoredType::Auto) };
            export(Source::open(&output).expect("an output"), &limited, &()).expect("exported");
            assert!(!raw.join("config.json").exists(), "nobody may take it for a plain model");
            let facts: Value =
                serde_json::from_slice(&fs::read(raw.join("factors.json")).expect("a description")).expect("JSON");
            assert_obeys(&facts);
            check_raw(&facts, &raw, &open(&output).with_small_linears(), &case);
        }
    }
    // The check can fail.
    let sound = json!({
        "format": "softlm-factors", "version": 1, "softlm": "0", "method": "svd", "keep": 0.5,
        "base": { "name": null, "revision": null, "model_type": "llama" }, "config": { "model_type": "llama" },
        "linears": [{ "id": "0.attn.q", "name": "q", "in": 4, "out": 4, "rank": 1, "a": "q.a", "b": "q.b" }],
        "tensors": [],
    });
    obeys(&sound, &schema, &schema).expect("sound");
    for (path, value) in [
        ("/keep", json!("0.5")),
        ("/version", json!(2)),
        ("/base/name", json!(1)),
        ("/base/model_type", Value::Null),
        ("/linears/0/in", json!(0)),
        ("/linears/0", json!({ "id": "0.attn.q", "name": "q", "in": 4, "out": 4, "rank": 1, "a": "q.a" })),
        ("/tensors", json!([{ "name": "x", "dtype": "F32", "shape": [1], "file": "f", "more": 1 }])),
    ] {
        let mut broken = sound.clone();
        *broken.pointer_mut(path).expect("a place") = value;
        assert!(obeys(&broken, &schema, &schema).is_err(), "{path}");
    }
}

/// Every linear, read by the description alone, is the one that the model has.
fn check_raw(facts: &Value, raw: &Path, model: &Model, case: &str) {
    let files: BTreeSet<&str> =
        facts["tensors"].as_array().expect("a list").iter().map(|t| t["file"].as_str().expect("a name")).collect();
    assert!(files.len() > 1, "{case}");
    let mut all = BTreeMap::new();
    for file in files {
        all.extend(tensors(&raw.join(file)));
    }
    let read = |name: &str| {
        let (dtype, shape, bytes) = &all[name];
        let values: Vec<f64> = match dtype {
            Dtype::F16 => bytes.as_chunks::<2>().0.iter().map(|b| f16::from_le_bytes(*b).to_f64()).collect(),
            _ => bytes.as_chunks::<4>().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect(),
        };
        (shape.clone(), values)
    };
    let number = |value: &Value| value.as_u64().expect("a number") as usize;
    let line = |part: &Value, i: usize| match part.get("rows") {
        None => i,
        Some(rows) => {
            let [start, run, stride] = ["start", "run", "stride"].map(|key| number(&rows[key]));
            start + i / run * stride + i % run
        }
    };
    assert_eq!(facts["linears"].as_array().map(Vec::len), Some(model.linears().len()), "{case}");
    for (spec, linear) in model.linears().iter().zip(facts["linears"].as_array().expect("a list")) {
        assert_eq!(linear["id"], spec.id.to_string(), "{case}");
        let (out, input) = (number(&linear["out"]), number(&linear["in"]));
        let block = model.block(spec.id.block).expect("a block");
        let held = block.linear(spec.id.role).expect("there");
        match held {
            Linear::LowRank { a, b, .. } => {
                let name = |key: &str| linear[key].as_str().expect("a name");
                assert_eq!(read(name("a")), (a.dims().to_vec(), rows(a)), "{case}: {}", spec.id);
                assert_eq!(read(name("b")), (b.dims().to_vec(), rows(b)), "{case}: {}", spec.id);
            }
            Linear::Dense { weight, .. } => {
                let part = &linear["weight"];
                let (shape, values) = read(part["tensor"].as_str().expect("a name"));
                let turned = part["transposed"] == true;
                let at = |i: usize, j: usize| {
                    values[if turned { j * shape[1] + line(part, i) } else { line(part, i) * shape[1] + j }]
                };
                let found: Vec<f64> =
                    (0..out).flat_map(|i| (0..input).map(move |j| (i, j))).map(|(i, j)| at(i, j)).collect();
                assert_eq!(found, rows(weight), "{case}: {}", spec.id);
            }
        }
        let bias = linear.get("bias").map(|part| {
            let (_, values) = read(part["tensor"].as_str().expect("a name"));
            (0..out).map(|i| values[line(part, i)]).collect::<Vec<_>>()
        });
        assert_eq!(bias, held.bias().map(rows), "{case}: bias of {}", spec.id);
    }
}

/// As much of JSON Schema as the schema uses; anything else in it is an error.
fn obeys(value: &Value, schema: &Value, root: &Value) -> Result<(), String> {
    let fail = |what: &str| Err(format!("{what}: {value}"));
    for (word, rule) in schema.as_object().ok_or("a schema is an object")? {
        match word.as_str() {
            "$schema" | "title" | "description" | "$defs" => {}
            "$ref" => {
                let at = rule.as_str().and_then(|r| r.strip_prefix('#')).ok_or("a local reference")?;
                obeys(value, root.pointer(at).ok_or("a reference to nothing")?, root)?;
            }
            "const" if value != rule => return fail("not the constant"),
            "const" => {}
            "type" => {
                let is = |kind: &Value| match kind.as_str() {
                    Some("object") => value.is_object(),
                    Some("array") => value.is_array(),
                    Some("string") => value.is_string(),
                    Some("boolean") => value.is_boolean(),
                    Some("null") => value.is_null(),
                    Some("number") => value.is_number(),
                    Some("integer") => value.is_u64() || value.is_i64(),
                    _ => false,
                };
                if !rule.as_array().map_or_else(|| is(rule), |kinds| kinds.iter().any(is)) {
                    return fail("another type");
                }
            }
            "minimum" if value.as_f64() < rule.as_f64() => return fail("too small"),
            "maximum" if value.as_f64() > rule.as_f64() => return fail("too large"),
            "minimum" | "maximum" => {}
            "required" => {
                for key in rule.as_array().ok_or("a list")? {
                    if value.get(key.as_str().ok_or("a key")?).is_none() {
                        return fail(&format!("{key} is missing"));
                    }
                }
            }
            "properties" => {
                for (key, value) in value.as_object().into_iter().flatten() {
                    match rule.get(key) {
                        Some(rule) => obeys(value, rule, root)?,
                        None if schema["additionalProperties"] == false => return fail(&format!("{key} is unknown")),
                        None => {}
                    }
                }
            }
            "additionalProperties" if rule == false => {}
            "items" => value.as_array().into_iter().flatten().try_for_each(|item| obeys(item, rule, root))?,
            "oneOf" => {
                let fitting = rule.as_array().ok_or("a list")?.iter().filter(|rule| obeys(value, rule, root).is_ok());
                if fitting.count() != 1 {
                    return fail("not exactly one of the alternatives");
                }
            }
            other => return Err(format!("the schema has {other}, which this check does not know")),
        }
    }
    Ok(())
}
