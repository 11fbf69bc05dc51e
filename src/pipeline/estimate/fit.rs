//! Limits under which a run keeps within what is allowed.

use super::terms::{Bytes, Setting};
use crate::compute::{Allowance, Compute, Limits};
use crate::memory;
use crate::model::Model;
use crate::progress::Progress;
use crate::report::{MemoryEstimate, bytes};
use crate::user_bail;
use anyhow::Result;

/// How far measured peaks are from estimates at most. What is allowed has to hold an estimate and this much more.
const ERROR: f64 = 0.2;
/// What the allocator's holes take, relative to what lies between them.
const HOLES: f64 = 0.06;
/// Code, stacks of threads and copies for them that come into memory only when work begins.
const PROGRAM: f64 = (12 << 20) as f64;
/// What the process holds before it begins differs from run to run, by less than this.
const NOISE: u64 = 4 << 20;
/// What a GPU's libraries take for themselves.
const DEVICE_BASE: f64 = 600e6;

/// The roomiest limits under which the peak of `of` is within what `model` is allowed.
pub(super) fn fit(model: &Model, what: &str, of: impl Fn(Setting) -> Bytes) -> Result<(Limits, MemoryEstimate)> {
    let Compute { allowed, limits, device, .. } = model.compute();
    let on_gpu = !device.is_cpu();
    memory::trim();
    let base = Bytes {
        host: memory::rss_bytes().unwrap_or(0) as f64 + PROGRAM,
        device: if on_gpu { DEVICE_BASE } else { 0.0 },
    };
    let name = model.source().label();
    let (limits, peak) = choose(*limits, *allowed, &format!("{what} {name}"), |limits| {
        let Bytes { host, device } = of(Setting { limits, on_gpu });
        Bytes { host: base.host + host * (1.0 + HOLES), device: base.device + device }
    })?;
    let estimate = MemoryEstimate {
        peak_rss_bytes: peak.host as u64,
        device_bytes: on_gpu.then_some(peak.device as u64),
        max_memory_bytes: allowed.host,
        max_device_memory_bytes: allowed.device,
    };
    Ok((limits, estimate))
}

/// The first of ever tighter limits whose peak is allowed, by some way, and that peak.
fn choose(limits: Limits, allowed: Allowance, what: &str, peak: impl Fn(&Limits) -> Bytes) -> Result<(Limits, Bytes)> {
    let with_error = |bytes: f64| (bytes * (1.0 + ERROR)).ceil() as u64;
    let within = |bytes: f64, most: Option<u64>| most.is_none_or(|most| with_error(bytes) <= most);
    let mut last = Bytes::default();
    for limits in tighter(limits) {
        last = peak(&limits);
        if within(last.host, allowed.host) && within(last.device, allowed.device) {
            return Ok((limits, last));
        }
    }
    let host_is_short = !within(last.host, allowed.host);
    let (flag, needed, most, instead) = if host_is_short {
        ("--max-memory", with_error(last.host), allowed.host, "")
    } else {
        ("--max-device-memory", with_error(last.device), allowed.device, ", or --device cpu")
    };
    user_bail!(
        "{what} needs {} at least, {flag} allows {}", bytes(needed), bytes(most.unwrap_or_default());
        "with {flag} {} it is sure to run; shorter windows and fewer --threads take less{instead}",
        needed + NOISE
    )
}

/// Limits, each tighter than the one before: first what is kept for speed alone, last how many tokens go through a block at
/// once, on which the last bits of a result may depend.
fn tighter(limits: Limits) -> Vec<Limits> {
    let mut all = vec![limits];
    let less = |bytes: usize, step: u32| bytes.checked_shr(2 * step).unwrap_or(0);
    for step in 1..=12 {
        all.push(Limits {
            read_ahead: false,
            resident_states: less(limits.resident_states.min(1 << 34), step),
            states: less(limits.states, step),
            logits: less(limits.logits, step),
            decompositions: less(limits.decompositions, step),
            trained_blocks: less(limits.trained_blocks, step),
            teacher_states: less(limits.teacher_states, step),
            ..limits
        });
    }
    let tightest = all[all.len() - 1];
    let halves = std::iter::successors(Some(limits.batch_tokens / 2), |&tokens| (tokens > 1).then_some(tokens / 2));
    all.extend(halves.map(|batch_tokens| Limits { batch_tokens, ..tightest }));
    all
}

/// Says what a run will take, before it begins.
pub fn announce(estimate: &MemoryEstimate, progress: &dyn Progress) {
    progress.note(&format!("memory: {}", estimate.describe()));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::UserError;

    /// What scales with the limits, and what does not.
    fn peak(limits: &Limits) -> Bytes {
        let bytes = (limits.decompositions + limits.logits) as f64 + 100.0 * limits.batch_tokens as f64 + 1e6;
        Bytes { host: bytes, device: 2.0 * bytes }
    }

    #[test]
    fn limits_are_no_tighter_than_they_must_be() {
        let usual = Limits::default();
        let chosen = |host, device| choose(usual, Allowance { host, device }, "this", peak);
        assert_eq!(chosen(None, None).unwrap().0, usual);
        assert_eq!(chosen(Some(2 << 30), None).unwrap().0, usual);
        for allowed in [1 << 30, 64 << 20, 4 << 20] {
            for (host, device) in [(Some(allowed), None), (None, Some(allowed))] {
                let (limits, peak) = chosen(host, device).unwrap();
                let found = if host.is_some() { peak.host } else { peak.device };
                assert!(found * (1.0 + ERROR) <= allowed as f64, "{found} of {allowed}");
                assert!(limits.decompositions < usual.decompositions && !limits.read_ahead);
                // Tokens at once come last.
                assert!(limits.batch_tokens == usual.batch_tokens || limits.decompositions < 1 << 10);
            }
        }
    }

    #[test]
    fn what_is_not_enough_is_refused_with_what_is() {
        for (flag, host, device) in
            [("--max-memory", Some(1_100_000), None), ("--max-device-memory", None, Some(1_100_000))]
        {
            let error = choose(Limits::default(), Allowance { host, device }, "this", peak).unwrap_err();
            let hint = error.downcast_ref::<UserError>().and_then(UserError::hint_text).expect("a hint");
            let needed: u64 = hint.split(' ').find_map(|word| word.parse().ok()).expect("a number of bytes");
            assert!(error.to_string().contains(flag) && hint.contains(flag), "{error} {hint}");
            let allowed = if host.is_some() {
                Allowance { host: Some(needed), device: None }
            } else {
                Allowance { host: None, device: Some(needed) }
            };
            choose(Limits::default(), allowed, "this", peak).expect("what was said to be enough");
        }
    }

    #[test]
    fn each_step_is_tighter_than_the_one_before() {
        let steps = tighter(Limits::default());
        for pair in steps.windows(2) {
            let sizes = |l: &Limits| [l.states, l.logits, l.decompositions, l.trained_blocks, l.batch_tokens];
            assert!(sizes(&pair[0]).iter().zip(sizes(&pair[1])).all(|(a, b)| *a >= b));
        }
        assert_eq!(steps.last().map(|limits| (limits.batch_tokens, limits.read_ahead)), Some((1, false)));
    }
}
