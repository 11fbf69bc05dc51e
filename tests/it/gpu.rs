//! Every method on a GPU ends where it ends on the processor. Without a GPU that works each test says that it was skipped.

use candle_core::Device;
use softlm::device::{Choice, describe};
use softlm::hub::HubOptions;
use softlm::method::{METHODS, OptionValues};
use softlm::pipeline;
use softlm::recipe::Options;
use softlm::report::Report;
use std::path::Path;

fn gpu() -> Option<Device> {
    Choice::Cuda(0).open(|_| ()).inspect_err(|why| eprintln!("skipped on a GPU: {why}")).ok()
}

fn run(method: &str, heal: usize, device: &Device, folder: &Path) -> Report {
    let learned = METHODS.iter().any(|known| known.card().name == method && known.learned().is_some());
    let few = || OptionValues::default().with("steps", 10).with("batch", 2);
    let options = Options {
        model: Some("demo".into()),
        method: Some(method.into()),
        keep: Some(0.6),
        output: Some(folder.join(format!("{method}-{heal}-{}", device.is_cpu()))),
        calib_windows: Some(24),
        window: Some(64),
        eval_window: Some(64),
        max_windows: Some(16),
        heal: Some(heal),
        method_options: if learned { few() } else { OptionValues::default() },
        ..Options::default()
    };
    pipeline::compress(&options.resolve().unwrap(), false, &HubOptions::default(), device, &()).unwrap()
}

fn compare(method: &str, heal: usize, bound: f64) {
    let Some(gpu) = gpu() else { return };
    let folder = tempfile::tempdir().unwrap();
    let [here, there] = [&Device::Cpu, &gpu].map(|device| run(method, heal, device, folder.path()));
    assert_eq!(there.machine.device, describe(&gpu));
    for (here, there) in here.evaluation.iter().zip(&there.evaluation) {
        let apart = |x: f64, y: f64| (x / y - 1.0).abs();
        let (before, after) = (
            apart(here.before.perplexity.ppl, there.before.perplexity.ppl),
            apart(here.after.perplexity.ppl, there.after.perplexity.ppl),
        );
        assert!(before < 1e-5, "the original: {before:e}");
        assert!(after < bound, "{method}, {heal} steps of healing: {after:e}");
    }
    assert!(!here.evaluation.is_empty() && here.evaluation.len() == there.evaluation.len());
}

#[test]
fn closed_forms_are_those_of_the_processor() {
    for method in METHODS.iter().filter(|method| method.learned().is_none()) {
        compare(method.card().name, 0, 1e-3);
    }
}

#[test]
fn learning_and_healing_are_those_of_the_processor() {
    for method in METHODS.iter().filter(|method| method.learned().is_some()) {
        compare(method.card().name, 0, 2e-2);
    }
    compare("whiten", 5, 2e-3);
}
