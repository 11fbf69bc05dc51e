//! The recurrence of state-space blocks.
//!
//! ```text
//! h_t = exp(Δ_t A) ∘ h_{t−1} + Δ_t c_t B_t        y_t = ⟨C_t, h_t⟩ + D c_t
//! ```
//! for each channel: h, B, C are vectors of the state's width, Δ and c numbers. Channels that stand together form a head
//! and share Δ, A and D; heads that stand together form a group and share B and C. (Mamba, arXiv 2312.00752: every channel
//! is a head, with its own A for each entry of the state, and there is one group. Mamba-2, arXiv 2405.21060: A is one
//! number per head.) The way back is that of `backward.rs`.

mod backward;

use super::cpu::{CpuOp, Input, apply, numbers};
use crate::linalg::simd::{self, LANES, exp32};
use candle_core::{D, DType, Result, Shape, Tensor, bail};
use rayon::prelude::*;

/// Sizes of a scan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scan {
    /// Heads, each with its own Δ.
    pub heads: usize,
    /// Channels per head.
    pub per_head: usize,
    /// Groups of heads, each with its own B and C.
    pub groups: usize,
    /// Width of the state.
    pub state: usize,
}

/// Runs `rows` (batch, t, [`Scan::width`]) from states of zero on. `a` is (heads, state) or (heads, 1), `skip` D (heads).
/// The result is y (batch, t, channels).
pub fn selective_scan(scan: Scan, rows: &Tensor, a: &Tensor, skip: &Tensor) -> Result<Tensor> {
    scan.expect(rows, a)?;
    if rows.device().is_cpu() {
        return apply(scan, [rows, a, skip]);
    }
    Ok(plain(scan, rows, a, skip, None)?.0)
}

/// [`selective_scan`] from the states `from` (batch, channels, state), or zero, on; gives the last states too. Carries no
/// gradients: an error where one of the tensors is tracked.
pub fn selective_scan_from(
    scan: Scan,
    rows: &Tensor,
    a: &Tensor,
    skip: &Tensor,
    from: Option<&Tensor>,
) -> Result<(Tensor, Tensor)> {
    scan.expect(rows, a)?;
    if [rows, a, skip].into_iter().chain(from).any(Tensor::track_op) {
        bail!("a scan that gives its states carries no gradients");
    }
    if !rows.device().is_cpu() {
        return plain(scan, rows, a, skip, from);
    }
    let (batch, t, _) = rows.dims3()?;
    let (channels, device) = (scan.channels(), rows.device());
    let mut states = match from {
        Some(from) => from.flatten_all()?.to_vec1()?,
        None => vec![0.0; batch * channels * scan.state],
    };
    let (rows, a, skip) = (rows.contiguous()?, a.contiguous()?, skip.contiguous()?);
    let y = scan.run(&numbers(&rows)?, &numbers(&a)?, &numbers(&skip)?, &mut states);
    let y = Tensor::from_vec(y, (batch, t, channels), device)?;
    Ok((y, Tensor::from_vec(states, (batch, channels, scan.state), device)?))
}

/// [`selective_scan_from`] by tensor operations, in √(t/2) steps, each of which takes one position of every chunk of t: once
/// from states of zero to what each chunk adds to its state, then, when these are summed up to where each chunk begins, to y.
fn plain(scan: Scan, rows: &Tensor, a: &Tensor, skip: &Tensor, from: Option<&Tensor>) -> Result<(Tensor, Tensor)> {
    let (batch, t, width) = rows.dims3()?;
    let Scan { heads, per_head, groups, state } = scan;
    let channels = scan.channels();
    let steps = if t < 32 { t.max(1) } else { (t / 2).isqrt() };
    let chunks = t.div_ceil(steps).max(1);
    // Where Δ and c are zero, states stay as they are.
    let rows = match chunks * steps - t {
        0 => rows.clone(),
        missing => Tensor::cat(&[rows, &Tensor::zeros((batch, missing, width), rows.dtype(), rows.device())?], 1)?,
    };
    let part = |from: usize, len: usize, shape: &[usize]| {
        rows.narrow(2, from, len)?.reshape([&[batch, chunks, steps], shape].concat())
    };
    let of_groups = |from: usize| {
        let each = part(from, groups * state, &[groups, 1, state])?;
        let each = each.broadcast_as((batch, chunks, steps, groups, heads / groups, state))?.contiguous()?;
        each.reshape((batch, chunks, steps, heads, 1, state))
    };
    let c = part(0, channels, &[heads, per_head, 1])?;
    let dt = part(channels, heads, &[heads, 1, 1])?;
    let (b, out) = (of_groups(channels + heads)?, of_groups(channels + heads + groups * state)?);
    let a = a.reshape((heads, 1, ()))?;
    let decay = dt.broadcast_mul(&a)?.exp()?;
    let u = dt.broadcast_mul(&c)?;
    // One position of every chunk.
    let at = |x: &Tensor, i: usize| x.narrow(2, i, 1)?.squeeze(2);
    let advance = |h: &Tensor, i: usize| h.broadcast_mul(&at(&decay, i)?)? + at(&u, i)?.broadcast_mul(&at(&b, i)?)?;
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, rows.device());
    let mut start = match from {
        Some(from) => from.reshape((batch, heads, per_head, state))?,
        None => zeros(&[batch, heads, per_head, state])?,
    };
    let mut h = start.unsqueeze(1)?;
    if chunks > 1 {
        let mut added = zeros(&[batch, chunks, heads, per_head, state])?;
        for i in 0..steps {
            added = advance(&added, i)?;
        }
        let decay = dt.sum(2)?.broadcast_mul(&a)?.exp()?;
        let of_chunk = |x: &Tensor, chunk: usize| x.narrow(1, chunk, 1)?.squeeze(1);
        let mut starts = vec![start.clone()];
        for chunk in 0..chunks - 1 {
            start = (start.broadcast_mul(&of_chunk(&decay, chunk)?)? + of_chunk(&added, chunk)?)?;
            starts.push(start.clone());
        }
        h = Tensor::stack(&starts, 1)?;
    }
    let mut y = Vec::with_capacity(steps);
    for i in 0..steps {
        h = advance(&h, i)?;
        y.push(h.broadcast_mul(&at(&out, i)?)?.sum(D::Minus1)?);
    }
    let skipped = c.squeeze(5)?.broadcast_mul(&skip.reshape((heads, 1))?)?;
    let y = (Tensor::stack(&y, 2)? + skipped)?.reshape((batch, chunks * steps, channels))?;
    let last = h.narrow(1, chunks - 1, 1)?.reshape((batch, channels, state))?;
    Ok((y.narrow(1, 0, t)?.contiguous()?, last))
}

impl Scan {
    /// All channels.
    pub fn channels(&self) -> usize {
        self.heads * self.per_head
    }

    /// Numbers of one position: c (channels), Δ (heads), B (groups · state), C (groups · state).
    pub fn width(&self) -> usize {
        self.channels() + self.heads + 2 * self.groups * self.state
    }

    fn expect(&self, rows: &Tensor, a: &Tensor) -> Result<()> {
        if rows.dim(2)? != self.width() || a.dim(0)? != self.heads {
            bail!("a scan of other sizes: {rows:?} {a:?} {self:?}");
        }
        Ok(())
    }

    /// Where B of the group of `head` lies in a row; C lies groups · state behind it.
    fn b_of(&self, head: usize) -> usize {
        self.channels() + self.heads + head / (self.heads / self.groups) * self.state
    }

    /// y (batch, t, channels) of `rows` (batch, t, width); takes `states` (batch, channels, state) to the last ones.
    fn run(&self, rows: &[f32], a: &[f32], skip: &[f32], states: &mut [f32]) -> Vec<f32> {
        let (channels, state, per_head) = (self.channels(), self.state, a.len() / self.heads);
        let batch = states.len() / (channels * state);
        let t = rows.len() / (batch * self.width());
        let mut y = vec![0f32; batch * t * channels];
        let of_batch = |b: usize| &rows[b * t * self.width()..(b + 1) * t * self.width()];
        let in_group = channels / self.groups;
        let pieces = states.par_chunks_mut(channels * state).enumerate().flat_map(|(b, states)| {
            states.par_chunks_mut(in_group * state).enumerate().flat_map(move |(group, states)| {
                let pieces = states.par_chunks_mut(LANES * state).enumerate();
                pieces.map(move |(i, states)| (b, group * in_group + i * LANES, states))
            })
        });
        // Channel by channel first, as each thread works; then in the order in which they are wanted.
        let done: Vec<(usize, usize, Vec<f32>)> = pieces
            .map(|(b, first, states)| {
                let count = states.len() / state;
                let mut y = vec![0f32; t * count];
                advance(&Piece { scan: *self, rows: of_batch(b), a, per_head, skip, first, count }, states, &mut y);
                (b, first, y)
            })
            .collect();
        for (b, first, piece) in done {
            let count = piece.len() / t.max(1);
            let rows = y[b * t * channels..(b + 1) * t * channels].chunks_exact_mut(channels);
            for (row, piece) in rows.zip(piece.chunks_exact(count)) {
                row[first..first + count].copy_from_slice(piece);
            }
        }
        y
    }
}

impl CpuOp<3> for Scan {
    const NAME: &'static str = "selective-scan";

    fn forward(&self, [rows, a, skip]: [Input; 3]) -> Result<(Vec<f32>, Shape)> {
        let (batch, t, _) = rows.shape.dims3()?;
        let mut states = vec![0.0; batch * self.channels() * self.state];
        Ok((self.run(&rows, &a, &skip, &mut states), (batch, t, self.channels()).into()))
    }

    fn backward(&self, [rows, a, skip]: [Input; 3], g: &[f32], _: [bool; 3]) -> Result<[Vec<f32>; 3]> {
        Ok(backward::gradients(*self, &rows, &a, &skip, g, rows.shape.dims3()?.1))
    }
}

/// A number of each of some channels that are worked on at once.
type Lanes = [f32; LANES];

/// At most [`LANES`] channels of one sequence, all of one group.
pub struct Piece<'a> {
    scan: Scan,
    /// (t, width)
    rows: &'a [f32],
    /// (heads, `per_head`)
    a: &'a [f32],
    per_head: usize,
    /// (heads)
    skip: &'a [f32],
    first: usize,
    count: usize,
}

simd::for_each_width! {
    /// Takes the states (count, state) through all positions and writes y (t, count).
    pub fn advance(piece: &Piece, states: &mut [f32], y: &mut [f32]) {
        let Piece { scan, rows, a, per_head, skip, first, count } = *piece;
        let (channels, n) = (scan.channels(), scan.state);
        // Channels side by side, so that nothing has to be summed across them; those that are too many stay zero.
        let mut heads = [0; LANES];
        let mut h: Vec<Lanes> = vec![[0f32; LANES]; n];
        let mut wide_a: Vec<Lanes> = vec![[0f32; LANES]; per_head];
        for (i, state) in states.chunks_exact(n).enumerate() {
            heads[i] = (first + i) / scan.per_head;
            for (h, x) in h.iter_mut().zip(state) {
                h[i] = *x;
            }
            for (wide, a) in wide_a.iter_mut().zip(&a[heads[i] * per_head..]) {
                wide[i] = *a;
            }
        }
        let mut decay = wide_a.clone();
        let b_of = scan.b_of(heads[0]);
        let (mut c, mut dt) = ([0f32; LANES], [0f32; LANES]);
        for (row, y) in rows.chunks_exact(scan.width()).zip(y.chunks_exact_mut(count)) {
            c[..count].copy_from_slice(&row[first..first + count]);
            for (dt, head) in dt.iter_mut().zip(&heads[..count]) {
                *dt = row[channels + head];
            }
            let mut u = [0f32; LANES];
            for i in 0..LANES {
                u[i] = dt[i] * c[i];
            }
            for (decay, a) in decay.iter_mut().zip(&wide_a) {
                for i in 0..LANES {
                    decay[i] = exp32(dt[i] * a[i]);
                }
            }
            let (b, out) = (&row[b_of..][..n], &row[b_of + scan.groups * n..][..n]);
            let sum = match decay.len() == n {
                true => mix::<true>(&mut h, &decay, b, out, &u),
                false => mix::<false>(&mut h, &decay, b, out, &u),
            };
            for (i, y) in y.iter_mut().enumerate() {
                *y = sum[i] + skip[heads[i]] * c[i];
            }
        }
        for (i, state) in states.chunks_exact_mut(n).enumerate() {
            for (h, x) in h.iter().zip(state) {
                *x = h[i];
            }
        }
    }
}

/// h ← decay ∘ h + b u for each entry of the state; Σ out h. `EACH` entry has its own decay, or all share one.
#[inline(always)]
fn mix<const EACH: bool>(h: &mut [Lanes], decay: &[Lanes], b: &[f32], out: &[f32], u: &Lanes) -> Lanes {
    // Values, not places: only then do compilers keep them in registers.
    let (mut sum, u, one) = ([0f32; LANES], *u, decay[0]);
    for (k, ((h, b), out)) in h.iter_mut().zip(b).zip(out).enumerate() {
        let decay = if EACH { decay[k] } else { one };
        let mut next = *h;
        for i in 0..LANES {
            next[i] = decay[i] * next[i] + u[i] * b;
        }
        for i in 0..LANES {
            sum[i] += next[i] * out;
        }
        *h = next;
    }
    sum
}

#[cfg(test)]
mod tests;
