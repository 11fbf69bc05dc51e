//! Attention with grouped key/value heads, looking back or both ways.

use super::simd;
use crate::linalg::{RowMajor, nn_product, nt_product};
use anyhow::Result;
use candle_core::{CpuStorage, CustomOp3, D, Device, Layout, Shape, Tensor};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::Arc;

/// Queries of one head handled at once on the CPU: their scores stay in cache, and keys behind the last of them are
/// never looked at.
const CPU_TILE: usize = 64;
/// Queries handled at once on other devices: bounds the score matrix at heads · 512 · context.
const QUERY_CHUNK: usize = 512;

/// How queries and keys become weights: softmax over the keys in sight of cap(scale · q kᵀ), cap(s) = c tanh(s / c).
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Scores {
    /// By default 1/√d.
    pub scale: Option<f64>,
    /// c; by default scores are not capped.
    pub soft_cap: Option<f64>,
    /// Number of keys that a query sees at most, its own among them; by default all up to its own.
    pub window: Option<usize>,
}

impl Scores {
    pub(super) fn scale(&self, d: usize) -> f64 {
        self.scale.unwrap_or(1.0 / (d as f64).sqrt())
    }

    /// The first key that the query at position `i` sees; the last is key `i`.
    pub(super) fn first_seen(&self, i: usize) -> usize {
        self.window.map_or(0, |window| (i + 1).saturating_sub(window))
    }

    /// cap(scores), by operations that carry gradients.
    pub(super) fn cap(&self, scores: Tensor) -> Result<Tensor> {
        match self.soft_cap {
            Some(cap) => Ok(((scores / cap)?.tanh()? * cap)?),
            None => Ok(scores),
        }
    }
}

/// Which way a query looks for keys.
#[derive(Debug, Clone, Default)]
pub enum Reach {
    /// Back: keys up to its own, within the window.
    #[default]
    Back,
    /// Both ways: all keys of its sequence. Where lengths are given, sequence b has `lengths[b]` of them, at least one; what
    /// follows is padding.
    BothWays(Option<Arc<[usize]>>),
}

/// Which keys are in sight, and how they become weights.
#[derive(Debug, Clone, Default)]
pub struct Sight {
    pub scores: Scores,
    pub reach: Reach,
}

impl Sight {
    /// The keys that the query at position `i` of sequence `b` sees, of so many.
    pub(super) fn visible(&self, b: usize, i: usize, keys: usize) -> Range<usize> {
        match &self.reach {
            Reach::Back => self.scores.first_seen(i)..i + 1,
            Reach::BothWays(None) => 0..keys,
            Reach::BothWays(Some(lengths)) => 0..lengths[b],
        }
    }

    /// The keys that any of `len` queries from position `start` on may see, of so many.
    pub(super) fn span(&self, start: usize, len: usize, keys: usize) -> Range<usize> {
        match self.reach {
            Reach::Back => self.scores.first_seen(start)..start + len,
            Reach::BothWays(_) => 0..keys,
        }
    }

    /// What is added to the scores (batch · kv, group, len, span) of `len` queries from position `start` on: 0 where a key
    /// is in sight, −∞ where it is not. `None` where all are.
    pub(super) fn mask(
        &self,
        (batch, kv): (usize, usize),
        (start, len, keys): (usize, usize, usize),
        device: &Device,
    ) -> Result<Option<Tensor>> {
        let sequences = match &self.reach {
            Reach::BothWays(None) => return Ok(None),
            Reach::BothWays(Some(_)) => batch * kv,
            Reach::Back => 1,
        };
        let span = self.span(start, len, keys);
        let mut mask = Vec::with_capacity(sequences * len * span.len());
        for row in 0..sequences * len {
            let visible = self.visible(row / len / kv, start + row % len, keys);
            mask.extend(span.clone().map(|j| if visible.contains(&j) { 0.0 } else { f32::NEG_INFINITY }));
        }
        Ok(Some(Tensor::from_vec(mask, (sequences, 1, len, span.len()), device)?))
    }
}

/// `q` is (batch, t, heads, d), `k` and `v` are (batch, keys, kv_heads, d) with keys ≥ t: the queries stand at the last t
/// positions. The result is (batch, t, heads · d). Query head h reads key/value head h / (heads / kv_heads).
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, sight: Sight) -> Result<Tensor> {
    if q.device().is_cpu() {
        return Ok(q.contiguous()?.apply_op3_no_bwd(&k.contiguous()?, &v.contiguous()?, &CpuAttention(sight))?);
    }
    by_tensors(q, k, v, &sight)
}

/// [`attention`] by whole-tensor operations, for any device.
fn by_tensors(q: &Tensor, k: &Tensor, v: &Tensor, sight: &Sight) -> Result<Tensor> {
    let kind = sight.scores;
    let (batch, t, heads, d) = q.dims4()?;
    let (all_keys, kv) = (k.dim(1)?, k.dim(2)?);
    let (group, before) = (heads / kv, all_keys - t);
    let heads_first = |x: &Tensor| x.transpose(1, 2)?.contiguous();
    let q = (heads_first(q)? * kind.scale(d))?.reshape((batch * kv, group, t, d))?;
    let k = heads_first(k)?.reshape((batch * kv, all_keys, d))?;
    let v = heads_first(v)?.reshape((batch * kv, all_keys, d))?;
    let mut parts = Vec::new();
    for query in (0..t).step_by(QUERY_CHUNK) {
        let (len, start) = (QUERY_CHUNK.min(t - query), before + query);
        let span = sight.span(start, len, all_keys);
        let (first, seen) = (span.start, span.len());
        let rows = q.narrow(2, query, len)?.contiguous()?.reshape((batch * kv, group * len, d))?;
        let keys = k.narrow(1, first, seen)?.transpose(1, 2)?.contiguous()?;
        let mut scores = kind.cap(rows.matmul(&keys)?)?.reshape((batch * kv, group, len, seen))?;
        if let Some(mask) = sight.mask((batch, kv), (start, len, all_keys), scores.device())? {
            scores = scores.broadcast_add(&mask)?;
        }
        let weights = candle_nn::ops::softmax(&scores, D::Minus1)?;
        let values = v.narrow(1, first, seen)?.contiguous()?;
        let mixed = weights.reshape((batch * kv, group * len, seen))?.matmul(&values)?;
        parts.push(mixed.reshape((batch, kv * group, len, d))?);
    }
    let mixed = if parts.len() == 1 { parts.remove(0) } else { Tensor::cat(&parts, 2)? };
    Ok(mixed.transpose(1, 2)?.reshape((batch, t, heads * d))?)
}

/// [`attention`] tile by tile. Each tile is worked by one thread, so the result does not depend on their number.
struct CpuAttention(Sight);

impl CpuAttention {
    /// Turns the scores of a query into weights: keys `visible` of the row are in sight. The row is padded with keys that
    /// nobody sees.
    fn weigh(&self, row: &mut [f32], visible: Range<usize>, scale: f32) {
        let lanes = visible.end.next_multiple_of(simd::LANES);
        row[lanes..].fill(0.0);
        let mut scale = scale;
        if let Some(cap) = self.0.scores.soft_cap {
            simd::soft_cap(&mut row[visible.clone()], scale, cap as f32);
            scale = 1.0;
        }
        row[..visible.start].fill(f32::NEG_INFINITY);
        row[visible.end..lanes].fill(f32::NEG_INFINITY);
        simd::softmax(&mut row[..lanes], scale);
    }
}

impl CustomOp3 for CpuAttention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (batch, t, heads, d) = q_layout.shape().dims4()?;
        let (_, all_keys, kv, _) = k_layout.shape().dims4()?;
        let before = all_keys - t;
        let (q, k, v) = (slice(q, q_layout)?, slice(k, k_layout)?, slice(v, v_layout)?);
        let (width, kv_width) = (heads * d, kv * d);
        let scale = self.0.scores.scale.map_or(1.0 / (d as f32).sqrt(), |scale| scale as f32);
        let mut out = vec![0f32; batch * t * width];
        let tiles = out.par_chunks_mut((t * width).max(1)).enumerate().flat_map(|(b, rows)| {
            rows.par_chunks_mut(CPU_TILE * width).enumerate().map(move |(i, rows)| (b, i * CPU_TILE, rows))
        });
        tiles.for_each_init(Vec::new, |scores, (b, query, out)| {
            let (len, start) = (out.len() / width, before + query);
            let span = self.0.span(start, len, all_keys);
            let (from, seen) = (span.start, span.len());
            // Whole lanes only: rows are padded with keys that nobody sees.
            let stride = seen.next_multiple_of(simd::LANES);
            scores.resize(len * stride, 0.0);
            for head in 0..heads {
                let shared = head / (heads / kv) * d;
                let queries = &q[(b * t + query) * width + head * d..];
                let queries = RowMajor { data: queries, rows: len, cols: d, stride: width };
                let begin = (b * all_keys + from) * kv_width + shared;
                let keys = RowMajor { data: &k[begin..], rows: seen, cols: d, stride: kv_width };
                nt_product(scores, stride, queries, keys);
                for (i, row) in scores.chunks_exact_mut(stride).enumerate() {
                    let visible = self.0.visible(b, start + i, all_keys);
                    self.weigh(row, visible.start - from..visible.end - from, scale);
                }
                let weights = RowMajor { data: scores, rows: len, cols: seen, stride };
                let values = RowMajor { data: &v[begin..], rows: seen, cols: d, stride: kv_width };
                nn_product(&mut out[head * d..], width, weights, values);
            }
        });
        Ok((CpuStorage::F32(out), (batch, t, width).into()))
    }
}

/// The numbers of a contiguous tensor.
pub(super) fn slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> candle_core::Result<&'a [f32]> {
    let (from, to) =
        layout.contiguous_offsets().ok_or_else(|| candle_core::Error::msg("the tensor is not in one piece"))?;
    Ok(&storage.as_slice::<f32>()?[from..to])
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    const KINDS: [Scores; 4] = [
        Scores { scale: None, soft_cap: None, window: None },
        Scores { scale: Some(0.3), soft_cap: None, window: Some(1) },
        Scores { scale: None, soft_cap: None, window: Some(70) },
        Scores { scale: Some(0.7), soft_cap: Some(1.5), window: Some(9) },
    ];

    #[test]
    fn tiles_equal_whole_tensors() {
        let sizes = [(1, 1, 1, 1, 2), (2, 5, 4, 2, 8), (1, 64, 2, 1, 16), (3, 65, 4, 4, 6), (1, 600, 6, 2, 8)];
        for (batch, t, heads, kv, d) in sizes {
            let random = |heads| Tensor::randn(0f32, 1.5, (batch, t, heads, d), &Device::Cpu).unwrap();
            let (q, k, v) = (random(heads), random(kv), random(kv));
            let lengths: Vec<usize> = (0..batch).map(|b| t - b * t / 4).collect();
            let both = [None, Some(lengths.into())].map(|lengths| (KINDS[0], Reach::BothWays(lengths)));
            let back = KINDS.map(|scores| (scores, Reach::Back));
            for (scores, reach) in back.into_iter().chain(both) {
                let sight = Sight { scores, reach };
                let tiles = attention(&q, &k, &v, sight.clone()).unwrap();
                let whole = by_tensors(&q, &k, &v, &sight).unwrap();
                assert_eq!(tiles.dims(), [batch, t, heads * d]);
                let error = (tiles - whole).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
                assert!(error < 1e-5, "{batch} {t} {heads} {kv} {d} {sight:?}: {error}");
            }
        }
    }

    fn causal_attention(q: &Tensor, k: &Tensor, v: &Tensor, scores: Scores) -> Result<Tensor> {
        attention(q, k, v, Sight { scores, reach: Reach::Back })
    }

    #[test]
    fn padding_changes_nothing() {
        let random = |heads| Tensor::randn(0f32, 1.0, (2, 70, heads, 4), &Device::Cpu).unwrap();
        let (q, k, v) = (random(4), random(2), random(2));
        let sight =
            |lengths: Option<Vec<usize>>| Sight { reach: Reach::BothWays(lengths.map(Into::into)), ..Sight::default() };
        let padded = attention(&q, &k, &v, sight(Some(vec![70, 31]))).unwrap();
        for (b, length) in [(0, 70), (1, 31)] {
            let own = |x: &Tensor| x.narrow(0, b, 1).unwrap().narrow(1, 0, length).unwrap();
            let alone = attention(&own(&q), &own(&k), &own(&v), sight(None)).unwrap();
            let error = (own(&padded) - alone).unwrap().abs().unwrap().max_all().unwrap();
            assert!(error.to_scalar::<f32>().unwrap() < 1e-6, "{b}");
        }
    }

    #[test]
    fn the_last_queries_alone_are_those_of_all() {
        let (batch, t, heads, kv, d) = (2, 150, 4, 2, 8);
        let random = |heads| Tensor::randn(0f32, 1.5, (batch, t, heads, d), &Device::Cpu).unwrap();
        let (q, k, v) = (random(heads), random(kv), random(kv));
        for kind in KINDS {
            let all = causal_attention(&q, &k, &v, kind).unwrap();
            for last in [1, 67, 149] {
                let expected = all.narrow(1, t - last, last).unwrap();
                let q = q.narrow(1, t - last, last).unwrap();
                let sight = Sight { scores: kind, reach: Reach::Back };
                for found in [causal_attention(&q, &k, &v, kind), by_tensors(&q, &k, &v, &sight)] {
                    let error = (found.unwrap() - &expected).unwrap().abs().unwrap().max_all().unwrap();
                    assert!(error.to_scalar::<f32>().unwrap() < 1e-5, "{last} {kind:?}");
                }
            }
        }
    }

    #[test]
    fn later_positions_do_not_reach_back() {
        let random = |heads| Tensor::randn(0f32, 1.0, (1, 130, heads, 4), &Device::Cpu).unwrap();
        let (q, k, v) = (random(4), random(2), random(2));
        for kind in KINDS {
            let all: Vec<f32> = causal_attention(&q, &k, &v, kind).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            let start = |x: &Tensor| x.narrow(1, 0, 70).unwrap();
            let part = causal_attention(&start(&q), &start(&k), &start(&v), kind).unwrap();
            let part: Vec<f32> = part.flatten_all().unwrap().to_vec1().unwrap();
            assert!(part.iter().zip(&all).all(|(a, b)| (a - b).abs() < 1e-6), "{kind:?}");
        }
    }

    #[test]
    fn a_window_shows_the_last_keys_and_no_others() {
        let random = |heads| Tensor::randn(0f32, 1.0, (1, 100, heads, 4), &Device::Cpu).unwrap();
        let (q, k, v) = (random(2), random(2), random(2));
        let windowed = causal_attention(&q, &k, &v, Scores { window: Some(7), ..Scores::default() }).unwrap();
        let last = |x: &Tensor| x.narrow(1, 93, 7).unwrap();
        let alone = causal_attention(&last(&q), &last(&k), &last(&v), Scores::default()).unwrap();
        let error = (windowed.narrow(1, 99, 1).unwrap() - alone.narrow(1, 6, 1).unwrap()).unwrap();
        assert!(error.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap() < 1e-6);
    }
}
