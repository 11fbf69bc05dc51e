//! Reports side by side: what differs is shown, what may not be compared is marked, and nothing else is taken for a report.

use crate::program::Place;
use crate::report::{all_kinds, columns, report};
use serde_json::{Value, json};
use softlm::report::{Entry, Report, compare_table};

fn entries(reports: impl IntoIterator<Item = Report>) -> Vec<Entry> {
    reports.into_iter().enumerate().map(|(i, report)| Entry { name: format!("out-{i}"), report }).collect()
}

fn shown(reports: impl IntoIterator<Item = Report>) -> String {
    compare_table(&entries(reports), 80, false)
}

/// A report and another of the same model, less kept and by another method.
fn two() -> [Report; 2] {
    let mut other = report(4, |block, role| if block == 3 && role == 6 { "dense" } else { "low-rank" });
    other.method = "rom".into();
    other.recipe["method"] = json!("rom");
    other.recipe["budget"]["keep"] = json!(0.9);
    other.evaluation[1].after.perplexity.ppl = 54.0;
    [report(4, |_, _| "low-rank"), other]
}

#[test]
fn every_comparison_fits_eighty_columns() {
    let kinds: Vec<Report> = all_kinds().into_iter().map(|(_, report)| report).collect();
    for many in [2, 3, 5] {
        for first in 0..kinds.len() {
            let text = shown((0..many).map(|i| kinds[(first + i) % kinds.len()].clone()));
            let widest = text.lines().map(columns).max().unwrap_or(0);
            assert!(widest <= 80, "{widest} columns\n{text}");
            assert!(!text.contains('\x1b') && text.lines().all(|line| line.trim_end() == line), "{text}");
        }
    }
    let text = shown((0..30).map(|_| kinds[0].clone()));
    assert!(text.contains("\nZ ") && text.contains("\nA1"), "{text}");
}

#[test]
fn what_differs_is_shown_and_what_is_equal_is_named() {
    let text = shown(two());
    let row = |start: &str| {
        let line = text.lines().find(|line| line.starts_with(start)).unwrap_or_else(|| panic!("no {start}\n{text}"));
        line.split_whitespace().map(String::from).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(row("method "), "method whiten rom");
    assert_eq!(row("budget.keep"), "budget.keep 0.8 0.9");
    assert!(text.contains("equal: calibration text sample bbbbbbbbbbbb; calibration windows 64 of 256"), "{text}");
    assert!(!text.contains("model TinyLlama"), "said in the head\n{text}");
    assert_eq!(row("3.mlp.down"), "3.mlp.down 1201 (80.0 %) dense (100.0 %) 20.0");
    let ppl: Vec<&str> = text.lines().skip_while(|line| !line.starts_with("perplexity, wikitext2")).take(4).collect();
    assert!(ppl[1].contains("dense") && ppl[1].contains("50.53 ± 0.61"), "{text}");
    assert!(ppl[3].starts_with("B ") && ppl[3].contains("+6.9 %") && ppl[3].contains("-5.4 %"), "{text}");
    assert!(text.contains("wikitext2: window 256, stride 256, 200 windows, 51,000 targets"), "{text}");
    let same = shown([report(2, |_, _| "low-rank"), report(2, |_, _| "low-rank")]);
    assert!(same.contains("settings  all equal") && same.contains("Every linear is stored alike."), "{same}");
}

#[test]
fn numbers_of_other_protocols_texts_and_originals_are_not_compared() {
    let refused = |change: &dyn Fn(&mut Report), why: &str| {
        let [a, mut b] = two();
        change(&mut b);
        let text = shown([a, b]);
        let flat = text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(flat.contains("† B is not comparable with A") && flat.contains(why), "{why}\n{text}");
        let table = text.lines().skip_while(|line| !line.starts_with("perplexity, wikitext2"));
        let row = table.clone().find(|line| line.starts_with("B †")).unwrap_or_else(|| panic!("no mark\n{text}"));
        assert!(!row.contains("-5.4 %"), "{text}");
        text
    };
    let text = refused(
        &|b| {
            for e in &mut b.evaluation {
                for p in [&mut e.before.perplexity, &mut e.after.perplexity] {
                    (p.window, p.bos) = (512, true);
                }
            }
        },
        "window 512 instead of 256, with BOS",
    );
    assert!(text.contains("dense †"), "{text}");
    refused(&|b| b.evaluation[1].before.perplexity.ppl = 29.2, "the dense model has 29.20 on it, not 50.53");
    let text = refused(&|b| b.model.identity.weights[0].sha256 = "c".repeat(64), "another original");
    assert!(text.contains("B was made from another original than A") && text.contains("model.safetensors"), "{text}");
    let [a, mut b] = two();
    b.linears.pop();
    assert!(shown([a, b]).contains("Linears are not compared: the linears of B are not those of A"));
}

#[test]
fn the_program_compares_folders_and_files_and_refuses_what_is_no_report() {
    let place = Place::new();
    let [a, b] = two();
    let text = serde_json::to_string(&a).expect("JSON");
    std::fs::create_dir(place.path("out")).expect("a folder");
    place.write("out/report.json", &text);
    place.write("b.json", serde_json::to_string(&b).expect("JSON"));
    let said = place.run("compare out b.json").fine();
    assert!(said.stdout.starts_with("A  out: whiten of TinyLlama/TinyLlama_v1.1"), "{}", said.stdout);
    let json: Value = serde_json::from_str(&place.run("compare out b.json --json").fine().stdout).expect("JSON");
    assert_eq!(json["schema"], 1);
    assert_eq!(json["reports"][1]["method"], "rom");
    assert_eq!(json["settings"]["different"][0], json!({"key": "method", "values": ["whiten", "rom"]}));
    assert_eq!(json["perplexity"][1]["measured"][1]["after"]["perplexity"]["window"], 256);
    assert_eq!(json["perplexity"][1]["measured"][1]["comparable"], true);
    assert_eq!(json["ranks"]["most"][0]["linear"], "3.mlp.down");

    std::fs::create_dir(place.path("empty")).expect("a folder");
    place.write("cut.json", &text[..text.len() / 2]);
    place.write("config.json", r#"{"model_type": "llama"}"#);
    place.write("new.json", text.replacen("\"schema\":1", "\"schema\":2", 1));
    std::os::unix::fs::symlink(place.path("out/report.json"), place.path("link.json")).expect("a link");
    for (other, naming) in [
        ("out", &["out alone"][..]),
        ("out nowhere", &["nowhere"]),
        ("out empty", &["empty", "report.json"]),
        ("out cut.json", &["cut.json", "damaged"]),
        ("out config.json", &["config.json", "no report"]),
        ("out new.json", &["new.json", "version 2", "version 1"]),
        ("out out/report.json", &["out/report.json", "the same"]),
        ("out link.json", &["link.json", "the same"]),
    ] {
        place.run(&format!("compare {other}")).refused(naming);
    }
}
