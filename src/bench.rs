//! How fast a model reads and writes: prefill and decode, at several batch sizes and contexts, beside what the machine can do.
//!
//! ```text
//! prefill   a prompt's tokens go through the model together: bounded by products, 2 operations per weight and token
//! decode    one token per sequence and step: bounded by memory, every weight and the cache are read once per step
//! ```
//! Each is done once to warm up and then several times; medians stand beside the fastest and the slowest. Of two models each
//! measurement is done in turns, so that what else the machine does is shared by both.

use crate::machine;
use crate::memory::{self, peak_rss_bytes};
use crate::model::{Decoder, DecoderStorage, Model};
use crate::progress::Progress;
use crate::report::{BenchOptions, BenchReport, BenchedModel, Cell, Speedup, Timing};
use crate::user_bail;
use anyhow::{Context, Result};
use std::time::Instant;

/// Measures `models`, the first of which is compared with the second. A weight held in bf16 or f16 stays so
/// ([`Model::holding_half`]).
///
/// # Errors
/// A [`UserError`](crate::error::UserError) for options that are 0, for encoders, and where no context fits.
pub fn bench(models: Vec<(String, Model)>, options: &BenchOptions, progress: &dyn Progress) -> Result<BenchReport> {
    check(&models, options)?;
    let contexts = contexts(&models, options)?;
    let cells: Vec<(usize, usize)> =
        options.batches.iter().flat_map(|&batch| contexts.iter().map(move |&context| (batch, context))).collect();
    let device = models[0].1.device().clone();
    progress.stage("measuring the machine", 1);
    let (product_rate, bandwidth) = (machine::product_rate(&device)?, machine::bandwidth());
    progress.stage("warming up", (cells.len() * models.len()) as u64);
    let peaks =
        models.iter().map(|(_, model)| warm_up(model, &cells, options, progress)).collect::<Result<Vec<_>>>()?;
    let mut decoders = models.iter().map(|(_, model)| Decoder::new(model)).collect::<Result<Vec<_>>>()?;
    let mut found: Vec<BenchedModel> = Vec::new();
    for (((name, _), decoder), peaks) in models.iter().zip(&decoders).zip(&peaks) {
        let storage = decoder.storage();
        let (weights, weight_bytes) = ((storage.blocks + storage.head) as u64, storage.bytes as u64);
        found.push(BenchedModel {
            model: name.clone(),
            weights,
            weight_bytes,
            peak_rss_bytes: peaks.peak,
            cells: vec![],
        });
    }
    progress.stage("measuring", (cells.len() * models.len() * options.repeats) as u64);
    for (place, &(batch, context)) in cells.iter().enumerate() {
        // What a round took when it warmed up says how many there is time for.
        let round: f64 = peaks.iter().map(|of| of.seconds[place]).sum();
        let repeats = ((options.seconds / round.max(1e-9)) as usize).clamp(1, options.repeats);
        let mut times = vec![(Vec::new(), Vec::new(), 0); models.len()];
        for _ in 0..repeats {
            for (decoder, times) in decoders.iter_mut().zip(&mut times) {
                let once = once(decoder, batch, context, options.tokens)?;
                times.0.push(once.first_token);
                times.1.push(once.step);
                times.2 = once.step_bytes;
                progress.step(1)?;
            }
        }
        progress.step(((options.repeats - repeats) * models.len()) as u64)?;
        for ((model, decoder), (first, step, step_bytes)) in found.iter_mut().zip(&decoders).zip(times) {
            let DecoderStorage { blocks, head, .. } = decoder.storage();
            let (first_token, step) = (Timing::of(first), Timing::of(step));
            let prefill = (batch * context) as f64 / first_token.median;
            model.cells.push(Cell {
                batch,
                context,
                first_token,
                prefill_tokens_per_second: prefill,
                // The head sees the last token of each prompt.
                prefill_of_product_rate: 2.0 * (blocks as f64 + head as f64 / context as f64) * prefill / product_rate,
                step,
                decode_tokens_per_second: batch as f64 / step.median,
                step_bytes,
                decode_of_bandwidth: device.is_cpu().then_some(step_bytes as f64 / step.median / bandwidth),
            });
        }
    }
    let speedup = match &found[..] {
        [model, base] => model.cells.iter().zip(&base.cells).map(|(model, base)| speedup(model, base)).collect(),
        _ => Vec::new(),
    };
    Ok(BenchReport {
        schema: crate::report::SCHEMA,
        machine: machine::describe(&crate::device::describe(&device)),
        product_rate,
        bandwidth,
        options: options.clone(),
        models: found,
        speedup,
    })
}

fn speedup(model: &Cell, base: &Cell) -> Speedup {
    Speedup {
        prefill: base.first_token.median / model.first_token.median,
        decode: base.step.median / model.step.median,
    }
}

fn check(models: &[(String, Model)], options: &BenchOptions) -> Result<()> {
    let BenchOptions { batches, contexts, tokens, repeats, seconds } = options;
    for (flag, values) in [("--batch", batches), ("--context", contexts)] {
        if values.is_empty() || values.contains(&0) {
            user_bail!("{flag} names a size of 0, or none"; "use sizes of at least 1, for example 1,8");
        }
    }
    for (flag, value) in [("--tokens", *tokens), ("--repeats", *repeats)] {
        if value == 0 {
            user_bail!("{flag} is 0"; "use at least 1");
        }
    }
    if !(*seconds > 0.0 && seconds.is_finite()) {
        user_bail!("--seconds {seconds} is not a positive number"; "each measurement is repeated for so long, at most");
    }
    if let Some((name, _)) = models.iter().find(|(_, model)| model.is_encoder()) {
        user_bail!("{name} is an encoder: it writes nothing"; "`softlm bench` measures decoders");
    }
    Ok(())
}

/// The contexts asked for, cut to what every model has room for behind them.
fn contexts(models: &[(String, Model)], options: &BenchOptions) -> Result<Vec<usize>> {
    let room = models.iter().map(|(_, model)| model.context()).min().unwrap_or(0).saturating_sub(options.tokens);
    if room == 0 {
        user_bail!(
            "{} tokens do not fit the context of {}", options.tokens, models[0].0;
            "write fewer with --tokens"
        );
    }
    let mut contexts: Vec<usize> = options.contexts.iter().map(|&context| context.min(room)).collect();
    contexts.dedup();
    Ok(contexts)
}

/// What warming up has shown.
struct WarmedUp {
    peak: Option<u64>,
    /// Of every cell.
    seconds: Vec<f64>,
}

/// Every cell once, with nothing else in memory.
fn warm_up(
    model: &Model,
    cells: &[(usize, usize)],
    options: &BenchOptions,
    progress: &dyn Progress,
) -> Result<WarmedUp> {
    memory::trim();
    let resets = memory::reset_peak();
    let mut decoder = Decoder::new(model)?;
    let mut seconds = Vec::new();
    for &(batch, context) in cells {
        let started = Instant::now();
        once(&mut decoder, batch, context, options.tokens)?;
        seconds.push(started.elapsed().as_secs_f64());
        progress.step(1)?;
    }
    Ok(WarmedUp { peak: peak_rss_bytes().filter(|_| resets), seconds })
}

/// One measurement.
struct Once {
    first_token: f64,
    step: f64,
    step_bytes: u64,
}

fn once(decoder: &mut Decoder, batch: usize, context: usize, tokens: usize) -> Result<Once> {
    let vocab = decoder.vocab();
    // Which tokens they are is of no account; neighbours differ.
    let id = |row: usize, position: usize| ((row * 7919 + position * 104_729 + 17) % vocab) as u32;
    let prompts: Vec<Vec<u32>> = (0..batch).map(|row| (0..context).map(|at| id(row, at)).collect()).collect();
    let prompts: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    decoder.forget();
    let started = Instant::now();
    // The logits are fetched: a device has nothing left to do then.
    decoder.read_rows(&prompts)?.to_vec2::<f32>()?;
    let first_token = started.elapsed().as_secs_f64();
    let started = Instant::now();
    for position in context..context + tokens {
        let next: Vec<[u32; 1]> = (0..batch).map(|row| [id(row, position)]).collect();
        let next: Vec<&[u32]> = next.iter().map(<[u32; 1]>::as_slice).collect();
        decoder.read_rows(&next)?.to_vec2::<f32>()?;
    }
    let step = started.elapsed().as_secs_f64() / tokens as f64;
    let step_bytes = decoder.storage().bytes + decoder.cache_bytes().context("sizing the cache")?;
    decoder.forget();
    Ok(Once { first_token, step, step_bytes: step_bytes as u64 })
}
