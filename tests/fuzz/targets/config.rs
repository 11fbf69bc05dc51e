//! `config.json` over the header of the weights. What is accepted has every tensor that it needs, and runs or says why not.

use super::outputs::outputs;
use super::place::Place;
use super::{Target, golden, header, mutate, parts, refused};
use candle_core::Device;
use softlm::checkpoint::{Source, base_config, family_config};
use softlm::model::{Description, Model, UNBOUNDED, verify};

pub const TARGET: Target = Target { name: "config", seeds, mutate: mutate::files, run };

const CONFIG: &str = "config.json";
/// The JSON of the header of `model.safetensors`.
const HEADER: &str = "header";
/// Every byte of the data: small numbers of any type.
const FILL: u8 = 0x3c;
/// Blocks that are run, and the most bytes of a checkpoint that is.
const BLOCKS: usize = 2;
const RUN: usize = 1 << 20;

fn seeds() -> Vec<Vec<u8>> {
    let described = golden::models().into_iter().map(|folder| golden::described(&folder));
    let own = outputs().iter().map(|output| (output.config.clone(), output.header.clone()));
    described.chain(own).map(|(config, header)| parts::join(&[(CONFIG, config), (HEADER, header)])).collect()
}

fn run(input: &[u8], place: &Place) -> bool {
    place.clear(&[]);
    let parts = parts::split(input);
    let (config, json) = (parts::find(&parts, CONFIG), parts::find(&parts, HEADER).unwrap_or(b"{}"));
    if let Some(config) = config {
        place.file(CONFIG, config);
    }
    let data = header::data_of(json);
    place.file("model.safetensors", &header::file(json, &vec![FILL; data]));
    let source = match Source::open(place.path()) {
        Ok(source) => source,
        Err(error) => return refused(&error),
    };
    family_config(source.config());
    // What it is of itself, and what its base would be: a config that fits no tensor of these.
    let _ = Description::new(&mut source.clone(), &base_config(source.config()));
    let model = match Model::load(source.clone(), &Device::Cpu) {
        Ok(model) => model,
        Err(error) => return refused(&error),
    };
    look_at(&model);
    if data <= RUN {
        verify(&source, Some(&source), Some(model.vocab())).expect("files that were read are read again");
        // What it says of its numbers is its business.
        let _ = forward(&model);
    }
    true
}

/// What a program shows of a model without running it.
fn look_at(model: &Model) {
    let source = model.source();
    assert!(model.blocks() <= source.names().count() && model.hidden() > 0);
    assert!(model.context() == UNBOUNDED || model.context() > 0);
    for spec in model.linears() {
        assert!(spec.id.block < model.blocks() && spec.out > 0 && spec.input > 0, "{}", spec.name);
        assert!(model.block_sites(spec.id.block).contains(&spec.site));
        model.width_key(spec.id);
    }
    assert!(model.unused_tensors().iter().all(|name| source.is_stored(name)));
    model.described_family();
    model.unknown_keys();
    model.config_path();
}

fn forward(model: &Model) -> anyhow::Result<()> {
    let last = model.vocab().saturating_sub(1) as u32;
    let mut x = model.embed(&[&[0, last, 0]])?;
    for index in 0..model.blocks().min(BLOCKS) {
        match model.block(index)?.forward(&x, &mut ())? {
            Some(y) => x = y,
            None => break,
        }
    }
    if let Some(classifier) = model.classifier()? {
        classifier.logits(&x)?;
    } else if !matches!(model.output(), softlm::model::Output::States) {
        model.head()?.logits(&x.get(0)?)?;
    }
    Ok(())
}
