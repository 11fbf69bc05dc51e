//! Numbers that look random and follow from a seed.
//!
//! Written out rather than taken from a crate because what a seed means must never change with a dependency.

/// SplitMix64 (Steele, Lea, Flood 2014): a counter stepped by the golden ratio, and a mixing function.
pub struct SplitMix64(u64);

/// 2^64 divided by the golden ratio.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

impl SplitMix64 {
    /// Starts at `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next of the sequence.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(STEP);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in `0..bound`: values in the incomplete last stretch of `u64` are drawn again.
    pub fn below(&mut self, bound: u64) -> u64 {
        let usable = u64::MAX - u64::MAX % bound;
        loop {
            let value = self.draw();
            if value < usable {
                return value % bound;
            }
        }
    }

    /// Fills `out` with what stands from `first` on in the sequence of `seed` made normal: mean 0, variance 1. Four
    /// uniform numbers of 16 bits are added up, so nothing lies beyond 3.5.
    pub fn fill_normal(seed: u64, first: usize, out: &mut [f32]) {
        let mut random = Self(seed.wrapping_add(STEP.wrapping_mul(first as u64)));
        for out in out {
            let bits = random.draw();
            let sum: f32 = [0, 16, 32, 48].map(|shift| (bits >> shift & 0xffff) as f32).iter().sum();
            // Each has mean (2^16 − 1) / 2 and variance (2^32 − 1) / 12.
            *out = (sum - 131_070.0) / 37_837.227;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splitmix_gives_the_reference_sequence() {
        let mut random = SplitMix64(1_234_567);
        let first: Vec<u64> = (0..3).map(|_| random.draw()).collect();
        assert_eq!(first, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
    }

    #[test]
    fn normal_numbers_are_so_and_do_not_depend_on_where_they_are_cut() {
        let mut all = vec![0f32; 100_000];
        SplitMix64::fill_normal(7, 0, &mut all);
        let mut part = vec![0f32; 100];
        SplitMix64::fill_normal(7, 5_000, &mut part);
        assert_eq!(part, all[5_000..5_100]);
        let moment = |k: i32| all.iter().map(|x| f64::from(*x).powi(k)).sum::<f64>() / all.len() as f64;
        assert!(moment(1).abs() < 0.01 && (moment(2) - 1.0).abs() < 0.01 && moment(3).abs() < 0.03);
    }
}
