//! Numbers of JSON.

use super::{Error, Result};

/// A number as it is written: with or without a fraction or an exponent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Number {
    /// Written as an integer whose magnitude fits into 64 bits.
    Integer { negative: bool, magnitude: u64 },
    /// Written with a fraction or an exponent, or an integer that is larger, or NaN or an infinity.
    Float(f64),
}

impl Number {
    /// The nearest double. Like Python's `json` and TensorFlow Serving, 32-bit floats are made from this double.
    #[inline(always)]
    pub fn as_f64(self) -> f64 {
        match self {
            Number::Float(value) => value,
            Number::Integer { negative, magnitude } => {
                let value = magnitude as f64;
                if negative { -value } else { value }
            }
        }
    }

    /// The value of a number that was written as an integer from `i64::MIN` to `i64::MAX`.
    #[inline(always)]
    pub fn as_i64(self) -> Option<i64> {
        match self {
            Number::Integer { negative: false, magnitude } => i64::try_from(magnitude).ok(),
            Number::Integer { negative: true, magnitude } => 0i64.checked_sub_unsigned(magnitude),
            Number::Float(_) => None,
        }
    }

    /// The value of a number that was written as an integer from 0 to `u64::MAX`.
    #[inline(always)]
    pub fn as_u64(self) -> Option<u64> {
        match self {
            Number::Integer { negative: false, magnitude } => Some(magnitude),
            Number::Integer { negative: true, magnitude: 0 } => Some(0),
            _ => None,
        }
    }
}

/// Powers of ten that a double holds exactly.
const POWERS: [f64; 23] = [
    1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20,
    1e21, 1e22,
];

/// Integers up to this one are doubles.
const EXACT: u64 = 1 << 53;

/// Decimal numbers of so many digits fit into 64 bits.
const DIGITS: usize = 19;

/// Reads the number that begins at `start`, by the grammar of RFC 8259. Returns it and the position behind it.
///
/// A number that no double can hold is infinite; the caller decides whether that is an error.
#[inline(always)]
pub(super) fn parse(text: &[u8], start: usize) -> Result<(Number, usize)> {
    let mut at = start;
    let negative = text.get(at) == Some(&b'-');
    at += usize::from(negative);
    let first = at;
    let mut mantissa = 0u64;
    match text.get(at) {
        Some(b'0') => at += 1,
        Some(b'1'..=b'9') => at = digits(text, at, &mut mantissa),
        _ => return Err(Error::syntax(at, "Invalid value.")),
    }
    let mut count = at - first;
    let mut scale = 0i64;
    let mut integer = true;
    if text.get(at) == Some(&b'.') {
        integer = false;
        let point = at + 1;
        at = digits(text, point, &mut mantissa);
        if at == point {
            return Err(Error::syntax(at, "Miss fraction part in number."));
        }
        count += at - point;
        scale = -((at - point) as i64);
    }
    if let Some(b'e' | b'E') = text.get(at) {
        integer = false;
        let (exponent, end) = exponent(text, at + 1)?;
        scale = scale.saturating_add(exponent);
        at = end;
    }
    if count > DIGITS {
        return Ok((slow(text, start, at, integer), at));
    }
    if integer {
        return Ok((Number::Integer { negative, magnitude: mantissa }, at));
    }
    // Both operands are exact, so one operation rounds once: the result is the nearest double.
    if mantissa <= EXACT && (-22..=22).contains(&scale) {
        let value = mantissa as f64;
        let power = POWERS[scale.unsigned_abs() as usize];
        let value = if scale < 0 { value / power } else { value * power };
        return Ok((Number::Float(if negative { -value } else { value }), at));
    }
    Ok((slow(text, start, at, false), at))
}

/// Powers of ten up to the one that eight digits are less than.
const DECIMALS: [u64; 9] = [1, 10, 100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000, 100_000_000];

/// Reads a number with one digit before its point and up to 16 behind it, as most floats are. Returns it and the
/// position behind it; `None` for any other number, and near the end of the text.
///
/// Its digits are read without a branch that depends on their number: that differs from number to number, and a
/// processor that guesses it wrongly loses more time than the digits take. Signs are guessed well: they are often equal.
#[inline(always)]
pub(super) fn parse_short(text: &[u8], start: usize) -> Option<(f64, usize)> {
    if text.get(start) == Some(&b'-') {
        return parse_short_unsigned(text, start + 1).map(|(value, end)| (-value, end));
    }
    parse_short_unsigned(text, start)
}

#[inline(always)]
fn parse_short_unsigned(text: &[u8], start: usize) -> Option<(f64, usize)> {
    let window = text.get(start..)?.first_chunk::<19>()?;
    let whole = window[0].wrapping_sub(b'0');
    if window[1] != b'.' || whole > 9 {
        return None;
    }
    let first = u64::from_le_bytes(*window.get(2..)?.first_chunk()?);
    let second = u64::from_le_bytes(*window.get(10..)?.first_chunk()?);
    let before = digit_count(first);
    let behind = if before == 8 { digit_count(second) } else { 0 };
    let count = before + behind;
    let mantissa = u64::from(whole)
        .wrapping_mul(decimal(before))
        .wrapping_add(leading_digits(first, before))
        .wrapping_mul(decimal(behind))
        .wrapping_add(leading_digits(second, behind));
    let end = window.get(2 + count as usize)?;
    if count == 0 || count == 16 || matches!(end, b'e' | b'E') || mantissa > EXACT {
        return None;
    }
    // Both operands are exact, so one operation rounds once: the result is the nearest double.
    Some((mantissa as f64 / POWERS.get(count as usize)?, start + 2 + count as usize))
}

/// Reads digits from `at` on, adds them to `mantissa` (modulo 2^64), and returns the position behind them.
#[inline(always)]
fn digits(text: &[u8], mut at: usize, mantissa: &mut u64) -> usize {
    while let Some(chunk) = text.get(at..).and_then(<[u8]>::first_chunk::<8>) {
        let chunk = u64::from_le_bytes(*chunk);
        let count = digit_count(chunk);
        *mantissa = mantissa.wrapping_mul(decimal(count)).wrapping_add(leading_digits(chunk, count));
        at += count as usize;
        if count < 8 {
            return at;
        }
    }
    while let Some(byte) = text.get(at) {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            break;
        }
        *mantissa = mantissa.wrapping_mul(10).wrapping_add(u64::from(digit));
        at += 1;
    }
    at
}

#[inline(always)]
fn decimal(exponent: u32) -> u64 {
    DECIMALS.get(exponent as usize).copied().unwrap_or_default()
}

/// How many bytes, from the lowest on, are ASCII digits: 0 to 8.
#[inline(always)]
fn digit_count(chunk: u64) -> u32 {
    // The upper bit of a byte tells that it is no digit. Bytes behind the first such one may be wrong.
    let others = chunk.wrapping_add(0x4646_4646_4646_4646) | chunk.wrapping_sub(0x3030_3030_3030_3030);
    (others & 0x8080_8080_8080_8080).trailing_zeros() / 8
}

/// The number that the lowest `count` bytes are, the first digit in the lowest byte.
#[inline(always)]
fn leading_digits(chunk: u64, count: u32) -> u64 {
    // Zeros come before the digits.
    let digits = (chunk ^ 0x3030_3030_3030_3030).checked_shl(64 - 8 * count).unwrap_or_default();
    // Neighbours are joined to pairs, pairs to groups of four, these to one number.
    let pairs = digits.wrapping_mul(10).wrapping_add(digits >> 8) & 0x00ff_00ff_00ff_00ff;
    let fours = pairs.wrapping_mul(100).wrapping_add(pairs >> 16) & 0x0000_ffff_0000_ffff;
    fours.wrapping_mul(10_000).wrapping_add(fours >> 32) & 0xffff_ffff
}

#[cold]
fn exponent(text: &[u8], start: usize) -> Result<(i64, usize)> {
    let negative = text.get(start) == Some(&b'-');
    let mut at = start + usize::from(negative || text.get(start) == Some(&b'+'));
    let first = at;
    let mut value = 0i64;
    while let Some(digit @ b'0'..=b'9') = text.get(at) {
        value = value.saturating_mul(10).saturating_add(i64::from(digit - b'0'));
        at += 1;
    }
    if at == first {
        return Err(Error::syntax(at, "Miss exponent in number."));
    }
    Ok((if negative { -value } else { value }, at))
}

#[cold]
fn slow(text: &[u8], start: usize, end: usize, integer: bool) -> Number {
    let span = text.get(start..end).unwrap_or_default();
    if integer {
        let (negative, digits) = match span {
            [b'-', rest @ ..] => (true, rest),
            _ => (false, span),
        };
        let mut magnitude = Some(0u64);
        for digit in digits {
            magnitude = magnitude.and_then(|value| value.checked_mul(10)?.checked_add(u64::from(digit - b'0')));
        }
        if let Some(magnitude) = magnitude {
            return Number::Integer { negative, magnitude };
        }
    }
    // The span is a number by the grammar above, which is a part of this parser's.
    Number::Float(fast_float2::parse(span).unwrap_or(f64::NAN))
}

/// Rounds to a float of 16 bits with `fraction` bits of fraction: 10 for FP16, 7 for BF16. Ties go to even.
pub(super) fn narrow(value: f64, fraction: u32) -> u16 {
    let bits = value.to_bits();
    let sign = (bits >> 48) as u16 & 0x8000;
    let width = 15 - fraction;
    let infinity = ((1u32 << width) - 1) << fraction;
    if value.is_nan() {
        return sign | infinity as u16 | 1 << (fraction - 1);
    }
    let bias = (1i64 << (width - 1)) - 1;
    let exponent = ((bits >> 52) & 0x7ff) as i64 - 1023 + bias;
    if value == 0.0 || exponent < -(i64::from(fraction)) {
        return sign;
    }
    if exponent >= (1 << width) - 1 {
        return sign | infinity as u16;
    }
    // Subnormal results have no leading one; their fraction is shifted further.
    let (significand, shift) = if exponent <= 0 {
        (bits & ((1 << 52) - 1) | 1 << 52, 52 - i64::from(fraction) + 1 - exponent)
    } else {
        (bits & ((1 << 52) - 1), 52 - i64::from(fraction))
    };
    let kept = significand >> shift;
    let rest = significand & ((1 << shift) - 1);
    let half = 1u64 << (shift - 1);
    let up = rest > half || (rest == half && kept & 1 == 1);
    let base = (exponent.max(0) as u64) << fraction;
    // A carry out of the fraction increments the exponent, and past the largest float it gives infinity.
    sign | (base + kept + u64::from(up)) as u16
}

/// The value of a float of 16 bits with ten bits of fraction (FP16).
pub(super) fn widen_half(bits: u16) -> f32 {
    let sign = u32::from(bits & 0x8000) << 16;
    let exponent = u32::from(bits >> 10) & 0x1f;
    let fraction = u32::from(bits) & 0x3ff;
    match exponent {
        0 => {
            let value = fraction as f32 / 16_777_216.0;
            if sign == 0 { value } else { -value }
        }
        31 => f32::from_bits(sign | 0x7f80_0000 | fraction << 13),
        _ => f32::from_bits(sign | (exponent + 112) << 23 | fraction << 13),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Reads a number at the end of a text, and in front of others.
    fn read(text: &str) -> Number {
        let (number, end) = parse(text.as_bytes(), 0).expect(text);
        assert_eq!(end, text.len(), "{text}");
        for tail in [", 1234567890123456789", "]", "                    "] {
            let longer = format!("{text}{tail}");
            assert_eq!(parse(longer.as_bytes(), 0).expect(text), (number, end), "{longer}");
            if let Some((value, end)) = parse_short(longer.as_bytes(), 0) {
                assert_eq!((value.to_bits(), end), (number.as_f64().to_bits(), text.len()), "{longer}");
            }
        }
        number
    }

    #[test]
    fn numbers_have_the_kind_and_value_that_is_written() {
        let integer = |negative, magnitude| Number::Integer { negative, magnitude };
        for (text, number) in [
            ("0", integer(false, 0)),
            ("-0", integer(true, 0)),
            ("7", integer(false, 7)),
            ("-12345678901", integer(true, 12_345_678_901)),
            ("18446744073709551615", integer(false, u64::MAX)),
            ("18446744073709551616", Number::Float(18_446_744_073_709_551_616.0)),
            ("99999999999999999999999", Number::Float(1e23)),
            ("0.5", Number::Float(0.5)),
            ("-0.0", Number::Float(-0.0)),
            ("1e3", Number::Float(1000.0)),
            ("1E+3", Number::Float(1000.0)),
            ("1.25e-2", Number::Float(0.0125)),
            ("123456789.123456789", Number::Float(123_456_789.123_456_79)),
            ("0.1000000000000000055511151231257827", Number::Float(0.1)),
            ("5e-324", Number::Float(5e-324)),
            ("1e400", Number::Float(f64::INFINITY)),
            ("-1e400", Number::Float(f64::NEG_INFINITY)),
            ("1e-400", Number::Float(0.0)),
            ("1e99999999999999999999", Number::Float(f64::INFINITY)),
            ("0e99999999999999999999", Number::Float(0.0)),
        ] {
            let read = read(text);
            assert_eq!(read, number, "{text}");
            assert_eq!(read.as_f64().is_sign_negative(), text.starts_with('-'), "{text}");
        }
    }

    #[test]
    fn what_the_grammar_does_not_have_is_refused() {
        for text in ["", "-", "+1", ".5", "-.5", "1.", "1.e3", "1e", "1e+", "--1", "e5"] {
            assert!(parse(text.as_bytes(), 0).is_err(), "{text}");
            assert_eq!(parse_short(format!("{text},                    ").as_bytes(), 0), None, "{text}");
        }
        // The number ends before what does not belong to it; the caller finds that.
        for (text, end) in [("01", 1), ("1.5.5", 3), ("0x10", 1), ("1_000", 1)] {
            assert_eq!(parse(text.as_bytes(), 0).expect(text).1, end, "{text}");
        }
    }

    #[test]
    fn most_floats_are_short() {
        for (text, value) in [("0.5,", 0.5), ("-9.25]", -9.25), ("0.123456789012345 ", 0.123_456_789_012_345)] {
            let longer = format!("{text}                    ");
            assert_eq!(parse_short(longer.as_bytes(), 0), Some((value, text.len() - 1)), "{text}");
        }
        for text in ["10.5", "0.5e3", "0.1234567890123456", "7", "0.5"] {
            let tail = if text == "0.5" { "" } else { ",                    " };
            assert_eq!(parse_short(format!("{text}{tail}").as_bytes(), 0), None, "{text}");
        }
    }

    #[test]
    fn integers_are_checked_against_their_range() {
        assert_eq!(read("9223372036854775807").as_i64(), Some(i64::MAX));
        assert_eq!(read("9223372036854775808").as_i64(), None);
        assert_eq!(read("-9223372036854775808").as_i64(), Some(i64::MIN));
        assert_eq!(read("-9223372036854775809").as_i64(), None);
        assert_eq!(read("1.0").as_i64(), None);
        assert_eq!(read("-0").as_u64(), Some(0));
        assert_eq!(read("-1").as_u64(), None);
    }

    #[test]
    fn all_halves_keep_their_value() {
        for bits in 0..=u16::MAX {
            let value = widen_half(bits);
            if value.is_nan() {
                assert_eq!(narrow(f64::from(value), 10) & 0x7c00, 0x7c00);
            } else {
                assert_eq!(narrow(f64::from(value), 10), bits, "{value}");
            }
        }
    }

    #[test]
    fn sixteen_bit_floats_are_rounded_once_and_to_even() {
        for (value, half, brain) in [
            (1.0, 0x3c00, 0x3f80),
            (-2.5, 0xc100, 0xc020),
            (65504.0, 0x7bff, 0x4780),
            (65519.99, 0x7bff, 0x4780),
            (65520.0, 0x7c00, 0x4780),
            (1e39, 0x7c00, 0x7f80),
            (3.4e38, 0x7c00, 0x7f80),
            (1e-45, 0x0000, 0x0000),
            (f64::NEG_INFINITY, 0xfc00, 0xff80),
            (1.0 + 1.0 / 2048.0, 0x3c00, 0x3f80),
            (1.0 + 3.0 / 2048.0, 0x3c02, 0x3f80),
            (1.0 + 1.0 / 2048.0 + 1e-12, 0x3c01, 0x3f80),
            (1.0 + 1.0 / 256.0 + 1e-12, 0x3c04, 0x3f81),
            (5.960_464_477_539_063e-8, 0x0001, 0x3380),
            (2.980_232_238_769_531_3e-8, 0x0000, 0x3300),
            (2.980_232_238_769_532e-8, 0x0001, 0x3300),
            (-0.0, 0x8000, 0x8000),
        ] {
            assert_eq!(narrow(value, 10), half, "{value} as FP16");
            assert_eq!(narrow(value, 7), brain, "{value} as BF16");
        }
    }

    proptest! {
        #[test]
        fn every_double_is_read_back(bits: u64) {
            let value = f64::from_bits(bits);
            prop_assume!(value.is_finite());
            for text in [format!("{value:?}"), format!("{value}"), format!("{value:e}"), format!("{value:.17e}")] {
                prop_assert_eq!(read(&text).as_f64().to_bits(), bits, "{}", text);
            }
        }

        #[test]
        fn decimals_are_the_doubles_that_the_standard_library_reads(text in "-?(0|[1-9][0-9]{0,22})(\\.[0-9]{1,22})?([eE][+-]?[0-9]{1,3})?") {
            let expected: f64 = text.parse().expect("a number");
            prop_assert_eq!(read(&text).as_f64().to_bits(), expected.to_bits());
        }

        #[test]
        fn every_integer_is_read_back(value: i64, unsigned: u64) {
            prop_assert_eq!(read(&value.to_string()).as_i64(), Some(value));
            prop_assert_eq!(read(&unsigned.to_string()).as_u64(), Some(unsigned));
        }

        #[test]
        fn brain_floats_are_the_upper_half_of_exact_floats(bits: u16) {
            let value = f32::from_bits(u32::from(bits) << 16);
            prop_assume!(!value.is_nan());
            prop_assert_eq!(narrow(f64::from(value), 7), bits);
        }
    }
}
