//! Reading, writing and proving whole checkpoints.

use crate::data::data;
use candle_core::{DType, Device};
use half::{bf16, f16};
use softlm::checkpoint::{
    Dtype, Entry, NamedTensor, Origin, Source, TensorFile, free_space, write_checkpoint, write_file, write_tensors,
};
use softlm::error::UserError;
use softlm::model::verify;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Every tensor of the source unchanged.
fn copies(source: &Source) -> Vec<Entry> {
    let entry = |name: &str| {
        let info = source.info(name).unwrap();
        Entry { name: name.into(), dtype: info.dtype, shape: info.shape.clone(), from: Origin::Source(name.into()) }
    };
    source.names().map(entry).collect()
}

fn write_config(dir: &Path, config: &serde_json::Map<String, serde_json::Value>) {
    write_file(&dir.join("config.json"), &serde_json::to_vec(config).unwrap()).unwrap();
}

fn copy(source: &Source, dir: &Path, max_shard_bytes: u64) -> Source {
    let metadata = BTreeMap::from([("made_by".to_string(), "test".to_string())]);
    let mut told = 0;
    let written =
        write_checkpoint(dir, &copies(source), source, max_shard_bytes, &metadata, &mut |n| told += n).unwrap();
    assert_eq!(told, written.total_bytes);
    write_config(dir, source.config());
    let copy = Source::open(dir).unwrap();
    assert_eq!(copy.files(), written.files);
    for file in written.files {
        assert_eq!(fs::metadata(dir.join(&file.name)).unwrap().len(), file.bytes);
    }
    copy
}

fn assert_same(a: &Source, b: &Source) {
    assert!(a.names().eq(b.names()));
    for name in a.names() {
        let (x, y) = (a.info(name).unwrap(), b.info(name).unwrap());
        assert_eq!((x.dtype, &x.shape), (y.dtype, &y.shape), "{name}");
        assert!(a.bytes(name).unwrap() == b.bytes(name).unwrap(), "{name}");
    }
}

fn assert_shards(source: &Source, limit: u64) {
    let files = source.files();
    assert!(files.len() > 1);
    for (i, file) in files.iter().enumerate() {
        assert_eq!(file.name, format!("model-{:05}-of-{:05}.safetensors", i + 1, files.len()));
        let shard = TensorFile::open(&source.dir().unwrap().join(&file.name)).unwrap();
        let bytes: u64 = shard.names().map(|name| shard.info(name).unwrap().bytes() as u64).sum();
        assert!(bytes <= limit || shard.names().count() == 1, "{} holds {bytes}", file.name);
        assert_eq!(shard.metadata()["format"], "pt");
        assert_eq!(shard.metadata()["made_by"], "test");
    }
}

/// Only final names are left in the folder.
fn assert_clean(dir: &Path) {
    for entry in fs::read_dir(dir).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(!name.ends_with(".tmp"), "{name} was left behind");
    }
}

#[test]
fn demo_survives_one_file_and_many_shards() {
    let demo = Source::demo();
    for (limit, sharded) in [(u64::MAX, false), (300_000, true), (1, true)] {
        let dir = tempfile::tempdir().unwrap();
        let copy = copy(&demo, dir.path(), limit);
        assert_same(&demo, &copy);
        if sharded {
            assert_shards(&copy, limit);
        } else {
            assert_eq!(copy.files()[0].name, "model.safetensors");
        }
        assert_clean(dir.path());
        let verdict = verify(&copy, Some(&demo), None).unwrap();
        assert_eq!(verdict.problems, Vec::<String>::new());
        assert_eq!((verdict.tensors, verdict.factorised), (demo.names().count(), 0));
    }
}

#[test]
fn real_models_survive_other_shards() {
    for name in ["llama-wiki-7m", "all-MiniLM-L6-v2", "minilm-sst2", "stories260k", "tinystories-656k-orig"] {
        let Some(path) = data(&format!("models/{name}")) else { return };
        let source = Source::open(&path).unwrap();
        for limit in [500_000, u64::MAX] {
            let dir = tempfile::tempdir().unwrap();
            let copy = copy(&source, dir.path(), limit);
            assert_same(&source, &copy);
            if limit < u64::MAX {
                assert_shards(&copy, limit);
            }
            assert_eq!(verify(&copy, Some(&source), None).unwrap().problems, Vec::<String>::new(), "{name}");
        }
    }
}

#[test]
fn a_sharded_model_is_read_as_its_index_says() {
    let Some(path) = data("models/llama-wiki-7m") else { return };
    let source = Source::open(&path).unwrap();
    assert_eq!(source.files().len(), 3);
    let bytes: usize = source.names().map(|name| source.info(name).unwrap().bytes()).sum();
    assert_eq!(bytes, 13_902_336);
    assert_eq!(source.info("model.layers.7.self_attn.k_proj.weight").unwrap().shape, [128, 256]);
    assert!(source.side_files().unwrap().contains(&"tokenizer.json".to_string()));
    assert!(!source.side_files().unwrap().iter().any(|name| name.contains("safetensors") || name == "config.json"));
}

#[test]
fn known_hashes() {
    let Some(path) = data("models/stories260k") else { return };
    let sha256 = Source::open(&path).unwrap().sha256().unwrap().to_vec();
    let expected = "407a7c581bdd66972383ce9ad24857713fb98786d06ea564a2fe9b34ebe77dfd";
    assert_eq!(sha256, [("model.safetensors".to_string(), expected.to_string())]);
}

#[test]
fn subfolders_belong_to_the_side_files() {
    let Some(path) = data("models/all-MiniLM-L6-v2") else { return };
    let source = Source::open(&path).unwrap();
    assert!(source.side_files().unwrap().contains(&"1_Pooling/config.json".to_string()));
    assert!(source.side_file("1_Pooling/config.json").unwrap().is_some());
    assert_eq!(source.info("embeddings.position_ids").unwrap().dtype, Dtype::I64);
}

#[test]
fn the_head_alone_stands_for_the_embedding() {
    let (Some(orig), Some(renamed)) = (data("models/tinystories-656k-orig"), data("models/tinystories-656k")) else {
        return;
    };
    let (mut orig, renamed) = (Source::open(&orig).unwrap(), Source::open(&renamed).unwrap());
    let (embed, head) = ("model.embed_tokens.weight", "lm_head.weight");
    assert_eq!(orig.metadata()[embed], head);
    assert!(orig.info(embed).is_none());
    // Either name proves the other's checkpoint whole, because the configuration ties them.
    assert_eq!(verify(&orig, Some(&renamed), None).unwrap().problems, Vec::<String>::new());
    assert_eq!(verify(&renamed, Some(&orig), None).unwrap().problems, Vec::<String>::new());
    orig.alias(embed, head);
    assert_eq!(orig.bytes(embed).unwrap(), renamed.bytes(embed).unwrap());
    let rows = |source: &Source| source.rows(embed, &[5, 0, 5], 128, DType::F32, &Device::Cpu).unwrap();
    assert_eq!(rows(&orig).to_vec2::<f32>().unwrap(), rows(&renamed).to_vec2::<f32>().unwrap());
    assert!(!orig.names().any(|name| name == embed));
    let dir = tempfile::tempdir().unwrap();
    let mut entries = copies(&orig);
    let from = entries.iter_mut().find(|entry| entry.name == head).unwrap();
    from.name = embed.into();
    from.from = Origin::Source(embed.into());
    write_checkpoint(dir.path(), &entries, &orig, u64::MAX, &BTreeMap::new(), &mut |_| ()).unwrap();
    write_config(dir.path(), orig.config());
    assert_same(&Source::open(dir.path()).unwrap(), &renamed);
}

#[test]
fn demo_loads_like_the_format_crate_says() {
    let demo = Source::demo();
    let bytes = demo.side_file("model.safetensors").unwrap().unwrap();
    let reference = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(reference.len(), demo.names().count());
    for (name, view) in reference.iter() {
        let wide: Vec<f32> = view.data().chunks(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect();
        let loaded = demo.tensor(name, view.shape(), DType::F32, &Device::Cpu).unwrap();
        assert_eq!(loaded.dims(), view.shape());
        assert_eq!(loaded.flatten_all().unwrap().to_vec1::<f32>().unwrap(), wide, "{name}");
        let same = demo.tensor(name, view.shape(), DType::BF16, &Device::Cpu).unwrap();
        assert_eq!(same.dtype(), DType::BF16);
    }
    let embed = demo.tensor("model.embed_tokens.weight", &[1024, 128], DType::F32, &Device::Cpu).unwrap();
    let ids = [1023u32, 0, 7];
    let rows = demo.rows("model.embed_tokens.weight", &ids, 128, DType::F32, &Device::Cpu).unwrap();
    let picked = embed.index_select(&candle_core::Tensor::new(&ids, &Device::Cpu).unwrap(), 0).unwrap();
    assert_eq!(rows.to_vec2::<f32>().unwrap(), picked.to_vec2::<f32>().unwrap());
}

/// A checkpoint of one u8 or f32 matrix whose data is a hole on the disk; `None` where files cannot have holes.
fn sparse(dir: &Path, rows: usize, width: usize) -> Option<Source> {
    let (dtype, size) = if width == 1 { ("U8", 1) } else { ("F32", 4) };
    let bytes = rows * width * size;
    let header = format!(r#"{{"w":{{"dtype":"{dtype}","shape":[{rows},{width}],"data_offsets":[0,{bytes}]}}}}"#);
    let path = dir.join("model.safetensors");
    fs::write(dir.join("config.json"), "{}").unwrap();
    fs::write(&path, [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat()).unwrap();
    let file = fs::File::options().write(true).open(&path).unwrap();
    if let Err(error) = file.set_len((8 + header.len() + bytes) as u64) {
        println!("skipped: a file of {bytes} bytes is impossible here ({error})");
        return None;
    }
    Some(Source::open(dir).unwrap())
}

#[test]
fn opening_and_picking_rows_does_not_read_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let start = std::time::Instant::now();
    let Some(source) = sparse(dir.path(), 1 << 20, 2048) else { return };
    let ids: Vec<u32> = (0..1000).map(|i| i * 1000).collect();
    let picked = source.rows("w", &ids, 2048, DType::F32, &Device::Cpu).unwrap();
    assert_eq!(picked.sum_all().unwrap().to_scalar::<f32>().unwrap(), 0.0);
    // Reading all 8 GiB, as systems that read far ahead would, takes longer than this even without a disk.
    assert!(start.elapsed().as_secs_f64() < 5.0, "{:?}", start.elapsed());
}

/// More data than the disk has room for, in a file of holes that takes none of it.
#[test]
fn a_full_disk_is_noticed_before_the_first_byte() {
    let (dir, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let bytes = free_space(out.path()).unwrap() + (1 << 20);
    let Some(source) = sparse(dir.path(), bytes as usize, 1) else { return };
    let error = write_checkpoint(out.path(), &copies(&source), &source, 1 << 30, &BTreeMap::new(), &mut |_| ());
    let error = error.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("model.safetensors") && text.contains(&bytes.to_string()[..6]), "{text}");
    assert!(error.downcast_ref::<UserError>().unwrap().hint_text().unwrap().contains("space"));
    assert_eq!(fs::read_dir(out.path()).unwrap().count(), 0);
}

#[test]
fn the_result_depends_on_the_arguments_alone() {
    let demo = Source::demo();
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut entries = copies(&demo);
    let first = write_checkpoint(a.path(), &entries, &demo, 300_000, &BTreeMap::new(), &mut |_| ()).unwrap();
    entries.reverse();
    let second = write_checkpoint(b.path(), &entries, &demo, 300_000, &BTreeMap::new(), &mut |_| ()).unwrap();
    assert_eq!(first, second);
    for name in first.files.iter().map(|file| file.name.as_str()).chain(["model.safetensors.index.json"]) {
        assert_eq!(fs::read(a.path().join(name)).unwrap(), fs::read(b.path().join(name)).unwrap(), "{name}");
    }
}

#[test]
fn a_new_checkpoint_replaces_an_old_one_of_other_shards() {
    let demo = Source::demo();
    let dir = tempfile::tempdir().unwrap();
    for limit in [300_000, u64::MAX, 500_000, 300_000] {
        assert_same(&demo, &copy(&demo, dir.path(), limit));
    }
    let error = {
        let own = Source::open(dir.path()).unwrap();
        write_checkpoint(dir.path(), &copies(&own), &own, u64::MAX, &BTreeMap::new(), &mut |_| ()).unwrap_err()
    };
    assert!(error.to_string().contains("source model"), "{error}");
    assert_same(&demo, &Source::open(dir.path()).unwrap());
}

#[test]
fn tensors_of_mixed_widths_lie_aligned_and_come_from_block_files() {
    let (blocks, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let block = blocks.path().join("block-00000.safetensors");
    let value = f16::from_f32(2.0).to_le_bytes();
    let tensors = [
        NamedTensor::new("a", Dtype::F16, [3], [value, value, value].concat()),
        NamedTensor::f32("b", [1], &[3.0]),
        NamedTensor::new("c", Dtype::U8, [1], vec![9]),
        NamedTensor::f64("d", [], &[4.0]),
        NamedTensor::f32("e", [0], &[]),
    ];
    write_tensors(&block, &tensors, &BTreeMap::new()).unwrap();
    let entry = |tensor: &NamedTensor| Entry {
        name: format!("new.{}", tensor.name),
        dtype: tensor.dtype,
        shape: tensor.shape.clone(),
        from: Origin::File { path: block.clone(), name: tensor.name.clone() },
    };
    let mut entries: Vec<Entry> = tensors.iter().map(entry).collect();
    let demo = Source::demo();
    write_checkpoint(dir.path(), &entries, &demo, u64::MAX, &BTreeMap::new(), &mut |_| ()).unwrap();
    write_config(dir.path(), demo.config());
    let bytes = fs::read(dir.path().join("model.safetensors")).unwrap();
    let read = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    for NamedTensor { name, dtype, shape, bytes: data } in &tensors {
        let view = read.tensor(&format!("new.{name}")).unwrap();
        assert_eq!((view.dtype(), view.shape(), view.data()), (*dtype, &shape[..], &data[..]));
        let offset = view.data().as_ptr() as usize - bytes.as_ptr() as usize;
        assert_eq!(offset * 8 % dtype.bitsize(), 0, "{name}");
    }
    entries[0].shape = vec![1, 3];
    let error = write_checkpoint(dir.path(), &entries, &demo, 9, &BTreeMap::new(), &mut |_| ()).unwrap_err();
    assert!(error.to_string().contains("new.a"), "{error}");
}

#[test]
fn an_output_that_cannot_be_written() {
    let demo = Source::demo();
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "").unwrap();
    for out in [dir.path().join("file"), dir.path().join("missing")] {
        let error = write_checkpoint(&out, &copies(&demo), &demo, 1 << 30, &BTreeMap::new(), &mut |_| ()).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("model.safetensors") && text.contains("bytes needed"), "{text}");
        assert!(error.downcast_ref::<UserError>().unwrap().hint_text().is_some());
    }
    // A failure in the last file: none of the others gets its name.
    fs::create_dir(dir.path().join("model.safetensors.index.json.tmp")).unwrap();
    let error =
        write_checkpoint(dir.path(), &copies(&demo), &demo, 300_000, &BTreeMap::new(), &mut |_| ()).unwrap_err();
    assert!(error.to_string().contains("model.safetensors.index.json"), "{error}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
}
