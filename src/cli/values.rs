//! Values of options that clap has no type for.

use super::Context;
use crate::compute::{Allowance, Compute};
use crate::progress::Progress;
use crate::recipe::{finite, parse_bytes, percentage};
use crate::text::ZeroShot;
use anyhow::Result;
use clap::Args;
use clap::builder::FalseyValueParser;

/// What a command may take. Results are the same, but for the last bits where windows are so short, or memory so scarce, that
/// fewer of them go through a block at once.
#[derive(Args)]
pub struct MemoryLimits {
    /// Memory at most, for example 8GiB
    #[arg(long, env = "SOFTLM_MAX_MEMORY", value_name = "N", help_heading = "Global")]
    max_memory: Option<String>,
    /// The same of a GPU's memory
    #[arg(long, env = "SOFTLM_MAX_DEVICE_MEMORY", value_name = "N", help_heading = "Global")]
    max_device_memory: Option<String>,
}

impl MemoryLimits {
    /// The device within these limits.
    pub fn of(&self, context: &Context) -> Result<Compute> {
        let size = |flag: &str, text: &Option<String>| text.as_ref().map(|text| parse_bytes(flag, text)).transpose();
        let host = size("--max-memory", &self.max_memory)?;
        let allowed = Allowance { host, device: size("--max-device-memory", &self.max_device_memory)? };
        if allowed.device.is_some() && context.compute.device.is_cpu() {
            context.ui.note("--max-device-memory limits a GPU, but the processor computes: it changes nothing");
        }
        Ok(Compute { allowed, ..context.compute.clone() })
    }
}

/// A switch that an environment variable can turn on too: anything but `0`, `false`, `no`, `off` and nothing does.
pub fn switch() -> FalseyValueParser {
    FalseyValueParser::new()
}

/// A positive number to stay below. NaN, which nothing is above, would let everything pass.
pub fn limit(text: &str) -> std::result::Result<f64, String> {
    let value = finite(text)?;
    if value > 0.0 { Ok(value) } else { Err("must be above 0".to_string()) }
}

/// `0.9` or `90%`.
pub fn fraction(text: &str) -> std::result::Result<f64, String> {
    let value = if text.trim().ends_with('%') { percentage(text)? } else { finite(text)? };
    if (0.0..=1.0).contains(&value) { Ok(value) } else { Err("must lie between 0 and 1".to_string()) }
}

/// `piqa=0.6` or `piqa=60%`.
pub fn task_fraction(text: &str) -> std::result::Result<(String, f64), String> {
    let Some((task, least)) = text.split_once('=').map(|(task, least)| (task.trim(), least)) else {
        return Err("write it as TASK=X, for example piqa=0.6".to_string());
    };
    if !ZeroShot::is_known(task) {
        return Err(format!("there is no task {task:?}, but {}", ZeroShot::names()));
    }
    Ok((task.to_string(), fraction(least)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_and_fractions_are_read() {
        assert_eq!((percentage("5%"), percentage(" 2.5 % "), percentage("0%")), (Ok(0.05), Ok(0.025), Ok(0.0)));
        assert_eq!((fraction("90%"), fraction("0.9"), limit("12.5")), (Ok(0.9), Ok(0.9), Ok(12.5)));
    }

    #[test]
    fn a_task_and_its_least_share_are_read() {
        assert_eq!(task_fraction("piqa=60%"), Ok(("piqa".to_string(), 0.6)));
        for text in ["piqa", "piqa=", "piqa=1.5", "piqa=nan", "cola=0.5", "=0.5"] {
            assert!(task_fraction(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_would_let_everything_pass_is_refused() {
        for text in ["nan", "NaN", "inf", "-inf", "infinity", "-1", "0", "-0", "1e999", "1e-999", "", "5%", "ten"] {
            assert!(limit(text).is_err(), "{text}");
        }
        for text in ["5", "nan%", "inf%", "-5%", "1e999%", "%", " ", "5%%", "5,5%", "0x5%"] {
            assert!(percentage(text).is_err(), "{text}");
        }
        for text in ["nan", "inf", "-0.1", "1.1", "101%", "-1%", "nan%", "", "%"] {
            assert!(fraction(text).is_err(), "{text}");
        }
    }
}
