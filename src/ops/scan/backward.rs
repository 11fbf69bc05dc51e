//! The scan's gradients. States are computed again on the way back: only inputs are kept.
//!
//! ```text
//! ∂h_t = g_t C_t + exp(Δ_{t+1} A) ∘ ∂h_{t+1}        ∂C_t = g_t h_t      ∂B_t = Δ_t c_t ∂h_t
//! e_t  = ∂h_t ∘ h_{t−1} ∘ exp(Δ_t A)                ∂A = Σ_t Δ_t e_t    ∂Δ_t = ⟨e_t, A⟩ + c_t ⟨∂h_t, B_t⟩
//! ∂c_t = Δ_t ⟨∂h_t, B_t⟩ + D g_t                    ∂D = Σ_t g_t c_t
//! ```

use super::Scan;
use crate::linalg::simd::{self, LANES, exp32, fold};
use rayon::prelude::*;

/// Into so many parts the heads of a group are divided, at most.
const PARTS: usize = 16;

/// Those on rows (batch, t, width), a (heads, state or 1) and D (heads), where that on y is g (batch, t, channels).
pub(super) fn gradients(scan: Scan, rows: &[f32], a: &[f32], skip: &[f32], g: &[f32], t: usize) -> [Vec<f32>; 3] {
    let per_head = a.len() / scan.heads;
    let (mut on_rows, mut on_a) = (vec![0f32; rows.len()], vec![0f32; a.len()]);
    let mut on_skip = vec![0f32; skip.len()];
    let in_group = scan.heads / scan.groups;
    let step = in_group.div_ceil(PARTS);
    let of_group = |group| (0..in_group).step_by(step).map(move |i| (group * in_group + i, step.min(in_group - i)));
    let firsts: Vec<(usize, usize)> = (0..scan.groups).flat_map(of_group).collect();
    let size = (t * scan.width(), t * scan.channels());
    let sequences = on_rows.chunks_exact_mut(size.0).zip(rows.chunks_exact(size.0)).zip(g.chunks_exact(size.1));
    for ((on_rows, rows), g) in sequences {
        let backward = Backward { scan, rows, a, per_head, g };
        let parts: Vec<HeadGradients> = firsts.par_iter().map(|&(first, heads)| backward.heads(first, heads)).collect();
        // In order, so that the sums do not depend on the number of threads.
        parts.iter().for_each(|part| part.add(&backward, on_rows, &mut on_a));
        let rows = on_rows.chunks_exact_mut(scan.width()).zip(rows.chunks_exact(scan.width()));
        for ((on_row, row), g) in rows.zip(g.chunks_exact(scan.channels())) {
            for (channel, ((on_c, c), g)) in on_row.iter_mut().zip(row).zip(g).enumerate() {
                let head = channel / scan.per_head;
                *on_c += g * skip[head];
                on_skip[head] += g * c;
            }
        }
    }
    [on_rows, on_a, on_skip]
}

/// The way back through one sequence.
pub struct Backward<'a> {
    scan: Scan,
    /// (t, width)
    rows: &'a [f32],
    /// (heads, `per_head`)
    a: &'a [f32],
    per_head: usize,
    /// On y, (t, channels).
    g: &'a [f32],
}

/// Gradients that some heads of one group leave.
pub struct HeadGradients {
    first: usize,
    heads: usize,
    /// (t, heads · per head)
    c: Vec<f32>,
    /// (t, heads)
    dt: Vec<f32>,
    /// On B and C of the group, (t, 2, state).
    bc: Vec<f32>,
    /// (heads, `per_head`)
    a: Vec<f32>,
}

impl Backward<'_> {
    fn heads(&self, first: usize, heads: usize) -> HeadGradients {
        let Scan { per_head, state: n, .. } = self.scan;
        let length = self.rows.len() / self.scan.width();
        let mut part = HeadGradients {
            first,
            heads,
            c: vec![0f32; length * heads * per_head],
            dt: vec![0f32; length * heads],
            bc: vec![0f32; length * 2 * n],
            a: vec![0f32; heads * self.per_head],
        };
        let mut work = Work::new(n, length);
        for i in 0..heads * per_head {
            channel(self, i, &mut work, &mut part);
        }
        part
    }
}

/// Room for one channel.
pub struct Work {
    /// States before and behind each position, (t + 1, state).
    states: Vec<f32>,
    /// A, by what the state decays, the gradient on the state from everything later, the one on A: (state) each.
    a: Vec<f32>,
    decay: Vec<f32>,
    carried: Vec<f32>,
    on_a: Vec<f32>,
}

impl Work {
    fn new(n: usize, length: usize) -> Self {
        let zeros = || vec![0f32; n];
        let (a, decay, carried, on_a) = (zeros(), zeros(), zeros(), zeros());
        Self { states: vec![0f32; (length + 1) * n], a, decay, carried, on_a }
    }
}

simd::for_each_width! {
    /// Runs channel `i` of the part's forward and back, and adds its gradients.
    pub fn channel(backward: &Backward, i: usize, work: &mut Work, part: &mut HeadGradients) {
        let Backward { scan, rows, a, per_head, g } = *backward;
        let (n, width, channels) = (scan.state, scan.width(), scan.channels());
        let (index, head) = (part.first * scan.per_head + i, part.first + i / scan.per_head);
        let (b_of, out_of) = (scan.b_of(head), scan.b_of(head) + scan.groups * n);
        let Work { states, a: wide_a, decay, carried, on_a } = work;
        let each = per_head == n;
        for (k, wide) in wide_a.iter_mut().enumerate() {
            *wide = a[head * per_head + if each { k } else { 0 }];
        }
        for (t, row) in rows.chunks_exact(width).enumerate() {
            let (before, after) = states[t * n..(t + 2) * n].split_at_mut(n);
            let dt = row[channels + head];
            decays(decay, wide_a, dt, each);
            forward(after, before, decay, &row[b_of..b_of + n], dt * row[index]);
        }
        carried.fill(0.0);
        on_a.fill(0.0);
        for (t, row) in rows.chunks_exact(width).enumerate().rev() {
            let (c, dt) = (row[index], row[channels + head]);
            decays(decay, wide_a, dt, each);
            let at = At {
                g: g[t * channels + index],
                c,
                dt,
                a: wide_a,
                decay,
                b: &row[b_of..b_of + n],
                out: &row[out_of..out_of + n],
                before: &states[t * n..(t + 1) * n],
                after: &states[(t + 1) * n..(t + 2) * n],
            };
            let (on_b, on_out) = part.bc[t * 2 * n..(t + 1) * 2 * n].split_at_mut(n);
            let (on_c, on_dt) = at.back(carried, on_b, on_out, on_a);
            part.c[t * part.heads * scan.per_head + i] = on_c;
            part.dt[t * part.heads + i / scan.per_head] += on_dt;
        }
        let place = (head - part.first) * per_head;
        if each {
            for (sum, x) in part.a[place..place + n].iter_mut().zip(on_a) {
                *sum += *x;
            }
        } else {
            part.a[place] += on_a.iter().sum::<f32>();
        }
    }
}

/// exp(dt · a), where a is one number computed once.
#[inline(always)]
fn decays(decay: &mut [f32], a: &[f32], dt: f32, each: bool) {
    if each {
        for (decay, a) in decay.iter_mut().zip(a) {
            *decay = exp32(dt * a);
        }
    } else {
        decay.fill(exp32(dt * a[0]));
    }
}

#[inline(always)]
fn forward(after: &mut [f32], before: &[f32], decay: &[f32], b: &[f32], u: f32) {
    for (((after, before), decay), b) in after.iter_mut().zip(before).zip(decay).zip(b) {
        *after = decay * before + u * b;
    }
}

/// What the recurrence of one channel met at one position; slices are as wide as the state.
struct At<'a> {
    /// On y.
    g: f32,
    c: f32,
    dt: f32,
    a: &'a [f32],
    decay: &'a [f32],
    b: &'a [f32],
    out: &'a [f32],
    before: &'a [f32],
    after: &'a [f32],
}

impl At<'_> {
    /// Takes the gradient that later positions put on the state behind this one to the state before it, and adds the
    /// gradients on B, C and A. Those on c and Δ.
    #[inline(always)]
    fn back(&self, carried: &mut [f32], on_b: &mut [f32], on_out: &mut [f32], on_a: &mut [f32]) -> (f32, f32) {
        let (mut on_u, mut on_dt) = ([0f32; LANES], [0f32; LANES]);
        let n = carried.len();
        for from in (0..n).step_by(LANES) {
            // A constant width is worth a branch.
            if n - from >= LANES {
                self.lanes(from, LANES, carried, on_b, on_out, on_a, &mut on_u, &mut on_dt);
            } else {
                self.lanes(from, n - from, carried, on_b, on_out, on_a, &mut on_u, &mut on_dt);
            }
        }
        let on_u = fold(on_u, |x, y| x + y);
        (on_u * self.dt, fold(on_dt, |x, y| x + y) + on_u * self.c)
    }

    #[inline(always)]
    #[allow(clippy::too_many_arguments, reason = "slices of the same entries, to be worked through in lanes")]
    fn lanes(
        &self,
        from: usize,
        len: usize,
        carried: &mut [f32],
        on_b: &mut [f32],
        on_out: &mut [f32],
        on_a: &mut [f32],
        on_u: &mut [f32; LANES],
        on_dt: &mut [f32; LANES],
    ) {
        let (a, decay, b) = (&self.a[from..][..len], &self.decay[from..][..len], &self.b[from..][..len]);
        let (out, before, after) = (&self.out[from..][..len], &self.before[from..][..len], &self.after[from..][..len]);
        let (carried, on_b) = (&mut carried[from..][..len], &mut on_b[from..][..len]);
        let (on_out, on_a) = (&mut on_out[from..][..len], &mut on_a[from..][..len]);
        let u = self.dt * self.c;
        for i in 0..len {
            let on_h = carried[i] + self.g * out[i];
            on_out[i] += self.g * after[i];
            on_b[i] += on_h * u;
            on_u[i] += on_h * b[i];
            // On the exponent dt · a.
            let on_exponent = on_h * before[i] * decay[i];
            on_a[i] += on_exponent * self.dt;
            on_dt[i] += on_exponent * a[i];
            carried[i] = on_h * decay[i];
        }
    }
}

impl HeadGradients {
    fn add(&self, backward: &Backward, on_rows: &mut [f32], on_a: &mut [f32]) {
        let Scan { per_head, groups, state: n, .. } = backward.scan;
        let channels = backward.scan.channels();
        let count = self.heads * per_head;
        let b_of = backward.scan.b_of(self.first);
        for (t, row) in on_rows.chunks_exact_mut(backward.scan.width()).enumerate() {
            let mut add = |from: usize, part: &[f32]| {
                row[from..from + part.len()].iter_mut().zip(part).for_each(|(sum, x)| *sum += x);
            };
            add(self.first * per_head, &self.c[t * count..(t + 1) * count]);
            add(channels + self.first, &self.dt[t * self.heads..(t + 1) * self.heads]);
            let (on_b, on_out) = self.bc[t * 2 * n..(t + 1) * 2 * n].split_at(n);
            add(b_of, on_b);
            add(b_of + groups * n, on_out);
        }
        let first = self.first * backward.per_head;
        on_a[first..first + self.a.len()].iter_mut().zip(&self.a).for_each(|(sum, x)| *sum += x);
    }
}
