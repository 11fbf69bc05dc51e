//! What a user can ask for and not get.

use super::*;

type Rule = fn(&[Item], Target) -> anyhow::Result<Plan>;

/// All rules that take an overall budget.
const RULES: [Rule; 6] = [
    |items, target| uniform(items, target, 1),
    |items, target| even(items, target, 1),
    |items, target| global(items, target, GlobalOptions::default()),
    |items, target| last_blocks_within(items, target, 2, 1),
    |items, target| lorap(items, target, LorapOptions::default()),
    |items, target| lorap(items, target, LorapOptions { exact: true, ..Default::default() }),
];

#[test]
fn fractions_outside_0_1() {
    let items = with_spectra(llama(128, 352, 4, 64), 1);
    for (keep, shown) in [
        (0.0, "keep 0 "),
        (-0.5, "keep -0.5 "),
        (1.2, "keep 1.2 "),
        (f64::NAN, "keep NaN"),
        (f64::INFINITY, "keep inf"),
    ] {
        for rule in RULES {
            let text = complaint(rule(&items, Target::Keep(keep)));
            assert!(text.contains(shown), "{text}");
        }
        assert!(complaint(last_blocks(&items, 2, keep, 1)).contains("last blocks"));
    }
}

#[test]
fn the_smallest_keep_is_named_and_works() {
    for (name, items) in real_shapes() {
        let items = with_spectra(items, 1);
        for (i, rule) in RULES.into_iter().enumerate() {
            for target in [Target::Keep(0.0004), Target::Params(10)] {
                let text = complaint(rule(&items, target));
                let smallest: f64 = text
                    .split_once("smallest possible keep ")
                    .and_then(|(_, rest)| rest.split(';').next()?.split_whitespace().last()?.parse().ok())
                    .unwrap_or_else(|| panic!("{name}: {text}"));
                let plan = rule(&items, Target::Keep(smallest))
                    .unwrap_or_else(|error| panic!("{name} rule {i}: {text}, {error}"));
                check(&items, &plan);
                assert!(
                    rule(&items, Target::Keep(smallest - 1.01e-4)).is_err(),
                    "{name} rule {i}: less than {smallest} works"
                );
            }
        }
    }
}

#[test]
fn blocks_that_are_not_there() {
    let items = llama(128, 352, 4, 64);
    for blocks in [0, 5, usize::MAX] {
        for text in [
            complaint(last_blocks(&items, blocks, 0.5, 1)),
            complaint(last_blocks_within(&items, Target::Keep(0.8), blocks, 1)),
        ] {
            assert!(text.contains(&format!("last {blocks} blocks")) && text.contains("has 4"), "{text}");
        }
    }
    let text = complaint(last_blocks_within(&items, Target::Keep(0.4), 2, 1));
    assert!(text.contains("last 2 of 4 blocks alone") && text.contains("smallest possible keep is 0.5"), "{text}");
    assert!(complaint(last_blocks(&items, 2, 0.001, 1)).contains("rank 0"));
}

#[test]
fn broken_spectra() {
    let items = with_spectra(llama(64, 172, 1, 32), 1);
    let run = |change: &dyn Fn(&mut Item)| {
        let mut items = items.clone();
        change(&mut items[3]);
        global(&items, Target::Keep(0.5), GlobalOptions::default())
    };
    for value in [f64::NAN, f64::INFINITY, -1e-30] {
        let text = complaint(run(&|item| item.energy.as_mut().unwrap()[5] = value));
        assert!(text.contains("0.attn.o") && text.contains("component 5"), "{text}");
        assert!(complaint(run(&|item| item.weight = value)).contains("loss weight"));
    }
    assert!(complaint(run(&|item| item.energy.as_mut().unwrap().fill(f64::MAX))).contains("range"));
    // A spectrum that was never computed is the program's mistake.
    assert!(run(&|item| item.energy = None).unwrap_err().downcast_ref::<UserError>().is_none());
}

#[test]
fn options_out_of_range() {
    let items = with_spectra(llama(128, 352, 4, 64), 1);
    let half = Target::Keep(0.5);
    assert!(complaint(uniform(&items, half, 0)).contains("multiple of 0"));
    assert!(complaint(uniform(&[], half, 1)).contains("no linear"));
    assert!(complaint(uniform(&[Item::new(items[0].id, 0, 5)], half, 1)).contains("0 x 5"));
    assert!(complaint(uniform(&items, half, 64)).contains("multiples of 64"));
    for min_fraction in [-0.1, 1.1, f64::NAN] {
        assert!(
            complaint(global(&items, half, GlobalOptions { min_fraction, multiple_of: 1 })).contains("least fraction")
        );
    }
    let text = complaint(global(&items, half, GlobalOptions { min_fraction: 0.7, multiple_of: 1 }));
    assert!(text.contains("smallest possible keep is 0.7"), "{text}");
    for rho in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert!(complaint(lorap(&items, half, LorapOptions { rho, ..Default::default() })).contains("rho"));
    }
    for protect in [-0.1, 1.0, f64::NAN] {
        assert!(complaint(lorap(&items, half, LorapOptions { protect, ..Default::default() })).contains("protected"));
    }
    let alone: Vec<Item> = items.iter().filter(|item| item.id.role != Role::Up).cloned().collect();
    assert!(complaint(lorap(&alone, half, LorapOptions::default())).contains("mlp.up is not in the budget"));
}
