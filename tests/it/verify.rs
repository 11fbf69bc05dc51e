//! `verify`: a sound compressed checkpoint passes; each way of breaking one is named.

use half::bf16;
use serde_json::json;
use softlm::checkpoint::{Dtype, NamedTensor, Source, write_tensors};
use softlm::model::{Verification, verify};
use std::collections::BTreeMap;
use std::fs;
use tempfile::TempDir;

/// A checkpoint in memory, to be bent.
struct Model {
    config: serde_json::Value,
    tensors: BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>,
}

impl Model {
    /// A copy of the built-in model that says that softlm compressed it.
    fn demo() -> Self {
        let demo = Source::demo();
        let mut config = serde_json::Value::Object(demo.config().clone());
        config["softlm"] = json!({});
        let tensor = |name: &str| {
            let info = demo.info(name).unwrap();
            (name.to_string(), (info.dtype, info.shape.clone(), demo.bytes(name).unwrap().to_vec()))
        };
        Self { config, tensors: demo.names().map(tensor).collect() }
    }

    /// GPT-2's names and transposed layout: hidden 8, feed-forward 32.
    fn conv1d() -> Self {
        let config = json!({
            "model_type": "gpt2", "n_embd": 8, "n_head": 2, "n_layer": 1, "n_positions": 4, "vocab_size": 5,
            "n_inner": 32, "softlm": {},
        });
        let mut model = Self { config, tensors: BTreeMap::new() };
        for norm in ["h.0.ln_1", "h.0.ln_2", "ln_f"] {
            model.put(&format!("{norm}.weight"), &[8]).put(&format!("{norm}.bias"), &[8]);
        }
        for (name, shape) in [
            ("wte.weight", vec![5, 8]),
            ("wpe.weight", vec![4, 8]),
            ("h.0.attn.bias", vec![1, 1, 4, 4]),
            ("h.0.attn.c_attn.weight", vec![8, 24]),
            ("h.0.attn.c_attn.bias", vec![24]),
            ("h.0.attn.c_proj.weight", vec![8, 8]),
            ("h.0.attn.c_proj.bias", vec![8]),
            ("h.0.mlp.c_fc.weight", vec![8, 32]),
            ("h.0.mlp.c_fc.bias", vec![32]),
            ("h.0.mlp.c_proj.weight", vec![32, 8]),
            ("h.0.mlp.c_proj.bias", vec![8]),
        ] {
            model.put(name, &shape);
        }
        model
    }

    /// Adds or replaces a tensor of ones.
    fn put(&mut self, name: &str, shape: &[usize]) -> &mut Self {
        let data = bf16::ONE.to_le_bytes().repeat(shape.iter().product());
        self.tensors.insert(name.into(), (Dtype::BF16, shape.to_vec(), data));
        self
    }

    fn drop(&mut self, name: &str) -> &mut Self {
        self.tensors.remove(name).unwrap_or_else(|| panic!("{name} is not there"));
        self
    }

    /// Replaces a dense linear by factors.
    fn factorise(&mut self, linear: &str, out: usize, rank: usize, input: usize) -> &mut Self {
        self.tensors.remove(&format!("{linear}.weight"));
        self.put(&format!("{linear}.factor_a.weight"), &[rank, input]);
        self.put(&format!("{linear}.factor_b.weight"), &[out, rank])
    }

    /// Says in config.json that a linear has this shape.
    fn list(&mut self, linear: &str, out: usize, input: usize) -> &mut Self {
        let section = self.config["softlm"].as_object_mut().unwrap();
        section.entry("format").or_insert(json!(2));
        let linears = section.entry("linears").or_insert(json!({}));
        linears[linear] = json!({ "in": input, "out": out, "bias": false });
        let base_type = self.config["model_type"].clone();
        self.config["softlm"]["base_model_type"] = base_type;
        self
    }

    fn store(&self) -> (TempDir, Source) {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("config.json"), self.config.to_string()).unwrap();
        let tensor = |(name, (dtype, shape, data)): (&String, &(Dtype, Vec<usize>, Vec<u8>))| {
            NamedTensor::new(name, *dtype, shape.clone(), data.clone())
        };
        let tensors: Vec<_> = self.tensors.iter().map(tensor).collect();
        write_tensors(&dir.path().join("model.safetensors"), &tensors, &BTreeMap::new()).unwrap();
        let source = Source::open(dir.path()).unwrap();
        (dir, source)
    }

    fn against(&self, base: Option<&Source>) -> Verification {
        verify(&self.store().1, base, None).unwrap()
    }

    /// Sound alone and against the base.
    fn assert_whole(&self, base: &Source) -> Verification {
        assert_eq!(self.against(None).problems, Vec::<String>::new());
        let verdict = self.against(Some(base));
        assert_eq!(verdict.problems, Vec::<String>::new());
        verdict
    }

    /// Exactly one problem is found in comparison with the base, and it says all this.
    fn assert_broken(&self, base: &Source, parts: &[&str]) {
        let problems = self.against(Some(base)).problems;
        assert_eq!(problems.len(), 1, "{problems:?}");
        for part in parts {
            assert!(problems[0].contains(part), "{part:?} is not in {problems:?}");
        }
    }

    /// Exactly one problem is found without a base, and it says all this.
    fn assert_broken_alone(&self, parts: &[&str]) {
        let problems = self.against(None).problems;
        assert_eq!(problems.len(), 1, "{problems:?}");
        for part in parts {
            assert!(problems[0].contains(part), "{part:?} is not in {problems:?}");
        }
    }
}

const Q: &str = "model.layers.1.self_attn.q_proj"; // (128, 128)
const K: &str = "model.layers.1.self_attn.k_proj"; // (64, 128)
const DOWN: &str = "model.layers.2.mlp.down_proj"; // (128, 352)

#[test]
fn a_factorised_model_is_whole() {
    let verdict = Model::demo().factorise(Q, 128, 10, 128).factorise(K, 64, 42, 128).assert_whole(&Source::demo());
    let matrices = 1 + 4 * 7;
    assert_eq!((verdict.factorised, verdict.dense), (2, matrices - 2));
    assert_eq!(verdict.tensors, Source::demo().names().count() + 2);
}

#[test]
fn a_missing_tensor() {
    let base = Source::demo();
    Model::demo().drop(&format!("{Q}.weight")).assert_broken(&base, &[Q, "missing"]);
    Model::demo().drop("model.norm.weight").assert_broken(&base, &["model.norm.weight", "missing"]);
}

#[test]
fn one_factor_without_the_other() {
    for (gone, there) in [("a", "b"), ("b", "a")] {
        let mut model = Model::demo();
        model.factorise(Q, 128, 10, 128).drop(&format!("{Q}.factor_{gone}.weight"));
        model.assert_broken_alone(&[Q, &format!("has factor {there} but lacks factor {gone}")]);
    }
}

#[test]
fn dense_and_factors() {
    let mut model = Model::demo();
    model.factorise(Q, 128, 10, 128).put(&format!("{Q}.weight"), &[128, 128]);
    model.assert_broken_alone(&[Q, "both dense and as factors"]);
    model.assert_broken(&Source::demo(), &[Q, "both dense and as factors"]);
}

#[test]
fn factors_that_do_not_fit() {
    let mut model = Model::demo();
    model.factorise(Q, 128, 10, 128).put(&format!("{Q}.factor_b.weight"), &[128, 11]);
    model.assert_broken_alone(&[Q, "10 in a, 11 in b"]);
    let base = Source::demo();
    Model::demo().factorise(Q, 127, 10, 128).assert_broken(&base, &[Q, "(127, 128)", "(128, 128)"]);
    Model::demo().factorise(Q, 128, 10, 64).assert_broken(&base, &[Q, "(128, 64)"]);
    Model::demo().factorise(K, 128, 10, 64).assert_broken(&base, &[K, "(128, 64)", "(64, 128)"]);
    let mut model = Model::demo();
    model.factorise(Q, 128, 10, 128).put(&format!("{Q}.factor_a.weight"), &[1280]);
    model.assert_broken_alone(&[Q, "factor_a.weight is not a matrix"]);
}

#[test]
fn ranks_at_and_around_break_even() {
    // 128·128 / 256 = 64 exactly.
    Model::demo().factorise(Q, 128, 63, 128).assert_whole(&Source::demo());
    Model::demo().factorise(Q, 128, 64, 128).assert_broken_alone(&[Q, "rank 64", "break-even"]);
    Model::demo().factorise(Q, 128, 0, 128).assert_broken_alone(&[Q, "rank 0"]);
}

#[test]
fn a_tensor_the_base_does_not_have() {
    let base = Source::demo();
    for name in ["model.layers.9.x", "model.layers.0.self_attn.x_proj.weight", "lm_head.bias"] {
        Model::demo().put(name, &[4]).assert_broken(&base, &[name, "no counterpart"]);
    }
    let problems = Model::demo().factorise("model.layers.9.q", 128, 2, 128).against(Some(&base)).problems;
    assert_eq!(problems.len(), 2, "{problems:?}");
}

#[test]
fn nan_and_infinity_with_their_place() {
    for (value, shown) in [(bf16::NAN, "NaN"), (bf16::INFINITY, "inf")] {
        for (name, shape) in [(format!("{Q}.weight"), 128), ("model.norm.weight".to_string(), 0)] {
            let mut model = Model::demo();
            let data = &mut model.tensors.get_mut(&name).unwrap().2;
            let last = data.len() - 2;
            data[last..].copy_from_slice(&value.to_le_bytes());
            let place = if shape > 0 { "[127, 127]" } else { "[127]" };
            model.assert_broken_alone(&[&name, shown, place]);
        }
    }
}

#[test]
fn feed_forward_channels() {
    let base = Source::demo();
    let mut pruned = Model::demo();
    pruned.config["intermediate_size"] = json!(200);
    for block in 0..4 {
        let block = format!("model.layers.{block}.mlp");
        pruned.put(&format!("{block}.gate_proj.weight"), &[200, 128]);
        pruned.put(&format!("{block}.up_proj.weight"), &[200, 128]);
        pruned.put(&format!("{block}.down_proj.weight"), &[128, 200]);
    }
    pruned.assert_whole(&base);
    // The same without the section that explains it.
    pruned.config.as_object_mut().unwrap().remove("softlm");
    assert_eq!(pruned.against(Some(&base)).problems.len(), 4 * 3);
    assert_eq!(pruned.against(None).problems, Vec::<String>::new());
    // Widths that disagree inside a block, or with the configuration.
    pruned.put("model.layers.2.mlp.up_proj.weight", &[201, 128]);
    pruned.assert_broken_alone(&["up_proj", "201", "200"]);
    pruned.put("model.layers.2.mlp.up_proj.weight", &[200, 128]).config["intermediate_size"] = json!(201);
    assert_eq!(pruned.against(None).problems.len(), 4 * 3);
    // A layer pruned apart from the others, for which config.json has no number but the list of linears.
    let mut apart = Model::demo();
    apart.put("model.layers.2.mlp.gate_proj.weight", &[200, 128]).put("model.layers.2.mlp.up_proj.weight", &[200, 128]);
    apart.put(&format!("{DOWN}.weight"), &[128, 200]);
    assert_eq!(apart.against(None).problems.len(), 3);
    apart.list("model.layers.2.mlp.gate_proj", 200, 128).list("model.layers.2.mlp.up_proj", 200, 128);
    apart.list(DOWN, 128, 200).assert_whole(&base);
    apart.put("model.layers.2.mlp.up_proj.weight", &[201, 128]).assert_broken(&base, &["up_proj", "201", "200"]);
    apart.list("model.layers.2.mlp.up_proj", 201, 128).assert_broken(&base, &["gate_proj 200 channels", "201"]);
    apart.config.as_object_mut().unwrap().remove("softlm");
    assert_eq!(apart.against(None).problems.len(), 3);
    // The other side of a feed-forward linear must not shrink, and none may grow.
    Model::demo().put(&format!("{DOWN}.weight"), &[100, 352]).assert_broken(&base, &[DOWN, "(100, 352)"]);
    let mut grown = Model::demo();
    let block = "model.layers.2.mlp";
    grown.put(&format!("{block}.gate_proj.weight"), &[400, 128]);
    grown.put(&format!("{block}.up_proj.weight"), &[400, 128]).put(&format!("{DOWN}.weight"), &[128, 400]);
    assert_eq!(grown.against(Some(&base)).problems.len(), 3);
}

#[test]
fn tied_matrices_under_the_other_name() {
    let base = Source::demo();
    let mut model = Model::demo();
    let embedding = model.tensors.remove("model.embed_tokens.weight").unwrap();
    model.tensors.insert("lm_head.weight".into(), embedding);
    model.assert_whole(&base);
    model.config["tie_word_embeddings"] = json!(false);
    model.assert_broken(&base, &["model.embed_tokens.weight", "missing"]);
    // Under both names at once: the second is nobody's, and no harm.
    let mut both = Model::demo();
    both.put("lm_head.weight", &[1024, 128]);
    assert_eq!(both.assert_whole(&base).unused, ["lm_head.weight"]);
    // A base that stores two matrices needs both, unless the configuration ties them.
    let mut two = Model::demo();
    two.put("lm_head.weight", &[1024, 128]).config.as_object_mut().unwrap().remove("tie_word_embeddings");
    let (_dir, untied) = two.store();
    two.assert_whole(&untied);
    two.drop("lm_head.weight").assert_broken(&untied, &["lm_head.weight", "missing"]);
}

#[test]
fn fused_attention_whole_and_in_parts() {
    let (_dir, base) = Model::conv1d().store();
    let fused = "h.0.attn.c_attn";
    Model::conv1d().assert_whole(&base);
    let verdict = Model::conv1d().drop("h.0.attn.bias").assert_whole(&base);
    assert!(verdict.notes[0].contains("h.0.attn.bias"), "a buffer that is gone is said: {:?}", verdict.notes);
    let mut split = Model::conv1d();
    split.drop("h.0.attn.c_attn.weight").factorise("h.0.attn.c_attn.q", 8, 2, 8);
    split.put("h.0.attn.c_attn.k.weight", &[8, 8]).factorise("h.0.attn.c_attn.v", 8, 3, 8);
    assert_eq!(split.assert_whole(&base).factorised, 2);
    // Factors of a transposed matrix are stored like all others.
    split.factorise("h.0.mlp.c_fc", 32, 5, 8).factorise("h.0.mlp.c_proj", 8, 5, 32).assert_whole(&base);
    let wide = Model::conv1d().factorise("h.0.attn.c_proj", 8, 3, 9).against(Some(&base)).problems;
    assert_eq!(wide, ["h.0.attn.c_proj has shape (8, 9), but config.json asks for (8, 8)."]);
    let swapped = Model::conv1d().factorise("h.0.mlp.c_fc", 8, 5, 32).against(Some(&base)).problems;
    assert_eq!(swapped, ["h.0.mlp.c_fc has shape (8, 32), but config.json asks for (32, 8)."]);

    split.put("h.0.attn.c_attn.weight", &[8, 24]).assert_broken(&base, &[fused, "whole and in parts"]);
    split.drop("h.0.attn.c_attn.weight").drop("h.0.attn.c_attn.k.weight");
    split.assert_broken_alone(&[fused, "k is missing"]);
    split.put("h.0.attn.c_attn.k.weight", &[4, 8]).assert_broken(&base, &[fused, "(4, 8)", "(8, 8)"]);
}

#[test]
fn pruned_feed_forward_with_biases() {
    let (_dir, base) = Model::conv1d().store();
    let mut pruned = Model::conv1d();
    pruned.put("h.0.mlp.c_fc.weight", &[8, 20]).put("h.0.mlp.c_proj.weight", &[20, 8]);
    pruned.config["n_inner"] = json!(20);
    assert!(pruned.against(None).problems[0].contains("c_fc.bias"));
    pruned.put("h.0.mlp.c_fc.bias", &[20]).assert_whole(&base);
    pruned.put("h.0.mlp.c_proj.bias", &[7]).assert_broken(&base, &["c_proj.bias", "[7]", "[8]"]);
}

#[test]
fn integers_stay_integers() {
    let mut with_ids = Model::demo();
    with_ids.tensors.insert("position_ids".into(), (Dtype::I64, vec![2], vec![0xff; 16]));
    let (_dir, base) = with_ids.store();
    with_ids.assert_whole(&base);
    with_ids.put("position_ids", &[2]).assert_broken(&base, &["position_ids", "BF16", "I64"]);
}

#[test]
fn an_index_that_does_not_add_up() {
    let demo = Source::demo();
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("config.json"), "{}").unwrap();
    let norm = |name: &str| NamedTensor::f32(name, [1], &[0.0]);
    write_tensors(&dir.path().join("s.safetensors"), &[norm("a"), norm("b")], &BTreeMap::new()).unwrap();
    let problems = |index: serde_json::Value| {
        fs::write(dir.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
        verify(&Source::open(dir.path()).unwrap(), None, None).unwrap().problems
    };
    let map = json!({ "a": "s.safetensors", "b": "s.safetensors" });
    assert!(problems(json!({ "metadata": { "total_size": 8 }, "weight_map": map })).is_empty());
    assert!(problems(json!({ "metadata": { "total_size": 8.0 }, "weight_map": map })).is_empty());
    let wrong = problems(json!({ "metadata": { "total_size": 9 }, "weight_map": map }));
    assert!(wrong.len() == 1 && wrong[0].contains('9') && wrong[0].contains('8'), "{wrong:?}");
    assert!(problems(json!({ "weight_map": map }))[0].contains("total_size"));
    let short = problems(json!({ "metadata": { "total_size": 8 }, "weight_map": { "a": "s.safetensors" } }));
    assert!(short.len() == 1 && short[0].contains("b lies in s.safetensors"), "{short:?}");
    assert!(verify(&demo, None, None).unwrap().problems.is_empty());
}

#[test]
fn everything_a_layout_asks_for_is_missed() {
    let (_dir, base) = Model::conv1d().store();
    let buffer = "h.0.attn.bias";
    for name in Model::conv1d().tensors.keys().filter(|name| *name != buffer) {
        Model::conv1d().drop(name).assert_broken(&base, &[name.trim_end_matches(".weight"), "missing"]);
        assert_eq!(Model::conv1d().drop(name).against(None).problems.len(), 1, "{name}");
    }
    let verdict = Model::conv1d().assert_whole(&base);
    assert_eq!(verdict.unused, [buffer]);
}

#[test]
fn a_bias_of_its_own_is_a_compressed_models_privilege() {
    let base = Source::demo();
    let mut model = Model::demo();
    model.put(&format!("{Q}.bias"), &[128]).assert_whole(&base);
    model.put(&format!("{Q}.bias"), &[127]).assert_broken(&base, &[Q, "[127]", "[128]"]);
    model.put(&format!("{Q}.bias"), &[128]).config.as_object_mut().unwrap().remove("softlm");
    model.assert_broken(&base, &[Q, "no counterpart"]);
    // Parts of a shared matrix too; what their biases replace is left behind.
    let (_dir, base) = Model::conv1d().store();
    let mut split = Model::conv1d();
    split.drop("h.0.attn.c_attn.weight");
    for part in ["q", "k", "v"] {
        split.factorise(&format!("h.0.attn.c_attn.{part}"), 8, 2, 8);
        split.put(&format!("h.0.attn.c_attn.{part}.bias"), &[8]);
    }
    assert_eq!(split.assert_whole(&base).unused, ["h.0.attn.bias"]);
}

#[test]
fn other_models_are_told_apart() {
    let (_dir, gpt2) = Model::conv1d().store();
    Model::demo().assert_broken(&gpt2, &["llama", "gpt2"]);
    let mut shallow = Model::demo();
    shallow.config["num_hidden_layers"] = json!(3);
    let problems = shallow.against(Some(&Source::demo())).problems;
    // Seven linears and two norms.
    assert!(problems.len() == 9 && problems.iter().all(|p| p.contains("model.layers.3.")), "{problems:?}");
    // Not one that softlm runs: files and numbers are checked all the same.
    let mut unknown = Model::demo();
    unknown.config["model_type"] = json!("something_else");
    let verdict = unknown.against(None);
    assert!(verdict.problems.is_empty() && verdict.notes.len() == 1, "{verdict:?}");
    let data = &mut unknown.tensors.get_mut("model.norm.weight").unwrap().2;
    data[..2].copy_from_slice(&bf16::NAN.to_le_bytes());
    unknown.assert_broken_alone(&["model.norm.weight", "NaN"]);
}

/// Writes `value` into element `index` of a tensor.
fn spoil(model: &mut Model, name: &str, index: usize, value: bf16) {
    let data = &mut model.tensors.get_mut(name).unwrap().2;
    data[2 * index..2 * index + 2].copy_from_slice(&value.to_le_bytes());
}

#[test]
fn numbers_that_nothing_computes_with() {
    // A mask of another program.
    let mut masked = Model::demo();
    masked.put("model.causal_mask", &[2, 2]);
    spoil(&mut masked, "model.causal_mask", 1, bf16::NEG_INFINITY);
    let (_dir, base) = masked.store();
    let verdict = masked.assert_whole(&base);
    assert!(verdict.notes[0].contains("model.causal_mask holds -inf at [0, 1]"), "{:?}", verdict.notes);
    // A row that is only looked up: of a token that no tokenizer gives, or copied from the base.
    let mut untied = Model::demo();
    untied.config["tie_word_embeddings"] = json!(false);
    untied.put("lm_head.weight", &[1024, 128]);
    let (_sound, sound) = untied.store();
    spoil(&mut untied, "model.embed_tokens.weight", 1020 * 128 + 5, bf16::NAN);
    untied.assert_broken_alone(&["model.embed_tokens.weight", "NaN at [1020, 5]"]);
    let (_dir, source) = untied.store();
    let verdict = verify(&source, None, Some(1020)).unwrap();
    assert!(verdict.problems.is_empty() && verdict.notes[0].contains("1020"), "{verdict:?}");
    assert_eq!(verify(&source, None, Some(1021)).unwrap().problems.len(), 1);
    assert!(verify(&source, Some(&source), None).unwrap().problems.is_empty());
    assert_eq!(verify(&source, Some(&sound), None).unwrap().problems.len(), 1);
    // The head has a logit for every row, and so has an embedding that is tied.
    let mut head = Model::demo();
    spoil(&mut head, "model.embed_tokens.weight", 1020 * 128, bf16::NAN);
    assert_eq!(verify(&head.store().1, None, Some(1000)).unwrap().problems.len(), 1);
}
