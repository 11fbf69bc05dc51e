//! Numbers that the LLM-ROM paper and plain arithmetic fix.

use super::*;

/// Embedding, head (32000 x 4096 each) and the 65 norms of LLaMA-7B.
pub(super) const LLAMA_7B_REST: usize = 2 * 32000 * 4096 + 65 * 4096;

#[test]
fn break_even_ranks() {
    for (m, n, exact) in [
        (4096, 4096, 2048.0),
        (11008, 4096, 2985.22),
        (14336, 4096, 3185.78),
        (1024, 4096, 819.2),
        (5120, 5120, 2560.0),
        (384, 384, 192.0),
        (1536, 384, 307.2),
        (384, 128, 96.0),
        (64, 128, 42.67),
        (172, 64, 46.64),
    ] {
        assert!((break_even(m, n) - exact).abs() < 0.005, "{m} x {n}");
        assert_eq!(break_even(m, n), break_even(n, m));
        let largest = largest_saving_rank(m, n);
        assert!(largest * (m + n) < m * n && (largest + 1) * (m + n) >= m * n, "{m} x {n}: {largest}");
        assert_eq!(Choice::of_rank(largest, m, n), Choice::Rank(largest));
        assert_eq!(Choice::of_rank(largest + 1, m, n), Choice::Dense);
    }
    // A break-even rank that is a whole number saves nothing.
    assert_eq!(largest_saving_rank(4096, 4096), 2047);
    assert_eq!(largest_saving_rank(1, 500), 0);
}

#[test]
fn paper_ranks() {
    for (keep, attention, ffn) in [(0.60, 1228, 1791), (0.46, 942, 1373), (0.33, 675, 985), (0.20, 409, 597)] {
        assert_eq!(paper_rank(keep, 4096, 4096), attention);
        assert_eq!(paper_rank(keep, 4096, 11008), ffn);
        assert_eq!(paper_rank(keep, 11008, 4096), ffn);
    }
    // 0.1 + 0.2 and 1 - 0.9 are not the numbers they look like; the ranks are.
    assert_eq!(paper_rank(0.1 + 0.2, 20, 20), 3);
    assert_eq!(paper_rank(1.0 - 0.9, 20, 20), 1);
    assert_eq!(paper_rank(0.7 * 0.1 / 0.07, 20, 20), 10);
}

#[test]
fn last_blocks_of_llama_7b() {
    let items = llama_7b();
    assert_eq!(items.iter().map(Item::params).sum::<usize>(), 6_476_005_376);
    for (blocks, block_keep, fraction, parameters, gigamacs) in [
        (8, 0.60, 0.89996, 6_090_557_440usize, 382.46),
        (12, 0.46, 0.79748, 5_426_883_584, 339.99),
        (24, 0.33, 0.49738, 3_483_428_864, 215.61),
    ] {
        let plan = last_blocks(&items, blocks, block_keep, 1).unwrap();
        check(&items, &plan);
        assert!((plan.keep() - fraction).abs() < 5e-6, "{}", plan.keep());
        assert_eq!(plan.kept + LLAMA_7B_REST, parameters);
        // At one sequence of 64 tokens: every weight and the head once per token, and the attention products.
        let macs = 64 * (plan.kept + 32000 * 4096) + 2 * 64 * 64 * 4096 * 32;
        assert!((macs as f64 / 1e9 - gigamacs).abs() < 0.005, "{macs}");
        for (id, choice) in &plan.choices {
            let rank = paper_rank(block_keep, if id.role.is_attention() { 4096 } else { 11008 }, 4096);
            assert_eq!(*choice, if id.block < 32 - blocks { Choice::Dense } else { Choice::Rank(rank) }, "{id}");
        }
    }
    assert!(last_blocks(&items, 12, 0.46, 1).unwrap().rule.contains("last 12 of 32 blocks keep 0.46"));
}

#[test]
fn block_budget_from_an_overall_budget() {
    let items = llama_7b();
    // 12 of 32 equal blocks at b: (20 + 12 b) / 32 = 0.8, b = 0.4667; the paper took 0.46.
    let plan = last_blocks_within(&items, Target::Keep(0.8), 12, 1).unwrap();
    check(&items, &plan);
    assert!((0.7999..=0.8).contains(&plan.keep()), "{}", plan.keep());
    assert!(plan.rule.contains("keep 0.4667"), "{}", plan.rule);
    assert!((0..20).all(|block| plan.block_is_dense(block)));
    let floor = paper_rank(0.46666, 4096, 4096);
    for (id, choice) in plan.choices.iter().filter(|(id, _)| id.block >= 20 && id.role.is_attention()) {
        assert!(matches!(choice, Choice::Rank(rank) if [floor, floor + 1].contains(rank)), "{id}: {choice:?}");
    }
    // All blocks: the same as the even rule.
    let all = last_blocks_within(&items, Target::Keep(0.8), 32, 1).unwrap();
    assert_eq!(all.choices, even(&items, Target::Keep(0.8), 1).unwrap().choices);
}

#[test]
fn uniform_is_the_floor_rule() {
    let items = llama_7b();
    let plan = uniform(&items, Target::Keep(0.6), 1).unwrap();
    check(&items, &plan);
    for (id, choice) in &plan.choices {
        assert_eq!(*choice, Choice::Rank(if id.role.is_attention() { 1228 } else { 1791 }), "{id}");
    }
    let plan = uniform(&items, Target::Keep(0.6), 8).unwrap();
    check(&items, &plan);
    for (id, choice) in &plan.choices {
        assert_eq!(*choice, Choice::Rank(if id.role.is_attention() { 1224 } else { 1784 }), "{id}");
    }
}
