#![no_main]

#[path = "../libfuzzer.rs"]
mod libfuzzer;

use libfuzzer_sys::{fuzz_mutator, fuzz_target};

fuzz_target!(|data: &[u8]| {
    libfuzzer::run("config", data);
});
fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    libfuzzer::mutate("config", data, size, max_size, seed)
});
