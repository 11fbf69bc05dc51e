//! Gram accumulation, factorisations and whole decompositions. `cargo bench --bench linalg`; `-- gram` runs one group.
//!
//! Products are reported as elements per second, an element being one multiply-add.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use softlm::calibrate::SiteStats;
use softlm::linalg::{Mat, Qr, evd_symmetric, gram_add, thin_svd};
use softlm::method::METHODS;

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
    gram_add(&mut gram, &noise(2 * n * n));
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
        group.bench_function(BenchmarkId::from_parameter(n), |b| b.iter(|| gram_add(&mut acc, &x)));
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

criterion_group!(benches, gram, matmul, factor, decompose);
criterion_main!(benches);
