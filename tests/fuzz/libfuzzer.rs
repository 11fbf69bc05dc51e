//! What every program of libFuzzer does with its target.

#[path = "targets/mod.rs"]
mod targets;

use std::sync::OnceLock;
use targets::Target;
use targets::memory::Counting;
use targets::mutate::Random;
use targets::place::Place;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

thread_local! {
    static PLACE: Place = Place::new();
}

/// Reads one input.
pub fn run(name: &str, data: &[u8]) {
    PLACE.with(|place| Target::named(name).check(data, place));
}

/// Changes an input in the way of its kind or in libFuzzer's, now and then that of a seed: so no corpus is needed to begin
/// with.
pub fn mutate(name: &str, data: &mut [u8], size: usize, max_size: usize, seed: u32) -> usize {
    static SEEDS: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    let target = Target::named(name);
    let seeds = SEEDS.get_or_init(target.seeds);
    let mut random = Random(seed.into());
    let from_seed = size < 8 || random.below(64) == 0;
    if !from_seed && random.below(3) == 0 {
        return libfuzzer_sys::fuzzer_mutate(data, size, max_size);
    }
    let mut input = if from_seed { seeds[random.below(seeds.len())].clone() } else { data[..size].to_vec() };
    (target.mutate)(&mut input, &mut random, seeds);
    let length = input.len().min(max_size);
    data[..length].copy_from_slice(&input[..length]);
    length
}
