use super::super::parity;
use super::*;
use candle_core::{Device, IndexOp};

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
        let (y, last) = selective_scan_from(scan, &rows, &a, &skip, None).unwrap();
        let expected: Vec<_> = (0..2).map(|b| plainly(scan, &rows, &a, &skip, b)).collect();
        let y: Vec<Vec<Vec<f32>>> = y.to_vec3().unwrap();
        let size = expected.iter().flatten().flatten().fold(0f64, |m, x| m.max(x.abs()));
        for (y, expected) in y.iter().flatten().flatten().zip(expected.iter().flatten().flatten()) {
            assert!((f64::from(*y) - expected).abs() < 1e-6 * size, "{scan:?}: {y} for {expected}");
        }
        // In two parts, the second from where the first one ended.
        let (_, middle) = selective_scan_from(scan, &rows.narrow(1, 0, 29).unwrap(), &a, &skip, None).unwrap();
        let rest = rows.narrow(1, 29, 21).unwrap();
        let (second, end) = selective_scan_from(scan, &rest, &a, &skip, Some(&middle)).unwrap();
        let second: Vec<Vec<Vec<f32>>> = second.to_vec3().unwrap();
        assert!(y.iter().zip(&second).all(|(y, second)| y[29..] == second[..]), "{scan:?}");
        assert_eq!(end.to_vec3::<f32>().unwrap(), last.to_vec3::<f32>().unwrap(), "{scan:?}");
    }
}

#[test]
fn forms_agree() {
    for (scan, t) in SIZES.into_iter().zip([50, 2, 33, 53, 200]) {
        let (rows, a, skip) = inputs(scan, 2, t);
        let inputs = [rows, a, skip];
        let fast = |x: &[Tensor]| selective_scan(scan, &x[0], &x[1], &x[2]);
        let plain = |x: &[Tensor]| Ok(plain(scan, &x[0], &x[1], &x[2], None)?.0);
        parity::agree(&format!("{scan:?}"), &inputs, fast, plain);
        let (y, last) = selective_scan_from(scan, &inputs[0], &inputs[1], &inputs[2], None).unwrap();
        let alone = fast(&inputs).unwrap();
        assert_eq!(y.to_vec3::<f32>().unwrap(), alone.to_vec3::<f32>().unwrap(), "{scan:?}");
        let (y, end) = selective_scan_from(scan, &inputs[0], &inputs[1], &inputs[2], Some(&last)).unwrap();
        let (plain_y, plain_end) = super::plain(scan, &inputs[0], &inputs[1], &inputs[2], Some(&last)).unwrap();
        for (fast, plain) in [(y, plain_y), (end, plain_end)] {
            let size = plain.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
            let apart = (fast - plain).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
            assert!(apart < 1e-5 * size, "{scan:?}: {apart:e} of {size}");
        }
    }
}

#[test]
fn states_do_not_lose_gradients_in_silence() {
    let scan = SIZES[0];
    let (rows, a, skip) = inputs(scan, 1, 5);
    let rows = candle_core::Var::from_tensor(&rows).unwrap();
    let error = selective_scan_from(scan, &rows, &a, &skip, None).unwrap_err().to_string();
    assert!(error.contains("carries no gradients"), "{error}");
}
