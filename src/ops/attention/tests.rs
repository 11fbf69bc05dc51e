use super::super::parity;
use super::*;
use candle_core::Device;

const CAUSAL: AttentionMask = AttentionMask::Causal { sliding_window: None };
const PLAIN: Scores = Scores { scale: None, soft_cap: None };

/// Scores, and how many keys a query sees at most.
const KINDS: [(Scores, Option<usize>); 4] = [
    (PLAIN, None),
    (Scores { scale: Some(0.3), soft_cap: None }, Some(1)),
    (PLAIN, Some(70)),
    (Scores { scale: Some(0.7), soft_cap: Some(1.5) }, Some(9)),
];

fn causal((scores, sliding_window): (Scores, Option<usize>)) -> (Scores, AttentionMask) {
    (scores, AttentionMask::Causal { sliding_window })
}

fn bidirectional(lengths: Option<&[usize]>) -> AttentionMask {
    AttentionMask::Bidirectional { lengths: lengths.map(Into::into) }
}

fn random(shape: [usize; 4]) -> Tensor {
    Tensor::randn(0f32, 1.0, &shape, &Device::Cpu).unwrap()
}

fn apart(a: &Tensor, b: &Tensor) -> f32 {
    (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap()
}

#[test]
fn forms_agree() {
    // Also where the queries are the last of the keys' positions alone.
    let sizes = [
        (1, 1, 1, 1, 1, 2, 2),
        (2, 5, 5, 4, 2, 8, 8),
        (1, 64, 64, 2, 1, 16, 16),
        (3, 65, 65, 4, 4, 6, 6),
        (2, 67, 150, 6, 2, 8, 8),
        // Values with other dimensions than queries and keys.
        (2, 5, 5, 4, 2, 8, 1),
        (2, 67, 69, 6, 2, 8, 11),
        (2, 67, 70, 6, 2, 8, 3),
        (2, 5, 5, 4, 2, 1, 3),
    ];
    for (batch, t, keys, heads, kv, d, d_v) in sizes {
        let wave = |t, heads, d, phase| parity::wave(&[batch, t, heads, d], phase);
        let inputs = [wave(t, heads, d, 0.0), wave(keys, kv, d, 1.0), wave(keys, kv, d_v, 2.0)];
        let lengths: Vec<usize> = (0..batch).map(|b| keys - b * keys / 4).collect();
        let both = [None, Some(&lengths[..])].map(|lengths| (KINDS[3].0, bidirectional(lengths)));
        for (scores, mask) in KINDS.map(causal).into_iter().chain(both) {
            // A query that sees one key has no gradient at all.
            if matches!(mask, AttentionMask::Causal { sliding_window: Some(1) }) || keys == 1 {
                let run = |f: &dyn Fn() -> Result<Tensor>| f().unwrap();
                let fast = run(&|| attention(&inputs[0], &inputs[1], &inputs[2], scores, &mask));
                let plain = run(&|| plain(&inputs[0], &inputs[1], &inputs[2], scores, &mask, 512));
                assert!(apart(&fast, &plain) < 1e-5);
                continue;
            }
            let what = format!("attention {batch} {t} {keys} {heads} {kv} {d} {d_v} {scores:?} {mask:?}");
            let fast = |x: &[Tensor]| attention(&x[0], &x[1], &x[2], scores, &mask);
            for chunk in [512, 33] {
                parity::agree(&what, &inputs, fast, |x| plain(&x[0], &x[1], &x[2], scores, &mask, chunk));
            }
        }
    }
}

#[test]
fn fewer_dimensions_are_those_that_are_zero_left_out() {
    let (q, k, v) = (random([2, 70, 6, 8]), random([2, 70, 3, 8]), random([2, 70, 3, 8]));
    let zeros_behind = |x: &Tensor, left: usize| x.narrow(3, 0, left).unwrap().pad_with_zeros(3, 0, 8 - left).unwrap();
    let (short_q, short_k, short_v) = (zeros_behind(&q, 5), zeros_behind(&k, 5), zeros_behind(&v, 3));
    let first = |x: &Tensor, left: usize| x.narrow(3, 0, left).unwrap();
    for (scores, mask) in KINDS.map(causal) {
        let padded = attention(&short_q, &short_k, &short_v, scores, &mask).unwrap();
        let scores = Scores { scale: scores.scale.or(Some(1.0 / 8f64.sqrt())), ..scores };
        let left = attention(&first(&q, 5), &first(&k, 5), &first(&v, 3), scores, &mask).unwrap();
        let padded = padded.reshape((2, 70, 6, 8)).unwrap();
        assert!(apart(&first(&padded, 3).reshape((2, 70, 18)).unwrap(), &left) < 1e-6, "{scores:?} {mask:?}");
        assert_eq!(padded.narrow(3, 3, 5).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap(), 0.0);
    }
}

#[test]
fn padding_changes_nothing() {
    let (q, k, v) = (random([2, 70, 4, 4]), random([2, 70, 2, 4]), random([2, 70, 2, 4]));
    let padded = attention(&q, &k, &v, PLAIN, &bidirectional(Some(&[70, 31]))).unwrap();
    for (b, length) in [(0, 70), (1, 31)] {
        let own = |x: &Tensor| x.narrow(0, b, 1).unwrap().narrow(1, 0, length).unwrap();
        let alone = attention(&own(&q), &own(&k), &own(&v), PLAIN, &bidirectional(None)).unwrap();
        assert!(apart(&own(&padded), &alone) < 1e-6, "{b}");
    }
}

#[test]
fn the_last_queries_alone_are_those_of_all() {
    let (batch, t, heads, kv, d) = (2, 150, 4, 2, 8);
    let (q, k, v) = (random([batch, t, heads, d]), random([batch, t, kv, d]), random([batch, t, kv, d]));
    for (scores, mask) in KINDS.map(causal) {
        let all = attention(&q, &k, &v, scores, &mask).unwrap();
        for last in [1, 67, 149] {
            let q = q.narrow(1, t - last, last).unwrap();
            let found = attention(&q, &k, &v, scores, &mask).unwrap();
            assert!(apart(&found, &all.narrow(1, t - last, last).unwrap()) < 1e-5, "{last} {scores:?} {mask:?}");
        }
    }
}

#[test]
fn later_positions_do_not_reach_back() {
    let (q, k, v) = (random([1, 130, 4, 4]), random([1, 130, 2, 4]), random([1, 130, 2, 4]));
    for (scores, mask) in KINDS.map(causal) {
        let all = attention(&q, &k, &v, scores, &mask).unwrap();
        let start = |x: &Tensor| x.narrow(1, 0, 70).unwrap();
        let part = attention(&start(&q), &start(&k), &start(&v), scores, &mask).unwrap();
        assert!(apart(&part, &start(&all)) < 1e-6, "{scores:?} {mask:?}");
    }
}

#[test]
fn a_window_shows_the_last_keys_and_no_others() {
    let (q, k, v) = (random([1, 100, 2, 4]), random([1, 100, 2, 4]), random([1, 100, 2, 4]));
    let windowed = attention(&q, &k, &v, PLAIN, &AttentionMask::Causal { sliding_window: Some(7) }).unwrap();
    let last = |x: &Tensor| x.narrow(1, 93, 7).unwrap();
    let alone = attention(&last(&q), &last(&k), &last(&v), PLAIN, &CAUSAL).unwrap();
    assert!(apart(&windowed.narrow(1, 99, 1).unwrap(), &alone.narrow(1, 6, 1).unwrap()) < 1e-6);
}

/// Values on both sides of zero, of every size that occurs.
fn values(len: usize, range: f32) -> Vec<f32> {
    (0..len).map(|i| ((i * 7919 % 10007) as f32 / 5003.0 - 1.0) * range).collect()
}

#[test]
fn softmax_agrees_with_f64_at_every_length() {
    for len in (1..70).chain([1000]) {
        let x = values(len, 9.0);
        let mut soft = x.clone();
        softmax(&mut soft, 0.5);
        let lse = x.iter().map(|&x| (f64::from(x) / 2.0).exp()).sum::<f64>().ln();
        for (soft, x) in soft.iter().zip(&x) {
            assert!((f64::from(*soft) / (f64::from(*x) / 2.0 - lse).exp() - 1.0).abs() < 1e-6, "{len}");
        }
    }
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut x = values(41, 1.0);
        x[17] = bad;
        softmax(&mut x, 1.0);
        // A score of −∞ means that a key is not looked at.
        assert_eq!(x.iter().all(|x| x.is_finite()), bad == f32::NEG_INFINITY, "{bad}");
    }
}

#[test]
fn soft_caps_agree_with_f64() {
    for range in [0.1, 1.0, 30.0, 4000.0] {
        let x = values(1003, range);
        let mut capped = x.clone();
        soft_cap(&mut capped, 0.5, 20.0);
        for (x, y) in x.iter().zip(&capped) {
            let wanted = 20.0 * (f64::from(*x) / 40.0).tanh();
            assert!((f64::from(*y) - wanted).abs() <= 5e-7 * wanted.abs(), "{x}: {y} for {wanted}");
        }
    }
    let mut bad = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
    soft_cap(&mut bad, 1.0, 3.0);
    assert!(bad[0].is_nan() && bad[1..] == [3.0, -3.0]);
}
