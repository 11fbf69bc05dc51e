//! The report: a table that fits a terminal, a card that renders, JSON that comes back unchanged.

use serde_json::{Value, json};
use softlm::checkpoint::Kind;
use softlm::eval::{Divergence, Evaluation, Perplexity};
use softlm::report::*;

const ROLES: [(&str, [usize; 2]); 7] = [
    ("attn.q", [2048, 2048]),
    ("attn.k", [256, 2048]),
    ("attn.v", [256, 2048]),
    ("attn.o", [2048, 2048]),
    ("mlp.gate", [5632, 2048]),
    ("mlp.up", [5632, 2048]),
    ("mlp.down", [2048, 5632]),
];

fn linear(block: usize, role: usize, form: &str) -> LinearReport {
    let (name, shape) = ROLES[role];
    let [out, input] = shape;
    let rank = out * input * 8 / 10 / (out + input);
    let narrow = 4507;
    let pruned = if role == 6 { [out, narrow] } else { [narrow, input] };
    let params_after = match form {
        "dense" => out * input,
        "low-rank" => rank * (out + input),
        _ => pruned[0] * pruned[1],
    };
    LinearReport {
        id: format!("{block}.{name}").parse().expect("an id"),
        name: format!("model.layers.{block}.{name}_proj"),
        shape,
        form: serde_json::from_value(json!(form)).expect("a form"),
        rank: (form == "low-rank").then_some(rank),
        pruned_shape: (form == "pruned").then_some(pruned),
        params_before: (out * input) as u64,
        params_after: params_after as u64,
        energy_kept: (form == "low-rank").then_some(0.99123),
        predicted_loss: (form == "pruned").then_some(0.00321),
        heldout_error: (form != "dense").then_some(0.0123 + 0.001 * block as f64),
        weight: (form == "low-rank").then_some(3.21e-5),
        note: (block == 1 && role == 2).then(|| "eigenvalues did not converge: SVD used".into()),
        seconds: 1.25,
        learned: None,
    }
}

fn evaluation(corpus: &str, ppl: f64, kl: Option<f64>) -> Evaluation {
    let perplexity = Perplexity {
        corpus: corpus.into(),
        window: 256,
        stride: 256,
        windows: 200,
        tokens: 51_000,
        bos: false,
        masked: false,
        dtype: "f32".into(),
        ppl,
        ppl_note: None,
        stderr: Some(ppl * 0.012),
        nll: ppl.ln(),
    };
    let divergence = kl.map(|kl| Divergence {
        corpus: corpus.into(),
        base: "demo".into(),
        kl,
        kl_stderr: Some(kl * 0.03),
        top1: 0.8125,
    });
    Evaluation { perplexity, divergence }
}

pub fn pair(corpus: &str, before: f64, after: f64) -> BeforeAfter {
    BeforeAfter { before: evaluation(corpus, before, None), after: evaluation(corpus, after, Some(0.0612)) }
}

pub fn report(blocks: usize, form: impl Fn(usize, usize) -> &'static str) -> Report {
    let linears: Vec<LinearReport> =
        (0..blocks).flat_map(|b| (0..7).map(move |r| (b, r))).map(|(b, r)| linear(b, r, form(b, r))).collect();
    let (before, after) = linears.iter().fold((0, 0), |(b, a), l| (b + l.params_before, a + l.params_after));
    let size = |extra: u64| Size {
        params_before: before + extra,
        params_after: after + extra,
        bytes_before: 2 * (before + extra),
        bytes_after: 2 * (after + extra),
    };
    let stage = |name: &str, seconds: f64| StageCost { name: name.into(), seconds, peak_rss_bytes: Some(612_000_000) };
    Report {
        schema: SCHEMA,
        softlm: "0.1.0".into(),
        method: "whiten".into(),
        paper: "SVD-LLM: truncation-aware data whitening, arXiv 2403.07378".into(),
        model: ModelInfo {
            name: "TinyLlama/TinyLlama_v1.1".into(),
            family: "llama".into(),
            encoder: None,
            revision: Some("ff3c701f2424c7625fdefb9dd470f45ef18b02d6".into()),
            kind: Some(Kind::Hub),
            identity: Identity {
                weights: vec![FileHash { file: "model.safetensors".into(), sha256: "a".repeat(64) }],
                files: Vec::new(),
            },
            licence: Some(Licence { id: Some("apache-2.0".into()), ..Licence::default() }),
            sentence_transformers: false,
            unused_tensors: None,
        },
        output: None,
        fingerprint: None,
        labels: None,
        training_text: None,
        calibration: Some(CalibrationInfo {
            corpora: vec![CorpusInfo { name: "sample".into(), origin: "built-in".into(), sha256: "b".repeat(64) }],
            window: 256,
            windows: 64,
            tokens: 16_384,
            bos: false,
            heldout_windows: 8,
            sampling: "random".into(),
            seed: 0,
            inputs: "dense".into(),
        }),
        allocation: AllocationInfo {
            trials: Vec::new(),
            rule: "one threshold on w·σ²/(m+n) over all linears, dense where that is cheaper; w is the KL measured \
                   when the linear alone is cut"
                .into(),
            keep_asked: 0.8,
            keep_reached: after as f64 / before as f64,
        },
        sizes: Sizes { linears: size(0), model: size(65_536_000) },
        linears,
        learning: None,
        healing: None,
        tasks: Vec::new(),
        evaluation: vec![pair("sample", 19.902, 21.1), pair("wikitext2", 50.52619, 57.1)],
        fidelity: Vec::new(),
        cost: Cost {
            stages: vec![stage("decomposing", 83.2), stage("compressing", 12.3), stage("writing", 0.042)],
            seconds: 95.6,
            peak_rss_bytes: Some(612_000_000),
            resumed: false,
            estimate: Some(MemoryEstimate {
                peak_rss_bytes: 590_000_000,
                device_bytes: None,
                max_memory_bytes: Some(8 << 30),
                max_device_memory_bytes: None,
            }),
        },
        machine: Machine {
            cpu: "A Processor @ 3 GHz".into(),
            threads: 2,
            os: "linux x86_64".into(),
            device: "cpu".into(),
        },
        recipe: json!({"model": "TinyLlama/TinyLlama_v1.1", "method": "whiten", "budget": {"keep": 0.8}, "stats": null}),
        notes: vec!["the tokenizer has no BOS".into()],
    }
}

/// Every kind of report that has a shape of its own.
pub fn all_kinds() -> Vec<(&'static str, Report)> {
    let mixed = report(4, |block, role| match (block, role) {
        (3, _) => "dense",
        (_, 4..) => "pruned",
        _ => "low-rank",
    });
    let deep = report(80, |block, role| if block % 2 == 0 || role == 2 { "low-rank" } else { "dense" });
    let mut long = report(2, |_, _| "low-rank");
    long.model.name = format!("/a/folder/{}", "deeply_nested/".repeat(12));
    long.evaluation = (0..3).map(|i| pair(&format!("a-corpus-with-a-rather-long-name-number-{i}"), 1e3, 1e7)).collect();
    long.calibration.as_mut().expect("given").corpora[0].origin = "x".repeat(300);
    long.machine.cpu = "a processor with a very long name ".repeat(4);
    long.notes = vec!["a long note ".repeat(30)];
    let mut bare = report(1, |_, _| "dense");
    bare.calibration = None;
    bare.evaluation.clear();
    bare.notes.clear();
    bare.model.revision = None;
    bare.model.name = "./my model".into();
    bare.cost.peak_rss_bytes = None;
    bare.cost.resumed = true;
    bare.linears.iter_mut().for_each(|linear| linear.heldout_error = None);
    let mut foreign = report(1, |_, _| "low-rank");
    foreign.model.name = "静夜思-\x1b[31m|`evil`|\n# head".into();
    foreign.evaluation = vec![pair("诗词诗词诗词诗词诗词", 166.02936, 1234.5)];
    foreign.evaluation[0].after.perplexity.stderr = None;
    foreign.evaluation[0].after.perplexity.ppl = f64::INFINITY;
    vec![("mixed", mixed), ("deep", deep), ("long", long), ("bare", bare), ("foreign", foreign)]
}

/// Columns on a terminal, counted independently: CJK ideographs take two.
pub fn columns(line: &str) -> usize {
    line.chars().map(|c| if ('\u{4e00}'..='\u{9fff}').contains(&c) { 2 } else { 1 }).sum()
}

#[test]
fn every_table_fits_eighty_columns() {
    for (kind, report) in all_kinds() {
        for text in [table(&report, 80, false), details(&report)] {
            let widest = text.lines().map(columns).max().unwrap_or(0);
            assert!(widest <= 80, "{kind}: {widest} columns\n{text}");
            assert!(!text.contains('\x1b') && text.ends_with('\n'), "{kind}");
            assert!(text.lines().all(|line| line.trim_end() == line), "{kind}: trailing spaces\n{text}");
        }
    }
}

#[test]
fn a_narrow_page_still_shows_every_rank() {
    let (_, report) = all_kinds().swap_remove(0);
    let text = table(&report, 60, false);
    let row = text.lines().find(|line| line.starts_with("0-2")).expect("equal blocks share a row");
    let cells: Vec<&str> = row.split_whitespace().collect();
    assert_eq!(cells[1..8], ["819", "182", "182", "819", "w4507", "w4507", "w4507"], "{text}");
}

#[test]
fn no_perplexity_stands_without_its_protocol_and_the_dense_baseline() {
    for (kind, report) in all_kinds() {
        let text = table(&report, 80, false);
        let flat = text.split_whitespace().collect::<Vec<_>>().join(" ");
        for e in &report.evaluation {
            let protocol = "window 256, stride 256, 200 windows, 51,000 targets, no BOS, f32";
            assert!(flat.contains(&format!("{}: {protocol}", e.after.perplexity.corpus)), "{kind}\n{text}");
        }
        if report.evaluation.is_empty() {
            assert!(text.contains("not measured"), "{kind}\n{text}");
        }
    }
    let text = table(&report(2, |_, _| "low-rank"), 80, false);
    for part in ["dense", "50.53 ± 0.61", "57.10 ± 0.69", "+13.0 %", "0.0612 ± 0.0018", "81.2 %", "sample *"] {
        assert!(text.contains(part), "{part}\n{text}");
    }
    assert!(text.contains("the calibration saw this corpus"), "{text}");
}

#[test]
fn another_protocol_is_not_compared() {
    let mut report = report(1, |_, _| "low-rank");
    report.evaluation[0].before.perplexity.window = 512;
    report.evaluation.truncate(1);
    let text = table(&report, 80, false);
    assert!(text.contains("not comparable: window 512") && !text.contains("+6.0 %"), "{text}");
    assert!(card(&report).contains("dense measured differently"), "{}", card(&report));
}

#[test]
fn sizes_and_budget_are_shown_in_parameters_and_bytes() {
    let text = table(&report(22, |_, _| "low-rank"), 80, false);
    assert!(text.contains("0.8 asked, 0.79"), "{text}");
    let row = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name}\n{text}"));
        line[name.len()..].split_whitespace().map(String::from).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(row("block linears"), "969 M 775 M 80.0 % 1.94 GB 1.55 GB 80.0 %");
    assert_eq!(row("whole model"), "1.03 B 840 M 81.2 % 2.07 GB 1.68 GB 81.2 %");
}

#[test]
fn equal_blocks_share_a_row_and_show_the_worst_error() {
    let text = table(&report(22, |block, _| if block < 10 { "dense" } else { "low-rank" }), 80, false);
    let rows: Vec<&str> = text.lines().filter(|line| line.starts_with("0-9 ") || line.starts_with("10-21 ")).collect();
    assert_eq!(rows.len(), 2, "{text}");
    assert!(rows[0].contains("dense") && rows[0].ends_with("100.0 %       -"), "{text}");
    assert!(rows[1].contains("819") && rows[1].ends_with("0.0333"), "{text}");
}

#[test]
fn details_have_a_line_per_linear_and_their_notes() {
    let (_, report) = all_kinds().swap_remove(0);
    let text = details(&report);
    assert_eq!(text.lines().count(), 1 + 28 + 1, "{text}");
    assert!(text.contains("note: eigenvalues did not converge"), "{text}");
    assert!(text.contains("2048×4507") && text.contains("rank 819"), "{text}");
}

#[test]
fn colour_changes_nothing_but_escapes() {
    for (kind, report) in all_kinds() {
        let colored = table(&report, 80, true);
        assert!(colored.contains("\x1b[1m"), "{kind}");
        let stripped = colored.replace("\x1b[1m", "").replace("\x1b[2m", "").replace("\x1b[0m", "");
        assert_eq!(stripped, table(&report, 80, false), "{kind}");
    }
}

#[test]
fn report_json_comes_back_unchanged() {
    for (kind, report) in all_kinds() {
        let text = serde_json::to_string_pretty(&report).expect("serialises");
        let back: Report = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{kind}: {e}"));
        assert_eq!(back, report, "{kind}");
        assert_eq!(serde_json::to_value(&report).expect("serialises")["schema"], json!(1));
    }
}

#[test]
fn eval_json_has_exactly_the_promised_keys() {
    let keys = |value: &Value| value.as_object().expect("an object").keys().cloned().collect::<Vec<_>>();
    let plain = eval_json("demo", &[evaluation("sample", 19.9, None)], &[]);
    assert_eq!(keys(&plain), ["schema", "model", "perplexity", "baseline", "divergence"]);
    assert_eq!(
        keys(&plain["perplexity"][0]),
        ["corpus", "window", "stride", "windows", "tokens", "bos", "dtype", "ppl", "stderr", "nll"]
    );
    assert_eq!((&plain["schema"], &plain["model"], &plain["divergence"]), (&json!(1), &json!("demo"), &Value::Null));
    assert_eq!(plain["perplexity"][0]["ppl"], json!(19.9));
    let base = [evaluation("a", 1.5, None), evaluation("b", 2.5, None)];
    let compared = eval_json("out", &[evaluation("a", 2.0, Some(0.1)), evaluation("b", 3.0, Some(0.2))], &base);
    assert_eq!(compared["baseline"][1]["ppl"], json!(2.5));
    assert_eq!(keys(&compared["divergence"]), ["base", "kl", "top1", "corpora"]);
    let corpora = &compared["divergence"]["corpora"];
    assert_eq!(keys(&corpora[1]), ["corpus", "base", "kl", "kl_stderr", "top1"]);
    assert_eq!((&corpora[1]["corpus"], &corpora[1]["kl"]), (&json!("b"), &json!(0.2)));
    // Both corpora have the same number of targets.
    assert!((compared["divergence"]["kl"].as_f64().expect("a number") - 0.15).abs() < 1e-12);
}

#[test]
fn evaluation_tables_carry_protocol_and_baseline() {
    let evaluations = [evaluation("sample", 21.1, Some(0.0612)), evaluation("wikitext2", 57.1, Some(0.0812))];
    let base = [evaluation("sample", 19.902, None), evaluation("wikitext2", 50.52619, None)];
    let alone = evaluation_table("demo", &base, None, 80, false);
    assert!(alone.contains("19.90 ± 0.24") && alone.contains("sample: window 256, stride 256, 200 windows"), "{alone}");
    let compared = evaluation_table("out", &evaluations, Some(("demo", &base)), 80, false);
    for part in ["against  demo", "50.53 ± 0.61", "57.10 ± 0.69", "+13.0 %", "0.0612 ± 0.0018", "wikitext2: window 256"]
    {
        assert!(compared.contains(part), "{part}\n{compared}");
    }
    assert!(compared.lines().all(|line| columns(line) <= 80), "{compared}");
}

#[test]
fn cards_begin_with_front_matter_the_hub_accepts() {
    for (kind, report) in all_kinds() {
        let card = card(&report);
        let body = card.strip_prefix("---\n").unwrap_or_else(|| panic!("{kind}: no front matter\n{card}"));
        let (front, body) = body.split_once("---\n").expect("front matter ends");
        assert!(front.contains("library_name: transformers\n") && front.contains("- whiten\n"), "{kind}\n{front}");
        assert_eq!(
            front.contains("base_model: TinyLlama/TinyLlama_v1.1\n"),
            matches!(kind, "mixed" | "deep"),
            "{kind}"
        );
        assert!(!body.contains('\x1b'), "{kind}");
        for line in body.lines().filter(|line| line.starts_with('|')) {
            let bars = line.replace("\\|", "").matches('|').count();
            assert!([8, 9, 10, 11].contains(&bars), "{kind}: a table row with {bars} bars: {line}");
        }
        for heading in ["## Quality", "## Size", "## Use", "## Ranks", "## How it was made", "## Limits"] {
            assert_eq!(body.matches(&format!("\n{heading}\n")).count(), 1, "{kind}: {heading}\n{card}");
        }
    }
}

#[test]
fn cards_name_protocol_calibration_and_the_command_that_repeats_them() {
    let card = card(&report(4, |_, _| "low-rank"));
    let row = card.lines().find(|line| line.starts_with("| wikitext2")).expect("a row per corpus");
    for part in ["50.53 ± 0.61", "57.10 ± 0.69", "+13.0 %", "| sample |", "window 256, stride 256, 200 windows"] {
        assert!(row.contains(part), "{part}\n{row}");
    }
    let command =
        "softlm eval DIR --ppl sample,wikitext2 --window 256 --max-windows 200 --against TinyLlama/TinyLlama_v1.1";
    assert!(card.contains(command), "{card}");
    assert!(card.contains(&"a".repeat(64)) && card.contains(&"b".repeat(64)), "{card}");
    assert!(card.contains("method = \"whiten\"") && card.contains("keep = 0.8"), "{card}");
}

#[test]
fn names_cannot_break_out_of_the_card() {
    let (_, foreign) = all_kinds().pop().expect("the last kind");
    let card = card(&foreign);
    assert!(!card.contains("\n# head") && !card.contains("|`evil`|\n"), "{card}");
    assert!(card.contains("``静夜思-\\u{1b}[31m|`evil`|\\n# head``"), "{card}");
}

/// The entries of a card's front matter.
fn front(card: &str) -> Vec<&str> {
    card.split("---\n").nth(1).expect("front matter").lines().collect()
}

#[test]
fn cards_say_how_to_load_cite_and_give_on() {
    use softlm::model::Output;
    for (output, class) in [
        (None, "AutoModelForCausalLM"),
        (Some(Output::MaskedToken), "AutoModelForMaskedLM"),
        (Some(Output::Classes(2)), "AutoModelForSequenceClassification"),
        (Some(Output::States), "AutoModel"),
    ] {
        let mut report = report(2, |_, _| "low-rank");
        report.model.encoder = output;
        let card = card(&report);
        for line in [
            format!("from transformers import {class}, AutoTokenizer"),
            "tokenizer = AutoTokenizer.from_pretrained(\"DIR\", trust_remote_code=True)".into(),
            format!("model = {class}.from_pretrained(\"DIR\", trust_remote_code=True)"),
            "softlm export DIR --to dense -o DENSE".into(),
            "softlm inspect DIR".into(),
        ] {
            assert_eq!(card.lines().filter(|other| *other == line).count(), 1, "{line}\n{card}");
        }
        assert_eq!(card.contains("softlm generate DIR"), output.is_none(), "{card}");
        assert!(!card.contains("SentenceTransformer"), "{card}");
        assert!(front(&card).contains(&"- custom_code"), "{card}");
        assert!(card.ends_with("\n    hf upload USER/NAME DIR\n"), "{card}");
        assert!(card.contains("```bibtex\n@inproceedings{wang2025svdllm,") && card.contains("2403.07378}"), "{card}");
    }
    let mut report = report(1, |_, _| "low-rank");
    report.model.encoder = Some(Output::States);
    report.model.sentence_transformers = true;
    let text = card(&report);
    assert!(text.contains("model = SentenceTransformer(\"DIR\", trust_remote_code=True)"), "{text}");
    assert!(front(&text).contains(&"- sentence-transformers"), "{text}");
    report.method = "of-another-version".into();
    assert!(!card(&report).contains("bibtex"), "what is not known is not cited");
}

#[test]
fn cards_carry_the_licence_of_the_original() {
    let with = |licence: Option<Licence>| {
        let mut report = report(1, |_, _| "low-rank");
        report.model.licence = licence;
        card(&report)
    };
    let some = |text: &str| Some(text.to_string());
    let card = with(Some(Licence { id: some("gemma"), ..Licence::default() }));
    assert!(front(&card).contains(&"license: gemma") && card.contains("## Licence\n\nThat of the original"), "{card}");
    let own = Licence {
        id: some("other"),
        name: some("llama \"licence\": x"),
        link: some("LICENSE"),
        files: vec!["LICENSE".into()],
    };
    let card = with(Some(own));
    for line in ["license: other", "license_name: \"llama \\\"licence\\\": x\"", "license_link: LICENSE"] {
        assert!(front(&card).contains(&line), "{line}\n{card}");
    }
    assert!(card.contains("Its text is in `LICENSE`"), "{card}");
    // A file alone says that there is a licence, not which.
    let card = with(Some(Licence { files: vec!["LICENSE.txt".into()], ..Licence::default() }));
    assert!(front(&card).contains(&"license: other") && front(&card).contains(&"license_link: LICENSE.txt"), "{card}");
    let card = with(None);
    assert!(
        !front(&card).iter().any(|line| line.starts_with("license")) && card.contains("see the base model"),
        "{card}"
    );
}

#[test]
fn a_report_of_others_is_shown_in_bounds() {
    let mut many = report(2000, |_, _| "low-rank");
    for (i, linear) in many.linears.iter_mut().enumerate() {
        // No two blocks alike, so that each has a row.
        linear.rank = Some(i);
        linear.params_before = u64::MAX;
        linear.params_after = u64::MAX / 2;
    }
    many.model.unused_tensors = Some(UnusedTensors { count: 0, names: vec!["a".into(), "b".into()] });
    let shown = table(&many, 80, false);
    assert!(shown.contains("more linears are not shown"), "{shown:.2000}");
    assert!(shown.lines().count() < 1200 && shown.len() < 1 << 20, "{} bytes", shown.len());
    assert!(card(&many).len() < 1 << 20);
    assert!(many.model.unused_tensors.as_ref().is_some_and(|unused| unused.describe(8).contains("a, b")));
    let few = table(&report(30, |_, _| "low-rank"), 80, false);
    assert!(!few.contains("not shown"), "{few}");
}

/// Prints samples for human eyes: `cargo test --release samples -- --ignored --nocapture`.
#[test]
#[ignore = "for human eyes"]
fn samples() {
    for (kind, report) in all_kinds() {
        println!(
            "==== {kind}\n{}\n---- details\n{}\n---- card\n{}",
            table(&report, 80, false),
            details(&report),
            card(&report)
        );
    }
    let evaluations = [evaluation("sample", 21.1, Some(0.0612))];
    let base = [evaluation("sample", 19.902, None)];
    println!("{}", evaluation_table("out", &evaluations, Some(("demo", &base)), 80, false));
    println!("{}", evaluation_table("demo", &base, None, 80, false));
}
