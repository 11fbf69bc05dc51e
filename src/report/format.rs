//! Numbers as people read them.

use crate::number::in_words;

/// `6.95 M`: three significant digits and a decimal unit; exact with thousands separators below ten thousand.
pub fn count(n: u64) -> String {
    if n < 10_000 { grouped(n) } else { scaled(n as f64, &["", " k", " M", " B", " T"]) }
}

/// `13.9 MB`: decimal units, as file managers and the hub show them.
pub fn bytes(n: u64) -> String {
    if n < 1000 { format!("{n} B") } else { scaled(n as f64, &[" B", " kB", " MB", " GB", " TB", " PB"]) }
}

/// `15,300`.
pub fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `0.4 ms`, `12.3 s`, `2 min 05 s`, `1 h 02 min`.
pub fn seconds(s: f64) -> String {
    if !s.is_finite() || s < 0.0 {
        "?".to_string()
    } else if s == 0.0 {
        "0 s".to_string()
    } else if s < 0.0995 {
        format!("{} ms", significant(s * 1e3, 2))
    } else if s < 9.995 {
        format!("{s:.2} s")
    } else if s < 59.95 {
        format!("{s:.1} s")
    } else {
        let whole = s.round() as u64;
        match whole / 3600 {
            0 => format!("{} min {:02} s", whole / 60, whole % 60),
            hours => format!("{hours} h {:02} min", whole % 3600 / 60),
        }
    }
}

/// `x` with that many significant digits; scientific when very small or very large.
pub fn significant(x: f64, digits: usize) -> String {
    if let Some(words) = in_words(x) {
        return words.to_string();
    }
    if x == 0.0 {
        return "0".to_string();
    }
    match exponent(x, digits) {
        -4..=6 => format!("{x:.*}", decimals(x, digits)),
        _ => format!("{x:.*e}", digits.saturating_sub(1)),
    }
}

/// `50.53 ± 0.62`: `x` with at least `digits` significant digits, the error with at least two.
pub fn with_error(x: f64, error: Option<f64>, digits: usize) -> String {
    let Some(error) = error.filter(|e| e.is_finite() && x.is_finite()) else { return significant(x, digits) };
    if !(-4..=6).contains(&exponent(x, digits)) {
        return format!("{} ± {error:.1e}", significant(x, digits));
    }
    if error == 0.0 {
        return format!("{} ± 0", significant(x, digits));
    }
    let places = decimals(x, digits).max(decimals(error, 2)).min(6);
    format!("{x:.places$} ± {error:.places$}")
}

/// `80.0 %`.
pub fn percent(fraction: f64) -> String {
    in_words(fraction).map_or_else(|| format!("{:.1} %", 100.0 * fraction), String::from)
}

/// `x` with that many decimals.
pub fn fixed(x: f64, decimals: usize) -> String {
    in_words(x).map_or_else(|| format!("{x:.decimals$}"), String::from)
}

/// A fraction asked for or reached: up to four decimals.
pub fn fraction(x: f64) -> String {
    let text = format!("{x:.4}");
    text.trim_end_matches('0').trim_end_matches('.').to_string()
}

/// Relative change: `+13.0 %`, or `×23.4` when it is more than tenfold.
pub fn change(before: f64, after: f64) -> String {
    let ratio = after / before;
    if !ratio.is_finite() {
        "-".to_string()
    } else if ratio > 10.0 {
        format!("×{}", significant(ratio, 3))
    } else {
        format!("{:+.1} %", 100.0 * (ratio - 1.0))
    }
}

fn scaled(mut value: f64, units: &[&str]) -> String {
    let mut unit = 0;
    // 999.5 would be printed as 1000.
    while value >= 999.5 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    format!("{}{}", significant(value, 3), units[unit])
}

/// Decimal exponent of `x` after rounding to `digits` significant digits.
fn exponent(x: f64, digits: usize) -> i32 {
    if x == 0.0 || !x.is_finite() {
        return 0;
    }
    let text = format!("{x:.*e}", digits.saturating_sub(1));
    text.rsplit_once('e').and_then(|(_, e)| e.parse().ok()).unwrap_or(0)
}

/// Decimal places that show `digits` significant digits.
fn decimals(x: f64, digits: usize) -> usize {
    usize::try_from(digits as i32 - 1 - exponent(x, digits)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_bytes_have_three_digits_and_a_unit() {
        let counts = [0, 999, 9_999, 10_000, 869_504, 999_499, 999_500, 6_951_168, 6_738_415_616];
        let shown = counts.map(count);
        assert_eq!(shown, ["0", "999", "9,999", "10.0 k", "870 k", "999 k", "1.00 M", "6.95 M", "6.74 B"]);
        assert_eq!(
            [0, 999, 1000, 1_739_008, 999_600_000].map(bytes),
            ["0 B", "999 B", "1.00 kB", "1.74 MB", "1.00 GB"]
        );
        assert_eq!(grouped(1_234_567), "1,234,567");
    }

    #[test]
    fn seconds_choose_their_unit() {
        let shown = [0.0, 0.00042, 0.25, 9.999, 12.34, 59.96, 125.0, 3725.0, f64::NAN].map(seconds);
        assert_eq!(
            shown,
            ["0 s", "0.42 ms", "0.25 s", "10.0 s", "12.3 s", "1 min 00 s", "2 min 05 s", "1 h 02 min", "?"]
        );
    }

    #[test]
    fn significant_digits_survive_rounding_up() {
        let shown =
            [7.64597, 9.99996, 891.30211, 0.01234, 146_731.0, 12_345_678.0, 0.0000123].map(|x| significant(x, 4));
        assert_eq!(shown, ["7.646", "10.00", "891.3", "0.01234", "146731", "1.235e7", "1.230e-5"]);
        assert_eq!(
            [significant(0.0, 3), significant(f64::NAN, 3), significant(f64::INFINITY, 3)],
            ["0", "not a number", "infinite"]
        );
        assert_eq!([fixed(1.25, 1), fixed(f64::NAN, 4), percent(f64::NAN)], ["1.2", "not a number", "not a number"]);
    }

    #[test]
    fn errors_share_the_decimals_of_their_value() {
        assert_eq!(with_error(50.526, Some(0.62), 4), "50.53 ± 0.62");
        assert_eq!(with_error(7.64597, Some(0.0012), 4), "7.6460 ± 0.0012");
        assert_eq!(with_error(146.7314, Some(13.2), 4), "146.7 ± 13.2");
        assert_eq!(with_error(3.0e9, Some(2.0e5), 4), "3.000e9 ± 2.0e5");
        assert_eq!(with_error(3.0, Some(0.0), 4), "3.000 ± 0");
        assert_eq!(with_error(3.0, None, 4), "3.000");
        assert_eq!(with_error(3.0, Some(f64::NAN), 4), "3.000");
    }

    #[test]
    fn fractions_have_no_idle_zeros() {
        assert_eq!([0.8, 0.79987, 1.0, 0.46].map(fraction), ["0.8", "0.7999", "1", "0.46"]);
    }

    #[test]
    fn large_changes_become_factors() {
        assert_eq!(change(50.0, 56.5), "+13.0 %");
        assert_eq!(change(50.0, 49.0), "-2.0 %");
        assert_eq!(change(50.0, 5000.0), "×100");
        assert_eq!(change(50.0, f64::INFINITY), "-");
    }
}
