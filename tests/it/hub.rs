//! Fetching models and data sets, against a hub of our own on the loopback device that also misbehaves on request.

mod astray; // redirects, pages and login pages that lead elsewhere, and secrets
pub(crate) mod server;
mod transfer; // what was fetched is kept, shared and checked
mod trust; // names and bytes of a hub that is not trusted, and of the cache
mod waiting; // time-outs, pauses and the wish to stop

use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use parquet::data_type::{ByteArray, ByteArrayType, FloatType, Int32Type, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use serde_json::json;
use softlm::error::UserError;
use softlm::hub::{HubOptions, dataset_file, model};
use softlm::text::{Example, Split, examples, load};

use self::server::{COMMIT, Fault, Hub, demo, logged};

fn message(result: anyhow::Result<impl std::fmt::Debug>) -> String {
    let error = result.unwrap_err();
    let user = error.downcast_ref::<UserError>().unwrap_or_else(|| panic!("not a user error: {error:#}"));
    format!("{user} / {}", user.hint_text().expect("a hint"))
}

fn assert_demo(dir: &Path) {
    for (path, content) in demo() {
        assert!(fs::read(dir.join(path)).unwrap() == content, "{path}");
    }
}

#[test]
fn a_model_is_fetched_once_and_then_found_offline() {
    let hub = Hub::start();
    hub.put_demo("ours/demo");
    for other in ["pytorch_model.bin", "onnx/model.onnx", "onnx/README.md", "model.safetensors.index.json"] {
        hub.put("ours/demo", other, b"{}");
    }
    hub.put("ours/demo", "LICENSE", b"Apache");
    hub.put("ours/demo", "README.md", b"---\nlicense: apache-2.0\n---\n");
    let options = hub.options();
    let first = model("ours/demo", &options).unwrap();
    assert_eq!(first.revision.as_deref(), Some(COMMIT));
    assert_demo(&first.dir);
    let mut names: Vec<_> =
        fs::read_dir(&first.dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    let mut expected = Vec::from(demo().map(|(name, _)| name));
    expected.extend(["LICENSE", "README.md"]);
    expected.sort();
    assert_eq!(names, expected, "no pickles, no other formats");

    assert_eq!(model("ours/demo", &options).unwrap(), first);
    assert_eq!(hub.count("GET", "/model.safetensors"), 1, "the weights are fetched once");

    let before = hub.requests();
    let offline = HubOptions { offline: true, ..options };
    assert_eq!(model("ours/demo", &offline).unwrap(), first);
    assert_eq!(hub.requests(), before, "offline means no request");
    let pinned = HubOptions { revision: Some(COMMIT.into()), ..offline };
    assert_eq!(model("ours/demo", &pinned).unwrap(), first);
}

#[test]
fn the_modules_behind_an_encoder_come_with_it() {
    let hub = Hub::start();
    hub.put_demo("ours/demo");
    for (path, content) in [
        ("modules.json", "[]"),
        ("1_Pooling/config.json", "{}"),
        ("2_Dense/model.safetensors", "weights"),
        ("onnx/config.json", "{}"),
    ] {
        hub.put("ours/demo", path, content.as_bytes());
    }
    let dir = model("ours/demo", &hub.options()).unwrap().dir;
    assert_eq!(fs::read(dir.join("2_Dense/model.safetensors")).unwrap(), b"weights");
    assert!(dir.join("1_Pooling/config.json").exists() && !dir.join("onnx").exists());
}

#[test]
fn shards_come_with_their_index() {
    let hub = Hub::start();
    hub.put_demo("ours/demo");
    let index =
        json!({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-1.safetensors"}});
    {
        let mut state = hub.state.lock().unwrap();
        let files = state.files.get_mut("ours/demo").unwrap();
        files.remove("model.safetensors");
        files.insert("model.safetensors.index.json".into(), index.to_string().into_bytes());
        files.insert("model-1.safetensors".into(), vec![1; 5000]);
        files.insert("model-3.safetensors".into(), vec![3; 10]);
    }
    assert!(message(model("ours/demo", &hub.options())).contains("model-2.safetensors"));
    let offline = HubOptions { offline: true, ..hub.options() };
    assert!(message(model("ours/demo", &offline)).contains("not in the cache"), "an unfinished copy does not count");

    hub.put("ours/demo", "model-2.safetensors", &[2; 70_000]);
    let snapshot = model("ours/demo", &hub.options()).unwrap();
    assert_eq!(fs::read(snapshot.dir.join("model-2.safetensors")).unwrap(), [2; 70_000]);
    assert!(!snapshot.dir.join("model-3.safetensors").exists());
    assert_eq!(hub.count("GET", "/model-1.safetensors"), 1, "what arrived before a failure is kept");
    assert_eq!(model("ours/demo", &offline).unwrap(), snapshot);

    fs::remove_file(snapshot.dir.join("model-2.safetensors")).unwrap();
    assert!(message(model("ours/demo", &offline)).contains("not in the cache"));
}

#[test]
fn passing_failures_are_outlived() {
    for (method, path, fault) in [
        ("GET", "/revision/main", Fault::Drop),
        ("GET", "/revision/main", Fault::Status(503)),
        ("GET", COMMIT, Fault::Truncate),
        ("GET", COMMIT, Fault::Status(408)),
        ("GET", "/model.safetensors", Fault::Drop),
        ("GET", "/model.safetensors", Fault::Truncate),
        ("GET", "/model.safetensors", Fault::Status(503)),
        ("GET", "/tokenizer.json", Fault::Status(429)),
    ] {
        let hub = Hub::with_demo();
        hub.fault(method, path, fault);
        let (options, lines) = logged(hub.options());
        let snapshot = model("ours/demo", &options).unwrap();
        assert_demo(&snapshot.dir);
        assert!(hub.state.lock().unwrap().faults.is_empty(), "{method} {path} did not fail");
        let lines = lines.lock().unwrap();
        assert!(lines.iter().any(|line| line.contains("trying again")), "{lines:?}");
        assert!(lines.iter().any(|line| line.contains("fetching ours/demo/model.safetensors (1.7 MB")), "{lines:?}");
    }
}

#[test]
fn lasting_failures_end_and_leave_the_cache_sound() {
    let hub = Hub::with_demo();
    for _ in 0..3 {
        hub.fault("GET", "/model.safetensors", Fault::Cut(1000));
    }
    assert!(message(model("ours/demo", &hub.options())).contains("cannot reach"));
    assert_demo(&model("ours/demo", &hub.options()).unwrap().dir);

    hub.fault("GET", "/revision/main", Fault::Status(502));
    assert_demo(&model("ours/demo", &hub.options()).unwrap().dir);
    assert_eq!(hub.count("GET", "/revision/main"), 3, "with a copy at hand nobody waits for a hub that is down");
    for _ in 0..3 {
        hub.fault("GET", "/revision/main", Fault::Status(502));
    }
    assert!(message(model("ours/other", &hub.options())).contains("502"));

    let gone = HubOptions { endpoint: Some("http://127.0.0.1:1".into()), ..hub.options() };
    assert_demo(&model("ours/demo", &gone).unwrap().dir);
    assert!(message(model("ours/other", &gone)).contains("cannot reach http://127.0.0.1:1"));
    let bad = HubOptions { endpoint: Some("not a url".into()), ..hub.options() };
    assert!(message(model("ours/demo", &bad)).contains("HF_ENDPOINT"));
}

#[test]
fn refusals_say_what_to_do() {
    let hub = Hub::start();
    hub.put_demo("ours/demo");
    let options = hub.options();
    assert!(message(model("ours/missing", &options)).contains("there is no model ours/missing"));
    let branch = HubOptions { revision: Some("nope".into()), ..options.clone() };
    assert!(message(model("ours/demo", &branch)).contains("at revision nope"));
    assert!(message(model("not an id", &options)).contains("neither a folder nor the id"));
    assert!(message(dataset_file("ours/none", "x.parquet", "main", &options)).contains("data set ours/none"));
    let offline = HubOptions { offline: true, ..options.clone() };
    assert!(message(model("ours/demo", &offline)).contains("HF_HUB_OFFLINE"));

    hub.fault("GET", "/revision/main", Fault::Status(403));
    let gated = message(model("ours/demo", &options));
    assert!(gated.contains("403") && gated.contains("HF_TOKEN"), "{gated}");
    hub.fault("GET", "/tokenizer.json", Fault::Status(401));
    let private = message(model("ours/demo", &options));
    assert!(private.contains("401") && private.contains("HF_TOKEN"), "{private}");

    for (path, words) in
        [("pytorch_model.bin", "pickled"), ("adapter_model.safetensors", "adapter"), ("x.gguf", "has no")]
    {
        let repository = format!("ours/{}", &path[..1]);
        hub.put(&repository, "config.json", b"{}");
        hub.put(&repository, path, b"weights");
        let message = message(model(&repository, &options));
        assert!(message.contains(words), "{message}");
    }
    assert_eq!(hub.count("GET", "/pytorch_model.bin"), 0);
    hub.put("ours/readme", "README.md", b"hello");
    assert!(message(model("ours/readme", &options)).contains("config.json"));
}

#[test]
fn the_token_is_sent_and_needed() {
    let hub = Hub::start();
    hub.put_demo("ours/demo");
    hub.state.lock().unwrap().token = Some("hf_right".into());
    let with = |token: &str| HubOptions { token: Some(token.into()), ..hub.options() };
    assert!(message(model("ours/demo", &with("hf_wrong"))).contains("HF_TOKEN"));
    assert_demo(&model("ours/demo", &with("hf_right")).unwrap().dir);
    let state = hub.state.lock().unwrap();
    let right = state.seen.iter().filter(|seen| seen.authorization.as_deref() == Some("Bearer hf_right")).count();
    assert_eq!(right, state.seen.len() - 1, "every request but the refused one carries the token");
}

/// A parquet file with a number and a string in each row.
fn parquet_file(column: &str, rows: &[&str]) -> Vec<u8> {
    let schema = format!("message schema {{ required int64 id; optional binary {column} (UTF8); }}");
    let schema = Arc::new(parse_message_type(&schema).unwrap());
    let mut file = Vec::new();
    let mut writer = SerializedFileWriter::new(&mut file, schema, Arc::new(WriterProperties::default())).unwrap();
    for rows in rows.chunks(2) {
        let mut group = writer.next_row_group().unwrap();
        let mut ids = group.next_column().unwrap().unwrap();
        let numbers: Vec<i64> = (0..rows.len() as i64).collect();
        ids.typed::<Int64Type>().write_batch(&numbers, None, None).unwrap();
        ids.close().unwrap();
        let mut texts = group.next_column().unwrap().unwrap();
        let values: Vec<ByteArray> = rows.iter().map(|&row| ByteArray::from(row)).collect();
        texts.typed::<ByteArrayType>().write_batch(&values, Some(&vec![1; rows.len()]), None).unwrap();
        texts.close().unwrap();
        group.close().unwrap();
    }
    writer.close().unwrap();
    file
}

#[test]
fn data_sets_are_read_from_parquet_and_cached() {
    let hub = Hub::start();
    let wikitext = "datasets/Salesforce/wikitext";
    let test = ["", " = Title = \n", "", " Some text , with \u{201c}quotes\u{201d} . \n", "last"];
    hub.put(wikitext, "wikitext-2-raw-v1/test-00000-of-00001.parquet", &parquet_file("text", &test));
    hub.put(wikitext, "wikitext-2-raw-v1/train-00000-of-00001.parquet", &parquet_file("text", &["training text"]));
    let ptb = parquet_file("sentence", &["no it was n't black monday", "but while <unk>"]);
    hub.put("datasets/ptb-text-only/ptb_text_only", "penn_treebank/test/0000.parquet", &ptb);
    hub.fault("GET", "/test-00000-of-00001.parquet", Fault::Truncate);

    let options = hub.options();
    let corpus = load("wikitext2", Split::Evaluation, &options).unwrap();
    assert_eq!(corpus.documents, test);
    assert_eq!(corpus.text(), test.join("\n\n"));
    assert!(corpus.origin.contains("Salesforce/wikitext") && corpus.origin.contains(COMMIT), "{}", corpus.origin);
    assert_eq!(load("wikitext2", Split::Calibration, &options).unwrap().text(), "training text");
    let sentences = load("ptb", Split::Evaluation, &options).unwrap();
    assert_eq!(sentences.text(), "no it was n't black monday\n\nbut while <unk>");
    assert!(message(load("ptb", Split::Calibration, &options)).contains("penn_treebank/train/0000.parquet"));

    let before = hub.requests();
    let offline = HubOptions { offline: true, ..options.clone() };
    assert_eq!(load("wikitext2", Split::Evaluation, &offline).unwrap().sha256, corpus.sha256);
    assert_eq!(load("ptb", Split::Evaluation, &offline).unwrap().sha256, sentences.sha256);
    assert!(message(load("ptb", Split::Calibration, &offline)).contains("not in the cache"));
    assert_eq!(hub.requests(), before);
    let gone = HubOptions { endpoint: Some("http://127.0.0.1:1".into()), ..options };
    assert_eq!(load("ptb", Split::Evaluation, &gone).unwrap().sha256, sentences.sha256);
}

/// Rows of a GLUE task of pairs as the hub stores them: scores are 32-bit floats, classes whole numbers.
fn glue_file(rows: &[(&str, &str, f32)], scores: bool) -> Vec<u8> {
    let texts = "optional binary sentence1 (UTF8); optional binary sentence2 (UTF8);";
    let kind = if scores { "float" } else { "int64" };
    let schema = format!("message schema {{ {texts} optional {kind} label; optional int32 idx; }}");
    let schema = Arc::new(parse_message_type(&schema).unwrap());
    let mut file = Vec::new();
    let mut writer = SerializedFileWriter::new(&mut file, schema, Arc::new(WriterProperties::default())).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let there = Some(vec![1; rows.len()]);
    for second in [false, true] {
        let mut column = group.next_column().unwrap().unwrap();
        let text = |row: &(&str, &str, f32)| ByteArray::from(if second { row.1 } else { row.0 });
        let values: Vec<ByteArray> = rows.iter().map(text).collect();
        column.typed::<ByteArrayType>().write_batch(&values, there.as_deref(), None).unwrap();
        column.close().unwrap();
    }
    let mut column = group.next_column().unwrap().unwrap();
    if scores {
        let values: Vec<f32> = rows.iter().map(|row| row.2).collect();
        column.typed::<FloatType>().write_batch(&values, there.as_deref(), None).unwrap();
    } else {
        let values: Vec<i64> = rows.iter().map(|row| row.2 as i64).collect();
        column.typed::<Int64Type>().write_batch(&values, there.as_deref(), None).unwrap();
    }
    column.close().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    let numbers: Vec<i32> = (0..rows.len() as i32).collect();
    column.typed::<Int32Type>().write_batch(&numbers, there.as_deref(), None).unwrap();
    column.close().unwrap();
    group.close().unwrap();
    writer.close().unwrap();
    file
}

#[test]
fn labelled_tasks_are_read_by_name_and_cached() {
    let hub = Hub::start();
    let glue = "datasets/nyu-mll/glue";
    let scored = [("A man sings.", "Someone sings, \u{201c}well\u{201d}.", 3.2), ("No.", "Yes.", 0.0)];
    hub.put(glue, "stsb/validation-00000-of-00001.parquet", &glue_file(&scored, true));
    hub.put(glue, "stsb/train-00000-of-00001.parquet", &glue_file(&scored[1..], true));
    hub.put(glue, "mrpc/validation-00000-of-00001.parquet", &glue_file(&[("a", "b", 1.0)], false));
    hub.put(glue, "mrpc/train-00000-of-00001.parquet", &glue_file(&[("a", "b", -1.0)], false));
    let options = hub.options();
    let found = examples("stsb", Split::Evaluation, &options).unwrap();
    let row = |row: &(&str, &str, f32), label| Example { first: row.0.into(), second: Some(row.1.into()), label };
    assert_eq!(found.rows, [row(&scored[0], 3.2), row(&scored[1], 0.0)]);
    assert!(found.origin.contains("nyu-mll/glue") && found.origin.contains(COMMIT), "{}", found.origin);
    assert_eq!(examples("stsb", Split::Calibration, &options).unwrap().rows.len(), 1);
    assert_eq!(examples("mrpc", Split::Evaluation, &options).unwrap().rows, [row(&("a", "b", 1.0), 1.0)]);
    assert!(message(examples("mrpc", Split::Calibration, &options)).contains("secret"));
    let offline = HubOptions { offline: true, ..options };
    assert_eq!(examples("stsb", Split::Evaluation, &offline).unwrap().sha256, found.sha256);
    assert!(message(examples("sst2", Split::Evaluation, &offline)).contains("not in the cache"));
}

#[test]
fn c4_is_the_first_documents_of_a_shard() {
    let hub = Hub::start();
    let mut shard = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    for index in 0..2003 {
        writeln!(shard, "{}", json!({"text": format!("document {index}"), "timestamp": "t", "url": "u"})).unwrap();
    }
    hub.put("datasets/allenai/c4", "en/c4-validation.00000-of-00008.json.gz", &shard.finish().unwrap());
    let corpus = load("c4", Split::Evaluation, &hub.options()).unwrap();
    assert_eq!(corpus.documents.len(), 2000);
    assert!(corpus.text().starts_with("document 0\n\ndocument 1\n\n") && corpus.text().ends_with("\n\ndocument 1999"));
}

#[test]
fn a_damaged_data_set_is_named() {
    let hub = Hub::start();
    let path = "wikitext-2-raw-v1/test-00000-of-00001.parquet";
    hub.put("datasets/Salesforce/wikitext", path, b"PAR1 this is not parquet PAR1");
    let error = load("wikitext2", Split::Evaluation, &hub.options()).unwrap_err();
    assert!(format!("{error:#}").contains("test-00000-of-00001.parquet; delete it"), "{error:#}");
    let hub = Hub::start();
    hub.put("datasets/Salesforce/wikitext", path, &parquet_file("words", &["x"]));
    let error = load("wikitext2", Split::Evaluation, &hub.options()).unwrap_err();
    assert!(format!("{error:#}").contains("no column \"text\""), "{error:#}");
}
