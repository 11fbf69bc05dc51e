//! Outputs whose linears stay dense but smaller, each block's in its own way: fewer channels, values of fewer dimensions per
//! head.

use crate::export::{assert_close, config, options, rows, write};
use crate::export_raw::assert_obeys;
use crate::families::{folders, open};
use crate::program::{Place, change_weights};
use candle_core::{Device, Tensor};
use serde_json::{Value, json};
use softlm::checkpoint::{
    Dtype, Entry, NamedTensor, Origin, Section, Source, write_checkpoint, write_file, write_tensors,
};
use softlm::export::{Form, StoredLinear, export, output_config};
use softlm::linalg::Mat;
use softlm::model::{Decoder, FfnPart, Linear, LinearSpec, Model, Output, Role, verify};
use softlm::recipe::StoredType;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// What is left of a base's linears: of each the outputs and inputs that stay.
type Left = BTreeMap<String, [Vec<usize>; 2]>;

/// Which parts are made smaller.
#[derive(Clone, Copy)]
struct Parts {
    channels: bool,
    /// Every layer as narrow as all others.
    evenly: bool,
}

const ALL: Parts = Parts { channels: true, evenly: false };

/// Some of everything, other sizes in every block.
fn some_of(model: &Model, parts: Parts) -> Left {
    let mut left = Left::default();
    for block in 0..model.blocks() {
        for layer in model.feed_forwards(block).iter().filter(|_| parts.channels) {
            let expert = usize::from(layer.down.id.role.expert().unwrap_or(0));
            let fewer = if parts.evenly { 3 } else { 1 + block + expert };
            let gone: Vec<usize> = (0..fewer).map(|i| 2 * i + block % 2).collect();
            let channels: Vec<usize> = (0..layer.down.input).filter(|i| !gone.contains(i)).collect();
            for spec in layer.gate.into_iter().chain([layer.up]) {
                left.insert(spec.name.clone(), [channels.clone(), all(spec.input)]);
            }
            left.insert(layer.down.name.clone(), [all(layer.down.out), channels]);
        }
        let Some(heads) = model.heads(block) else { continue };
        let d = heads.head_dim;
        let find = |role| model.block_linears(block).find(|spec| spec.id.role == role).expect("a linear of attention");
        let [v, o] = [Role::V, Role::O].map(find);
        let dims = all([d / 2, 1, d - 1][block % 3]);
        let of_heads = |count: usize| (0..count).flat_map(|head| dims.iter().map(move |i| head * d + i)).collect();
        left.insert(v.name.clone(), [of_heads(heads.kv_heads), all(v.input)]);
        left.insert(o.name.clone(), [all(o.out), of_heads(heads.heads)]);
    }
    left
}

fn all(len: usize) -> Vec<usize> {
    (0..len).collect()
}

/// An output of `base` with what `left` leaves, in f32.
fn make(base: &Path, left: &Left, output: &Path) {
    let model = open(base);
    let (source, mut new, mut replaced) = (model.source(), Vec::new(), BTreeSet::new());
    let split: BTreeSet<&str> =
        model.linears().iter().filter(|spec| left.contains_key(&spec.name)).filter_map(LinearSpec::fused).collect();
    for spec in model.linears() {
        let whole = [all(spec.out), all(spec.input)];
        let [outputs, inputs] = match left.get(&spec.name) {
            Some(left) => left,
            None if spec.fused().is_some_and(|matrix| split.contains(matrix)) => &whole,
            None => continue,
        };
        let block = model.block(spec.id.block).expect("a block");
        let w = rows(block.linear(spec.id.role).and_then(Linear::dense_weight).expect("dense"));
        let w = Mat::from_fn(outputs.len(), inputs.len(), |i, j| w[outputs[i] * spec.input + inputs[j]]);
        let bias = model.bias(spec).expect("read").map(|bias| rows(&bias));
        let bias = bias.filter(|_| outputs.len() < spec.out);
        let bias: Option<Vec<f64>> = bias.map(|bias| outputs.iter().map(|&i| bias[i]).collect());
        new.extend(spec.narrowed(&w, bias.as_deref(), Dtype::F32).expect("smaller"));
        replaced.insert(spec.weight_name());
    }
    replaced.extend(new.iter().map(|tensor: &NamedTensor| tensor.name.clone()));
    fs::create_dir_all(output).expect("a folder");
    let path = output.with_extension("parts");
    write_tensors(&path, &new, &BTreeMap::new()).expect("written");
    let entry =
        |name: &str, dtype, shape: &[usize], from| Entry { name: name.into(), dtype, shape: shape.into(), from };
    let kept = source.names().filter(|name| !replaced.contains(*name)).map(|name| {
        let info = source.info(name).expect("listed");
        entry(name, info.dtype, &info.shape, Origin::Source(name.into()))
    });
    let made = new.iter().map(|tensor| {
        let from = Origin::File { path: path.clone(), name: tensor.name.clone() };
        entry(&tensor.name, tensor.dtype, &tensor.shape, from)
    });
    let entries: Vec<Entry> = kept.chain(made).collect();
    write_checkpoint(output, &entries, source, 1 << 40, &BTreeMap::new(), &mut |_| {}).expect("written");
    let section = Section { method: "by hand".into(), ..Section::default() };
    let config = output_config(&model, &entries, &BTreeMap::new(), section);
    write_file(&output.join("config.json"), Value::Object(config).to_string().as_bytes()).expect("written");
}

/// The folders of models some part of which can be smaller, and what is made of each.
fn cases(place: &Path, parts: Parts) -> Vec<(PathBuf, PathBuf, Left)> {
    let mut cases = Vec::new();
    for base in folders() {
        let left = some_of(&open(&base), parts);
        if left.is_empty() {
            continue;
        }
        let output = place.join(base.file_name().expect("a name"));
        make(&base, &left, &output);
        cases.push((base, output, left));
    }
    assert!(cases.len() > 15, "{}", cases.len());
    cases
}

/// Where each linear of `dense` is that of `base`, and zero where nothing is left.
fn assert_zeros_elsewhere(dense: &Model, base: &Model, left: &Left, case: &str) {
    for spec in base.linears() {
        let weight = |model: &Model| {
            let block = model.block(spec.id.block).expect("a block");
            let linear = block.linear(spec.id.role).expect("a linear");
            (rows(linear.dense_weight().expect("dense")), linear.bias().map(rows))
        };
        let ((found, bias), (whole, whole_bias)) = (weight(dense), weight(base));
        let [outputs, inputs] = match left.get(&spec.name) {
            // Channels that are left stand in front.
            Some([outputs, inputs]) if spec.id.role.ffn_part().is_some() => [outputs.clone(), inputs.clone()],
            Some(left) => left.clone(),
            None => [all(spec.out), all(spec.input)],
        };
        let ffn = spec.id.role.ffn_part().is_some();
        let place = |list: &[usize], i: usize| match ffn {
            true => list.get(i).copied(),
            false => list.contains(&i).then_some(i),
        };
        for i in 0..spec.out {
            let of_base = place(&outputs, i);
            let wanted = |j: usize| match (of_base, place(&inputs, j)) {
                (Some(i), Some(j)) => whole[i * spec.input + j],
                _ => 0.0,
            };
            let row: Vec<f64> = (0..spec.input).map(wanted).collect();
            assert_eq!(found[i * spec.input..][..spec.input], row, "{case}: {} row {i}", spec.id);
            if let (Some(bias), Some(whole)) = (&bias, &whole_bias) {
                assert_eq!(bias[i], of_base.map_or(0.0, |i| whole[i]), "{case}: bias {i} of {}", spec.id);
            }
        }
    }
}

#[test]
fn every_family_runs_as_if_what_is_gone_were_zero() {
    let place = tempfile::tempdir().expect("a scratch folder");
    for (base, output, left) in cases(place.path(), ALL) {
        let case = base.file_name().expect("a name").to_string_lossy().into_owned();
        let (source, original) = (Source::open(&output).expect("an output"), Source::open(&base).expect("a base"));
        for against in [None, Some(&original)] {
            let problems = verify(&source, against, None).expect("readable").problems;
            assert!(problems.is_empty(), "{case}: {problems:?}");
        }
        let (smaller, whole) = (open(&output), open(&base));
        for (spec, of_base) in smaller.linears().iter().zip(whole.linears()) {
            let sizes = left.get(&spec.name).map(|[outputs, inputs]| (outputs.len(), inputs.len()));
            assert_eq!((spec.out, spec.input), sizes.unwrap_or((of_base.out, of_base.input)), "{case}: {}", spec.id);
        }
        assert!(
            smaller
                .unused_tensors()
                .iter()
                .all(|name| whole.unused_tensors().contains(name) || name.ends_with(".bias"))
        );
        let dense = place.path().join(format!("{case}-dense"));
        write(&output, Form::Dense, &dense, StoredType::F32).expect("exported");
        let dense = open(&dense);
        assert_zeros_elsewhere(&dense, &whole, &left, &case);
        assert_close(&smaller, &dense, &case);
        if smaller.output() == Output::NextToken {
            decode(&smaller, &dense, &case);
        }
    }
}

/// Read token by token, with what was seen in a cache, both say the same.
fn decode(smaller: &Model, dense: &Model, case: &str) {
    let ids: Vec<u32> = (0..21).map(|i| (7 + 31 * i) % 90).collect();
    let [mut ours, mut theirs] = [smaller, dense].map(|model| Decoder::new(model).expect("a decoder"));
    for piece in [&ids[..9], &ids[9..10], &ids[10..20], &ids[20..]] {
        let [ours, theirs] = [&mut ours, &mut theirs].map(|decoder| rows(&decoder.read(piece).expect("read")));
        let largest = theirs.iter().fold(0f64, |m, x| m.max(x.abs()));
        let apart = ours.iter().zip(&theirs).fold(0f64, |m, (a, b)| m.max((a - b).abs()));
        assert!(apart < 1e-5 * largest, "{case}: {apart:e} of {largest}");
    }
}

#[test]
fn config_json_says_how_each_is_stored() {
    let place = tempfile::tempdir().expect("a scratch folder");
    let base = folders().into_iter().find(|folder| folder.ends_with("llama-tiny-rope3")).expect("a model");
    let (model, output) = (open(&base), place.path().join("out"));
    make(&base, &some_of(&model, ALL), &output);
    let heads = model.heads(1).expect("attention");
    let listed = &config(&output)["softlm"]["linears"];
    let entry = |name: &str| -> StoredLinear {
        serde_json::from_value(listed[format!("model.layers.1.{name}")].clone()).expect("an entry")
    };
    let (q, k, v, o) = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj");
    for name in [q, k] {
        assert_eq!(listed.get(format!("model.layers.1.{name}")), None, "{name} is as in the base");
    }
    assert_eq!(entry(v).out_heads, Some((heads.kv_heads, heads.head_dim)));
    assert_eq!((entry(v).in_heads, entry(v).rank), (None, None));
    assert_eq!((entry(o).out_heads, entry(o).in_heads), (None, Some((heads.heads, heads.head_dim))));
    assert_eq!(
        entry("mlp.down_proj").input + 2,
        model.linears().iter().find(|s| s.id.role == Role::Down).unwrap().input
    );
    assert_eq!(entry("mlp.down_proj").in_heads, None);
}

#[test]
fn a_plain_config_has_one_width_and_whole_heads() {
    let place = tempfile::tempdir().expect("a scratch folder");
    for (base, output, _) in cases(place.path(), Parts { evenly: true, ..ALL }) {
        let case = base.file_name().expect("a name").to_string_lossy().into_owned();
        let plain = place.path().join(format!("{case}-plain"));
        write(&output, Form::Plain, &plain, StoredType::F32).unwrap_or_else(|e| panic!("{case}: {e:#}"));
        let (plain, whole) = (open(&plain), open(&base));
        for (spec, of_base) in plain.linears().iter().zip(whole.linears()) {
            match spec.id.role.ffn_part() {
                Some(FfnPart::Down) => assert_eq!(spec.input + 3, of_base.input, "{case}: {}", spec.id),
                Some(_) => assert_eq!(spec.out + 3, of_base.out, "{case}: {}", spec.id),
                None => assert_eq!((spec.out, spec.input), (of_base.out, of_base.input), "{case}: {}", spec.id),
            }
        }
        assert_close(&open(&output), &plain, &case);
    }
    let base = folders().into_iter().find(|folder| folder.ends_with("gpt2-tiny")).expect("a model");
    let (uneven, heads) = (place.path().join("uneven"), place.path().join("heads"));
    make(&base, &some_of(&open(&base), ALL), &uneven);
    make(&base, &some_of(&open(&base), Parts { channels: false, ..ALL }), &heads);
    for (output, why) in [(uneven, "a plain config.json has one `n_inner` for both"), (heads, "no feed-forward layer")]
    {
        let error = write(&output, Form::Plain, &place.path().join("no"), StoredType::Auto).expect_err(why);
        assert!(format!("{error:#}").contains(why), "{error:#}");
    }
}

#[test]
fn raw_factors_say_what_is_left_of_heads() {
    let place = tempfile::tempdir().expect("a scratch folder");
    for (base, output, left) in cases(place.path(), ALL) {
        let raw = place.path().join("raw");
        let options = softlm::export::ExportOptions { force: true, ..options(Form::Factors, &raw, StoredType::Auto) };
        export(Source::open(&output).expect("an output"), &options, &()).expect("exported");
        let facts: Value = serde_json::from_slice(&fs::read(raw.join("factors.json")).expect("read")).expect("JSON");
        assert_obeys(&facts);
        let model = open(&base);
        for linear in facts["linears"].as_array().expect("a list") {
            let name = linear["name"].as_str().expect("a name");
            let spec = model.linears().iter().find(|spec| spec.name == name);
            let Some(spec) = spec else { continue };
            let smaller = left.contains_key(name) && spec.id.role.is_attention();
            assert_eq!(linear.get("heads").is_some(), smaller, "{name}");
        }
    }
}

#[test]
fn what_does_not_fit_together_is_named() {
    let place = tempfile::tempdir().expect("a scratch folder");
    for name in ["llama-tiny-rope3", "gpt2-tiny"] {
        let base = folders().into_iter().find(|folder| folder.ends_with(name)).expect("a model");
        let output = place.path().join(name);
        make(&base, &some_of(&open(&base), ALL), &output);
        let gpt2 = name == "gpt2-tiny";
        let [q, k, v, o] = match gpt2 {
            true => ["attn.c_attn.q", "attn.c_attn.k", "attn.c_attn.v", "attn.c_proj"]
                .map(|l| format!("transformer.h.0.{l}")),
            false => ["q_proj", "k_proj", "v_proj", "o_proj"].map(|l| format!("model.layers.0.self_attn.{l}")),
        };
        let [q, k, v, o] = [&q, &k, &v, &o].map(String::as_str);
        let broken = |what: &str, expected: &[&str], change: &dyn Fn(&Path)| {
            let copy = place.path().join(format!("{name} {what}"));
            crate::program::copy_folder(&output, &copy);
            change(&copy);
            let source = Source::open(&copy).expect("a folder");
            let problems = verify(&source, None, None).expect("readable").problems;
            assert!(!problems.is_empty(), "{name}: {what}");
            assert!(expected.iter().all(|part| problems[0].contains(part)), "{name}: {what}: {problems:?}");
            let error = Model::load(source, &Device::Cpu).and_then(|model| model.block(0).map(drop));
            assert!(error.is_err(), "{name}: {what} loads");
        };
        let relist = |copy: &Path, linear: &str, key: &str, value: usize| {
            let mut all = Value::Object(config(copy));
            all["softlm"]["linears"][linear][key] = json!(value);
            fs::write(copy.join("config.json"), all.to_string()).expect("written");
        };
        let gone = |copy: &Path, tensor: &str| change_weights(copy, |all| drop(all.remove(tensor).expect("stored")));
        broken("no v", &[v, "missing"], &|copy| gone(copy, &format!("{v}.weight")));
        broken("v of another shape", &[v, "has shape"], &|copy| {
            change_weights(copy, |all| {
                let (_, shape, data) = all.get_mut(&format!("{v}.weight")).expect("stored");
                data.truncate(data.len() / shape[0] * (shape[0] - 1));
                shape[0] -= 1;
            });
        });
        let out = config(&output)["softlm"]["linears"][v]["out"].as_u64().expect("a size") as usize;
        let heads = open(&base).heads(0).expect("attention");
        broken("an uneven v", &[v, "outputs", "heads"], &|copy| relist(copy, v, "out", out + 1));
        broken("v and o apart", &[v, o, "dimensions per head"], &|copy| relist(copy, v, "out", out + heads.kv_heads));
        broken("no v at all", &[v, "cannot become"], &|copy| relist(copy, v, "out", 0));
        broken("a huge v", &[v, "cannot become"], &|copy| relist(copy, v, "out", usize::MAX));
        broken("another hidden size", &[v, "cannot become"], &|copy| relist(copy, v, "in", 3));
        // Queries and keys have all their dimensions, even where the stored ones would fit each other.
        let input = open(&base).linears()[0].input;
        let halved = |copy: &Path, linear: &str, count: usize| {
            let out = count * heads.head_dim / 2;
            relist(copy, linear, "in", input);
            relist(copy, linear, "out", out);
            change_weights(copy, |all| {
                all.insert(format!("{linear}.weight"), (Dtype::F32, vec![out, input], vec![0; 4 * out * input]));
            });
        };
        broken("a smaller q and k", &[q, "cannot become"], &|copy| {
            halved(copy, q, heads.heads);
            halved(copy, k, heads.kv_heads);
        });
        broken("a smaller k", &[k, "cannot become"], &|copy| halved(copy, k, heads.kv_heads));
        broken("no shape", &[v, "cannot be read"], &|copy| {
            let mut all = Value::Object(config(copy));
            all["softlm"]["linears"][v] = json!({ "out": "many" });
            fs::write(copy.join("config.json"), all.to_string()).expect("written");
        });
        if gpt2 {
            broken("no bias of its own", &["c_attn.v.bias", "missing"], &|copy| gone(copy, &format!("{v}.bias")));
        }
    }
}

#[test]
fn a_block_takes_smaller_linears_and_carries_gradients() {
    let folder = folders().into_iter().find(|folder| folder.ends_with("llama-tiny-rope3")).expect("a model");
    let place = tempfile::tempdir().expect("a scratch folder");
    let (model, output) = (open(&folder), place.path().join("out"));
    make(&folder, &some_of(&model, ALL), &output);
    let smaller = open(&output);
    let (stored, mut block) = (smaller.block(1).expect("a block"), model.block(1).expect("a block"));
    for spec in model.block_linears(1) {
        let linear = stored.linear(spec.id.role).expect("a linear").clone();
        block.swap_linear(spec.id.role, linear).expect("swapped");
    }
    let x = model.embed(&[&[3, 14, 15, 9, 26, 5, 35]]).expect("embedded");
    let run = |block: &softlm::model::Block, x: &Tensor| block.forward(x, &mut ()).expect("a pass").expect("a result");
    assert_eq!(rows(&run(&block, &x)), rows(&run(&stored, &x)));
    // Gradients on smaller weights, and on those beside them, against differences in f32.
    let mut vars = BTreeMap::new();
    block
        .map_weights(&mut |name, weight| {
            let var = candle_core::Var::from_tensor(weight)?;
            vars.insert(name.to_string(), var.clone());
            Ok(var.as_tensor().clone())
        })
        .expect("mapped");
    let weights = x.ones_like().and_then(|ones| ones * 0.7).expect("ones");
    let loss = |block: &softlm::model::Block| {
        let y = run(block, &x);
        (y.sin().expect("numbers") * &weights).and_then(|y| y.sum_all()).expect("a sum")
    };
    let found = loss(&block).backward().expect("gradients");
    for name in ["attn.q.weight", "attn.k.weight", "attn.v.weight", "attn.o.weight", "mlp.down.weight"] {
        let var = &vars[name];
        let gradient = found.get(var.as_tensor()).expect("a gradient");
        let direction = gradient.affine(1.0 / rows(gradient).iter().map(|g| g * g).sum::<f64>().sqrt(), 0.0).unwrap();
        let step = 1e-2;
        let before = var.as_tensor().copy().expect("copied");
        let at = |step: f64| {
            var.set(&(&before + (&direction * step).unwrap()).unwrap()).expect("set");
            f64::from(loss(&block).to_scalar::<f32>().expect("a number"))
        };
        let slope = (at(step) - at(-step)) / (2.0 * step);
        at(0.0);
        let wanted = rows(gradient).iter().map(|g| g * g).sum::<f64>().sqrt();
        assert!((slope / wanted - 1.0).abs() < 0.03, "{name}: {slope} for {wanted}");
    }
}

#[test]
fn the_program_inspects_evaluates_and_writes_with_it() {
    let place = Place::new();
    let base = place.demo_folder("base");
    make(&base, &some_of(&open(&base), ALL), &place.path("out"));
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(base.join(file), place.path("out").join(file)).ok();
    }
    place.run("verify out --against base").fine();
    let said = place.run("inspect out --tensors").fine();
    assert!(said.stdout.contains("model.layers.1.self_attn.v_proj.weight"), "{}", said.stdout);
    place.run("eval out --ppl sample --max-windows 2 --window 64 --against base -q").fine();
    place.run("generate out --prompt hello --max-tokens 3 -q").fine();
    place.run("export out --to dense -o dense -q").fine();
    place.run("verify dense --against base").fine();
    assert_close(&open(&place.path("out")), &open(&place.path("dense")), "demo");
}
