//! Attention with grouped key/value heads.
//!
//! ```text
//! S = cap(scale · Q Kᵀ),  cap(s) = c tanh(s / c)        P = softmax(S) over the visible keys        O = P V
//! ```
//! Back, with G the gradient on O: on V it is Pᵀ G, on S it is P ∘ (G Vᵀ − Σ P ∘ G Vᵀ), and from there on through cap's slope
//! 1 − (S / c)² to Q and K. On the CPU both ways go tile by tile: scores are never kept, backward computes them again, and
//! keys that no query of a tile sees are never looked at.

mod mask;

pub use mask::AttentionMask;

use super::cpu::{CpuOp, Input, apply};
use crate::linalg::simd::{self, LANES, exp32, max_of, sum_of, tanh32};
use crate::linalg::{RowMajor, nn_product, nt_product, tn_product_add};
use candle_core::{D, Result, Shape, Tensor};
use rayon::prelude::*;
use std::ops::Range;

/// Queries of one head handled at once on the CPU: their scores stay in cache.
const CPU_TILE: usize = 64;
/// Multiplications below which a task is not worth its start.
const TASK: usize = 1 << 15;
/// Queries handled at once on other devices: bounds the score matrix at heads · 512 · context.
const QUERY_CHUNK: usize = 512;

/// How products of queries and keys become scores.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Scores {
    /// By default 1/√d, of queries and keys with d dimensions.
    pub scale: Option<f64>,
    /// c; by default scores are not capped.
    pub soft_cap: Option<f64>,
}

/// `q` is (batch, t, heads, d), `k` (batch, keys, kv_heads, d) and `v` (batch, keys, kv_heads, d_v) with keys ≥ t: the queries
/// stand at the last t positions. The result is (batch, t, heads · d_v). Query head h reads key/value head
/// h / (heads / kv_heads).
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, scores: Scores, mask: &AttentionMask) -> Result<Tensor> {
    if q.device().is_cpu() {
        return apply(TiledAttention { scores, mask: mask.clone() }, [q, k, v]);
    }
    plain(q, k, v, scores, mask, QUERY_CHUNK)
}

/// [`attention`] by tensor operations, `chunk` queries at once.
fn plain(q: &Tensor, k: &Tensor, v: &Tensor, scores: Scores, mask: &AttentionMask, chunk: usize) -> Result<Tensor> {
    let (batch, t, heads, d) = q.dims4()?;
    let (keys, kv, d_v) = (k.dim(1)?, k.dim(2)?, v.dim(3)?);
    let (group, before) = (heads / kv, keys - t);
    let heads_first = |x: &Tensor| x.transpose(1, 2)?.contiguous();
    let scale = scores.scale.unwrap_or(1.0 / (d as f64).sqrt());
    let q = (heads_first(q)? * scale)?.reshape((batch * kv, group, t, d))?;
    let k = heads_first(k)?.reshape((batch * kv, keys, d))?;
    let v = heads_first(v)?.reshape((batch * kv, keys, d_v))?;
    let mut parts = Vec::new();
    for query in (0..t).step_by(chunk) {
        let (len, start) = (chunk.min(t - query), before + query);
        let span = mask.span(start, len, keys);
        let (first, seen) = (span.start, span.len());
        let rows = q.narrow(2, query, len)?.contiguous()?.reshape((batch * kv, group * len, d))?;
        let seen_keys = k.narrow(1, first, seen)?.transpose(1, 2)?.contiguous()?;
        let mut s = rows.matmul(&seen_keys)?.reshape((batch * kv, group, len, seen))?;
        if let Some(cap) = scores.soft_cap {
            s = ((s / cap)?.tanh()? * cap)?;
        }
        if let Some(mask) = mask.additive((batch, kv), (start, len, keys), s.device())? {
            s = s.broadcast_add(&mask)?;
        }
        let weights = candle_nn::ops::softmax(&s, D::Minus1)?;
        let values = v.narrow(1, first, seen)?.contiguous()?;
        let mixed = weights.reshape((batch * kv, group * len, seen))?.matmul(&values)?;
        parts.push(mixed.reshape((batch, kv * group, len, d_v))?);
    }
    let mixed = if parts.len() == 1 { parts.remove(0) } else { Tensor::cat(&parts, 2)? };
    mixed.transpose(1, 2)?.reshape((batch, t, heads * d_v))
}

/// [`attention`] on the CPU. Each tile is worked by one thread, so the result does not depend on their number.
struct TiledAttention {
    scores: Scores,
    mask: AttentionMask,
}

/// Sizes of queries (batch, t, heads, d), keys (batch, keys, kv, d) and values (batch, keys, kv, d_v).
#[derive(Clone, Copy)]
struct Sizes {
    batch: usize,
    t: usize,
    heads: usize,
    d: usize,
    keys: usize,
    kv: usize,
    d_v: usize,
}

impl Sizes {
    fn new(q: &Shape, k: &Shape, v: &Shape) -> Result<Self> {
        let ((batch, t, heads, d), (_, keys, kv, _)) = (q.dims4()?, k.dims4()?);
        Ok(Self { batch, t, heads, d, keys, kv, d_v: v.dims4()?.3 })
    }

    /// `len` positions of a head from `query` on, in an array like all queries, or with `width` = d_v like the output.
    fn queries<'a>(
        &self,
        all: &'a [f32],
        width: usize,
        b: usize,
        query: usize,
        head: usize,
        len: usize,
    ) -> RowMajor<'a> {
        let stride = self.heads * width;
        RowMajor { data: &all[(b * self.t + query) * stride + head * width..], rows: len, cols: width, stride }
    }

    /// Some keys of a head, or with `width` = d_v some values.
    fn keys<'a>(&self, all: &'a [f32], width: usize, b: usize, span: &Range<usize>, kv_head: usize) -> RowMajor<'a> {
        let stride = self.kv * width;
        let data = &all[(b * self.keys + span.start) * stride + kv_head * width..];
        RowMajor { data, rows: span.len(), cols: width, stride }
    }
}

impl TiledAttention {
    /// Each sequence's next position, as in decoding: a product of two matrices would spend its time on setting out.
    fn one_query(&self, out: &mut [f32], sizes: Sizes, [q, k, v]: [&[f32]; 3]) {
        let Sizes { heads, d, keys, kv, d_v, .. } = sizes;
        let (scale, span) = (self.scale(d), self.mask.span(keys - 1, 1, keys));
        let stride = span.len().next_multiple_of(LANES);
        let least = TASK / (span.len() * (d + d_v)).max(1) + 1;
        let heads_of_all = out.par_chunks_mut(d_v.max(1)).enumerate().with_min_len(least);
        heads_of_all.for_each_init(Vec::new, |weights: &mut Vec<f32>, (i, out)| {
            let (b, head) = (i / heads, i % heads);
            let kv_head = head / (heads / kv);
            weights.resize(stride, 0.0);
            let query = &sizes.queries(q, d, b, 0, head, 1).data[..d];
            let seen = sizes.keys(k, d, b, &span, kv_head);
            dots_of_rows(&mut weights[..span.len()], query, seen.data, seen.stride);
            let visible = self.mask.visible(b, keys - 1, keys);
            let visible = visible.start - span.start..visible.end - span.start;
            let scale = self.cap(&mut weights[visible.clone()], scale);
            weigh(weights, &visible, scale);
            let values = sizes.keys(v, d_v, b, &span, kv_head);
            sum_of_rows(out, &weights[..span.len()], values.data, values.stride);
        });
    }

    fn scale(&self, d: usize) -> f32 {
        self.scores.scale.map_or(1.0 / (d as f32).sqrt(), |scale| scale as f32)
    }

    /// Turns the products of a query and keys into scores; the factor that they still lack.
    fn cap(&self, visible: &mut [f32], scale: f32) -> f32 {
        match self.scores.soft_cap {
            Some(cap) => {
                soft_cap(visible, scale, cap as f32);
                1.0
            }
            None => scale,
        }
    }
}

/// Scores of a query, of which those of `visible` keys count, become weights. The row is padded with keys that nobody sees.
fn weigh(row: &mut [f32], visible: &Range<usize>, scale: f32) {
    let lanes = visible.end.next_multiple_of(LANES);
    row[lanes..].fill(0.0);
    row[..visible.start].fill(f32::NEG_INFINITY);
    row[visible.end..lanes].fill(f32::NEG_INFINITY);
    softmax(&mut row[..lanes], scale);
}

impl CpuOp<3> for TiledAttention {
    const NAME: &'static str = "attention";

    fn forward(&self, [q, k, v]: [Input; 3]) -> Result<(Vec<f32>, Shape)> {
        let sizes = Sizes::new(q.shape, k.shape, v.shape)?;
        let Sizes { batch, t, heads, d, keys, kv, d_v } = sizes;
        let (width, scale, before) = (heads * d_v, self.scale(d), keys - t);
        let mut out = vec![0f32; batch * t * width];
        if t == 1 {
            self.one_query(&mut out, sizes, [&q, &k, &v]);
            return Ok((out, (batch, t, width).into()));
        }
        let tiles = out.par_chunks_mut((t * width).max(1)).enumerate().flat_map(|(b, rows)| {
            rows.par_chunks_mut(CPU_TILE * width).enumerate().map(move |(i, rows)| (b, i * CPU_TILE, rows))
        });
        tiles.for_each_init(Vec::new, |weights, (b, query, out)| {
            let (len, start) = (out.len() / width, before + query);
            let span = self.mask.span(start, len, keys);
            // Whole lanes only.
            let stride = span.len().next_multiple_of(LANES);
            weights.resize(len * stride, 0.0);
            for head in 0..heads {
                let kv_head = head / (heads / kv);
                let (queries, seen) = (sizes.queries(&q, d, b, query, head, len), sizes.keys(&k, d, b, &span, kv_head));
                nt_product(weights, stride, queries, seen);
                for (i, row) in weights.chunks_exact_mut(stride).enumerate() {
                    let visible = self.mask.visible(b, start + i, keys);
                    let visible = visible.start - span.start..visible.end - span.start;
                    let scale = self.cap(&mut row[visible.clone()], scale);
                    weigh(row, &visible, scale);
                }
                let weights = RowMajor { data: weights, rows: len, cols: span.len(), stride };
                nn_product(&mut out[head * d_v..], width, weights, sizes.keys(&v, d_v, b, &span, kv_head));
            }
        });
        Ok((out, (batch, t, width).into()))
    }

    /// One thread takes all query heads of a key/value head, which add to the same gradients.
    fn backward(&self, [q, k, v]: [Input; 3], g: &[f32], _: [bool; 3]) -> Result<[Vec<f32>; 3]> {
        let sizes = Sizes::new(q.shape, k.shape, v.shape)?;
        let Sizes { batch, t, heads, d, keys, kv, d_v } = sizes;
        let group = heads / kv;
        let (on_query, on_key, on_value) = (t * group * d, keys * d, keys * d_v);
        // (batch, kv, t, group, d), (batch, kv, keys, d), (batch, kv, keys, d_v).
        let mut on_q = vec![0f32; batch * kv * on_query];
        let (mut on_k, mut on_v) = (vec![0f32; batch * kv * on_key], vec![0f32; batch * kv * on_value]);
        let pass = Back { op: self, sizes, q: &q, k: &k, v: &v, g };
        let heads = on_q.par_chunks_mut(on_query.max(1)).zip(on_k.par_chunks_mut(on_key.max(1)));
        heads.zip(on_v.par_chunks_mut(on_value.max(1))).enumerate().for_each_init(
            Work::default,
            |work, (i, ((on_q, on_k), on_v))| {
                for query in (0..t).step_by(CPU_TILE) {
                    (0..group).for_each(|head| pass.tile(work, (i / kv, i % kv), query, head, on_q, on_k, on_v));
                }
            },
        );
        Ok([
            positions_first(&on_q, kv, t, group * d),
            positions_first(&on_k, kv, keys, d),
            positions_first(&on_v, kv, keys, d_v),
        ])
    }
}

/// (batch, heads, t, width) as (batch, t, heads, width).
fn positions_first(x: &[f32], heads: usize, t: usize, width: usize) -> Vec<f32> {
    let mut y = vec![0f32; x.len()];
    y.par_chunks_mut(width.max(1)).enumerate().with_min_len(64).for_each(|(i, y)| {
        let (row, head) = (i / heads, i % heads);
        y.copy_from_slice(&x[((row / t * heads + head) * t + row % t) * width..][..width]);
    });
    y
}

/// What the backward pass reads.
struct Back<'a> {
    op: &'a TiledAttention,
    sizes: Sizes,
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    /// On the output.
    g: &'a [f32],
}

/// Rows of one tile, each as long as the keys that it sees: weights, gradients, and slopes of the cap.
#[derive(Default)]
struct Work {
    weights: Vec<f32>,
    gradients: Vec<f32>,
    slopes: Vec<f32>,
}

impl Back<'_> {
    /// The queries from `query` on of head `head` of the group that reads key/value head `kv_head` of sequence `b`.
    #[allow(clippy::too_many_arguments, reason = "places to read from and places to write to")]
    fn tile(
        &self,
        work: &mut Work,
        (b, kv_head): (usize, usize),
        query: usize,
        head: usize,
        on_q: &mut [f32],
        on_k: &mut [f32],
        on_v: &mut [f32],
    ) {
        let Self { op, sizes, q, k, v, g } = self;
        let Sizes { t, heads, d, keys, kv, d_v, .. } = *sizes;
        let (group, len, start) = (heads / kv, CPU_TILE.min(t - query), keys - t + query);
        let span = op.mask.span(start, len, keys);
        let stride = span.len().next_multiple_of(LANES);
        let Work { weights, gradients, slopes } = work;
        for rows in [&mut *weights, gradients, slopes] {
            rows.resize(len * stride, 0.0);
        }
        let of_queries = |all, width| sizes.queries(all, width, b, query, kv_head * group + head, len);
        let (queries, on_out) = (of_queries(q, d), of_queries(g, d_v));
        let (seen_keys, seen_values) = (sizes.keys(k, d, b, &span, kv_head), sizes.keys(v, d_v, b, &span, kv_head));
        nt_product(weights, stride, queries, seen_keys);
        nt_product(gradients, stride, on_out, seen_values);
        let rows = weights.chunks_exact_mut(stride).zip(gradients.chunks_exact_mut(stride));
        for (i, ((weights, gradients), slopes)) in rows.zip(slopes.chunks_exact_mut(stride)).enumerate() {
            let visible = op.mask.visible(b, start + i, keys);
            let visible = visible.start - span.start..visible.end - span.start;
            let scale = op.cap(&mut weights[visible.clone()], op.scale(d));
            if op.scores.soft_cap.is_some() {
                slopes[visible.clone()].copy_from_slice(&weights[visible.clone()]);
            }
            weigh(weights, &visible, scale);
            gradients[..visible.start].fill(0.0);
            gradients[visible.end..].fill(0.0);
            softmax_back(&weights[visible.clone()], &mut gradients[visible.clone()], op.scale(d));
            if let Some(cap) = op.scores.soft_cap {
                soft_cap_back(&slopes[visible.clone()], cap as f32, &mut gradients[visible]);
            }
        }
        let rows = |data| RowMajor { data, rows: len, cols: span.len(), stride };
        let (weights, gradients) = (rows(weights), rows(gradients));
        nn_product(&mut on_q[(query * group + head) * d..], group * d, gradients, seen_keys);
        tn_product_add(&mut on_k[span.start * d..], d, gradients, queries);
        tn_product_add(&mut on_v[span.start * d_v..], d_v, weights, on_out);
    }
}

simd::for_each_width! {
    /// y_j = x · row j of a matrix whose rows lie `stride` apart.
    pub fn dots_of_rows(y: &mut [f32], x: &[f32], rows: &[f32], stride: usize) {
        let (chunks, rest) = x.as_chunks::<LANES>();
        for (j, y) in y.iter_mut().enumerate() {
            let row = &rows[j * stride..j * stride + x.len()];
            let (pieces, tail) = row.as_chunks::<LANES>();
            let mut lanes = [0f32; LANES];
            for (x, row) in chunks.iter().zip(pieces) {
                for lane in 0..LANES {
                    lanes[lane] += x[lane] * row[lane];
                }
            }
            let mut sum = simd::fold(lanes, |a, b| a + b);
            for (x, row) in rest.iter().zip(tail) {
                sum += x * row;
            }
            *y = sum;
        }
    }
}

simd::for_each_width! {
    /// y = Σ wⱼ · row j of a matrix whose rows lie `stride` apart.
    pub fn sum_of_rows(y: &mut [f32], w: &[f32], rows: &[f32], stride: usize) {
        y.fill(0.0);
        for (j, &w) in w.iter().enumerate() {
            for (y, x) in y.iter_mut().zip(&rows[j * stride..]) {
                *y += w * x;
            }
        }
    }
}

simd::for_each_width! {
    /// x ← exp(scale · (x − max)) / Σ, scale > 0.
    pub fn softmax(x: &mut [f32], scale: f32) {
        let max = max_of(x);
        for x in x.iter_mut() {
            *x = exp32(scale * (*x - max));
        }
        let factor = 1.0 / sum_of(x, #[inline(always)] |x| x);
        for x in x.iter_mut() {
            *x *= factor;
        }
    }
}

simd::for_each_width! {
    /// With p = softmax(scale · x), g becomes from the gradient on p that on x: scale · p (g − Σ g p).
    pub fn softmax_back(p: &[f32], g: &mut [f32], scale: f32) {
        for (&p, g) in p.iter().zip(g.iter_mut()) {
            *g *= p;
        }
        let mean = sum_of(g, #[inline(always)] |x| x);
        for (&p, g) in p.iter().zip(g) {
            *g = scale * (*g - p * mean);
        }
    }
}

simd::for_each_width! {
    /// x ← cap · tanh(scale · x / cap)
    pub fn soft_cap(x: &mut [f32], scale: f32, cap: f32) {
        let inner = scale / cap;
        for x in x.iter_mut() {
            *x = cap * tanh32(*x * inner);
        }
    }
}

simd::for_each_width! {
    /// g ← g (1 − (y / cap)²), the slope of the cap where it gave y.
    pub fn soft_cap_back(y: &[f32], cap: f32, g: &mut [f32]) {
        for (&y, g) in y.iter().zip(g) {
            let y = y / cap;
            *g *= 1.0 - y * y;
        }
    }
}

#[cfg(test)]
mod tests;
