//! LoRAP's integers and what is made of them for other shapes.

use super::oracles::LLAMA_7B_REST;
use super::*;

const EXACT: LorapOptions = LorapOptions { rho: 3.0, protect: 0.01, exact: true, multiple_of: 1 };
const FITTED: LorapOptions = LorapOptions { exact: false, ..EXACT };

fn of(plan: &Plan, role: Role) -> Choice {
    plan.choice(LinearId { block: 0, role }).unwrap()
}

/// Rank of q, k and of v, o; `None` is dense.
fn ranks(plan: &Plan) -> (Option<usize>, Option<usize>) {
    let rank = |role| match of(plan, role) {
        Choice::Rank(rank) => Some(rank),
        Choice::Dense => None,
        narrowed => panic!("{role} is {narrowed:?}"),
    };
    assert_eq!((rank(Role::Q), rank(Role::V)), (rank(Role::K), rank(Role::O)));
    (rank(Role::Q), rank(Role::V))
}

#[test]
fn attention_ranks() {
    for (h, removed, qk, vo) in [
        (4096, 0.20, 1228, None),
        (4096, 0.25, 1024, None),
        (4096, 0.30, 819, None),
        (4096, 0.50, 512, Some(1536)),
        (5120, 0.20, 1536, None),
        (5120, 0.25, 1280, None),
        (5120, 0.30, 1024, None),
        (5120, 0.50, 640, Some(1920)),
        (4096, 0.333, 684, None),
        (4096, 0.3334, 682, Some(2047)),
    ] {
        let items = llama(h, 11008, 1, h);
        let keep = Target::Keep(1.0 - removed);
        assert_eq!(ranks(&lorap(&items, keep, EXACT).unwrap()), (Some(qk), vo), "h {h} removed {removed}");
        // The general fractions say the same up to rounding.
        let fitted = lorap(&items, keep, FITTED).unwrap();
        for (role, paper) in [(Role::Q, Some(qk)), (Role::K, Some(qk)), (Role::V, vo), (Role::O, vo)] {
            match (of(&fitted, role), paper) {
                (Choice::Dense, None) => {}
                (Choice::Rank(rank), Some(paper)) if rank.abs_diff(paper) <= 1 => {}
                (Choice::Dense, Some(paper)) if paper == h / 2 - 1 => {}
                other => panic!("h {h} removed {removed} {role}: {other:?}"),
            }
        }
    }
}

#[test]
fn attention_parameters() {
    for (removed, fraction) in [(0.20, 0.79980), (0.25, 0.75000), (0.30, 0.69995), (0.50, 0.50000)] {
        let items: Vec<Item> = llama_7b().into_iter().filter(|item| item.id.role.is_attention()).collect();
        let plan = lorap(&items, Target::Keep(1.0 - removed), EXACT).unwrap();
        assert!((plan.keep() - fraction).abs() < 5e-6, "{}", plan.keep());
    }
}

#[test]
fn feed_forward_widths() {
    for (h, n, removed, left) in [
        (4096, 11008, 0.20, 8807),
        (4096, 11008, 0.25, 8256),
        (4096, 11008, 0.30, 7706),
        (4096, 11008, 0.50, 5504),
        (5120, 13824, 0.20, 11059),
        (5120, 13824, 0.25, 10368),
        (5120, 13824, 0.30, 9677),
        (5120, 13824, 0.50, 6912),
    ] {
        let plan = lorap(&llama(h, n, 2, h), Target::Keep(1.0 - removed), EXACT).unwrap();
        for role in [Role::Gate, Role::Up, Role::Down] {
            assert_eq!(of(&plan, role), Choice::Width(left), "N {n} removed {removed}");
        }
        assert_eq!(plan.cost(LinearId { block: 1, role: Role::Down }), Some(h * left));
        assert_eq!(plan.cost(LinearId { block: 1, role: Role::Up }), Some(h * left));
    }
}

#[test]
fn parameters_of_llama_7b() {
    let items = llama_7b();
    for (removed, parameters) in
        [(0.20, 5_443_031_040usize), (0.25, 5_119_414_272), (0.30, 4_795_666_432), (0.50, 3_500_412_928)]
    {
        let plan = lorap(&items, Target::Keep(1.0 - removed), EXACT).unwrap();
        assert_eq!(plan.kept + LLAMA_7B_REST, parameters, "removed {removed}");
    }
}

#[test]
fn grouped_queries() {
    // TinyLlama: q 2048 x 2048, k 256 x 2048. r* is 1024 and 227.56.
    let items = llama(2048, 5632, 22, 256);
    let plan = lorap(&items, Target::Keep(0.5), EXACT).unwrap();
    assert_eq!((of(&plan, Role::Q), of(&plan, Role::K)), (Choice::Rank(256), Choice::Rank(56)));
    assert_eq!((of(&plan, Role::V), of(&plan, Role::O)), (Choice::Rank(170), Choice::Rank(768)));
    let plan = lorap(&items, Target::Keep(0.8), EXACT).unwrap();
    assert_eq!((of(&plan, Role::Q), of(&plan, Role::K)), (Choice::Rank(614), Choice::Rank(136)));
    assert_eq!((of(&plan, Role::V), of(&plan, Role::O)), (Choice::Dense, Choice::Dense));
}

/// More parameters in q than in o: the halves are weighted by what they hold.
#[test]
fn unequal_halves() {
    let shape = |role, m, n| Item::new(LinearId { block: 0, role }, m, n);
    let items = [shape(Role::Q, 512, 128), shape(Role::K, 64, 128), shape(Role::V, 64, 128), shape(Role::O, 128, 256)];
    let total: usize = items.iter().map(Item::params).sum();
    for keep in [0.2, 0.4, 0.7, 0.9] {
        let plan = lorap(&items, Target::Keep(keep), FITTED).unwrap();
        check(&items, &plan);
        assert!((plan.kept as f64) > keep * total as f64 - 640.0, "keep {keep}: {}", plan.kept);
        let (qk, vo) = (plan.costs[0] + plan.costs[1], plan.costs[2] + plan.costs[3]);
        match vo == items[2].params() + items[3].params() {
            true => assert!(keep > 0.4),
            // Within the rounding of two ranks.
            false => assert!((vo as f64 - 3.0 * qk as f64).abs() < 3000.0, "keep {keep}: {qk} {vo}"),
        }
    }
}

#[test]
fn widths_are_equal_and_ranks_take_the_rest() {
    for (name, items) in real_shapes() {
        for keep in [0.97, 0.8, 0.5, 0.3, 0.1] {
            let paper = lorap(&items, Target::Keep(keep), EXACT).unwrap();
            let plan = lorap(&items, Target::Keep(keep), FITTED).unwrap();
            check(&items, &plan);
            let width = of(&plan, Role::Up);
            assert!(matches!(width, Choice::Width(_)));
            for ((id, choice), (_, papers)) in plan.choices.iter().zip(&paper.choices) {
                let largest = |id: &LinearId| {
                    let item = items.iter().find(|item| item.id == *id).unwrap();
                    largest_saving_rank(item.out, item.input)
                };
                match (choice, papers) {
                    // A channel less where the paper's rounding would exceed the budget.
                    (Choice::Width(_), Choice::Width(w)) => {
                        assert!(
                            *choice == width && [Choice::Width(*w), Choice::Width(w - 1)].contains(choice),
                            "{name} {id}"
                        );
                    }
                    (Choice::Dense, Choice::Dense) => assert!(matches!(id.role, Role::V | Role::O)),
                    (Choice::Rank(a), Choice::Rank(b)) => {
                        assert!(a >= b && a - b <= 2, "{name} keep {keep} {id}: {a} {b}")
                    }
                    (Choice::Dense, Choice::Rank(b)) => assert!(largest(id) - b <= 1, "{name} keep {keep} {id}: {b}"),
                    other => panic!("{name} keep {keep} {id}: {other:?}"),
                }
            }
        }
    }
}

#[test]
fn multiples_of_the_papers_integers() {
    let plan = lorap(&llama_7b(), Target::Keep(0.8), LorapOptions { multiple_of: 16, ..EXACT }).unwrap();
    assert_eq!(ranks(&plan), (Some(1216), None));
    assert_eq!(of(&plan, Role::Up), Choice::Width(8800));
}

#[test]
fn half_a_block_is_enough() {
    let items = llama(128, 352, 4, 64);
    let (attention, ffn): (Vec<Item>, Vec<Item>) = items.into_iter().partition(|item| item.id.role.is_attention());
    for half in [attention, ffn] {
        for keep in [0.9, 0.5, 0.31] {
            let plan = lorap(&half, Target::Keep(keep), FITTED).unwrap();
            check(&half, &plan);
            assert!(plan.budget - plan.kept < 4 * 3 * 128, "keep {keep}: {} of {}", plan.kept, plan.budget);
        }
    }
}

/// GPT-2: no gate, square attention.
#[test]
fn plain_feed_forward() {
    let items: Vec<Item> = llama(768, 3072, 12, 768).into_iter().filter(|item| item.id.role != Role::Gate).collect();
    let plan = lorap(&items, Target::Keep(0.5), EXACT).unwrap();
    // int(0.51 · 3072) - int(0.01 · 3072) = 1566 - 30 removed.
    assert_eq!((of(&plan, Role::Up), of(&plan, Role::Down)), (Choice::Width(1536), Choice::Width(1536)));
    assert_eq!(ranks(&plan), (Some(96), Some(288)));
}

#[test]
fn other_ratios() {
    let items = llama(128, 352, 4, 128);
    let plan = |rho, keep| lorap(&items, Target::Keep(keep), LorapOptions { rho, ..EXACT }).unwrap();
    assert_eq!(ranks(&plan(1.0, 0.5)), (Some(32), Some(32)));
    assert_eq!(ranks(&plan(0.5, 0.5)), (Some(42), Some(21)));
    for rho in [0.1, 0.3, 1.0, 10.0, 1000.0] {
        for keep in [0.2, 0.5, 0.9] {
            let plan = lorap(&items, Target::Keep(keep), LorapOptions { rho, ..FITTED }).unwrap();
            check(&items, &plan);
            assert!((plan.budget - plan.kept) as f64 <= 0.002 * plan.total as f64, "rho {rho} keep {keep}");
        }
    }
}

/// Too little for the shares: nothing vanishes, the budget still holds.
#[test]
fn very_little() {
    let items = llama(64, 172, 5, 32);
    for keep in [0.05, 0.03, 0.02] {
        let plan = lorap(&items, Target::Keep(keep), FITTED).unwrap();
        check(&items, &plan);
    }
    let text = complaint(lorap(&items, Target::Keep(0.01), EXACT));
    // k: floor(keep/2 · 21.33) reaches 1 at keep 0.09375.
    assert!(text.contains("smallest possible keep of this rule is 0.0938"), "{text}");
    check(&items, &lorap(&items, Target::Keep(0.0938), EXACT).unwrap());
}

#[test]
fn what_is_neither_attention_nor_feed_forward_keeps_a_uniform_rank() {
    let shape = |role| match role {
        Role::SsmIn => (512, 128),
        Role::SsmX => (40, 256),
        Role::SsmDt => (256, 8),
        _ => (128, 256),
    };
    let roles = [Role::SsmIn, Role::SsmX, Role::SsmDt, Role::SsmOut];
    let items: Vec<Item> = (0..3)
        .flat_map(|block| roles.map(|role| Item::new(LinearId { block, role }, shape(role).0, shape(role).1)))
        .collect();
    for exact in [true, false] {
        let options = LorapOptions { exact, ..LorapOptions::default() };
        let plan = lorap(&items, Target::Keep(0.6), options).unwrap();
        for (item, (_, choice)) in items.iter().zip(&plan.choices) {
            let paper = paper_rank(0.6, item.out, item.input);
            let Choice::Rank(rank) = *choice else { panic!("{}: {choice:?}", item.id) };
            assert!(rank == paper || !exact && rank == paper + 1, "{}: {rank} for {paper}", item.id);
        }
        assert!(plan.kept <= plan.budget && plan.rule.contains("no channels to prune"), "{}", plan.rule);
    }
}

#[test]
fn every_expert_is_a_feed_forward_layer_of_its_own() {
    let expert = |index| {
        let shapes = [(FfnPart::Gate, (40, 24)), (FfnPart::Up, (40, 24)), (FfnPart::Down, (24, 40))];
        shapes.map(|(part, (out, input))| Item::new(LinearId { block: 0, role: Role::Expert(index, part) }, out, input))
    };
    let items: Vec<Item> = (0..4).flat_map(expert).collect();
    let plan = lorap(&items, Target::Keep(0.6), LorapOptions::default()).unwrap();
    assert!(plan.choices.iter().all(|(_, choice)| *choice == Choice::Width(24)), "{:?}", plan.choices);
    let mistake = lorap(&items[..11], Target::Keep(0.6), LorapOptions::default()).unwrap_err();
    assert!(mistake.to_string().contains("moe.3.down"), "{mistake}");
}
