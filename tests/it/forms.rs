//! The forms of a part of a block against textbook formulas in f64: `tests/golden/forms.json`, whose README says what it
//! holds.

use serde_json::Value;
use softlm::form::channels;
use softlm::form::value_output::{Heads, ValueOutput};
use softlm::linalg::Mat;
use std::path::Path;

/// Of what is compared, relative to its largest number; ridges of 1e-8 are in it.
const TOLERANCE: f64 = 1e-6;

fn golden(part: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/forms.json");
    let all: Value = serde_json::from_slice(&std::fs::read(path).expect("the reference")).expect("JSON");
    all[part].clone()
}

/// The reference's formula for inputs.
fn matrix(rows: usize, cols: usize, seed: usize) -> Mat {
    let (seed, x) = (seed as f64, |i: usize| i as f64);
    Mat::from_fn(rows, cols, |i, j| (seed + 0.7 * x(i).powi(2) + 1.3 * x(j) + 0.37 * x(i) * x(j)).sin())
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().expect("numbers").iter().map(|x| x.as_f64().expect("a number")).collect()
}

fn rows(value: &Value) -> Mat {
    let rows: Vec<Vec<f64>> = value.as_array().expect("rows").iter().map(numbers).collect();
    Mat::from_rows(rows.len(), rows[0].len(), &rows.concat())
}

fn indices(value: &Value) -> Vec<usize> {
    numbers(value).into_iter().map(|x| x as usize).collect()
}

#[track_caller]
fn near(found: &Mat, expected: &Mat) {
    let error = found.sub(expected).max_abs() / expected.max_abs();
    assert!(error < TOLERANCE, "{error:e}");
}

fn column(numbers: &[f64]) -> Mat {
    Mat::from_columns(numbers.len(), 1, numbers)
}

fn gram(x: &Mat) -> Mat {
    x.nt_matmul(x)
}

#[test]
fn channels_as_every_subset_tried() {
    let golden = golden("channels");
    let (w, mut x, r) = (matrix(5, 10, 1), matrix(10, 40, 2), matrix(5, 5, 3));
    x.scale_rows(&(0..10).map(|j| f64::from(1 + j % 4)).collect::<Vec<_>>());
    let weight = gram(&r);
    for (name, weight) in [("plain", None), ("weighted", Some(&weight))] {
        let expected = &golden[name];
        let found = channels::order_and_curve(&w, &gram(&x), weight).unwrap();
        assert_eq!(found.order, indices(&expected["order"]), "{name}");
        near(&column(&found.error), &column(&numbers(&expected["error"])));
        near(&channels::refit(&w, &gram(&x), &found.order[..6]).unwrap(), &rows(&expected["refit"]));
    }
}

#[test]
fn values_and_outputs_as_inverse_roots_give_them() {
    let golden = golden("value_output");
    let heads = Heads { heads: 4, groups: 2, dim: 4 };
    let (o, z, r) = (matrix(6, 16, 4), matrix(16, 50, 5), matrix(6, 6, 6));
    let weight = gram(&r);
    for (name, weight) in [("plain", None), ("weighted", Some(&weight))] {
        let form = ValueOutput::new(&o, &gram(&z), heads, weight).unwrap();
        near(&column(&form.error), &column(&numbers(&golden[name]["error"])));
        // Bases are free to turn: O' Ā is not. The identity as values gives the bases themselves.
        let cut = form.narrowed(2, &Mat::identity(8), None).unwrap();
        let mut merged = Mat::zeros(6, 16);
        for h in 0..4 {
            let g = h / 2;
            let basis = cut.value.row_range(2 * g..2 * g + 2).col_range(4 * g..4 * g + 4);
            let part = cut.output.col_range(2 * h..2 * h + 2).matmul(&basis);
            (0..4).for_each(|i| merged.col_mut(4 * h + i).copy_from_slice(part.col(i)));
        }
        near(&merged, &rows(&golden[name]["merged"]));
    }
}
