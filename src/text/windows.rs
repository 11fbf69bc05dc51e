//! Windows: a pure function of token ids, window length, stride and seed.
//!
//! The field's protocol, and the default everywhere in softlm: the whole text is tokenised once without special tokens
//! and cut into windows of `S` ids that do not overlap; what is left at the end is dropped. Windows are independent of
//! each other; each has `S - 1` targets, because its first id is only context.
//!
//! * With a BOS id every window is `[bos]` and `S - 1` ids of text, so it still has `S` ids and `S - 1` targets; windows
//!   start `S - 1` ids apart.
//! * With `stride < S` windows overlap: they start `stride` ids apart, and of every window but the first only the last
//!   `stride` targets count, so that no target counts twice and each has at least `S - stride` ids of context.

use anyhow::Result;

use crate::random::SplitMix64;
use crate::user_bail;
use serde::{Deserialize, Serialize};

/// One row for the model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// `S` token ids.
    pub ids: Vec<u32>,
    /// Index in `ids` of the first id whose prediction counts; at least 1. All later ids count too.
    pub first_target: usize,
}

impl Window {
    /// How many predictions of this window count.
    pub fn targets(&self) -> usize {
        self.ids.len() - self.first_target
    }
}

/// Windows of one text, in text order, and how they were cut.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Windows {
    /// The windows, all of the same length.
    pub rows: Vec<Window>,
    /// Length `S` of each window in ids, BOS included.
    pub window: usize,
    /// Distance between the starts of two windows in ids of text.
    pub stride: usize,
    /// Whether every window begins with a BOS id.
    pub bos: bool,
    /// Length of the text in ids, as far as it was tokenised, before anything was dropped.
    pub text_tokens: usize,
}

impl Windows {
    /// The ids of every window.
    pub fn ids(&self) -> Vec<&[u32]> {
        self.rows.iter().map(|row| row.ids.as_slice()).collect()
    }

    /// Number of windows.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is no window.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Number of predictions that count, over all windows.
    pub fn targets(&self) -> usize {
        self.rows.iter().map(Window::targets).sum()
    }

    /// Number of ids that the model sees, over all windows.
    pub fn tokens(&self) -> usize {
        self.rows.len() * self.window
    }

    fn with_rows(&self, indices: &[usize]) -> Self {
        let rows = indices.iter().map(|&index| self.rows[index].clone()).collect();
        Self { rows, ..*self }
    }
}

/// Cuts a token stream into windows of `window` ids, `stride` apart, each beginning with `bos` if there is one.
///
/// `stride == window` means windows that do not overlap, with and without BOS.
///
/// # Errors
/// A [`UserError`](crate::error::UserError) for a window without targets, a stride of zero or beyond the window, an
/// empty text, and a text shorter than one window.
pub fn cut(tokens: &[u32], window: usize, stride: usize, bos: Option<u32>) -> Result<Windows> {
    if window < 2 {
        user_bail!("a window of {window} tokens predicts nothing"; "use --window 2 or more; 2048 is usual");
    }
    if stride == 0 || stride > window {
        user_bail!("a stride of {stride} does not fit a window of {window}"; "use a --stride between 1 and {window}");
    }
    if tokens.is_empty() {
        user_bail!("the text is empty: there is nothing to cut into windows"; "give a text with at least {window} tokens");
    }
    let body = window - usize::from(bos.is_some());
    let step = stride.min(body);
    if tokens.len() < body {
        let count = tokens.len();
        let longest = count + usize::from(bos.is_some());
        if longest < 2 {
            user_bail!("the text has only {count} token, fewer than one window of {window}"; "give a longer text");
        }
        user_bail!(
            "the text has {count} tokens, fewer than one window of {window}";
            "give a longer text, or use --window {longest} or less"
        );
    }
    let rows = (0..=tokens.len() - body)
        .step_by(step)
        .map(|start| Window {
            ids: bos.into_iter().chain(tokens[start..start + body].iter().copied()).collect(),
            first_target: if start == 0 { 1 } else { (window - step).max(1) },
        })
        .collect();
    Ok(Windows { rows, window, stride: step, bos: bos.is_some(), text_tokens: tokens.len() })
}

/// [`cut`] for an encoder: every window of `window` ids begins with the first id of `frame` and ends with the second, as a
/// text of its own does. The last id is a target like the others.
///
/// # Errors
/// As [`cut`].
pub fn cut_framed(tokens: &[u32], window: usize, stride: usize, (front, behind): (u32, u32)) -> Result<Windows> {
    if window < 3 {
        user_bail!("a window of {window} tokens holds no text"; "use --window 3 or more; 128 is usual");
    }
    if (1..window - 2).contains(&tokens.len()) {
        let count = tokens.len();
        user_bail!(
            "the text has {count} tokens, fewer than one window of {window}";
            "give a longer text, or use --window {} or less", count + 2
        );
    }
    // One place less for the id behind the text.
    let stride = if stride == window { window - 1 } else { stride };
    let mut windows = cut(tokens, window - 1, stride, Some(front))?;
    windows.rows.iter_mut().for_each(|row| row.ids.push(behind));
    windows.window = window;
    Ok(windows)
}

/// Which windows to take when there are more than wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sampling {
    /// The first ones.
    First,
    /// A random choice that depends on nothing but the seed and the number of windows.
    Random {
        /// Any number.
        seed: u64,
    },
}

/// Takes `count` windows, or all of them if there are not that many. They stay in text order.
pub fn choose(windows: &Windows, count: usize, sampling: Sampling) -> Windows {
    split_heldout(windows, count, 0, sampling).0
}

/// Takes `want` windows to calibrate on and, from the others, up to `heldout` to measure on.
///
/// The calibration windows are those of [`choose`] with the same `sampling`. When too few others are left, calibration
/// gives some up, but never more than an eighth of all windows (or one window, if an eighth is less than one): a
/// calibration text that is hardly longer than wanted must not lose a quarter of itself. A single window is never
/// given up, so the second part can be empty. Both parts are in text order and have no window in common.
pub fn split_heldout(windows: &Windows, want: usize, heldout: usize, sampling: Sampling) -> (Windows, Windows) {
    let all = windows.len();
    let spare = all - want.min(all);
    let from_calibration = if all >= 2 { (all / 8).max(1) } else { 0 };
    let heldout = heldout.min(spare.max(from_calibration));
    let want = want.min(all - heldout);

    let mut order: Vec<usize> = (0..all).collect();
    if let Sampling::Random { seed } = sampling {
        shuffle(&mut order, seed);
    }
    let (chosen, others) = order.split_at_mut(want);
    let others = &mut others[..heldout];
    chosen.sort_unstable();
    others.sort_unstable();
    (windows.with_rows(chosen), windows.with_rows(others))
}

/// Fisher-Yates shuffle driven by SplitMix64.
pub fn shuffle(items: &mut [usize], seed: u64) {
    let mut random = SplitMix64::new(seed);
    for last in (1..items.len()).rev() {
        items.swap(last, random.below(last as u64 + 1) as usize);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(n: u32) -> Vec<u32> {
        (0..n).collect()
    }

    fn starts(windows: &Windows) -> Vec<u32> {
        windows.rows.iter().map(|row| row.ids[0]).collect()
    }

    #[test]
    fn default_windows_do_not_overlap_and_drop_the_tail() {
        let cut = cut(&ids(11), 4, 4, None).unwrap();
        assert_eq!(cut.rows.len(), 2);
        assert_eq!(cut.rows[1], Window { ids: vec![4, 5, 6, 7], first_target: 1 });
        assert_eq!((cut.targets(), cut.tokens(), cut.text_tokens), (6, 8, 11));
    }

    #[test]
    fn bos_takes_one_place_of_each_window() {
        let cut = cut(&ids(11), 4, 4, Some(99)).unwrap();
        assert_eq!(cut.rows.len(), 3);
        assert_eq!(cut.rows[2], Window { ids: vec![99, 6, 7, 8], first_target: 1 });
        assert_eq!((cut.stride, cut.bos, cut.targets()), (3, true, 9));
    }

    #[test]
    fn frames_stand_around_every_window() {
        let cut = cut_framed(&ids(11), 5, 5, (98, 99)).unwrap();
        let rows: Vec<&[u32]> = cut.ids();
        assert_eq!(rows, [[98, 0, 1, 2, 99], [98, 3, 4, 5, 99], [98, 6, 7, 8, 99]]);
        assert_eq!((cut.window, cut.stride, cut.tokens()), (5, 3, 15));
        let overlapping = cut_framed(&ids(9), 6, 2, (98, 99)).unwrap();
        assert_eq!(overlapping.rows[1], Window { ids: vec![98, 2, 3, 4, 5, 99], first_target: 3 });
        let message = cut_framed(&ids(2), 5, 5, (98, 99)).unwrap_err().to_string();
        assert!(message.contains("2 tokens") && message.contains("window of 5"), "{message}");
        assert!(cut_framed(&ids(9), 2, 2, (98, 99)).is_err() && cut_framed(&[], 5, 5, (98, 99)).is_err());
    }

    #[test]
    fn the_counts_of_published_protocols() {
        let llama2 = vec![0; 341_468];
        assert_eq!(cut(&llama2, 2048, 2048, None).unwrap().len(), 166);
        assert_eq!(cut(&llama2, 128, 128, None).unwrap().len(), 2667);
        let stories = vec![0; 134_730];
        let plain = cut(&stories, 256, 256, None).unwrap();
        assert_eq!((plain.len(), plain.targets()), (526, 134_130));
        let with_bos = cut(&stories, 256, 256, Some(1)).unwrap();
        assert_eq!((with_bos.len(), with_bos.targets()), (528, 134_640));
    }

    #[test]
    fn overlapping_windows_count_every_target_once() {
        for bos in [None, Some(99)] {
            for (length, window, stride) in [(40, 8, 3), (41, 8, 7), (64, 16, 1), (100, 10, 5)] {
                let cut = cut(&ids(length), window, stride, bos).unwrap();
                let counted: Vec<u32> = cut.rows.iter().flat_map(|row| row.ids[row.first_target..].to_vec()).collect();
                let first = u32::from(bos.is_none());
                assert_eq!(counted, (first..first + counted.len() as u32).collect::<Vec<_>>(), "{window}/{stride}");
                assert_eq!(counted.len(), cut.targets());
                assert!(cut.rows.iter().all(|row| row.ids.len() == window));
            }
        }
    }

    #[test]
    fn a_text_of_exactly_one_window_is_enough() {
        assert_eq!(cut(&ids(4), 4, 4, None).unwrap().len(), 1);
        assert_eq!(cut(&ids(3), 4, 4, Some(9)).unwrap().len(), 1);
    }

    #[test]
    fn mistakes_name_the_numbers() {
        let message = |result: Result<Windows>| {
            let error = result.unwrap_err();
            let user = error.downcast_ref::<crate::error::UserError>().expect("a user error");
            format!("{user} / {}", user.hint_text().expect("a hint"))
        };
        assert!(message(cut(&[], 8, 8, None)).contains("empty"));
        let short = message(cut(&ids(5), 8, 8, None));
        assert!(short.contains("5 tokens") && short.contains("window of 8") && short.contains("--window 5"), "{short}");
        assert!(message(cut(&ids(5), 8, 8, Some(0))).contains("--window 6"));
        assert!(message(cut(&ids(1), 8, 8, None)).contains("longer text"));
        assert!(message(cut(&ids(9), 1, 1, None)).contains("window of 1"));
        assert!(message(cut(&ids(9), 4, 0, None)).contains("stride of 0"));
        assert!(message(cut(&ids(9), 4, 5, None)).contains("stride of 5"));
    }

    #[test]
    fn a_seed_means_the_same_windows_for_ever() {
        let windows = cut(&ids(400), 4, 4, None).unwrap();
        let chosen = choose(&windows, 6, Sampling::Random { seed: 0 });
        assert_eq!(starts(&chosen), [8, 40, 128, 160, 348, 392]);
        assert_eq!(chosen, choose(&windows, 6, Sampling::Random { seed: 0 }));
        assert_ne!(chosen, choose(&windows, 6, Sampling::Random { seed: 1 }));
        assert_eq!(starts(&choose(&windows, 3, Sampling::First)), [0, 4, 8]);
        assert_eq!(choose(&windows, 1000, Sampling::Random { seed: 3 }), windows);
    }

    #[test]
    fn shuffles_are_permutations_and_fair() {
        let mut hits = [0usize; 5];
        for seed in 0..5000 {
            let mut order = [0, 1, 2, 3, 4];
            shuffle(&mut order, seed);
            hits[order[0]] += 1;
            order.sort_unstable();
            assert_eq!(order, [0, 1, 2, 3, 4]);
        }
        assert!(hits.iter().all(|&hit| (850..1150).contains(&hit)), "{hits:?}");
    }

    #[test]
    fn held_out_windows_are_spare_ones_where_possible() {
        let windows = cut(&ids(80), 4, 4, None).unwrap();
        for sampling in [Sampling::First, Sampling::Random { seed: 7 }] {
            for (want, heldout, expected) in [
                (10, 4, (10, 4)),
                (10, 10, (10, 10)),
                (20, 4, (18, 2)),
                (19, 4, (18, 2)),
                (17, 4, (17, 3)),
                (50, 0, (20, 0)),
            ] {
                let (calibration, held) = split_heldout(&windows, want, heldout, sampling);
                assert_eq!((calibration.len(), held.len()), expected, "{want} {heldout}");
                assert!(starts(&held).iter().all(|start| !starts(&calibration).contains(start)));
                assert!(starts(&calibration).is_sorted() && starts(&held).is_sorted());
            }
            assert_eq!(split_heldout(&windows, 10, 4, sampling).0, choose(&windows, 10, sampling));
        }
    }

    #[test]
    fn few_windows_give_up_one_and_a_single_window_none() {
        let counts = |n: u32, want, heldout| {
            let windows = cut(&ids(4 * n), 4, 4, None).unwrap();
            let (calibration, held) = split_heldout(&windows, want, heldout, Sampling::First);
            (calibration.len(), held.len())
        };
        assert_eq!(counts(1, 8, 2), (1, 0));
        assert_eq!(counts(2, 8, 2), (1, 1));
        assert_eq!(counts(7, 8, 2), (6, 1));
        assert_eq!(counts(16, 16, 8), (14, 2));
    }
}
