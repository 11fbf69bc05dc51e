//! From stored bytes to numbers and back: bf16, f16, f32 and f64, little-endian and at any alignment.
//!
//! On the way in elements go through in pieces that stay in the first-level cache, and each piece is checked for NaN and
//! infinity while it is there; stored f64 reaches a 16-bit type by way of f32. On the way out they are rounded once.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use safetensors::Dtype;

/// Elements per piece: 16 KiB of f32.
const PIECE: usize = 4096;

/// Whether weights may have this type.
pub fn is_float(dtype: Dtype) -> bool {
    float_size(dtype).is_some()
}

/// Bytes of one element if the dtype is one that weights may have.
pub(super) fn float_size(dtype: Dtype) -> Option<usize> {
    match dtype {
        Dtype::BF16 | Dtype::F16 => Some(2),
        Dtype::F32 => Some(4),
        Dtype::F64 => Some(8),
        _ => None,
    }
}

/// The first element that is not a finite number of the wanted type.
#[derive(Debug, PartialEq)]
pub(super) struct Bad {
    /// Flat index of the element.
    pub index: usize,
    /// Its stored value; finite if only the wanted type could not hold it.
    pub stored: f64,
}

/// A number that weights can be asked for as.
pub trait Number: candle_core::WithDType + Default {
    /// Decodes one piece; `scratch` has room for as many f32 as `out` has elements.
    fn decode(stored: Dtype, bytes: &[u8], scratch: &mut [f32], out: &mut [Self]);
    /// Whether all are finite.
    fn all_finite(values: &[Self]) -> bool;
    /// Whether this one is finite.
    fn finite(self) -> bool;
}

/// Decodes `bytes` into `out`. The dtype must be one that [`float_size`] knows and the lengths must agree.
pub(super) fn convert<T: Number>(stored: Dtype, bytes: &[u8], out: &mut [T]) -> Result<(), Bad> {
    let Some(size) = float_size(stored) else { unreachable!("the caller has checked {stored}") };
    assert_eq!(bytes.len(), out.len() * size);
    let mut scratch = [0f32; PIECE];
    for (i, (bytes, out)) in bytes.chunks(PIECE * size).zip(out.chunks_mut(PIECE)).enumerate() {
        T::decode(stored, bytes, &mut scratch[..out.len()], out);
        if !T::all_finite(out) {
            let at = out.iter().position(|value| !value.finite()).unwrap_or(0);
            let mut value = [0f64];
            f64::decode(stored, &bytes[at * size..(at + 1) * size], &mut [0f32], &mut value);
            return Err(Bad { index: i * PIECE + at, stored: value[0] });
        }
    }
    Ok(())
}

/// Stored little-endian elements as f32 or f64, whatever they are. The dtype must be one of [`is_float`].
pub fn decode<T: Number>(stored: Dtype, bytes: &[u8]) -> Vec<T> {
    let size = stored.bitsize() / 8;
    let mut values = vec![T::default(); bytes.len() / size];
    let mut scratch = [0f32; PIECE];
    for (bytes, values) in bytes.chunks(PIECE * size).zip(values.chunks_mut(PIECE)) {
        T::decode(stored, bytes, &mut scratch[..values.len()], values);
    }
    values
}

/// Appends `values`, each rounded to the nearest number of `dtype`, ties to even. NaN and infinity stay what they are.
///
/// # Errors
/// The first finite value that is beyond the type's range.
pub fn encode(values: &[f64], dtype: Dtype, out: &mut Vec<u8>) -> Result<(), f64> {
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

/// The first element among stored ones that is no finite f32, the type that models are run in. Uses a few KiB whatever
/// the length.
pub(super) fn first_bad(stored: Dtype, bytes: &[u8]) -> Option<Bad> {
    let size = float_size(stored)?;
    let mut values = [0f32; PIECE];
    for (i, bytes) in bytes.chunks(PIECE * size).enumerate() {
        if let Err(bad) = convert(stored, bytes, &mut values[..bytes.len() / size]) {
            return Some(Bad { index: i * PIECE + bad.index, ..bad });
        }
    }
    None
}

fn to_f32(stored: Dtype, bytes: &[u8], out: &mut [f32]) {
    match stored {
        Dtype::BF16 => each(bytes, out, |b| f32::from_bits((u16::from_le_bytes(b) as u32) << 16)),
        Dtype::F16 => {
            // half's slice conversion uses the processor's instruction, but needs aligned halves.
            let mut aligned = [f16::ZERO; PIECE];
            let aligned = &mut aligned[..out.len()];
            each(bytes, aligned, f16::from_le_bytes);
            aligned.convert_to_f32_slice(out);
        }
        Dtype::F64 => each(bytes, out, |b| f64::from_le_bytes(b) as f32),
        _ => each(bytes, out, f32::from_le_bytes),
    }
}

fn each<const N: usize, T>(bytes: &[u8], out: &mut [T], f: impl Fn([u8; N]) -> T) {
    for (out, bytes) in out.iter_mut().zip(bytes.as_chunks::<N>().0) {
        *out = f(*bytes);
    }
}

impl Number for f32 {
    fn decode(stored: Dtype, bytes: &[u8], _: &mut [f32], out: &mut [f32]) {
        to_f32(stored, bytes, out);
    }

    fn all_finite(values: &[f32]) -> bool {
        // Integer maximum: vectorises where a chain of float comparisons with early exit would not.
        values.iter().fold(0, |max, v| max.max(v.to_bits() & 0x7fff_ffff)) < 0x7f80_0000
    }

    fn finite(self) -> bool {
        self.is_finite()
    }
}

impl Number for f64 {
    fn decode(stored: Dtype, bytes: &[u8], scratch: &mut [f32], out: &mut [f64]) {
        if stored == Dtype::F64 {
            return each(bytes, out, f64::from_le_bytes);
        }
        to_f32(stored, bytes, scratch);
        out.iter_mut().zip(scratch).for_each(|(out, &mut value)| *out = value.into());
    }

    fn all_finite(values: &[f64]) -> bool {
        values.iter().fold(true, |all, v| all & v.is_finite())
    }

    fn finite(self) -> bool {
        self.is_finite()
    }
}

impl Number for bf16 {
    fn decode(stored: Dtype, bytes: &[u8], scratch: &mut [f32], out: &mut [bf16]) {
        if stored == Dtype::BF16 {
            return each(bytes, out, bf16::from_le_bytes);
        }
        to_f32(stored, bytes, scratch);
        out.convert_from_f32_slice(scratch);
    }

    fn all_finite(values: &[bf16]) -> bool {
        values.iter().fold(0, |max, v| max.max(v.to_bits() & 0x7fff)) < 0x7f80
    }

    fn finite(self) -> bool {
        self.is_finite()
    }
}

impl Number for f16 {
    fn decode(stored: Dtype, bytes: &[u8], scratch: &mut [f32], out: &mut [f16]) {
        if stored == Dtype::F16 {
            return each(bytes, out, f16::from_le_bytes);
        }
        to_f32(stored, bytes, scratch);
        out.convert_from_f32_slice(scratch);
    }

    fn all_finite(values: &[f16]) -> bool {
        values.iter().fold(0, |max, v| max.max(v.to_bits() & 0x7fff)) < 0x7c00
    }

    fn finite(self) -> bool {
        self.is_finite()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encode(dtype: Dtype, values: &[f64]) -> Vec<u8> {
        let one = |v: f64| match dtype {
            Dtype::BF16 => bf16::from_f64(v).to_le_bytes().to_vec(),
            Dtype::F16 => f16::from_f64(v).to_le_bytes().to_vec(),
            Dtype::F32 => (v as f32).to_le_bytes().to_vec(),
            _ => v.to_le_bytes().to_vec(),
        };
        values.iter().flat_map(|&v| one(v)).collect()
    }

    const FLOATS: [Dtype; 4] = [Dtype::BF16, Dtype::F16, Dtype::F32, Dtype::F64];

    /// Values with few bits survive every pair of types exactly, at any alignment and across pieces.
    #[test]
    fn every_pair_of_types_at_odd_addresses() {
        let values: Vec<f64> = (0..PIECE * 2 + 17).map(|i| ((i % 129) as f64 - 64.0) / 8.0).collect();
        for stored in FLOATS {
            let mut shifted = vec![0u8];
            shifted.extend(encode(stored, &values));
            let bytes = &shifted[1..];
            fn check<T: Number>(stored: Dtype, bytes: &[u8], values: &[f64]) {
                let mut out = vec![T::default(); values.len()];
                convert(stored, bytes, &mut out).unwrap();
                assert!(out.iter().zip(values).all(|(a, b)| a.to_f64() == *b), "{stored}");
            }
            check::<f32>(stored, bytes, &values);
            check::<f64>(stored, bytes, &values);
            check::<bf16>(stored, bytes, &values);
            check::<f16>(stored, bytes, &values);
        }
    }

    #[test]
    fn every_16_bit_pattern_decodes_as_half_says() {
        let bytes: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        let mut out = [0f32];
        for (pattern, bytes) in (0..=u16::MAX).zip(bytes.chunks(2)) {
            for (dtype, expected) in
                [(Dtype::BF16, bf16::from_bits(pattern).to_f32()), (Dtype::F16, f16::from_bits(pattern).to_f32())]
            {
                let result = convert(dtype, bytes, &mut out);
                assert_eq!(result.is_ok(), expected.is_finite(), "{dtype} {pattern:#x}");
                assert!(out[0] == expected || expected.is_nan(), "{dtype} {pattern:#x}");
            }
        }
    }

    #[test]
    fn the_first_bad_element_is_found() {
        for stored in FLOATS {
            for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
                for at in [0, PIECE - 1, PIECE, PIECE + 5] {
                    let mut values = vec![1.0; PIECE + 9];
                    values[at] = bad;
                    values[PIECE + 8] = f64::NAN;
                    let bytes = encode(stored, &values);
                    let found = first_bad(stored, &bytes).unwrap();
                    assert_eq!(found.index, at, "{stored} {bad}");
                    assert!(found.stored == bad || (bad.is_nan() && found.stored.is_nan()));
                }
            }
            assert_eq!(first_bad(stored, &encode(stored, &[1.0; PIECE + 1])), None);
        }
        let beyond = first_bad(Dtype::F64, &encode(Dtype::F64, &[1e30, 1e300]));
        assert_eq!(beyond, Some(Bad { index: 1, stored: 1e300 }));
    }

    #[test]
    fn a_value_the_wanted_type_cannot_hold_is_reported_with_its_stored_value() {
        let mut out = [f16::ZERO; 2];
        assert_eq!(
            convert(Dtype::F32, &encode(Dtype::F32, &[1.0, 70000.0]), &mut out),
            Err(Bad { index: 1, stored: 70000.0 })
        );
        let mut out = [0f32];
        assert_eq!(convert(Dtype::F64, &encode(Dtype::F64, &[1e300]), &mut out), Err(Bad { index: 0, stored: 1e300 }));
    }

    fn rounded(dtype: Dtype, value: f64) -> f64 {
        let mut bytes = Vec::new();
        super::encode(&[value], dtype, &mut bytes).unwrap();
        decode(dtype, &bytes)[0]
    }

    /// The two neighbours of every midpoint, and the midpoint, which goes to the even one.
    #[test]
    fn every_number_of_16_bits_attracts_what_is_nearest() {
        for dtype in [Dtype::F16, Dtype::BF16] {
            let value = |bits: u16| decode::<f64>(dtype, &bits.to_le_bytes())[0];
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
        let encode = |dtype, value| super::encode(&[1.0, value], dtype, &mut Vec::new());
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
