//! Final states of windows that a model ran before, for an original that several models are compared with.

use super::states::{read, write};
use crate::hash::Sha256;
use crate::memory;
use anyhow::Result;
use candle_core::{Device, Tensor};
use std::collections::BTreeMap;
use std::fs::File;
use std::sync::{Mutex, PoisonError};

/// Bytes that are kept at most: what comes later is computed again each time.
const MOST: u64 = 8 << 30;

/// States of one model in a file without a name.
pub struct KeptStates {
    file: File,
    /// By the ids of windows, where their states lie.
    places: Mutex<BTreeMap<String, Vec<Place>>>,
}

#[derive(Clone)]
struct Place {
    offset: u64,
    shape: Vec<usize>,
}

impl KeptStates {
    /// Nothing kept yet.
    pub fn new() -> Result<Self> {
        Ok(Self { file: memory::scratch_file()?, places: Mutex::default() })
    }

    /// The states of windows with these ids: those that were kept, or what `run` makes, which is kept from here on. Whether
    /// they were kept comes with them.
    pub fn of(&self, ids: &[&[u32]], run: impl FnOnce() -> Result<Vec<Tensor>>) -> Result<(Vec<Tensor>, bool)> {
        let key = key(ids);
        let known = self.places.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        if let Some(places) = known {
            let states = places.iter().map(|place| read(&self.file, place.offset, &place.shape, &Device::Cpu));
            return Ok((states.collect::<Result<_>>()?, true));
        }
        let states = run()?;
        let mut end = self.file.metadata()?.len();
        let bytes: u64 = states.iter().map(|x| 4 * x.elem_count() as u64).sum();
        // Reading from a device's memory and back costs more than it saves.
        if end + bytes <= MOST && states.iter().all(|x| x.device().is_cpu()) {
            let mut places = Vec::with_capacity(states.len());
            for x in &states {
                write(&self.file, end, x)?;
                places.push(Place { offset: end, shape: x.dims().to_vec() });
                end += 4 * x.elem_count() as u64;
            }
            self.places.lock().unwrap_or_else(PoisonError::into_inner).insert(key, places);
        }
        Ok((states, false))
    }
}

fn key(ids: &[&[u32]]) -> String {
    let mut hash = Sha256::new();
    for ids in ids {
        hash.update((ids.len() as u64).to_le_bytes());
        ids.iter().for_each(|id| hash.update(id.to_le_bytes()));
    }
    hash.hex()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_of_the_same_windows_are_run_once() {
        let kept = KeptStates::new().unwrap();
        let made = |start: f32| {
            Ok(vec![Tensor::new(&[[start, 2.0], [3.0, 4.0]], &Device::Cpu)?, Tensor::new(&[[start]], &Device::Cpu)?])
        };
        let ids: [&[u32]; 2] = [&[1, 2], &[3]];
        let other: [&[u32]; 2] = [&[1], &[2, 3]];
        let numbers = |states: &[Tensor]| states.iter().map(|x| x.to_vec2::<f32>().unwrap()).collect::<Vec<_>>();
        let (first, was_kept) = kept.of(&ids, || made(0.5)).unwrap();
        assert!(!was_kept && !kept.of(&other, || made(7.0)).unwrap().1);
        let (again, was_kept) = kept.of(&ids, || panic!("they are there")).unwrap();
        assert!(was_kept);
        assert_eq!(numbers(&again), numbers(&first));
        assert_eq!(numbers(&kept.of(&other, || panic!("they are there")).unwrap().0), numbers(&made(7.0).unwrap()));
    }
}
