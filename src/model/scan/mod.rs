//! The recurrence of state-space blocks.
//!
//! ```text
//! h_t = exp(Δ_t A) ∘ h_{t−1} + Δ_t c_t B_t        y_t = ⟨C_t, h_t⟩ + D c_t
//! ```
//! for each channel: h, B, C are vectors of the state's width, Δ and c numbers. Channels that stand together form a head
//! and share Δ, A and D; heads that stand together form a group and share B and C. (Mamba, arXiv 2312.00752: every channel
//! is a head, with its own A for each entry of the state, and there is one group. Mamba-2, arXiv 2405.21060: A is one
//! number per head.)

mod conv;
mod grad;

pub(super) use conv::{causal_conv, causal_conv_differentiable, softplus, softplus_differentiable, tail};
pub(super) use grad::scan_differentiable;

use super::ops::with_numbers;
use super::simd::{self, LANES, exp32};
use anyhow::{Result, ensure};
use candle_core::{Device, Tensor};
use rayon::prelude::*;

/// Sizes of a scan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Scan {
    /// Heads, each with its own Δ.
    pub heads: usize,
    /// Channels per head.
    pub per_head: usize,
    /// Groups of heads, each with its own B and C.
    pub groups: usize,
    /// Width of the state.
    pub state: usize,
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

    /// Where B of the group of `head` lies in a row; C lies groups · state behind it.
    fn b_of(&self, head: usize) -> usize {
        self.channels() + self.heads + head / (self.heads / self.groups) * self.state
    }

    /// Runs `rows` (batch, t, width) from the states `from` (batch, channels, state), or zero, on. `a` is (heads, state) or
    /// (heads, 1), `skip` D (heads). Gives y (batch, t, channels) and the last states (batch, channels, state).
    pub fn run(&self, rows: &Tensor, a: &Tensor, skip: &Tensor, from: Option<&Tensor>) -> Result<(Tensor, Tensor)> {
        let (batch, t, width) = rows.dims3()?;
        let (channels, state) = (self.channels(), self.state);
        ensure!(width == self.width() && a.dim(0)? == self.heads, "a scan of other sizes: {rows:?} {self:?}");
        let mut states = match from {
            Some(from) => from.flatten_all()?.to_vec1::<f32>()?,
            None => vec![0.0; batch * channels * state],
        };
        let per_head: usize = a.dim(1)?;
        let (a, skip) = (a.flatten_all()?.to_vec1::<f32>()?, skip.to_vec1::<f32>()?);
        let mut y = vec![0f32; batch * t * channels];
        with_numbers(rows, |rows| {
            let of_batch = |b: usize| &rows[b * t * width..(b + 1) * t * width];
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
                    let piece = Piece { scan: *self, rows: of_batch(b), a: &a, per_head, skip: &skip, first, count };
                    advance(&piece, states, &mut y);
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
        })?;
        let back = |numbers, shape: (usize, usize, usize), device: &Device| Tensor::from_vec(numbers, shape, device);
        let device = rows.device();
        Ok((back(y, (batch, t, channels), device)?, back(states, (batch, channels, state), device)?))
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
mod tests {
    use super::*;
    use candle_core::{DType, IndexOp};

    const SIZES: [Scan; 5] = [
        Scan { heads: 37, per_head: 1, groups: 1, state: 16 },
        Scan { heads: 5, per_head: 1, groups: 1, state: 20 },
        Scan { heads: 3, per_head: 1, groups: 1, state: 3 },
        Scan { heads: 6, per_head: 8, groups: 2, state: 33 },
        Scan { heads: 4, per_head: 5, groups: 4, state: 16 },
    ];

    /// Rows, A and D of a plausible size; A has a number per state where every channel is a head.
    fn inputs(scan: Scan, batch: usize, t: usize) -> (Tensor, Tensor, Tensor) {
        let random = |shape: &[usize]| Tensor::randn(0f32, 1.0, shape, &Device::Cpu).unwrap();
        let part = |width: usize| random(&[batch, t, width]);
        let dt = (part(scan.heads).abs().unwrap() * 0.5).unwrap();
        let bc = part(2 * scan.groups * scan.state);
        let rows = Tensor::cat(&[&part(scan.channels()), &dt, &bc], 2).unwrap();
        let per_head = if scan.per_head == 1 { scan.state } else { 1 };
        (rows, random(&[scan.heads, per_head]).abs().unwrap().neg().unwrap(), random(&[scan.heads]))
    }

    /// The equations as they stand, in f64: y of sequence `b`, (t, channels).
    fn plainly(scan: Scan, rows: &Tensor, a: &Tensor, skip: &Tensor, b: usize) -> Vec<Vec<f64>> {
        let wide = |x: Tensor| x.to_dtype(DType::F64).unwrap();
        let rows: Vec<Vec<f64>> = wide(rows.i(b).unwrap()).to_vec2().unwrap();
        let (a, skip): (Vec<Vec<f64>>, Vec<f64>) =
            (wide(a.clone()).to_vec2().unwrap(), wide(skip.clone()).to_vec1().unwrap());
        let (channels, n) = (scan.channels(), scan.state);
        let mut states = vec![vec![0f64; n]; channels];
        let of_row = |row: &Vec<f64>| {
            let of_channel = |channel: usize, h: &mut Vec<f64>| {
                let head = channel / scan.per_head;
                let group = head * scan.groups / scan.heads;
                let (c, dt) = (row[channel], row[channels + head]);
                let mut y = skip[head] * c;
                for (k, h) in h.iter_mut().enumerate() {
                    let at = channels + scan.heads + group * n + k;
                    let a = if a[head].len() == 1 { a[head][0] } else { a[head][k] };
                    *h = (dt * a).exp() * *h + dt * c * row[at];
                    y += row[at + scan.groups * n] * *h;
                }
                y
            };
            states.iter_mut().enumerate().map(|(channel, h)| of_channel(channel, h)).collect()
        };
        rows.iter().map(of_row).collect()
    }

    #[test]
    fn the_scan_is_the_recurrence() {
        for scan in SIZES {
            let (rows, a, skip) = inputs(scan, 2, 50);
            let (y, last) = scan.run(&rows, &a, &skip, None).unwrap();
            let expected: Vec<_> = (0..2).map(|b| plainly(scan, &rows, &a, &skip, b)).collect();
            let y: Vec<Vec<Vec<f32>>> = y.to_vec3().unwrap();
            let size = expected.iter().flatten().flatten().fold(0f64, |m, x| m.max(x.abs()));
            for (y, expected) in y.iter().flatten().flatten().zip(expected.iter().flatten().flatten()) {
                assert!((f64::from(*y) - expected).abs() < 1e-6 * size, "{scan:?}: {y} for {expected}");
            }
            // In two parts, the second from where the first one ended.
            let (_, middle) = scan.run(&rows.narrow(1, 0, 29).unwrap(), &a, &skip, None).unwrap();
            let rest = rows.narrow(1, 29, 21).unwrap();
            let (second, end) = scan.run(&rest, &a, &skip, Some(&middle)).unwrap();
            let second: Vec<Vec<Vec<f32>>> = second.to_vec3().unwrap();
            assert!(y.iter().zip(&second).all(|(y, second)| y[29..] == second[..]), "{scan:?}");
            assert_eq!(end.to_vec3::<f32>().unwrap(), last.to_vec3::<f32>().unwrap(), "{scan:?}");
        }
    }

    #[test]
    fn gradients_are_those_of_finite_differences() {
        for scan in SIZES {
            let (rows, a, skip) = inputs(scan, 2, 9);
            let weights = Tensor::randn(0f32, 1.0, (2, 9, scan.channels()), &Device::Cpu).unwrap();
            let loss = |rows: &Tensor, a: &Tensor, skip: &Tensor| {
                (scan_differentiable(scan, rows, a, skip).unwrap() * &weights).unwrap().sum_all().unwrap()
            };
            let wide = |x: Tensor| x.to_dtype(DType::F64).unwrap().to_scalar::<f64>().unwrap();
            let vars = [&rows, &a, &skip].map(|x| candle_core::Var::from_tensor(x).unwrap());
            let graph = loss(&vars[0], &vars[1], &vars[2]).backward().unwrap();
            for (i, var) in vars.iter().enumerate() {
                let gradient = graph.get(var).unwrap();
                // Along the gradient itself the slope is its norm.
                let norm = wide(gradient.sqr().unwrap().sum_all().unwrap()).sqrt();
                let slope = |step: f64| {
                    let at = |sign: f64| {
                        let moved = (var.as_tensor() + (gradient * (sign * step / norm)).unwrap()).unwrap();
                        let mut inputs = [rows.clone(), a.clone(), skip.clone()];
                        inputs[i] = moved;
                        wide(loss(&inputs[0], &inputs[1], &inputs[2]))
                    };
                    (at(1.0) - at(-1.0)) / (2.0 * step)
                };
                let found = (4.0 * slope(0.01) - slope(0.02)) / 3.0;
                assert!((found / norm - 1.0).abs() < 2e-3, "{scan:?} input {i}: {found} for {norm}");
            }
        }
    }
}
