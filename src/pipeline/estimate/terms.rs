//! The terms of the sum.

use super::super::waves::side_by_side;
use crate::compute::Limits;
use crate::forward::resident_states;
use crate::method::{Method, Workspace, heldout_numbers};
use crate::model::{LinearSpec, Model, Output};
use std::ops::Add;

/// Numbers per token of hidden states, and of the widest layer, that a block has at once on the way forward.
pub(super) const FORWARD: (f64, f64) = (4.0, 3.0);
/// The same with a graph, on the way back.
pub(super) const BACKWARD: (f64, f64) = (16.0, 11.0);
/// Tokens whose inputs are copied to panels for a Gram matrix.
const PANEL: f64 = 256.0;

/// What a stage takes at its height.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Bytes {
    pub(super) host: f64,
    pub(super) device: f64,
}

impl Bytes {
    pub(super) fn max(self, other: Self) -> Self {
        Self { host: self.host.max(other.host), device: self.device.max(other.device) }
    }
}

impl Add for Bytes {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { host: self.host + other.host, device: self.device + other.device }
    }
}

/// Under which limits, and where, something is done.
#[derive(Clone, Copy)]
pub(super) struct Setting<'a> {
    pub(super) limits: &'a Limits,
    pub(super) on_gpu: bool,
}

/// One model there.
pub(super) struct Terms<'a> {
    pub(super) model: &'a Model,
    pub(super) limits: &'a Limits,
    pub(super) on_gpu: bool,
}

impl<'a> Terms<'a> {
    pub(super) fn new(model: &'a Model, Setting { limits, on_gpu }: Setting<'a>) -> Self {
        Self { model, limits, on_gpu }
    }

    /// So many numbers of tensors.
    pub(super) fn tensors(&self, numbers: f64) -> Bytes {
        let bytes = numbers * self.model.compute().dtype.size_in_bytes() as f64;
        if self.on_gpu { Bytes { device: bytes, host: 0.0 } } else { host(bytes) }
    }

    /// The largest over all blocks.
    pub(super) fn largest(&self, of: impl Fn(usize) -> Bytes) -> Bytes {
        (0..self.model.blocks()).map(of).fold(Bytes::default(), Bytes::max)
    }

    /// Tokens of windows of this length that go through a block at once.
    pub(super) fn batch(&self, windows: usize, window: usize) -> f64 {
        ((self.limits.batch_tokens / window.max(1)).clamp(1, windows.max(1)) * window) as f64
    }

    /// A block and the one behind it.
    pub(super) fn blocks(&self, index: usize) -> Bytes {
        let ahead = self.limits.read_ahead && index + 1 < self.model.blocks();
        let next = if ahead { self.model.block_numbers(index + 1) } else { 0 };
        let read = if self.on_gpu { host(4.0 * self.model.block_numbers(index) as f64) } else { Bytes::default() };
        self.tensors((self.model.block_numbers(index) + next) as f64) + read
    }

    /// What so many tokens have at once in block `index`.
    pub(super) fn activations(&self, index: usize, tokens: f64, (states, widest): (f64, f64)) -> Bytes {
        self.tensors(tokens * (states * self.model.hidden() as f64 + widest * self.model.widest(index) as f64))
    }

    /// States of so many windows, which lie on the disk as far as they find no room, but for a batch.
    pub(super) fn states(&self, windows: usize, window: usize) -> Bytes {
        let all = 4.0 * (windows * window * self.model.hidden()) as f64;
        let batch = 4.0 * self.batch(windows, window) * self.model.hidden() as f64;
        let resident = all.min(resident_states(self.limits) as f64);
        // A batch that is read back exists as bytes too.
        let spilled = if all > resident { host(2.0 * batch) } else { Bytes::default() };
        self.tensors(resident / 4.0) + spilled
    }

    /// What is kept of the inputs of some sites of block `index`, and what summing them takes.
    pub(super) fn statistics(&self, widths: &[usize], sums: bool, heldout: usize) -> Bytes {
        let of_site = |&n: &usize| {
            let n = n as f64;
            let gram = if sums { 8.0 * n * n } else { 0.0 };
            let on_device = if self.on_gpu { gram } else { 0.0 };
            Bytes { host: gram + 4.0 * n * heldout as f64, device: on_device }
        };
        widths.iter().map(of_site).fold(Bytes::default(), Bytes::add)
    }

    /// Statistics of block `index` being made of a batch of so many tokens.
    pub(super) fn collecting(&self, index: usize, tokens: f64) -> Bytes {
        let widest = self.model.widest(index) as f64;
        let panels = if self.on_gpu { self.tensors(2.0 * tokens * widest) } else { host(8.0 * PANEL * widest) };
        self.activations(index, tokens, FORWARD) + panels
    }

    pub(super) fn widths(&self, index: usize) -> Vec<usize> {
        let widths = self.model.site_widths(index);
        self.model.block_sites(index).iter().filter_map(|site| widths.get(site).copied()).collect()
    }

    /// A chunk of the logits of so many models that share the limit.
    pub(super) fn logits(&self, positions: usize, sets: f64) -> Bytes {
        let row = 4.0 * self.model.vocab() as f64;
        let most = (self.limits.logits as f64 / sets).max(row).min(positions as f64 * row);
        let capped = if self.model.caps_logits() { 2.0 } else { 1.0 };
        self.tensors(sets * capped * most / 4.0)
    }

    pub(super) fn head(&self) -> Bytes {
        match self.model.output() {
            Output::NextToken | Output::MaskedToken => self.tensors((self.model.vocab() * self.model.hidden()) as f64),
            Output::Classes(_) | Output::States => Bytes::default(),
        }
    }
}

pub(super) fn host(bytes: f64) -> Bytes {
    Bytes { host: bytes, device: 0.0 }
}

/// What one linear is worked on with.
pub(super) struct Work<'a> {
    pub(super) spec: &'a LinearSpec,
    /// Components that are kept.
    pub(super) rank: usize,
}

impl Work<'_> {
    /// Bytes of its factors in f32.
    pub(super) fn factors(&self) -> f64 {
        4.0 * (self.rank * (self.spec.out + self.spec.input)) as f64
    }
}

/// Some linears of a block being decomposed, as many side by side as `limits` and threads allow.
pub(super) fn decompositions(limits: &Limits, linears: &[Work], method: &dyn Method, heldout: usize) -> Bytes {
    let specs: Vec<&LinearSpec> = linears.iter().map(|work| work.spec).collect();
    let of_linear = |place: usize| {
        let Work { spec, rank } = linears[place];
        let Workspace { held, scratch } = method.workspace(spec.out, spec.input);
        let measuring = heldout_numbers((spec.out, spec.input), rank, heldout);
        (8.0 * (held + scratch).max(measuring) as f64, 8.0 * scratch as f64)
    };
    let mut most = 0f64;
    for wave in side_by_side(limits.decompositions, &specs) {
        let found: Vec<(f64, f64)> = wave.into_iter().map(of_linear).collect();
        let scratch = found.iter().map(|(_, scratch)| *scratch).fold(0.0, f64::max);
        most = most.max(found.iter().map(|(all, _)| all + scratch).sum());
    }
    host(most)
}
