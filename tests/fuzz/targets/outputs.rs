//! Outputs of this program, made of the small models, to begin with.

use super::golden;
use candle_core::Device;
use softlm::hub::HubOptions;
use softlm::method::OptionValues;
use softlm::pipeline;
use softlm::recipe::Options;
use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;

/// What one output is described by.
pub struct Output {
    pub config: Vec<u8>,
    /// The JSON of the header of its weights.
    pub header: Vec<u8>,
    pub report: Vec<u8>,
}

/// One of a method that factorises and prunes, one that was learned and healed, and an encoder.
pub fn outputs() -> &'static [Output] {
    static ALL: OnceLock<Vec<Output>> = OnceLock::new();
    ALL.get_or_init(|| [("gpt2-tiny", "lorap", 0), ("gpt2-tiny", "soft", 2), ("bert-tiny", "rom", 0)].map(made).into())
}

fn made((model, method, steps): (&str, &str, usize)) -> Output {
    let place = tempfile::tempdir().expect("a folder");
    let dir: PathBuf = place.path().join("out");
    let options = Options {
        model: Some(golden::root().join("models").join(model).display().to_string()),
        method: Some(method.into()),
        keep: Some(0.6),
        output: Some(dir.clone()),
        calib_windows: Some(8),
        window: Some(16),
        eval_window: Some(16),
        max_windows: Some(2),
        heal: (steps > 0).then_some(steps),
        method_options: if steps > 0 {
            OptionValues::default().with("steps", steps as i64)
        } else {
            OptionValues::default()
        },
        ..Options::default()
    };
    let recipe = options.resolve().expect("a recipe");
    pipeline::compress(&recipe, false, &HubOptions::default(), &Device::Cpu, &()).expect("compressed");
    let (config, header) = golden::described(&dir);
    Output { config, header, report: fs::read(dir.join("report.json")).expect("a report") }
}
