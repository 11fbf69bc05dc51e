//! Corpora and tokenizers against real texts, counts that others publish, and what users get wrong.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use serde_json::{Map, Value, json};
use softlm::error::UserError;
use softlm::hub::HubOptions;
use softlm::text::{Split, Tokenizer, cut, load};

use crate::data::data;
use crate::program::Place;

/// Options under which nothing can reach a network or a cache.
fn nowhere() -> HubOptions {
    HubOptions { offline: true, cache: Some(Path::new("/nonexistent").into()), ..HubOptions::default() }
}

fn read(spec: &str) -> softlm::text::Corpus {
    load(spec, Split::Evaluation, &nowhere()).unwrap()
}

fn mistake(spec: &str) -> String {
    let error = load(spec, Split::Evaluation, &nowhere()).unwrap_err();
    let user = error.downcast_ref::<UserError>().unwrap_or_else(|| panic!("not a user error: {error:#}"));
    format!("{user} / {}", user.hint_text().expect("a hint"))
}

fn folder_tokenizer(folder: &Path) -> Tokenizer {
    let config =
        fs::read(folder.join("config.json")).map_or_else(|_| Map::new(), |b| serde_json::from_slice(&b).unwrap());
    Tokenizer::load("test", &|name| Ok(fs::read(folder.join(name)).ok()), &config).unwrap()
}

/// A tokenizer whose files have other names than in a model's folder.
fn renamed(files: &[(&str, &str)]) -> Option<Tokenizer> {
    let mut read = Vec::new();
    for (name, path) in files {
        read.push((*name, fs::read(data(path)?).unwrap()));
    }
    let file = |name: &str| Ok(read.iter().find(|(known, _)| *known == name).map(|(_, bytes)| bytes.clone()));
    Some(Tokenizer::load("test", &file, &Map::new()).unwrap())
}

#[test]
fn wikitext_is_the_text_that_everybody_measures_on() {
    let (Some(text), Some(rows)) = (data("text/wikitext2-raw/test.txt"), data("text/wikitext2-raw/rows.jsonl")) else {
        return;
    };
    let text = read(text.to_str().unwrap());
    let rows = read(&format!("wikitext2={}", rows.display()));
    assert_eq!(rows.name, "wikitext2");
    assert_eq!((rows.documents.len(), text.documents.len()), (4358, 1));
    assert_eq!(text.text().len(), 1_296_370);
    assert_eq!(rows.text(), text.text());
    assert_eq!(rows.sha256, text.sha256);
    assert_eq!(text.sha256, "696cca6b65a171b0a358a4be6732cdfdf2dd6164a32e20fd70e3c13fc4dfae83");
}

#[test]
fn token_counts_are_the_published_ones() {
    let Some(path) = data("text/wikitext2-raw/test.txt") else { return };
    let text = fs::read_to_string(path).unwrap();
    let gpt2 = [("vocab.json", "tokenizers/gpt2_vocab.json"), ("merges.txt", "tokenizers/gpt2_merges.txt")];
    for (name, files, count) in [
        ("GPT-2 from vocab.json and merges.txt", &gpt2[..], 287_644),
        ("GPT-2 from tokenizer.json", &[("tokenizer.json", "tokenizers/gpt2_tokenizer.json")], 287_644),
        ("Pythia", &[("tokenizer.json", "tokenizers/pythia_tokenizer.json")], 288_730),
        ("NeoX", &[("tokenizer.json", "tokenizers/gptneox_20B_tokenizer.json")], 288_730),
        ("Minueza", &[("tokenizer.json", "tokenizers/minueza32m_tokenizer.json")], 334_660),
        ("demo", &[("tokenizer.json", "demo/tokenizer.json")], 555_647),
        ("stories260k", &[("tokenizer.json", "models/stories260k/tokenizer.json")], 815_069),
        ("tinystories-656k", &[("tokenizer.json", "models/tinystories-656k/tokenizer.json")], 560_211),
        ("llama-wiki-7m", &[("tokenizer.json", "models/llama-wiki-7m/tokenizer.json")], 413_622),
    ] {
        let Some(tokenizer) = renamed(files) else { continue };
        let start = Instant::now();
        let ids = tokenizer.encode(&text).unwrap();
        println!("{name}: {} ids in {:.2} s", ids.len(), start.elapsed().as_secs_f64());
        assert_eq!(ids.len(), count, "{name}");
        assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocab_size()), "{name}");
    }
}

#[test]
fn sentencepiece_gives_the_ids_of_llama_2() {
    let (Some(text), Some(pieces)) = (data("text/wikitext2-raw/test.txt"), data("tokenizers/llama2_tokenizer.model"))
    else {
        return;
    };
    let pieces = fs::read(pieces).unwrap();
    let file = |name: &str| Ok((name == "tokenizer.model").then(|| pieces.clone()));
    let tokenizer = Tokenizer::load("llama-2", &file, json!({"model_type": "llama"}).as_object().unwrap()).unwrap();
    assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.vocab_size()), (Some(1), Some(2), 32_000));
    let expected = [1, 15043, 3186, 29892, 904, 31652, 30578, 29871, 232, 147, 154, 13, 12, 29916];
    let hard = "Hello world, \u{e9}漢字 吗\n\tx";
    assert_eq!(tokenizer.encode_prompt(hard).unwrap(), expected);
    assert_eq!(tokenizer.decode(&expected[1..]).unwrap(), hard);
    // The published count, and a sum over all of them as transformers has it.
    let ids = tokenizer.encode(&read(text.to_str().unwrap()).text()).unwrap();
    let sum: u64 = ids.iter().zip(1u64..).map(|(&id, place)| place * u64::from(id) % 1_000_003).sum();
    assert_eq!((ids.len(), sum), (341_468, 170_370_391_944));
}

#[test]
fn both_forms_of_gpt2_agree_on_hard_text() {
    let whole = renamed(&[("tokenizer.json", "tokenizers/gpt2_tokenizer.json")]);
    let parts = renamed(&[("vocab.json", "tokenizers/gpt2_vocab.json"), ("merges.txt", "tokenizers/gpt2_merges.txt")]);
    let (Some(whole), Some(parts)) = (whole, parts) else { return };
    let text = "  two  spaces\t\r\n\n\nDon't we'LL 3,141 \u{e9}\u{4f60}\u{597d}\u{1f600}\u{0} end ";
    let ids = parts.encode(text).unwrap();
    assert_eq!(ids, whole.encode(text).unwrap());
    assert_eq!(parts.decode(&ids).unwrap(), text);
    // GPT-2 has one special token, which stays whole even though no file but the vocabulary names it.
    assert_eq!(parts.encode("a<|endoftext|>b").unwrap(), [64, 50_256, 65]);
    assert_eq!(parts.encode("Hello world").unwrap(), [15496, 995]);
    if let Some(multilingual) = data("text/calibration/multilingual.utf8") {
        let text = fs::read_to_string(multilingual).unwrap();
        assert_eq!(parts.encode(&text).unwrap(), whole.encode(&text).unwrap());
    }
}

#[test]
fn window_counts_of_the_small_models() {
    let texts = ["text/tinystories/tiny.utf8", "text/poem/val.txt"];
    for (model, text, tokens, window, windows) in [
        ("models/stories260k", texts[0], 134_730, 256, 526),
        ("models/stories260k", texts[0], 134_730, 512, 263),
        ("models/tinystories-656k", texts[0], 67_308, 256, 262),
        ("models/poem-zh-750k", texts[1], 29_323, 128, 229),
    ] {
        let (Some(model), Some(text)) = (data(model), data(text)) else { return };
        let tokenizer = folder_tokenizer(&model);
        assert!(tokenizer.bos().is_some() && tokenizer.eos().is_some(), "{}", model.display());
        let ids = tokenizer.encode(&read(text.to_str().unwrap()).text()).unwrap();
        assert_eq!(ids.len(), tokens);
        assert_eq!(cut(&ids, window, window, None).unwrap().len(), windows);
    }
    let Some(model) = data("models/tinystories-656k") else { return };
    let tokenizer = folder_tokenizer(&model);
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(1), Some(2)));
}

#[test]
fn the_sample_is_enough_for_a_first_run() {
    let files = |name: &str| {
        Ok(match name {
            "tokenizer.json" => Some(include_bytes!("../../src/demo/tokenizer.json").to_vec()),
            _ => None,
        })
    };
    let tokenizer = Tokenizer::load("demo", &files, &Map::new()).unwrap();
    let windows = |split| {
        let corpus = load("sample", split, &nowhere()).unwrap();
        cut(&tokenizer.encode(&corpus.text()).unwrap(), 256, 256, None).unwrap().len()
    };
    let (calibration, evaluation) = (windows(Split::Calibration), windows(Split::Evaluation));
    println!("sample: {calibration} windows of 256 to calibrate on, {evaluation} to measure on");
    assert!(calibration >= 20 && evaluation >= 8, "{calibration} {evaluation}");
}

#[test]
fn local_files_are_taken_verbatim() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    fs::write(path("a.txt"), "\u{feff}one\r\ntwo\n\n").unwrap();
    let corpus = read(&path("a.txt"));
    assert_eq!((corpus.name.as_str(), &*corpus.text()), ("a.txt", "one\r\ntwo\n\n"));
    assert_eq!(corpus.origin, path("a.txt"));

    let lines = [json!({"text": " first\n", "id": 1}), json!({"text": ""}), json!({"text": "third"})];
    let lines: Vec<String> = lines.iter().map(Value::to_string).collect();
    fs::write(path("b.JSONL"), lines.join("\n") + "\n\n").unwrap();
    let corpus = read(&format!("mine={}", path("b.JSONL")));
    assert_eq!((corpus.name.as_str(), corpus.documents.len()), ("mine", 3));
    assert_eq!(corpus.text(), " first\n\n\n\n\nthird");

    fs::write(path("noext"), "plain").unwrap();
    assert_eq!(read(&path("noext")).text(), "plain");
}

/// A parquet file with a column of texts and a column of numbers.
fn parquet(column: &str, texts: &[&str]) -> Vec<u8> {
    let schema = format!("message schema {{ REQUIRED INT64 id; REQUIRED BYTE_ARRAY {column} (UTF8); }}");
    let schema = Arc::new(parse_message_type(&schema).unwrap());
    let mut file = Vec::new();
    let mut writer = SerializedFileWriter::new(&mut file, schema, Arc::new(WriterProperties::default())).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let ids: Vec<i64> = (0..texts.len() as i64).collect();
    let texts: Vec<ByteArray> = texts.iter().map(|&text| text.into()).collect();
    let mut next = group.next_column().unwrap().unwrap();
    next.typed::<Int64Type>().write_batch(&ids, None, None).unwrap();
    next.close().unwrap();
    let mut next = group.next_column().unwrap().unwrap();
    next.typed::<ByteArrayType>().write_batch(&texts, None, None).unwrap();
    next.close().unwrap();
    group.close().unwrap();
    writer.close().unwrap();
    file
}

#[test]
fn what_a_file_holds_decides_how_it_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let texts = ["first\n", "", "third é"];
    let lines: Vec<String> = texts.iter().map(|text| json!({ "text": text }).to_string()).collect();
    let lines = lines.join("\n");
    fs::write(path("a.json"), &lines).unwrap();
    fs::write(path("a.jsonl"), format!("\u{feff}{lines}\n")).unwrap();
    fs::write(path("array.json"), serde_json::to_vec_pretty(&texts.map(|text| json!({ "text": text }))).unwrap())
        .unwrap();
    fs::write(path("strings"), json!(texts).to_string()).unwrap();
    fs::write(path("a.parquet"), parquet("text", &texts)).unwrap();
    fs::write(path("called.data"), parquet("text", &texts)).unwrap();
    for name in ["a.json", "a.jsonl", "array.json", "strings", "a.parquet", "called.data"] {
        let corpus = read(&path(name));
        assert_eq!(
            (corpus.documents, corpus.sha256),
            (texts.map(String::from).to_vec(), read(&path("a.json")).sha256),
            "{name}"
        );
    }
    fs::write(path("a.txt"), &lines).unwrap();
    assert_eq!(read(&path("a.txt")).text(), lines);

    fs::write(path("other.parquet"), parquet("content", &texts)).unwrap();
    let said = mistake(&path("other.parquet"));
    assert!(said.contains("\"text\"") && said.contains("id, content") && said.contains("other.parquet"), "{said}");
    let wide: Vec<u8> = "\u{feff}some text".encode_utf16().flat_map(u16::to_be_bytes).collect();
    fs::write(path("wide.txt"), wide).unwrap();
    assert!(mistake(&path("wide.txt")).contains("UTF-16"));
}

#[test]
fn names_may_hold_commas_and_equals_signs() {
    let place = Place::new();
    let text = "The sea was calm and the boats went out early. ".repeat(60);
    for name in ["a,b.txt", "run=3.txt", "plain.txt"] {
        place.write(name, &text);
    }
    fs::create_dir(place.path("sub")).unwrap();
    place.write("sub/a,b.txt", &text);
    place.write("sst2=x.tsv", &text);
    place.write("s,t.jsonl", "{\"sentence\": \"good\", \"label\": 1}\n{\"sentence\": \"bad\", \"label\": 0}\n");
    let names = |ppl: &str| -> Vec<String> {
        let said = place.run(&format!("eval demo --ppl {ppl} --window 32 --max-windows 2 --json")).fine();
        let json: Value = serde_json::from_str(&said.stdout).expect("JSON");
        json["perplexity"].as_array().expect("results").iter().map(|p| p["corpus"].as_str().unwrap().into()).collect()
    };
    assert_eq!(names("a,b.txt"), ["a,b.txt"]);
    assert_eq!(names("run=3.txt"), ["run=3.txt"]);
    assert_eq!(names("sst2=x.tsv"), ["sst2=x.tsv"], "a path that exists is a path");
    assert_eq!(names("sub/a,b.txt,sample,run=3.txt,mine=a,b.txt"), ["a,b.txt", "sample", "run=3.txt", "mine"]);
    assert_eq!(names("plain.txt,sample"), ["plain.txt", "sample"]);
    place.run("eval demo --ppl plain.txt,gone.txt").refused(&["gone.txt"]);

    let fast = "--calib-windows 2 --window 32 --eval-window 32 --max-windows 1";
    place
        .run(&format!("compress demo --method svd --keep 0.9 --calib a,b.txt --ppl run=3.txt,sample {fast} -o out"))
        .fine();
    let recipe = String::from_utf8(place.read("out/softlm.toml")).unwrap();
    assert!(recipe.contains("\"a,b.txt\"") && recipe.contains("\"run=3.txt\""), "{recipe}");
    let environment = [("SOFTLM_PPL", "a,b.txt,sample")];
    let said = place.run_in("eval demo --window 32 --max-windows 2 --json", &environment).fine();
    assert_eq!(said.stdout.matches("\"corpus\"").count(), 2, "{}", said.stdout);
    place.run("calibrate demo --calib sub/a,b.txt --calib-windows 2 --window 32 -o st,ats").fine();
    place.run("calibrate --merge st,ats -o again").fine();
    let classes = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/encoders/distilbert-tiny-classes");
    place.run(&format!("eval {classes} --glue sst2=s,t.jsonl")).fine();
}

#[test]
fn mistakes_say_what_and_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    assert!(mistake("wikitext3").contains("\"wikitext3\"") && mistake("wikitext3").contains("wikitext2"));
    assert!(mistake(&path("missing.txt")).contains("missing.txt"));
    assert!(mistake(&format!("name={}", path("missing.txt"))).contains("missing.txt"));
    assert!(mistake(&path("")).contains("folder"));
    fs::write(path("empty.txt"), " \n\n").unwrap();
    assert!(mistake(&path("empty.txt")).contains("is empty"));
    fs::write(path("latin.txt"), b"caf\xe9").unwrap();
    assert!(mistake(&path("latin.txt")).contains("byte 3") && mistake(&path("latin.txt")).contains("UTF-8"));
    fs::write(path("broken.jsonl"), "{\"text\": \"a\"}\n\n{\"txt\": \"b\"}\n").unwrap();
    assert!(mistake(&path("broken.jsonl")).contains("line 3 has no text field"));
    fs::write(path("number.jsonl"), "{\"text\": 5}").unwrap();
    assert!(mistake(&path("number.jsonl")).contains("line 1"));
    fs::write(path("notjson.jsonl"), "{\"text\": \"a\"}\nhello\n").unwrap();
    assert!(mistake(&path("notjson.jsonl")).contains("line 2 is not JSON"));
    fs::write(path("empty.jsonl"), "").unwrap();
    assert!(mistake(&path("empty.jsonl")).contains("is empty"));
    assert!(mistake("c4").contains("HF_HUB_OFFLINE") && mistake("c4").contains("NAME=PATH"));
}

#[test]
#[cfg(unix)]
fn texts_come_from_pipes_but_not_from_devices() {
    let place = Place::new();
    let text = "The sea was calm and the boats went out early. ".repeat(60);
    place.write("text.txt", &text);
    let of = |said: crate::program::Said| -> Value { serde_json::from_str(&said.fine().stdout).expect("JSON") };
    let fast = "--window 32 --max-windows 2 --json";
    let file = of(place.run(&format!("eval demo --ppl x=text.txt {fast}")));
    let pipe = |name: &str, content: &str| {
        let path = place.path(name);
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RWXU).expect("a pipe");
        let content = content.to_string();
        std::thread::spawn(move || fs::write(path, content))
    };
    let writer = pipe("pipe", &text);
    let piped = of(place.run(&format!("eval demo --ppl x=pipe {fast}")));
    writer.join().expect("a writer").expect("a reader");
    let input = of(place.run_with_input(&format!("eval demo --ppl x=- {fast}"), &text));
    for other in [piped, input] {
        let perplexity = |json: &Value| json["perplexity"][0]["ppl"].clone();
        assert!(perplexity(&file).is_number(), "{file}");
        assert_eq!(perplexity(&other), perplexity(&file));
    }
    // Calibration and evaluation have the same text.
    let writer = pipe("both", &text);
    let fast = "--calib-windows 2 --window 32 --eval-window 32 --max-windows 2 --json";
    let both =
        of(place.run(&format!("compress demo --method rom --keep 0.9 --calib x=both --ppl x=both {fast} -o out")));
    writer.join().expect("a writer").expect("a reader");
    assert_eq!(both["calibration"]["corpora"][0]["name"], "x", "{both}");
    let fast = "--window 32 --max-windows 2 --json";
    // Labelled examples too are read once.
    let rows = "sentence\tlabel\ngood\t1\nbad\t0\n";
    place.write("rows.tsv", rows);
    let writer = pipe("rows", rows);
    let found =
        softlm::text::examples(&format!("sst2={}", place.path("rows").display()), Split::Evaluation, &nowhere());
    let wanted =
        softlm::text::examples(&format!("sst2={}", place.path("rows.tsv").display()), Split::Evaluation, &nowhere());
    writer.join().expect("a writer").expect("a reader");
    let (found, wanted) = (found.unwrap(), wanted.unwrap());
    assert_eq!((found.rows, found.sha256), (wanted.rows, wanted.sha256));

    for device in ["/dev/zero", "/dev/null", "/dev/urandom"] {
        place.run(&format!("eval demo --ppl {device} {fast}")).refused(&[device, "device", "-"]);
        assert!(mistake(&format!("x={device}")).contains("device"));
    }
    let zeros =
        place.command(&format!("eval demo --ppl - {fast}")).stdin(fs::File::open("/dev/zero").unwrap()).output();
    let said = String::from_utf8(zeros.unwrap().stderr).unwrap();
    assert!(said.contains("error: standard input"), "{said}");
}

#[test]
fn damaged_parquet_files_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.parquet");
    let whole = parquet("text", &["first", "second", "third"]);
    let mut refused = 0;
    for at in 0..whole.len() {
        for value in [0, 0x7f, 0xff] {
            let mut bytes = whole.clone();
            bytes[at] = value;
            fs::write(&path, &bytes).unwrap();
            refused += usize::from(load(&format!("x={}", path.display()), Split::Evaluation, &nowhere()).is_err());
        }
        fs::write(&path, &whole[..at]).unwrap();
        assert!(
            at == 0 || load(&format!("x={}", path.display()), Split::Evaluation, &nowhere()).is_err() || at < 4,
            "{at}"
        );
    }
    assert!(refused > whole.len() / 2, "{refused}");
}

/// Peak memory grows by little more than the text and its ids.
#[test]
#[cfg(target_os = "linux")]
fn long_texts_cost_little_more_than_themselves() {
    let place = Place::new();
    let mut lines = String::new();
    for i in 0..260_000 {
        lines += &format!("The boat of number {} went out with {} nets. ", i * 7919 % 10_007, i % 13);
    }
    place.write("long.txt", &lines);
    place.write("short.txt", &lines[..lines.len() / 64]);
    let peak = |name: &str, sampling: &str| -> u64 {
        let fast = "--calib-windows 1 --window 64 --ppl none --json";
        let out = format!("{sampling}-{name}.out");
        let said = place.run(&format!(
            "compress demo --method rom --keep 0.8 --calib {name} --sampling {sampling} {fast} -o {out}"
        ));
        let json: Value = serde_json::from_str(&said.fine().stdout).expect("JSON");
        json["cost"]["peak_rss_bytes"].as_u64().unwrap_or_else(|| panic!("{json}"))
    };
    let text = lines.len() as u64;
    for sampling in ["first", "random"] {
        let (short, long) = (peak("short.txt", sampling), peak("long.txt", sampling));
        println!("{sampling}: {} MiB for {} MiB of text, {} MiB for little", long >> 20, text >> 20, short >> 20);
        // Of this text two or three bytes are an id of four, which is there twice: in the text and in a window.
        assert!(long < short + 6 * text + (96 << 20), "{long} bytes for {text} bytes of text, {short} for little");
    }
}
