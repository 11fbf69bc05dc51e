//! What runs the work, how long its stages take and how much memory they need.

use crate::linalg::simd::{for_each_width, sum_of};
use crate::memory::{self, peak_rss_bytes};
use crate::progress::Progress;
use crate::report::{Cost, Machine, StageCost};
use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;
use std::time::{Duration, Instant};

/// This machine as reports name it. `device` is where tensors live, as [`crate::device`] names it.
pub fn describe(device: &str) -> Machine {
    Machine {
        cpu: cpu_name().unwrap_or_else(|| std::env::consts::ARCH.to_string()),
        threads: rayon::current_num_threads(),
        os: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        device: device.to_string(),
    }
}

fn cpu_name() -> Option<String> {
    let name = match std::fs::read_to_string("/proc/cpuinfo") {
        Ok(info) => {
            let value = |key: &str| {
                let line = info.lines().find(|line| line.split(':').next().is_some_and(|k| k.trim() == key))?;
                line.split_once(':').map(|(_, value)| value.trim().to_string())
            };
            ["model name", "Model", "Hardware"].iter().find_map(|key| value(key))?
        }
        Err(_) => {
            let sysctl = std::process::Command::new("sysctl").args(["-n", "machdep.cpu.brand_string"]).output().ok()?;
            String::from_utf8(sysctl.stdout).ok()?.trim().to_string()
        }
    };
    (!name.is_empty()).then_some(name)
}

/// Side of the matrices that [`product_rate`] multiplies on the CPU, and on a GPU.
const PRODUCT: (usize, usize) = (1024, 4096);
/// Bytes that [`bandwidth`] reads: more than caches hold.
const READ: usize = 256 << 20;
/// How long a rate is measured.
const MEASURED: Duration = Duration::from_millis(300);

/// Multiplications and additions per second in f32 products on `device`, of all threads together.
pub fn product_rate(device: &Device) -> Result<f64> {
    let side = if device.is_cpu() { PRODUCT.0 } else { PRODUCT.1 };
    let a = Tensor::ones((side, side), DType::F32, device)?;
    // The first one starts the threads.
    a.matmul(&a)?;
    device.synchronize()?;
    let (start, mut best) = (Instant::now(), f64::INFINITY);
    while start.elapsed() < MEASURED {
        let one = Instant::now();
        a.matmul(&a)?;
        device.synchronize()?;
        // Others use the machine too.
        best = best.min(one.elapsed().as_secs_f64());
    }
    Ok(2.0 * (side as f64).powi(3) / best)
}

/// Bytes per second that all threads together read from this machine's memory, in order.
pub fn bandwidth() -> f64 {
    let numbers = vec![1f32; READ / size_of::<f32>()];
    let read = || numbers.par_chunks(1 << 16).map(sums).sum::<f32>();
    // As above.
    let best = (0..5).map(|_| {
        let start = Instant::now();
        std::hint::black_box(read());
        start.elapsed().as_secs_f64()
    });
    READ as f64 / best.fold(f64::INFINITY, f64::min)
}

for_each_width! {
    /// Σ x
    pub fn sums(x: &[f32]) -> f32 {
        sum_of(x, #[inline(always)] |x| x)
    }
}

/// Passes stages on to a [`Progress`] and keeps their times for the report. Stages of the same name are added up.
pub struct StageClock<'a> {
    progress: &'a dyn Progress,
    started: Instant,
    current: Option<(String, Instant)>,
    stages: Vec<StageCost>,
}

impl<'a> StageClock<'a> {
    /// Starts the clock of the whole run.
    pub fn start(progress: &'a dyn Progress) -> Self {
        Self { progress, started: Instant::now(), current: None, stages: Vec::new() }
    }

    /// Ends the current stage and begins one of `steps` steps.
    pub fn stage(&mut self, name: &str, steps: u64) {
        self.end_stage();
        // The next stage has tensors of other sizes.
        memory::trim();
        self.current = Some((name.to_string(), Instant::now()));
        self.progress.stage(name, steps);
    }

    /// Seconds spent in the stages of this name.
    pub fn seconds(&self, name: &str) -> f64 {
        let current = self.current.as_ref().filter(|(stage, _)| stage == name);
        let before = self.stages.iter().find(|stage| stage.name == name).map_or(0.0, |stage| stage.seconds);
        before + current.map_or(0.0, |(_, since)| since.elapsed().as_secs_f64())
    }

    /// Ends the last stage. `resumed` says whether an earlier run had done part of the work.
    pub fn finish(mut self, resumed: bool) -> Cost {
        self.end_stage();
        Cost {
            stages: self.stages,
            seconds: self.started.elapsed().as_secs_f64(),
            peak_rss_bytes: peak_rss_bytes(),
            resumed,
            estimate: None,
        }
    }

    fn end_stage(&mut self) {
        let Some((name, since)) = self.current.take() else { return };
        let seconds = since.elapsed().as_secs_f64();
        let peak_rss_bytes = peak_rss_bytes();
        match self.stages.iter_mut().find(|stage| stage.name == name) {
            Some(stage) => {
                stage.seconds += seconds;
                stage.peak_rss_bytes = peak_rss_bytes;
            }
            None => self.stages.push(StageCost { name, seconds, peak_rss_bytes }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_are_timed_and_equal_names_added() {
        let mut clock = StageClock::start(&());
        for name in ["a", "b", "a"] {
            clock.stage(name, 1);
            std::thread::sleep(Duration::from_millis(20));
        }
        let cost = clock.finish(true);
        let names: Vec<&str> = cost.stages.iter().map(|stage| stage.name.as_str()).collect();
        assert_eq!(names, ["a", "b"]);
        assert!(cost.stages[0].seconds >= 0.04 && cost.stages[1].seconds >= 0.02, "{cost:?}");
        let sum: f64 = cost.stages.iter().map(|stage| stage.seconds).sum();
        assert!(cost.resumed && sum <= cost.seconds + 1e-6, "{cost:?}");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn the_peak_grows_with_what_is_touched() {
        let before = peak_rss_bytes().expect("Linux tells");
        let mut block = vec![0u8; 256 << 20];
        block.iter_mut().step_by(4096).for_each(|byte| *byte = 1);
        let after = peak_rss_bytes().expect("Linux tells");
        assert!(block[4096] == 1 && after > before.max(200 << 20), "{before} {after}");
    }

    #[test]
    fn the_machine_has_a_name_and_threads() {
        let machine = describe("cpu");
        assert!(!machine.cpu.is_empty() && machine.threads >= 1 && machine.device == "cpu");
    }
}
