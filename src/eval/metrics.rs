//! Predictions against labels, and means.

/// The mean, and its standard error where there are at least two values: the sample's standard deviation (n − 1) over √n.
pub fn mean_and_error(values: &[f64]) -> (f64, Option<f64>) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1.0);
    (mean, (values.len() > 1).then(|| (variance / n).sqrt()))
}

/// Number of the first of the largest.
pub fn first_largest<T: PartialOrd>(values: &[T]) -> usize {
    let mut best = 0;
    for (i, value) in values.iter().enumerate() {
        if *value > values[best] {
            best = i;
        }
    }
    best
}

/// Fraction of predictions that are the label.
pub fn accuracy(predictions: &[f64], labels: &[f64]) -> f64 {
    let right = predictions.iter().zip(labels).filter(|(p, l)| p == l).count();
    right as f64 / labels.len().max(1) as f64
}

/// Harmonic mean of precision and recall of class 1; 0 if none is predicted and none is there.
pub fn f1(predictions: &[f64], labels: &[f64]) -> f64 {
    let ones = |x: &[f64]| x.iter().filter(|&&x| x == 1.0).count() as f64;
    let both = predictions.iter().zip(labels).filter(|&(&p, &l)| p == 1.0 && l == 1.0).count() as f64;
    let all = ones(predictions) + ones(labels);
    if all > 0.0 { 2.0 * both / all } else { 0.0 }
}

/// Pearson's correlation; 0 where one side does not vary.
pub fn pearson(predictions: &[f64], labels: &[f64]) -> f64 {
    let n = labels.len().max(1) as f64;
    let centred = |x: &[f64]| -> Vec<f64> {
        let mean = x.iter().sum::<f64>() / n;
        x.iter().map(|x| x - mean).collect()
    };
    let (a, b) = (centred(predictions), centred(labels));
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let size = (dot(&a, &a) * dot(&b, &b)).sqrt();
    if size > 0.0 { dot(&a, &b) / size } else { 0.0 }
}

/// Spearman's correlation: Pearson's of the ranks, equal values sharing the mean of theirs.
pub fn spearman(predictions: &[f64], labels: &[f64]) -> f64 {
    pearson(&ranks(predictions), &ranks(labels))
}

fn ranks(x: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..x.len()).collect();
    order.sort_by(|&a, &b| x[a].total_cmp(&x[b]));
    let mut ranks = vec![0.0; x.len()];
    let mut start = 0;
    for tie in order.chunk_by(|&a, &b| x[a] == x[b]) {
        let mean = start as f64 + (tie.len() - 1) as f64 / 2.0;
        tie.iter().for_each(|&i| ranks[i] = mean);
        start += tie.len();
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected values: numpy's mean, std(ddof=1) / sqrt(n), argmax.
    #[test]
    fn means_and_maxima_are_those_of_numpy() {
        let (mean, error) = mean_and_error(&[1.0, 0.0, 0.0, 1.0, 1.0]);
        assert!((mean - 0.6).abs() < 1e-15 && (error.unwrap() - 0.244_948_974_278_317_8).abs() < 1e-15);
        assert_eq!(mean_and_error(&[3.0]), (3.0, None));
        assert_eq!((first_largest(&[-2.0, -1.0, -1.0]), first_largest(&[f64::NEG_INFINITY; 2])), (1, 0));
    }

    /// Expected values: scipy.stats.spearmanr, pearsonr; sklearn.metrics.f1_score.
    #[test]
    fn metrics_are_those_of_scipy_and_sklearn() {
        let (x, y) = ([0.1, 0.5, 0.5, -2.0, 3.0, 0.2], [1.0, 2.0, 4.0, 0.0, 4.0, 4.0]);
        assert!((spearman(&x, &y) - 0.770_051_379_542_121_8).abs() < 1e-12, "{}", spearman(&x, &y));
        assert!((pearson(&x, &y) - 0.724_336_636_477_65).abs() < 1e-12, "{}", pearson(&x, &y));
        let (p, l) = ([1.0, 0.0, 1.0, 1.0, 0.0], [1.0, 1.0, 0.0, 1.0, 0.0]);
        assert!((f1(&p, &l) - 2.0 / 3.0).abs() < 1e-12 && (accuracy(&p, &l) - 0.6).abs() < 1e-12);
        assert_eq!((spearman(&[1.0; 3], &[1.0, 2.0, 3.0]), f1(&[0.0; 3], &[0.0; 3])), (0.0, 0.0));
    }
}
