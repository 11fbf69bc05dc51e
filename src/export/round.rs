//! Numbers in the types that weights are stored in: exact on the way in, rounded once on the way out.

use crate::checkpoint::Dtype;
use half::{bf16, f16};

/// Whether weights may have this type.
pub(super) fn is_float(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16)
}

/// Stored little-endian elements as f64, which holds every value of every type. The type must be one of [`is_float`].
pub(super) fn decode(stored: Dtype, bytes: &[u8]) -> Vec<f64> {
    fn each<const N: usize>(bytes: &[u8], value: impl Fn([u8; N]) -> f64) -> Vec<f64> {
        bytes.as_chunks().0.iter().map(|&bytes| value(bytes)).collect()
    }
    match stored {
        Dtype::F16 => each(bytes, |b| f16::from_le_bytes(b).to_f64()),
        Dtype::BF16 => each(bytes, |b| bf16::from_le_bytes(b).to_f64()),
        Dtype::F32 => each(bytes, |b| f32::from_le_bytes(b).into()),
        Dtype::F64 => each(bytes, f64::from_le_bytes),
        other => unreachable!("the caller has checked {other}"),
    }
}

/// Appends `values`, each rounded to the nearest number of `dtype`, ties to even. NaN and infinity stay what they are.
///
/// # Errors
/// The first finite value that is beyond the type's range.
pub(super) fn encode(values: &[f64], dtype: Dtype, out: &mut Vec<u8>) -> Result<(), f64> {
    fn each<const N: usize>(
        values: &[f64],
        out: &mut Vec<u8>,
        round: impl Fn(f64) -> ([u8; N], bool),
    ) -> Result<(), f64> {
        for &value in values {
            let (bytes, finite) = round(value);
            if !finite && value.is_finite() {
                return Err(value);
            }
            out.extend_from_slice(&bytes);
        }
        Ok(())
    }
    out.reserve(values.len() * dtype.bitsize() / 8);
    match dtype {
        Dtype::F16 => each(values, out, |x| {
            let rounded = f16::from_f32(to_odd(x));
            (rounded.to_le_bytes(), rounded.is_finite())
        }),
        Dtype::BF16 => each(values, out, |x| {
            let rounded = bf16::from_f32(to_odd(x));
            (rounded.to_le_bytes(), rounded.is_finite())
        }),
        Dtype::F32 => each(values, out, |x| ((x as f32).to_le_bytes(), (x as f32).is_finite())),
        Dtype::F64 => each(values, out, |x| (x.to_le_bytes(), true)),
        other => unreachable!("the caller has checked {other}"),
    }
}

/// The f32 next to `x` towards zero, with its last bit set unless it is `x` itself. Rounding that to 16 bits gives what
/// rounding `x` would: rounding to the nearest f32 first could make a tie of what is none.
fn to_odd(x: f64) -> f32 {
    let nearest = x as f32;
    let back = f64::from(nearest);
    if back == x || x.is_nan() {
        return nearest;
    }
    let truncated = if back.abs() > x.abs() { nearest.to_bits() - 1 } else { nearest.to_bits() };
    f32::from_bits(truncated | 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rounded(dtype: Dtype, value: f64) -> f64 {
        let mut bytes = Vec::new();
        encode(&[value], dtype, &mut bytes).unwrap();
        decode(dtype, &bytes)[0]
    }

    /// The two neighbours of every midpoint, and the midpoint, which goes to the even one.
    #[test]
    fn every_number_of_16_bits_attracts_what_is_nearest() {
        for dtype in [Dtype::F16, Dtype::BF16] {
            let value = |bits: u16| decode(dtype, &bits.to_le_bytes())[0];
            let largest = if dtype == Dtype::F16 { 0x7bff } else { 0x7f7f };
            for bits in 0..largest {
                let (low, high) = (value(bits), value(bits + 1));
                let middle = low + (high - low) / 2.0;
                let even = if bits % 2 == 0 { low } else { high };
                for sign in [1.0, -1.0] {
                    assert_eq!(rounded(dtype, sign * low), sign * low);
                    assert_eq!(rounded(dtype, sign * middle), sign * even, "{dtype} {bits:#x}");
                    assert_eq!(rounded(dtype, sign * middle.next_up()), sign * high, "{dtype} {bits:#x}");
                    assert_eq!(rounded(dtype, sign * middle.next_down()), sign * low, "{dtype} {bits:#x}");
                }
            }
        }
    }

    #[test]
    fn what_is_beyond_a_type_is_an_error_and_what_is_no_number_stays() {
        let encode = |dtype, value| encode(&[1.0, value], dtype, &mut Vec::new());
        assert_eq!(encode(Dtype::F16, 65519.0), Ok(()));
        assert_eq!(encode(Dtype::F16, 65520.0), Err(65520.0));
        assert_eq!(encode(Dtype::BF16, -3.4e38), Err(-3.4e38));
        assert_eq!(encode(Dtype::F32, 1e39), Err(1e39));
        assert_eq!(encode(Dtype::F64, f64::MAX), Ok(()));
        for dtype in [Dtype::F16, Dtype::BF16, Dtype::F32, Dtype::F64] {
            assert!(rounded(dtype, f64::NAN).is_nan());
            assert_eq!(rounded(dtype, f64::NEG_INFINITY), f64::NEG_INFINITY);
            assert!(rounded(dtype, -0.0).is_sign_negative());
        }
    }
}
