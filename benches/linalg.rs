//! Gram accumulation, factorisations, whole decompositions, and operations beside candle's own.
//! `cargo bench --bench linalg`; `-- gram` runs one group.
//!
//! Products are reported as elements per second, an element being one multiply-add.

use candle_core::{D, Device, Result, Tensor};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use softlm::calibrate::SiteStats;
use softlm::linalg::{GramSums, Mat, Qr, evd_symmetric, gram_add, thin_svd};
use softlm::method::METHODS;
use softlm::ops::{self, Activation};

/// Deterministic values in [-1, 1).
fn noise(len: usize) -> Vec<f32> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

fn matrix(rows: usize, cols: usize) -> Mat {
    Mat::from_f32_rows(rows, cols, &noise(rows * cols))
}

fn stats(n: usize) -> SiteStats {
    let mut gram = Mat::zeros(n, n);
    gram_add(&mut gram, &noise(2 * n * n), GramSums::F64);
    gram.mirror_lower();
    SiteStats { tokens: 2 * n as u64, gram, sum: vec![0.0; n], heldout: Vec::new() }
}

fn gram(c: &mut Criterion) {
    let mut group = c.benchmark_group("gram");
    for n in [256, 704, 2048] {
        let tokens = 2048;
        let x = noise(tokens * n);
        let mut acc = Mat::zeros(n, n);
        group.throughput(Throughput::Elements((tokens * n * (n + 1) / 2) as u64));
        for (name, sums) in [("f64", GramSums::F64), ("f32 blocks", GramSums::F32Blocks)] {
            group.bench_function(BenchmarkId::new(name, n), |b| b.iter(|| gram_add(&mut acc, &x, sums)));
        }
    }
    group.finish();
}

fn matmul(c: &mut Criterion) {
    let mut group = c.benchmark_group("matmul");
    for n in [256, 1024] {
        let (a, b) = (matrix(n, n), matrix(n, n));
        group.throughput(Throughput::Elements((n * n * n) as u64));
        group.bench_function(BenchmarkId::new("nn", n), |bench| bench.iter(|| a.matmul(&b)));
        group.bench_function(BenchmarkId::new("tn", n), |bench| bench.iter(|| a.tn_matmul(&b)));
        group.bench_function(BenchmarkId::new("nt", n), |bench| bench.iter(|| a.nt_matmul(&b)));
    }
    group.finish();
}

fn factor(c: &mut Criterion) {
    let mut group = c.benchmark_group("factor");
    group.sample_size(10);
    for n in [256, 1024] {
        let symmetric = stats(n).gram;
        group.bench_function(BenchmarkId::new("evd", n), |b| b.iter(|| evd_symmetric(&symmetric, "bench").unwrap()));
    }
    for (m, n) in [(256, 704), (512, 1024), (1024, 512)] {
        let a = matrix(m, n);
        let shape = format!("{m}x{n}");
        group.bench_function(BenchmarkId::new("svd", &shape), |b| b.iter(|| thin_svd(&a, "bench").unwrap()));
        group.bench_function(BenchmarkId::new("qr", &shape), |b| b.iter(|| Qr::new(&a)));
    }
    group.finish();
}

fn decompose(c: &mut Criterion) {
    let mut group = c.benchmark_group("decompose");
    group.sample_size(10);
    for (m, n) in [(256, 704), (704, 256), (512, 1024), (1024, 512)] {
        let (w, stats) = (matrix(m, n), stats(n));
        for method in METHODS {
            group.bench_function(BenchmarkId::new(method.card().name, format!("{m}x{n}")), |b| {
                b.iter(|| method.decompose(&w, Some(&stats)).unwrap())
            });
        }
    }
    group.finish();
}

/// Each operation on the CPU, and what candle offers in its place.
fn operations(c: &mut Criterion) {
    let mut group = c.benchmark_group("operations");
    let (rows, width) = (512, 2048);
    let tensor = |shape: &[usize]| {
        Tensor::from_vec(noise(shape.iter().product()), shape, &Device::Cpu).expect("numbers for the shape")
    };
    let (a, b, weight, bias) = (tensor(&[rows, width]), tensor(&[rows, width]), tensor(&[width]), tensor(&[width]));
    group.throughput(Throughput::Elements((rows * width) as u64));
    let mut pair = |name: &str, ours: &dyn Fn() -> Result<Tensor>, theirs: &dyn Fn() -> Result<Tensor>| {
        group.bench_function(BenchmarkId::new(name, "ours"), |bench| bench.iter(|| ours().expect("a result")));
        group.bench_function(BenchmarkId::new(name, "candle"), |bench| bench.iter(|| theirs().expect("a result")));
    };
    pair("add", &|| ops::add(&a, &b), &|| &a + &b);
    pair("silu", &|| ops::activation(Activation::Silu, &a), &|| a.silu());
    pair("silu times", &|| ops::gated_activation(Activation::Silu, &a, &b), &|| a.silu()? * &b);
    pair("gelu", &|| ops::activation(Activation::Gelu, &a), &|| a.gelu_erf());
    pair("gelu tanh", &|| ops::activation(Activation::GeluTanh, &a), &|| a.gelu());
    pair("softplus", &|| ops::softplus(&a), &|| a.relu()? + (a.abs()?.neg()?.exp()? + 1.0)?.log()?);
    pair("rms norm", &|| ops::rms_norm(&a, &weight, 1e-5), &|| candle_nn::ops::rms_norm(&a, &weight, 1e-5));
    let theirs = || candle_nn::ops::layer_norm(&a, &weight, &bias, 1e-5);
    pair("layer norm", &|| ops::layer_norm(&a, &weight, &bias, 1e-5), &theirs);
    let log_sums = || {
        let sums = ops::with_numbers(&a, |a| a.chunks_exact(width).map(ops::log_sum_exp).collect::<Vec<_>>())?;
        Tensor::from_vec(sums, rows, &Device::Cpu)
    };
    pair("log-sum-exp", &log_sums, &|| a.log_sum_exp(D::Minus1));
    group.finish();
}

criterion_group!(benches, gram, matmul, factor, decompose, operations);
criterion_main!(benches);
