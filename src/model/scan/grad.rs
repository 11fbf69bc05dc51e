//! The scan with its gradients. States are computed again on the way back: only inputs are kept.

use super::super::attention::slice;
use super::super::simd::exp32;
use super::Scan;
use anyhow::Result;
use candle_core::{CpuStorage, CustomOp2, Device, Layout, Shape, Tensor};
use rayon::prelude::*;

/// Channels whose gradients one thread computes together, about.
const CHANNELS: usize = 16;

/// [`Scan::run`] from states of zero, with gradients for `rows` (batch, t, width), `a` (heads, state or 1) and `skip`
/// (heads).
pub fn scan_differentiable(scan: Scan, rows: &Tensor, a: &Tensor, skip: &Tensor) -> Result<Tensor> {
    let device = rows.device();
    // Elsewhere the scan goes through this machine's memory.
    let here = |x: &Tensor| x.to_device(&Device::Cpu)?.contiguous();
    let y = here(rows)?.apply_op2(&here(a)?, scan)?.to_device(device)?;
    let (batch, t, channels) = y.dims3()?;
    let c = rows.narrow(2, 0, channels)?.reshape((batch, t, scan.heads, scan.per_head))?;
    let skipped = c.broadcast_mul(&skip.reshape((scan.heads, 1))?)?.reshape((batch, t, channels))?;
    Ok((y + skipped)?)
}

impl CustomOp2 for Scan {
    fn name(&self) -> &'static str {
        "selective-scan"
    }

    fn cpu_fwd(
        &self,
        rows: &CpuStorage,
        rows_layout: &Layout,
        a: &CpuStorage,
        a_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (batch, t, width) = rows_layout.shape().dims3()?;
        let channels = self.channels();
        let rows = Tensor::from_slice(slice(rows, rows_layout)?, (batch, t, width), &Device::Cpu)?;
        let a = Tensor::from_slice(slice(a, a_layout)?, a_layout.shape(), &Device::Cpu)?;
        let skip = Tensor::zeros(self.heads, rows.dtype(), &Device::Cpu)?;
        let (y, _) = self.run(&rows, &a, &skip, None).map_err(candle_core::Error::wrap)?;
        Ok((CpuStorage::F32(y.flatten_all()?.to_vec1()?), (batch, t, channels).into()))
    }

    fn bwd(
        &self,
        rows: &Tensor,
        a: &Tensor,
        _: &Tensor,
        g: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let (batch, t, width) = rows.dims3()?;
        let per_head = a.dim(1)?;
        let (on_rows, on_a) = {
            let (rows, a): (Vec<f32>, Vec<f32>) = (rows.flatten_all()?.to_vec1()?, a.flatten_all()?.to_vec1()?);
            let g: Vec<f32> = g.flatten_all()?.to_vec1()?;
            let mut on_rows = vec![0f32; batch * t * width];
            let mut on_a = vec![0f32; self.heads * per_head];
            let step = (CHANNELS / self.per_head).max(1);
            let size = (t * width, t * self.channels());
            for ((on_rows, rows), g) in
                on_rows.chunks_exact_mut(size.0).zip(rows.chunks_exact(size.0)).zip(g.chunks_exact(size.1))
            {
                let backward = Backward { scan: *self, rows, a: &a, per_head, g };
                let firsts: Vec<usize> = (0..self.heads).step_by(step).collect();
                let parts: Vec<Part> =
                    firsts.into_par_iter().map(|head| backward.heads(head, step.min(self.heads - head))).collect();
                // In order, so that the sums do not depend on the number of threads.
                parts.iter().for_each(|part| part.add(&backward, on_rows, &mut on_a));
            }
            (on_rows, on_a)
        };
        let device = &Device::Cpu;
        Ok((
            Some(Tensor::from_vec(on_rows, (batch, t, width), device)?),
            Some(Tensor::from_vec(on_a, (self.heads, per_head), device)?),
        ))
    }
}

/// The way back through one sequence.
struct Backward<'a> {
    scan: Scan,
    /// (t, width)
    rows: &'a [f32],
    /// (heads, `per_head`)
    a: &'a [f32],
    per_head: usize,
    /// On y, (t, channels).
    g: &'a [f32],
}

/// Gradients through some heads.
struct Part {
    first: usize,
    heads: usize,
    /// (t, heads · per head)
    c: Vec<f32>,
    /// (t, heads)
    dt: Vec<f32>,
    /// On B and C, (t, 2 · groups · state): all groups, most of them zero.
    bc: Vec<f32>,
    /// (heads, `per_head`)
    a: Vec<f32>,
}

impl Backward<'_> {
    fn row(&self, t: usize) -> &[f32] {
        let width = self.scan.width();
        &self.rows[t * width..(t + 1) * width]
    }

    /// The states behind each position of `count` channels from `first` on, those before the first in front:
    /// (t + 1, count, state).
    fn states(&self, first: usize, count: usize) -> Vec<f32> {
        let (n, length) = (self.scan.state, self.rows.len() / self.scan.width());
        let mut states = vec![0f32; (length + 1) * count * n];
        for t in 0..length {
            let (before, after) = states.split_at_mut((t + 1) * count * n);
            let before = before[t * count * n..].chunks_exact(n);
            for ((i, before), after) in before.enumerate().zip(after.chunks_exact_mut(n)) {
                let at = self.at(t, first + i);
                for (k, after) in after.iter_mut().take(n).enumerate() {
                    *after = exp32(at.dt * at.a(k)) * before[k] + at.dt * at.c * at.b[k];
                }
            }
        }
        states
    }

    fn at(&self, t: usize, channel: usize) -> At<'_> {
        let Scan { per_head, groups, state: n, .. } = self.scan;
        let (row, head) = (self.row(t), channel / per_head);
        let b = self.scan.b_of(head);
        At {
            c: row[channel],
            dt: row[self.scan.channels() + head],
            b: &row[b..b + n],
            out: &row[b + groups * n..b + groups * n + n],
            a: &self.a[head * self.per_head..(head + 1) * self.per_head],
            place: b - self.scan.channels() - self.scan.heads,
        }
    }

    fn heads(&self, first: usize, heads: usize) -> Part {
        let Scan { per_head, groups, state: n, .. } = self.scan;
        let (channels, length) = (self.scan.channels(), self.rows.len() / self.scan.width());
        let (start, count) = (first * per_head, heads * per_head);
        let states = self.states(start, count);
        let mut part = Part {
            first,
            heads,
            c: vec![0f32; length * count],
            dt: vec![0f32; length * heads],
            bc: vec![0f32; length * 2 * groups * n],
            a: vec![0f32; heads * self.per_head],
        };
        // On the state behind a position, from everything later.
        let mut carried = vec![0f32; count * n];
        for t in (0..length).rev() {
            let bc = &mut part.bc[t * 2 * groups * n..(t + 1) * 2 * groups * n];
            for (i, carried) in carried.chunks_exact_mut(n).enumerate() {
                let at = self.at(t, start + i);
                let g = self.g[t * channels + start + i];
                let before = &states[(t * count + i) * n..][..n];
                let after = &states[((t + 1) * count + i) * n..][..n];
                let head = i / per_head;
                let on_a = &mut part.a[head * self.per_head..(head + 1) * self.per_head];
                let (mut on_c, mut on_dt) = (0f32, 0f32);
                for k in 0..n {
                    let a = at.a(k);
                    let decay = exp32(at.dt * a);
                    let on_h = carried[k] + g * at.out[k];
                    bc[groups * n + at.place + k] += g * after[k];
                    bc[at.place + k] += on_h * at.dt * at.c;
                    // On the exponent dt · a.
                    let on_exponent = on_h * before[k] * decay;
                    on_a[if on_a.len() == 1 { 0 } else { k }] += on_exponent * at.dt;
                    on_dt += on_exponent * a + on_h * at.b[k] * at.c;
                    on_c += on_h * at.dt * at.b[k];
                    carried[k] = on_h * decay;
                }
                part.c[t * count + i] = on_c;
                part.dt[t * heads + head] += on_dt;
            }
        }
        part
    }
}

/// What the recurrence of one channel reads at one position.
struct At<'a> {
    c: f32,
    dt: f32,
    b: &'a [f32],
    out: &'a [f32],
    a: &'a [f32],
    /// Where b stands among the B of all groups.
    place: usize,
}

impl At<'_> {
    fn a(&self, k: usize) -> f32 {
        if self.a.len() == 1 { self.a[0] } else { self.a[k] }
    }
}

impl Part {
    fn add(&self, backward: &Backward, on_rows: &mut [f32], on_a: &mut [f32]) {
        let Scan { per_head, heads, .. } = backward.scan;
        let channels = backward.scan.channels();
        let count = self.heads * per_head;
        for (t, row) in on_rows.chunks_exact_mut(backward.scan.width()).enumerate() {
            let mut add = |from: usize, part: &[f32]| {
                row[from..from + part.len()].iter_mut().zip(part).for_each(|(sum, x)| *sum += x);
            };
            add(self.first * per_head, &self.c[t * count..(t + 1) * count]);
            add(channels + self.first, &self.dt[t * self.heads..(t + 1) * self.heads]);
            let bc = backward.scan.width() - channels - heads;
            add(channels + heads, &self.bc[t * bc..(t + 1) * bc]);
        }
        let first = self.first * backward.per_head;
        on_a[first..first + self.a.len()].iter_mut().zip(&self.a).for_each(|(sum, x)| *sum += x);
    }
}
