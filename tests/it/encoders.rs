//! Encoders on padded batches of texts with token types: against transformers (`tests/golden/encoders.json`), against
//! themselves without padding, and their gradients against finite differences.

use crate::data::data;
use candle_core::{Device, Tensor, Var};
use serde_json::Value;
use softlm::checkpoint::Source;
use softlm::eval::{Pooling, evaluate_masked, fidelity};
use softlm::hub::HubOptions;
use softlm::model::{Model, Output};
use softlm::pipeline::{glue_tasks, tokenizer};
use softlm::text::cut_framed;
use std::path::{Path, PathBuf};

/// States and logits may differ by this much of the largest of their sequence.
const CLOSE: f64 = 1e-5;

fn here() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn golden() -> Value {
    serde_json::from_slice(&std::fs::read(here().join("encoders.json")).expect("the reference")).expect("JSON")
}

fn open(name: &str) -> Model {
    let source = Source::open(&here().join(name)).expect(name);
    Model::load(source, &Device::Cpu).expect(name)
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().expect("ids").iter().map(|id| id.as_u64().expect("an id") as u32).collect()
}

fn numbers(value: &Value) -> Vec<f64> {
    match value {
        Value::Array(items) => items.iter().flat_map(numbers).collect(),
        number => vec![number.as_f64().expect("a number")],
    }
}

/// Sequences padded to the longest: their embeddings and lengths.
fn embed(model: &Model, rows: &[Vec<u32>], types: &[Vec<u32>]) -> (Tensor, Vec<usize>) {
    let lengths: Vec<usize> = rows.iter().map(Vec::len).collect();
    let longest = *lengths.iter().max().expect("rows");
    // Padding by an id that means something, so that it would be noticed.
    let padded = |rows: &[Vec<u32>], with: u32| -> Vec<Vec<u32>> {
        rows.iter().map(|row| [row.clone(), vec![with; longest - row.len()]].concat()).collect()
    };
    let (rows, types) = (padded(rows, 77), padded(types, 0));
    let slices = |rows: &'_ [Vec<u32>]| rows.iter().map(|row| row.to_vec()).collect::<Vec<_>>();
    let (rows, types) = (slices(&rows), slices(&types));
    let rows: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
    let types: Vec<&[u32]> = types.iter().map(Vec::as_slice).collect();
    (model.embed_typed(&rows, Some(&types)).expect("embedded"), lengths)
}

fn states(model: &Model, x: &Tensor, lengths: &[usize]) -> Tensor {
    (0..model.blocks()).fold(x.clone(), |x, index| {
        let block = model.block(index).expect("a block");
        block.forward_padded(&x, Some(lengths), &mut ()).expect("a pass").expect("nothing stops it")
    })
}

fn values(x: &Tensor) -> Vec<f64> {
    x.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f64::from).collect()
}

#[track_caller]
fn same(got: &Tensor, wanted: &Value, case: &str) -> f64 {
    let (got, wanted) = (values(got), numbers(wanted));
    assert_eq!(got.len(), wanted.len(), "{case}");
    let largest = wanted.iter().fold(0f64, |m, x| m.max(x.abs()));
    let off = got.iter().zip(&wanted).map(|(a, b)| (a - b).abs() / largest).fold(0.0, f64::max);
    assert!(off < CLOSE, "{case}: off by {off:.1e}");
    off
}

/// Calls `check` with every model of the reference.
fn each(mut check: impl FnMut(&str, &Model, &[Vec<u32>], &[Vec<u32>], &Value)) {
    let golden = golden();
    let models = golden["models"].as_object().expect("models");
    assert_eq!(models.len(), 6);
    for (name, expected) in models {
        let read = |key: &str| expected[key].as_array().expect(key).iter().map(ids).collect::<Vec<_>>();
        check(name, &open(name), &read("ids"), &read("types"), expected);
    }
}

#[test]
fn padded_batches_equal_those_of_transformers() {
    each(|name, model, rows, types, expected| {
        let (x, lengths) = embed(model, rows, types);
        let states = states(model, &x, &lengths);
        let mut worst = 0f64;
        for (r, &length) in lengths.iter().enumerate() {
            let case = format!("{name}, sequence {r}");
            let own = states.get(r).unwrap().narrow(0, 0, length).unwrap();
            worst = worst.max(same(&own, &expected["states"][r], &case));
            if model.output() == Output::MaskedToken {
                let at = ids(&expected["at"]).into_iter().filter(|&p| (p as usize) < length).collect::<Vec<_>>();
                let at = Tensor::new(at, &Device::Cpu).unwrap();
                let logits = model.head().expect("a head").logits(&own.index_select(&at, 0).unwrap()).unwrap();
                worst = worst.max(same(&logits, &expected["logits"][r], &case));
            }
        }
        if let Some(classifier) = model.classifier().expect("readable") {
            assert_eq!(model.output(), Output::Classes(classifier.classes()), "{name}");
            worst = worst.max(same(&classifier.logits(&states).unwrap(), &expected["logits"], name));
        }
        let headless = name.ends_with("bare");
        assert_eq!(expected["logits"].is_null(), headless, "{name}");
        assert_eq!(model.output() == Output::States, headless, "{name}");
        println!("{name}: off by at most {worst:.1e}");
    });
}

#[test]
fn padding_is_seen_by_nobody() {
    each(|name, model, rows, types, _| {
        let (x, lengths) = embed(model, rows, types);
        let together = states(model, &x, &lengths);
        for (r, &length) in lengths.iter().enumerate() {
            let (x, lengths) = embed(model, &rows[r..=r], &types[r..=r]);
            let alone = states(model, &x, &lengths);
            let own = together.narrow(0, r, 1).unwrap().narrow(1, 0, length).unwrap();
            let off = (own - alone).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
            assert!(off < 1e-5, "{name}, sequence {r}: {off:e}");
        }
    });
}

#[test]
fn gradients_on_padded_batches_are_those_of_finite_differences() {
    each(|name, model, rows, types, _| {
        let (x, lengths) = embed(model, rows, types);
        let longest = x.dim(1).unwrap();
        let classifier = model.classifier().unwrap();
        let mut vars: Vec<(String, Var)> = vec![("input".into(), Var::from_tensor(&x).unwrap())];
        for index in 0..model.blocks() {
            let mut block = model.block(index).unwrap();
            let record = &mut |name: &str, weight: &Tensor| {
                vars.push((format!("{index}.{name}"), Var::from_tensor(weight)?));
                Ok(weight.clone())
            };
            block.map_weights(record).unwrap();
        }
        // Only real positions count, each entry with a weight of its own.
        let width = model.hidden();
        let weights = (0..rows.len() * longest * width).map(|i| {
            let (row, position) = (i / width / longest, i / width % longest);
            if position < lengths[row] { (1.0 + i as f32).cos() } else { 0.0 }
        });
        let weights = Tensor::from_vec(weights.collect(), (rows.len(), longest, width), &Device::Cpu).unwrap();
        let loss = |vars: &[(String, Var)]| {
            let mut left = vars.iter();
            let mut x = left.next().unwrap().1.as_tensor().clone();
            for index in 0..model.blocks() {
                let mut block = model.block(index).unwrap();
                block.map_weights(&mut |_, _| Ok(left.next().unwrap().1.as_tensor().clone())).unwrap();
                x = block.forward_padded(&x, Some(&lengths), &mut ()).unwrap().unwrap();
            }
            let states = (&x * &weights).unwrap().sum_all().unwrap();
            match &classifier {
                Some(classifier) => {
                    let logits = classifier.logits(&x).unwrap();
                    let log = candle_nn::ops::log_softmax(&logits, 1).unwrap();
                    (states + log.narrow(1, 1, 1).unwrap().sum_all().unwrap()).unwrap()
                }
                None => states,
            }
        };
        let graph = loss(&vars).backward().unwrap();
        let at = |vars: &[(String, Var)]| f64::from(loss(vars).to_scalar::<f32>().unwrap());
        for (i, (what, var)) in vars.iter().enumerate() {
            let gradient = graph.get(var).unwrap_or_else(|| panic!("{name} {what} has no gradient"));
            let g = values(gradient);
            let norm = g.iter().map(|g| g * g).sum::<f64>().sqrt();
            if what.ends_with("attn.k.bias") {
                // It shifts all scores of a query alike: softmax does not see it.
                assert!(norm < 1e-3, "{name} {what}: {norm}");
                continue;
            }
            let d: Vec<f32> =
                g.iter().enumerate().map(|(i, g)| (g.signum() * (1.0 + 0.5 * (i as f64).sin())) as f32).collect();
            let expected: f64 = g.iter().zip(&d).map(|(g, &d)| g * f64::from(d)).sum();
            let size = d.iter().map(|&d| f64::from(d).powi(2)).sum::<f64>().sqrt();
            let d = Tensor::from_vec(d, var.shape(), &Device::Cpu).unwrap();
            let start = var.as_tensor().copy().unwrap();
            let slope = |step: f64| {
                let side = |sign: f64| {
                    let moved = (&start + (&d * (sign * step / size)).unwrap()).unwrap();
                    vars[i].1.set(&moved).unwrap();
                    at(&vars)
                };
                let slope = (side(1.0) - side(-1.0)) / (2.0 * step) * size;
                var.set(&start).unwrap();
                slope
            };
            let found = [0.04, 0.01, 0.0025].map(|step| (4.0 * slope(step) - slope(2.0 * step)) / 3.0);
            let close = found.iter().any(|found| (found / expected - 1.0).abs() < 1e-2);
            assert!(expected > 0.0 && close, "{name} {what}: {expected} for {found:?}");
        }
        if !lengths.iter().all(|&length| length == longest) {
            let on_padding = graph.get(&vars[0].1).unwrap().get(2).unwrap().narrow(0, 1, longest - 1).unwrap();
            assert!(values(&on_padding).iter().all(|&g| g == 0.0), "{name}: padding has a gradient");
        }
    });
}

#[test]
fn texts_and_pairs_become_the_same_ids_and_types() {
    let tokenizer = tokenizer(open("models/bert-tiny").source()).expect("a tokenizer");
    assert_eq!((tokenizer.frame(), tokenizer.mask()), (Some((2, 3)), Some(4)));
    for case in golden()["tokens"].as_array().expect("cases") {
        let encoder = tokenizer.encoder(case["max_length"].as_u64().expect("a length") as usize).expect("long enough");
        let found = encoder.encode(case["first"].as_str().expect("a text"), case["second"].as_str()).expect("ids");
        assert_eq!((found.ids, found.types), (ids(&case["ids"]), ids(&case["types"])), "{case}");
    }
    assert!(tokenizer.encoder(3).is_err(), "no room for a pair");
}

#[test]
fn pseudo_perplexities_equal_those_of_transformers() {
    let golden = golden();
    for (name, expected) in golden["pseudo"].as_object().expect("models") {
        let rows = expected["windows"].as_array().expect("windows").iter().map(ids);
        let tokens: Vec<u32> = rows.flat_map(|row| row[1..15].to_vec()).collect();
        let windows = cut_framed(&tokens, 16, 16, (2, 3)).expect("windows");
        let model = open(name);
        let (found, base) = evaluate_masked(&model, Some(&model), "made up", &windows, 4, &()).expect("measured");
        let p = found.perplexity;
        assert_eq!((p.windows, Some(p.tokens as u64), p.masked), (3, expected["targets"].as_u64(), true), "{name}");
        let wanted = expected["nll"].as_f64().expect("a number");
        assert!((p.nll / wanted - 1.0).abs() < 1e-6, "{name}: {} for {wanted}", p.nll);
        assert_eq!(base.expect("measured too").perplexity.nll, p.nll, "{name}");
        let same = found.divergence.expect("compared");
        assert!(same.kl.abs() < 1e-9 && same.top1 == 1.0, "{name}: {same:?}");
    }
}

#[test]
fn embeddings_are_compared_by_the_cosine_of_pooled_states() {
    let (a, b) = (open("encoders/bert-tiny-bare"), open("encoders/distilbert-tiny-bare"));
    let tokens: Vec<u32> = (0..60).map(|i| (5 + 29 * i) % 96).collect();
    let windows = cut_framed(&tokens, 17, 17, (2, 3)).expect("windows");
    let by_hand = |model: &Model, pooling| -> Vec<Vec<f64>> {
        let pooled = windows.rows.iter().map(|row| {
            let x = model.embed(&[&row.ids]).expect("embedded");
            let states: Vec<Vec<f32>> = states(model, &x, &[17]).get(0).and_then(|x| x.to_vec2()).expect("states");
            let rows = if pooling == Pooling::Mean { &states[..] } else { &states[..1] };
            (0..24).map(|j| rows.iter().map(|row| f64::from(row[j])).sum()).collect()
        });
        pooled.collect()
    };
    for pooling in [Pooling::Mean, Pooling::First] {
        let found = fidelity(&a, &b, "made up", &windows, &pooling.into(), &()).expect("measured");
        let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
        let cosines: Vec<f64> = by_hand(&a, pooling)
            .iter()
            .zip(by_hand(&b, pooling))
            .map(|(x, y)| dot(x, &y) / (dot(x, x) * dot(&y, &y)).sqrt())
            .collect();
        let mean = cosines.iter().sum::<f64>() / cosines.len() as f64;
        assert!((found.cosine - mean).abs() < 1e-5 && found.windows == 4, "{found:?} for {cosines:?}");
        assert!((found.least - cosines.iter().copied().fold(1.0, f64::min)).abs() < 1e-5, "{found:?}");
        let same = fidelity(&a, &a, "made up", &windows, &pooling.into(), &()).expect("measured");
        assert!((same.cosine - 1.0).abs() < 1e-9, "{same:?}");
    }
}

/// What `softlm eval --glue` finds: the first number of each of `specs`.
fn measured(model: &Model, specs: &[String], max_length: Option<usize>) -> Vec<f64> {
    let found = glue_tasks(model, None, specs, max_length, &HubOptions::default(), &()).expect("measured");
    let first = found.iter().filter(|result| ["spearman", "accuracy"].contains(&result.metric.as_str()));
    first.map(|result| result.value).collect()
}

#[test]
fn sentence_embeddings_score_on_stsb_what_is_known_of_them() {
    let folder = data("models/all-MiniLM-L6-v2");
    let texts = ["test", "dev"].map(|part| data(&format!("text/stsb/sts-{part}.csv")));
    let (Some(folder), [Some(test), Some(dev)]) = (folder, texts) else { return };
    let model = Model::load(Source::open(&folder).expect("a checkpoint"), &Device::Cpu).expect("a model");
    assert_eq!(model.output(), Output::States);
    // Mean pooling and 256 tokens at most are what the model's folder asks for.
    let found = measured(&model, &[test, dev].map(|path| format!("stsb={}", path.display())), None);
    println!("{found:?}");
    assert!((found[0] - 0.82032).abs() < 1e-5 && (found[1] - 0.86716).abs() < 1e-5, "{found:?}");
}

#[test]
fn a_classifier_is_as_right_as_is_known_of_it() {
    let (Some(folder), Some(dev)) = (data("models/minilm-sst2"), data("text/sst2/dev.tsv")) else { return };
    let model = Model::load(Source::open(&folder).expect("a checkpoint"), &Device::Cpu).expect("a model");
    let found = measured(&model, &[format!("sst2={}", dev.display())], Some(128));
    assert_eq!(found, [768.0 / 872.0]);
}
