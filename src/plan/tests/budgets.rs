//! A budget is met closely and never exceeded.

use super::*;

const KEEPS: [f64; 8] = [0.95, 0.9, 0.8, 0.6, 0.5, 0.4, 0.3, 0.1];

/// Spent to less than one component of the finest linear that can still take one, unless dense everywhere.
fn close(name: &str, keep: f64, plan: &Plan) {
    let short = plan.budget - plan.kept;
    assert!(short as f64 <= 0.002 * plan.total as f64, "{name} keep {keep}: {short} of {} short", plan.total);
    assert!(plan.kept as f64 <= keep * plan.total as f64 + 1e-6, "{name} keep {keep}: {} exceeds", plan.kept);
}

#[test]
fn rules_meet_real_budgets() {
    for (name, items) in real_shapes() {
        for keep in KEEPS {
            for plan in [
                even(&items, Target::Keep(keep), 1).unwrap(),
                global(&with_spectra(items.clone(), 1), Target::Keep(keep), GlobalOptions::default()).unwrap(),
                lorap(&items, Target::Keep(keep), LorapOptions::default()).unwrap(),
            ] {
                check(&items, &plan);
                close(name, keep, &plan);
            }
            let floor = uniform(&items, Target::Keep(keep), 1).unwrap();
            check(&items, &floor);
        }
    }
}

#[test]
fn the_last_blocks_meet_the_whole_budget() {
    for (name, items) in real_shapes() {
        let blocks = items.len() / 7;
        for keep in [0.9, 0.8, 0.6] {
            let plan = last_blocks_within(&items, Target::Keep(keep), blocks.div_ceil(2), 1).unwrap();
            check(&items, &plan);
            close(name, keep, &plan);
        }
    }
}

#[test]
fn even_tops_up_the_floor_rule() {
    for (name, items) in real_shapes() {
        for keep in KEEPS {
            let floor = uniform(&items, Target::Keep(keep), 1).unwrap();
            let full = even(&items, Target::Keep(keep), 1).unwrap();
            for (item, (low, high)) in items.iter().zip(floor.costs.iter().zip(&full.costs)) {
                assert!(
                    low <= high && high - low <= 2 * (item.out + item.input),
                    "{name} keep {keep} {}: {low} {high}",
                    item.id
                );
            }
        }
    }
}

#[test]
fn multiples_are_kept() {
    for (name, items) in real_shapes() {
        let spectra = with_spectra(items.clone(), 2);
        for (keep, multiple_of) in [(0.8, 8), (0.6, 4), (0.5, 8)] {
            let target = Target::Keep(keep);
            for plan in [
                uniform(&items, target, multiple_of).unwrap(),
                even(&items, target, multiple_of).unwrap(),
                global(&spectra, target, GlobalOptions { multiple_of, ..Default::default() }).unwrap(),
                last_blocks(&items, 1, keep, multiple_of).unwrap(),
                last_blocks_within(&items, Target::Keep(0.9), items.len().div_ceil(14), multiple_of).unwrap(),
                lorap(&items, target, LorapOptions { multiple_of, ..Default::default() }).unwrap(),
            ] {
                check(&items, &plan);
                for (id, choice) in &plan.choices {
                    if let Choice::Rank(size) | Choice::Width(size) = choice {
                        assert_eq!(size % multiple_of, 0, "{name} keep {keep} {id}: {size}, {}", plan.rule);
                    }
                }
            }
        }
    }
}

#[test]
fn parameters_are_a_budget_too() {
    let items = llama(128, 352, 4, 64);
    let total: usize = items.iter().map(Item::params).sum();
    let by_keep = even(&items, Target::Keep(0.5), 1).unwrap();
    let by_params = even(&items, Target::Params(total / 2), 1).unwrap();
    assert_eq!(by_keep.choices, by_params.choices);
    assert!(even(&items, Target::Params(total - 1), 1).unwrap().kept < total);
    assert_eq!(even(&items, Target::Params(2 * total), 1).unwrap().kept, total);
}

#[test]
fn keep_1_is_dense() {
    let items = with_spectra(llama(128, 352, 4, 64), 3);
    let one = Target::Keep(1.0);
    for plan in [
        uniform(&items, one, 8).unwrap(),
        even(&items, one, 8).unwrap(),
        global(&items, one, GlobalOptions::default()).unwrap(),
        last_blocks(&items, 2, 1.0, 1).unwrap(),
        last_blocks_within(&items, one, 2, 1).unwrap(),
        lorap(&items, one, LorapOptions::default()).unwrap(),
        lorap(&items, one, LorapOptions { exact: true, ..Default::default() }).unwrap(),
    ] {
        assert!(plan.choices.iter().all(|(_, choice)| *choice == Choice::Dense));
        assert_eq!((plan.kept, plan.budget), (plan.total, plan.total));
    }
}

#[test]
fn shapes_that_cannot_shrink_stay_dense() {
    let id = |block| LinearId { block, role: Role::Q };
    let items = [Item::new(id(0), 1, 64), Item::new(id(1), 64, 64), Item::new(id(2), 2, 2)];
    let plan = even(&items, Target::Keep(0.5), 1).unwrap();
    check(&items, &plan);
    assert_eq!(plan.choices[0].1, Choice::Dense);
    assert!(matches!(plan.choices[1].1, Choice::Rank(_)));
    assert_eq!(plan.choices[2].1, Choice::Dense);
}
