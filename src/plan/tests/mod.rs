//! What the papers print, what brute force finds, and what every rule owes its user.

mod budgets;
mod forms;
mod global;
mod lorap;
mod mistakes;
mod oracles;

use super::*;
use crate::error::UserError;
use crate::model::Role;

const ROLES: [Role; 7] = [Role::Q, Role::K, Role::V, Role::O, Role::Gate, Role::Up, Role::Down];

/// The linears of a Llama: `kv` is the output width of k and v.
fn llama(hidden: usize, ffn: usize, blocks: usize, kv: usize) -> Vec<Item> {
    let block = |block| {
        let shape = move |role| match role {
            Role::Q | Role::O => (hidden, hidden),
            Role::K | Role::V => (kv, hidden),
            Role::Gate | Role::Up => (ffn, hidden),
            _ => (hidden, ffn),
        };
        ROLES.map(|role| Item::new(LinearId { block, role }, shape(role).0, shape(role).1))
    };
    (0..blocks).flat_map(block).collect()
}

fn llama_7b() -> Vec<Item> {
    llama(4096, 11008, 32, 4096)
}

/// The shapes that the project is measured on: demo, tinystories-656k, stories260k, llama-wiki-7m, TinyLlama.
fn real_shapes() -> Vec<(&'static str, Vec<Item>)> {
    vec![
        ("demo", llama(128, 352, 4, 64)),
        ("tinystories-656k", llama(128, 384, 2, 64)),
        ("stories260k", llama(64, 172, 5, 32)),
        ("llama-wiki-7m", llama(256, 704, 8, 128)),
        ("TinyLlama", llama(2048, 5632, 22, 256)),
    ]
}

/// Numbers in [0, 1) that are the same on every run.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Gives every item a spectrum that falls like a power of the index, steeper in some linears than in others.
fn with_spectra(mut items: Vec<Item>, seed: u64) -> Vec<Item> {
    let mut noise = Noise(seed);
    for item in &mut items {
        let (scale, power) = (10f64.powf(4.0 * noise.next()), 0.3 + 2.0 * noise.next());
        item.energy = Some((1..=item.out.min(item.input)).map(|i| scale * (i as f64).powf(-power)).collect());
        item.weight = 0.1 + noise.next();
    }
    items
}

fn error_of(items: &[Item], plan: &Plan) -> f64 {
    let tail = |item: &Item, rank: usize| -> f64 { item.energy.as_ref().unwrap()[rank..].iter().sum() };
    let error = |(item, &(_, choice)): (&Item, &(LinearId, Choice))| match choice {
        Choice::Rank(rank) => item.weight * tail(item, rank),
        _ => 0.0,
    };
    items.iter().zip(&plan.choices).map(error).sum()
}

/// What holds for every plan, whatever rule made it.
fn check(items: &[Item], plan: &Plan) {
    assert_eq!(plan.total, items.iter().map(Item::params).sum::<usize>());
    assert_eq!(plan.kept, plan.costs.iter().sum::<usize>());
    assert!(plan.kept <= plan.budget, "{} of {} spent: {}", plan.kept, plan.budget, plan.rule);
    for (item, &(id, choice)) in items.iter().zip(&plan.choices) {
        assert_eq!(item.id, id);
        assert_eq!(plan.choice(id), Some(choice));
        assert_eq!(plan.cost(id), Some(item.cost(choice)));
        match choice {
            Choice::Dense => {}
            Choice::Rank(rank) => {
                assert!((1..=largest_saving_rank(item.out, item.input)).contains(&rank), "{id}: {rank}")
            }
            Choice::Width(width) => assert!((1..item.out.max(item.input)).contains(&width), "{id}: {width}"),
            Choice::HeadDim { kept, of } => assert!((1..of).contains(&kept), "{id}: {kept} of {of}"),
        }
    }
}

/// The message and the hint of a mistake that must be the user's.
fn complaint(result: anyhow::Result<Plan>) -> String {
    let error = result.expect_err("a mistake went through");
    let error = error.downcast_ref::<UserError>().unwrap_or_else(|| panic!("not a user's mistake: {error}"));
    format!("{error}; {}", error.hint_text().unwrap_or_default())
}

#[test]
fn plans_and_names_survive_storage() {
    let items = llama(128, 384, 2, 64);
    let plan = lorap(&items, Target::Keep(0.5), LorapOptions::default()).unwrap();
    let text = serde_json::to_string(&plan).unwrap();
    assert!(text.contains(r#"["0.attn.q",{"rank":"#), "{text}");
    assert!(text.contains(r#"["1.mlp.down",{"width":"#), "{text}");
    assert_eq!(serde_json::from_str::<Plan>(&text).unwrap(), plan);

    for item in &items {
        assert_eq!(item.id.to_string().parse::<LinearId>().unwrap(), item.id);
    }
    for bad in [
        "",
        "1",
        "1.",
        "attn.q",
        "1.attn",
        "-1.attn.q",
        "+1.attn.q",
        ".attn.q",
        "1.attn.q ",
        "99999999999999999999.attn.q",
    ] {
        assert!(bad.parse::<LinearId>().is_err(), "{bad:?}");
    }
}

#[test]
fn blocks_know_whether_they_change() {
    let plan = last_blocks(&llama(128, 352, 4, 64), 1, 0.5, 1).unwrap();
    assert!(plan.block_is_dense(2) && !plan.block_is_dense(3));
    assert_eq!(plan.choice(LinearId { block: 4, role: Role::Q }), None);
    assert_eq!(plan.cost(LinearId { block: 4, role: Role::Q }), None);
}
