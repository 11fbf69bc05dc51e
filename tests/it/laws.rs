//! Laws that every method obeys, checked over the explicit list: what a decomposition promises whatever paper it is from.

use rayon::ThreadPoolBuilder;
use softlm::calibrate::SiteStats;
use softlm::error::UserError;
use softlm::linalg::{GramSums, Mat, evd_symmetric, gram_add, thin_svd};
use softlm::method::{Decomposition, METHODS, Method, Needs, by_name, input_scales};

/// Deterministic noise, roughly normal.
pub struct Noise(pub u64);

impl Noise {
    fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let mixed = (self.0 ^ (self.0 >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (mixed >> 11) as f64 / (1u64 << 53) as f64 - 0.5
    }

    pub fn next(&mut self) -> f64 {
        (0..6).map(|_| self.uniform()).sum::<f64>() * 2f64.sqrt()
    }

    pub fn mat(&mut self, rows: usize, cols: usize) -> Mat {
        Mat::from_fn(rows, cols, |_, _| f64::from(self.next() as f32))
    }

    /// Row-major (tokens, n): correlated channels whose sizes differ by two orders of magnitude.
    pub fn inputs(&mut self, tokens: usize, n: usize) -> Vec<f32> {
        let mix = self.mat(n, n);
        let mut sources = self.mat(tokens, n);
        sources.scale_cols(&(0..n).map(|j| 100f64.powf(-(j as f64) / n as f64)).collect::<Vec<_>>());
        sources.matmul(&mix).to_f32_rows()
    }
}

pub fn stats(n: usize, x: &[f32]) -> SiteStats {
    summed(n, x, GramSums::F64)
}

fn summed(n: usize, x: &[f32], sums: GramSums) -> SiteStats {
    let mut gram = Mat::zeros(n, n);
    gram_add(&mut gram, x, sums);
    gram.mirror_lower();
    let sum = (0..n).map(|j| x.chunks(n).map(|x| f64::from(x[j])).sum()).collect();
    SiteStats { tokens: (x.len() / n) as u64, gram, sum, heldout: Vec::new() }
}

fn of_gram(gram: Mat) -> SiteStats {
    SiteStats { tokens: 1, sum: vec![0.0; gram.rows()], gram, heldout: Vec::new() }
}

fn cut(d: &Decomposition, rank: usize) -> Mat {
    d.b.col_range(0..rank).matmul(&d.a.row_range(0..rank))
}

/// tr(D G Dᵀ), the squared output error over the calibration tokens.
fn output_error(d: &Mat, gram: &Mat) -> f64 {
    let dg = d.matmul(gram);
    (0..d.cols()).map(|j| dg.col(j).iter().zip(d.col(j)).map(|(x, y)| x * y).sum::<f64>()).sum()
}

fn relative(a: &Mat, b: &Mat) -> f64 {
    a.sub(b).frobenius() / b.frobenius().max(f64::MIN_POSITIVE)
}

/// What the method says it minimises, measured on W − W'.
fn objective(method: &dyn Method, difference: &Mat, stats: &SiteStats) -> f64 {
    match method.card().name {
        "svd" => difference.frobenius().powi(2),
        "awsvd" | "lorap" => {
            let (scales, mean) = input_scales(stats).unwrap();
            let mut weighted = difference.clone();
            weighted.scale_cols(&scales);
            (weighted.frobenius() * mean).powi(2)
        }
        "auto" | "rom" | "whiten" | "soft" | "soco" => output_error(difference, &stats.gram),
        name => panic!("no law knows the objective of {name}"),
    }
}

const SHAPES: [(usize, usize); 8] = [(1, 1), (1, 5), (5, 1), (6, 6), (9, 23), (23, 9), (150, 131), (131, 150)];

/// Weights and statistics that are fair, and those that are not: too few tokens, dead channels, zero rows.
fn cases() -> Vec<(String, Mat, SiteStats)> {
    let mut noise = Noise(7);
    let mut all = Vec::new();
    for (m, n) in SHAPES {
        let mut add = |what: &str, w: Mat, s: SiteStats| all.push((format!("{what} ({m}, {n})"), w, s));
        let w = noise.mat(m, n);
        add("many tokens", w.clone(), stats(n, &noise.inputs(3 * n + 5, n)));
        add("few tokens", w.clone(), stats(n, &noise.inputs(n.div_ceil(3), n)));
        add("one token", w.clone(), stats(n, &noise.inputs(1, n)));
        add("silent inputs", w.clone(), of_gram(Mat::zeros(n, n)));
        add("white inputs", w.clone(), of_gram(Mat::identity(n)));
        let mut x = noise.inputs(3 * n, n);
        x.chunks_mut(n).for_each(|x| x.iter_mut().step_by(2).for_each(|x| *x = 0.0));
        add("dead channels", w.clone(), stats(n, &x));
        let zero_rows = Mat::from_fn(m, n, |i, j| if i % 2 == 0 { 0.0 } else { w.get(i, j) });
        add("zero rows", zero_rows, stats(n, &noise.inputs(3 * n, n)));
        add("zero weight", Mat::zeros(m, n), stats(n, &noise.inputs(3 * n, n)));
        let thin = noise.mat(m, 1).matmul(&noise.mat(1, n));
        add("rank one", thin, stats(n, &noise.inputs(3 * n, n)));
    }
    all
}

#[test]
fn full_rank_reproduces_the_weight() {
    for (what, w, stats) in cases() {
        for method in METHODS {
            let d = method.decompose(&w, Some(&stats)).unwrap();
            let k = w.rows().min(w.cols());
            assert_eq!((d.b.rows(), d.b.cols()), (w.rows(), k), "{what}");
            assert_eq!((d.a.rows(), d.a.cols()), (k, w.cols()), "{what}");
            assert_eq!(d.energy.len(), k, "{what}");
            let error = cut(&d, k).sub(&w).frobenius();
            assert!(error <= 1e-11 * w.frobenius(), "{} {what}: {error:e}", method.card().name);
        }
    }
}

#[test]
fn loss_falls_with_rank_and_is_the_measured_objective() {
    for (what, w, stats) in cases() {
        for method in METHODS {
            let what = format!("{} {what}", method.card().name);
            let d = method.decompose(&w, Some(&stats)).unwrap();
            let k = d.energy.len();
            assert!(d.energy.iter().all(|e| *e >= 0.0 && e.is_finite()), "{what}");
            assert!(d.energy.is_sorted_by(|a, b| a >= b), "{what}: {:?}", d.energy);
            assert_eq!(d.loss(k), 0.0, "{what}");
            let total = objective(*method, &w, &stats);
            for rank in (0..=k).step_by(k.div_ceil(9)).chain([k]) {
                let measured = objective(*method, &w.sub(&cut(&d, rank)), &stats);
                assert!(
                    (d.loss(rank) - measured).abs() <= 1e-11 * total,
                    "{what} rank {rank}: {measured:e} of {total:e}"
                );
            }
        }
    }
}

#[test]
fn order_and_scale_of_the_tokens_do_not_matter() {
    let mut noise = Noise(11);
    for (m, n) in [(9, 23), (23, 9), (140, 160)] {
        let (w, x) = (noise.mat(m, n), noise.inputs(4 * n, n));
        let permuted: Vec<f32> = x.chunks(n).rev().flatten().copied().collect();
        let scaled: Vec<f32> = x.iter().map(|x| x * 3.0).collect();
        let k = m.min(n);
        for method in METHODS {
            let name = method.card().name;
            let first = method.decompose(&w, Some(&stats(n, &x))).unwrap();
            for (x, growth) in [(permuted.clone(), 1.0), (scaled.clone(), 9.0)] {
                let second = method.decompose(&w, Some(&stats(n, &x))).unwrap();
                let growth = if method.needs() == Needs::Nothing { 1.0 } else { growth };
                // Rounding of 3 x to f32 is all that differs.
                let close = (first.loss(0) * growth - second.loss(0)).abs();
                assert!(close <= 1e-6 * second.loss(0), "{name} {close:e}");
                for rank in [1, k / 2] {
                    let error = relative(&cut(&second, rank), &cut(&first, rank));
                    assert!(error < 1e-4, "{name} ({m}, {n}) rank {rank}: {error:e}");
                }
                assert!(relative(&second.b, &first.b) < 1e-3, "{name}: factors must not depend on the scale");
            }
        }
    }
}

#[test]
fn damaged_input_is_an_error_and_never_a_panic() {
    let mut noise = Noise(3);
    for (m, n) in [(4, 6), (6, 4), (130, 140)] {
        let (w, good) = (noise.mat(m, n), stats(n, &noise.inputs(3 * n, n)));
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let (mut w_bad, mut stats_bad) = (w.clone(), good.clone());
            w_bad.set(m - 1, n / 2, bad);
            stats_bad.gram.set(n / 2, n / 2, bad);
            for method in METHODS {
                let mut results = vec![method.decompose(&w_bad, Some(&good))];
                if method.needs() == Needs::Gram {
                    results.push(method.decompose(&w, Some(&stats_bad)));
                }
                for result in results {
                    let error = result.expect_err(method.card().name);
                    assert!(
                        error.downcast_ref::<UserError>().is_some() && error.to_string().contains("infinite"),
                        "{error}"
                    );
                }
            }
        }
        for method in METHODS.iter().filter(|method| method.needs() == Needs::Gram) {
            assert!(method.decompose(&w, None).unwrap_err().to_string().contains("statistics"));
            let narrow = of_gram(Mat::identity(n - 1));
            assert!(method.decompose(&w, Some(&narrow)).unwrap_err().to_string().contains("do not fit"));
        }
    }
}

#[test]
fn bytes_do_not_depend_on_threads() {
    let mut noise = Noise(5);
    let shapes = [(300, 900), (900, 300)];
    let inputs: Vec<_> = shapes.iter().map(|&(m, n)| (noise.mat(m, n), noise.inputs(700, n))).collect();
    let run = |threads: usize| {
        let pool = ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let mut bits: Vec<u64> = Vec::new();
            for (w, x) in &inputs {
                let stats = stats(w.cols(), x);
                bits.extend(stats.gram.to_rows().iter().map(|x| x.to_bits()));
                for method in METHODS {
                    let d = method.decompose(w, Some(&stats)).unwrap();
                    let values = d.b.to_rows().into_iter().chain(d.a.to_rows()).chain(d.energy);
                    bits.extend(values.map(f64::to_bits));
                }
            }
            bits
        })
    };
    let one = run(1);
    assert!(one == run(2), "two threads differ from one");
    assert!(one == run(3), "three threads differ from one");
}

#[test]
fn output_pca_is_never_worse_on_its_own_ground() {
    let mut noise = Noise(13);
    for (m, n) in [(8, 8), (9, 23), (23, 9), (140, 130)] {
        let w = noise.mat(m, n);
        let stats = stats(n, &noise.inputs(4 * n, n));
        let diagonal = of_gram(Mat::from_fn(n, n, |i, j| if i == j { stats.gram.get(i, i) } else { 0.0 }));
        let [svd, awsvd, rom, whiten] =
            ["svd", "awsvd", "rom", "whiten"].map(|name| by_name(name).unwrap().decompose(&w, Some(&stats)).unwrap());
        let total = output_error(&w, &stats.gram);
        for rank in 0..=m.min(n) {
            let error = |d: &Decomposition, s: &SiteStats| output_error(&w.sub(&cut(d, rank)), &s.gram);
            let (best, slack) = (error(&rom, &stats), 1e-12 * total);
            assert!((best - error(&whiten, &stats)).abs() <= slack);
            assert!(best <= error(&svd, &stats) + slack && best <= error(&awsvd, &stats) + slack, "({m}, {n}) {rank}");
            let (weighted, slack) = (error(&awsvd, &diagonal), 1e-12 * output_error(&w, &diagonal.gram));
            assert!(weighted <= error(&svd, &diagonal) + slack && weighted <= error(&rom, &diagonal) + slack);
        }
        // Uncorrelated channels: all three weighted methods are one.
        for name in ["awsvd", "rom", "whiten"] {
            let d = by_name(name).unwrap().decompose(&w, Some(&diagonal)).unwrap();
            let a = by_name("awsvd").unwrap().decompose(&w, Some(&diagonal)).unwrap();
            assert!(relative(&cut(&d, m.min(n) / 2), &cut(&a, m.min(n) / 2)) < 1e-9, "{name}");
        }
        // Channels of one size that are uncorrelated: nothing but the weight is left to go by.
        let white = of_gram(Mat::from_fn(n, n, |i, j| if i == j { 2.5 } else { 0.0 }));
        for method in METHODS {
            let d = method.decompose(&w, Some(&white)).unwrap();
            assert!(relative(&cut(&d, m.min(n) / 2), &cut(&svd, m.min(n) / 2)) < 1e-9, "{}", method.card().name);
        }
    }
}

#[test]
fn output_pca_equals_the_whitened_svd_of_the_papers() {
    let mut noise = Noise(17);
    for (m, n) in [(7, 12), (12, 7), (10, 10)] {
        let w = noise.mat(m, n);
        let stats = stats(n, &noise.inputs(5 * n, n));
        // S = Q L^(1/2), S⁻¹ = L^(-1/2) Qᵀ, W' = U_r Σ_r V_rᵀ S⁻¹.
        let evd = evd_symmetric(&stats.gram, "test").unwrap();
        let roots: Vec<f64> = evd.values.iter().map(|x| x.sqrt()).collect();
        let (mut s, mut inverse) = (evd.vectors.clone(), evd.vectors.transpose());
        s.scale_cols(&roots);
        inverse.scale_rows(&roots.iter().map(|x| x.recip()).collect::<Vec<_>>());
        let svd = thin_svd(&w.matmul(&s), "test").unwrap();
        let d = by_name("rom").unwrap().decompose(&w, Some(&stats)).unwrap();
        for rank in 1..m.min(n) {
            let mut u = svd.u.col_range(0..rank);
            u.scale_cols(&svd.s[..rank]);
            let expected = u.nt_matmul(&svd.v.col_range(0..rank)).matmul(&inverse);
            assert!(relative(&cut(&d, rank), &expected) < 1e-9, "({m}, {n}) rank {rank}");
            let b = d.b.col_range(0..rank);
            assert!(b.tn_matmul(&b).sub(&Mat::identity(rank)).frobenius() < 1e-13);
            let p = b.nt_matmul(&b);
            assert!(p.matmul(&p).sub(&p).frobenius() < 1e-13, "a projection is idempotent");
        }
    }
}

#[test]
fn spare_rank_goes_to_what_calibration_did_not_see() {
    let mut noise = Noise(19);
    for (m, n) in [(12, 20), (20, 12)] {
        let w = noise.mat(m, n);
        let d = by_name("whiten").unwrap().decompose(&w, Some(&stats(n, &noise.inputs(2, n)))).unwrap();
        assert!(d.note.as_deref().is_some_and(|note| note.contains("2 of 12")), "{:?}", d.note);
        assert!(d.energy[1] > 0.0 && d.energy[2..].iter().all(|e| *e == 0.0));
        let rest = thin_svd(&w.sub(&cut(&d, 2)), "test").unwrap();
        for rank in 2..12 {
            let left: f64 = rest.s[rank - 2..].iter().map(|s| s * s).sum();
            let error = w.sub(&cut(&d, rank)).frobenius().powi(2);
            assert!((error - left).abs() < 1e-11 * w.frobenius().powi(2), "rank {rank}: {error} for {left}");
        }
    }
}

/// Products summed in f32 blocks, with inputs of full rank and with inputs that span a third of their channels.
#[test]
fn single_precision_sums_find_the_same_subspaces() {
    let mut noise = Noise(23);
    for (m, n) in [(140, 130), (130, 140)] {
        let w = noise.mat(m, n);
        let thin = noise.mat(2000, n / 3).matmul(&noise.mat(n / 3, n)).to_f32_rows();
        for (x, full) in [(noise.inputs(2000, n), true), (thin, false)] {
            let (exact, blocks) = (stats(n, &x), summed(n, &x, GramSums::F32Blocks));
            assert!(exact.gram != blocks.gram);
            let [best, found] = [&exact, &blocks].map(|s| by_name("whiten").unwrap().decompose(&w, Some(s)).unwrap());
            let total = output_error(&w, &exact.gram);
            let k = m.min(n);
            for rank in (0..=k).step_by(7).chain([n / 3, k]) {
                let [best, error] = [&best, &found].map(|d| output_error(&w.sub(&cut(d, rank)), &exact.gram) / total);
                assert!((error - best).abs() < 1e-9, "({m}, {n}) rank {rank}: {error:e} for {best:e}");
                assert!(full || rank < n / 3 || error < 1e-9, "({m}, {n}) rank {rank}: {error:e}");
            }
            assert!(relative(&cut(&found, k), &w) < 1e-11);
        }
    }
}

#[test]
fn hand_oracles() {
    let error = |name: &str, w: [f64; 4], gram: [f64; 4]| {
        let (w, stats) = (Mat::from_rows(2, 2, &w), of_gram(Mat::from_rows(2, 2, &gram)));
        let d = by_name(name).unwrap().decompose(&w, Some(&stats)).unwrap();
        output_error(&w.sub(&cut(&d, 1)), &stats.gram)
    };
    for (w, gram, svd, awsvd, rom) in [
        ([2., 0., 0., 1.], [2., 1., 1., 2.], 2.0, 2.0, 5.0 - 13f64.sqrt()),
        ([2., 0., 0., 1.], [1., 0., 0., 9.], 9.0, 4.0, 4.0),
        // Weighting by channel size alone can lose to no weighting at all.
        ([1., -1., 1., 0.], [2., -1., -1., 1.], 0.145898, 0.225769, 0.145898),
    ] {
        for (name, expected) in [("svd", svd), ("awsvd", awsvd), ("rom", rom), ("whiten", rom)] {
            let found = error(name, w, gram);
            assert!((found - expected).abs() < 5e-7, "{name} {w:?}: {found} for {expected}");
        }
    }
}

#[test]
fn every_method_is_found_and_documented() {
    for method in METHODS {
        let card = method.card();
        assert_eq!(by_name(card.name).unwrap().card().name, card.name);
        assert!(
            card.doc.trim_start().starts_with(&format!("# {}", card.name)) && card.doc.contains("| W"),
            "{}",
            card.name
        );
    }
    let error = by_name("svdd").err().unwrap();
    let hint = error.downcast_ref::<UserError>().unwrap().hint_text().unwrap();
    assert!(METHODS.iter().all(|method| hint.contains(method.card().name)), "{hint}");
}
