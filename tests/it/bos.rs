//! BOS in front of every window, where a model cannot do without or is asked to: statistics, training, evaluation.

use crate::families::{corpus, open};
use crate::program::{Place, copy_folder};
use candle_core::Device;
use serde_json::{Value, json};
use softlm::calibrate::{StatsStore, collect};
use softlm::forward::States;
use softlm::hub::HubOptions;
use softlm::machine::StageClock;
use softlm::method::OptionValues;
use softlm::model::Site;
use softlm::pipeline::{self, Calibration, CalibrationWish, EvalText, compress_windows};
use softlm::plan::AllocationRule;
use softlm::recipe::{BosRule, Options};
use softlm::report::Report;
use softlm::text::{Sampling, Windows, cut, split_heldout};
use std::fs;
use std::path::{Path, PathBuf};

const WINDOW: usize = 24;
const BOS: u32 = 2;
const SEED: Sampling = Sampling::Random { seed: 0 };
/// Windows to calibrate on, and those that 1,024 held-out tokens make.
const WINDOWS: (usize, usize) = (32, 1024 / WINDOW);

/// Ids of a text without special tokens.
fn ids() -> Vec<u32> {
    (0..2400u32).map(|i| 4 + (7 + 31 * i + 5 * (i / 7) + i * i / 11) % 92).collect()
}

/// A small model with a tokenizer of words `w4` to `w95`, which begins every text with BOS if it `adds` it; and a text.
fn model(place: &Place, golden: &str, adds: bool) -> (PathBuf, PathBuf) {
    let folder = place.path(golden);
    copy_folder(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models").join(golden), &folder);
    let special = ["<pad>", "<eos>", "<bos>", "<unk>"];
    let words = special.iter().map(|word| word.to_string()).chain((4..96).map(|id| format!("w{id}")));
    let vocab: serde_json::Map<String, Value> = words.enumerate().map(|(id, word)| (word, json!(id))).collect();
    let added: Vec<Value> = special
        .iter()
        .enumerate()
        .map(|(id, content)| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": true})
        })
        .collect();
    let front = json!({"SpecialToken": {"id": "<bos>", "type_id": 0}});
    let text = json!({"Sequence": {"id": "A", "type_id": 0}});
    let processor = json!({"type": "TemplateProcessing", "single": [front, text], "pair": [front, text],
        "special_tokens": {"<bos>": {"id": "<bos>", "ids": [BOS], "tokens": ["<bos>"]}}});
    let tokenizer = json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": null, "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": if adds { processor } else { Value::Null }, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"}});
    fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let settings = json!({"bos_token": "<bos>", "eos_token": "<eos>", "tokenizer_class": "PreTrainedTokenizerFast"});
    fs::write(folder.join("tokenizer_config.json"), settings.to_string()).unwrap();
    let text: Vec<String> = ids().iter().map(|id| format!("w{id}")).collect();
    (folder, place.write("text.txt", text.join(" ")))
}

/// The windows as they must be, cut by hand: to calibrate on and held out.
fn expected(bos: Option<u32>) -> (Windows, Windows) {
    split_heldout(&cut(&ids(), WINDOW, WINDOW, bos).unwrap(), WINDOWS.0, WINDOWS.1, SEED)
}

fn calibration(folder: &Path, text: &Path, bos: BosRule) -> anyhow::Result<Calibration> {
    let model = open(folder);
    let tokenizer = pipeline::tokenizer(model.source())?;
    let specs = [text.display().to_string()];
    let wish = CalibrationWish {
        specs: &specs,
        windows: WINDOWS.0,
        window: Some(WINDOW),
        sampling: SEED,
        bos,
        heldout: pipeline::HELDOUT_TOKENS,
    };
    pipeline::calibration(&model, &tokenizer, &wish, &HubOptions::default())
}

#[test]
fn windows_begin_with_bos_where_family_and_tokenizer_say_so() {
    for (golden, adds, auto) in [
        ("gemma2-tiny", true, true),
        ("gemma3-tiny", true, true),
        ("gemma3-tiny", false, false),
        ("mistral-tiny", true, false),
    ] {
        let place = Place::new();
        let (folder, text) = model(&place, golden, adds);
        for (rule, begun) in [(BosRule::Auto, auto), (BosRule::Always, true), (BosRule::Never, false)] {
            let case = format!("{golden}, adds {adds}, {rule:?}");
            let found = calibration(&folder, &text, rule).unwrap();
            let (windows, heldout) = expected(begun.then_some(BOS));
            assert!(found.windows == windows && found.heldout == heldout, "{case}");
            assert_eq!(found.describe().contains("BOS"), begun, "{case}: {}", found.describe());
            assert_eq!(found.begins_with_bos(), begun, "{case}");
        }
    }
}

#[test]
fn bos_that_cannot_be_is_refused() {
    let place = Place::new();
    let (folder, text) = model(&place, "gemma3-tiny", true);
    fs::write(folder.join("tokenizer_config.json"), "{}").unwrap();
    crate::program::change_config(&folder, "bos_token_id", Value::Null);
    let refused = calibration(&folder, &text, BosRule::Always).err().expect("no BOS").to_string();
    assert!(refused.contains("no BOS token"), "{refused}");
    place.run("eval gemma3-tiny --ppl text.txt --window 24 --bos=perhaps").refused_by_usage("perhaps");
    let recipe = "model = 'demo'\nmethod = 'svd'\nbos = 'perhaps'\n";
    place.write("r.toml", recipe);
    place.run("compress --config r.toml").refused(&["r.toml", "perhaps"]);
}

#[test]
fn statistics_see_bos() {
    let place = Place::new();
    let (folder, _) = model(&place, "gemma3-tiny", true);
    let line = format!("calibrate gemma3-tiny --calib text.txt --calib-windows {} --window {WINDOW}", WINDOWS.0);
    place.run(&format!("{line} -o with")).fine();
    let said = place.run_in(&format!("{line} -o without"), &[("SOFTLM_BOS", "0")]).fine();
    assert!(said.stderr.contains("warning: ") && said.stderr.contains("without BOS"), "{}", said.stderr);
    let model = open(&folder);
    for (name, bos) in [("with", Some(BOS)), ("without", None)] {
        let (windows, heldout) = expected(bos);
        let states = States::embed(&model, &windows.ids()).unwrap();
        let heldout = States::embed(&model, &heldout.ids()).unwrap();
        let block = model.block(0).unwrap();
        let by_hand = collect(&block, &states, &heldout, &model.block_sites(0)).unwrap();
        let stored = StatsStore::open(&place.path(name)).unwrap().expect("statistics").get(0).unwrap();
        let (by_hand, stored) = (&by_hand[&Site::AttnIn], &stored[&Site::AttnIn]);
        assert!(by_hand.gram == stored.gram && by_hand.heldout == stored.heldout, "{name}");
    }
    // Sums with and without it do not stand for each other.
    let compress =
        "compress gemma3-tiny --calib text.txt --window 24 --method whiten --weight unit --keep 0.6 --ppl none";
    place.run(&format!("{compress} --stats without -o x")).refused(&["without", "do not begin with BOS", "--bos"]);
    place.run(&format!("{compress} --stats with --bos=false -o x")).refused(&["with", "begin with BOS", "--bos"]);
    place.run(&format!("{compress} --stats with -o x")).fine();
}

fn options(folder: &Path, text: &Path, method: &str, output: PathBuf) -> Options {
    let text = vec![text.display().to_string()];
    let soft = method == "soft";
    Options {
        model: Some(folder.display().to_string()),
        method: Some(method.into()),
        keep: Some(0.6),
        allocation: (!soft).then_some(AllocationRule::Global),
        output: Some(output),
        calib: Some(text.clone()),
        calib_windows: Some(WINDOWS.0),
        window: Some(WINDOW),
        ppl: Some(text),
        eval_window: Some(WINDOW),
        max_windows: Some(3),
        heal: Some(if soft { 2 } else { 0 }),
        // With this basis nothing but the training looks at text.
        method_options: if soft {
            OptionValues::default().with("steps", 4).with("basis", "weight").with("unit", "raw")
        } else {
            OptionValues::default()
        },
        ..Options::default()
    }
}

#[test]
fn training_judging_and_the_evaluation_behind_them_see_bos() {
    let place = Place::new();
    let (folder, text) = model(&place, "gemma3-tiny", true);
    for method in ["whiten", "soft"] {
        let run = |name: &str, bos: Option<BosRule>| -> (Report, Vec<u8>) {
            let output = place.path(&format!("{method}-{name}"));
            let recipe = Options { bos, ..options(&folder, &text, method, output.clone()) }.resolve().unwrap();
            let report = pipeline::compress(&recipe, false, &HubOptions::default(), &Device::Cpu, &()).unwrap();
            (report, fs::read(output.join("model.safetensors")).unwrap())
        };
        let (report, weights) = run("auto", None);
        let by_hand = |name: &str, bos: Option<u32>| -> Vec<u8> {
            let output = place.path(&format!("{method}-by-hand-{name}"));
            let recipe = options(&folder, &text, method, output.clone()).resolve().unwrap();
            let (windows, heldout) = expected(bos);
            let calibration = Calibration::new(windows, heldout, vec![corpus()], SEED);
            let texts: [EvalText; 0] = [];
            compress_windows(&recipe, false, open(&folder), calibration, &texts, StageClock::start(&()), &()).unwrap();
            fs::read(output.join("model.safetensors")).unwrap()
        };
        assert!(weights == by_hand("with", Some(BOS)), "{method}: windows without BOS were used somewhere");
        let (other, without) = run("never", Some(BosRule::Never));
        assert!(without == by_hand("without", None) && without != weights, "{method}");
        for (report, bos) in [(&report, true), (&other, false)] {
            let pair = &report.evaluation[0];
            assert_eq!(report.calibration.as_ref().unwrap().bos, bos, "{method}");
            assert_eq!((pair.before.perplexity.bos, pair.after.perplexity.bos), (bos, bos), "{method}");
            let table = softlm::report::table(report, 200, false);
            assert_eq!(table.contains("each begun by BOS"), bos, "{table}");
            assert_eq!(softlm::report::card(report).contains("--bos=false"), !bos, "{method}");
            assert_eq!(report.notes.iter().any(|note| note.contains("without BOS")), !bos, "{:?}", report.notes);
        }
        // Unasked, `eval` measures the output as the report did.
        let said = place
            .run(&format!(
                "eval {method}-auto --ppl text.txt --window {WINDOW} --max-windows 3 --json --against gemma3-tiny"
            ))
            .fine();
        let measured: Value = serde_json::from_str(&said.stdout).unwrap();
        let reported = report.evaluation[0].after.perplexity.ppl;
        assert!((measured["perplexity"][0]["ppl"].as_f64().unwrap() / reported - 1.0).abs() < 1e-9, "{measured}");
        // The recipe repeats what was asked for.
        let recipe = place.path(&format!("{method}-never/softlm.toml"));
        assert_eq!(Options::default().or_file(&recipe).unwrap().bos, Some(BosRule::Never));
    }
}
