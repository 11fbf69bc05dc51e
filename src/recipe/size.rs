//! Sizes and times as people write them.

use crate::user_bail;
use anyhow::Result;
use std::path::PathBuf;

/// `llama-7b-whiten-0.8` in the current folder, from what the model is called and how small it gets.
pub(crate) fn default_output(model: &str, method: &str, size: &str) -> PathBuf {
    let name = model.trim_end_matches('/').rsplit('/').next().unwrap_or(model);
    PathBuf::from(format!("{name}-{method}-{size}"))
}

/// `5GB`, `200MiB`, `1000000`: decimal and binary units.
pub fn parse_bytes(flag: &str, text: &str) -> Result<u64> {
    let split = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let scale = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "k" | "kb" => 1e3,
        "m" | "mb" => 1e6,
        "g" | "gb" => 1e9,
        "t" | "tb" => 1e12,
        "kib" => 1024.0,
        "mib" => 1024.0 * 1024.0,
        "gib" => 1024.0 * 1024.0 * 1024.0,
        _ => user_bail!("{flag} {text}: unknown unit"; "use B, KB, MB, GB or KiB, MiB, GiB"),
    };
    match number.parse::<f64>() {
        Ok(value) if value * scale >= 1.0 => Ok((value * scale) as u64),
        _ => user_bail!("{flag} {text} is not a size"; "for example 5GB or 200MiB"),
    }
}

/// `90s`, `20m`, `1.5h`: a time in seconds. A number alone is seconds.
pub(super) fn parse_seconds(flag: &str, text: &str) -> Result<f64> {
    let split = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let scale = match unit.trim() {
        "" | "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        _ => user_bail!("{flag} {text}: unknown unit"; "use s, m or h"),
    };
    match number.parse::<f64>() {
        Ok(value) if value > 0.0 => Ok(value * scale),
        _ => user_bail!("{flag} {text} is not a time"; "for example 90s, 20m or 1.5h"),
    }
}

/// `5%` as 0.05. Below 0 % nothing is allowed that is not better, which nobody means by an increase.
pub fn percentage(text: &str) -> std::result::Result<f64, String> {
    let digits = text.trim().strip_suffix('%').ok_or("write it as a percentage, for example 5%")?;
    match finite(digits)? / 100.0 {
        value if value >= 0.0 => Ok(value),
        _ => Err("must not be below 0%".to_string()),
    }
}

/// A finite number.
pub fn finite(text: &str) -> std::result::Result<f64, String> {
    let value = text.trim().parse::<f64>().map_err(|e| e.to_string())?;
    if value.is_finite() { Ok(value) } else { Err("must be a finite number".to_string()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_with_their_units() {
        let read = |text| parse_seconds("--x", text);
        assert_eq!([read("90").unwrap(), read("20m").unwrap(), read("1.5h").unwrap()], [90.0, 1200.0, 5400.0]);
        assert!(read("0").is_err() && read("m").is_err() && read("5d").is_err() && read("-1s").is_err());
    }

    #[test]
    fn sizes_are_read_with_their_units() {
        assert_eq!(parse_bytes("--x", "5GB").unwrap(), 5_000_000_000);
        assert_eq!(parse_bytes("--x", "1.5MiB").unwrap(), 1_572_864);
        assert_eq!(parse_bytes("--x", "123").unwrap(), 123);
        assert!(parse_bytes("--x", "5XB").is_err());
        assert!(parse_bytes("--x", "GB").is_err());
        assert!(parse_bytes("--x", "0").is_err());
    }
}
