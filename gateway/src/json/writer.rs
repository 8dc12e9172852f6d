//! Writes numbers, strings, and the elements of tensors as JSON.

use std::fmt;

use base64::Engine;

use super::number::widen_half;
use crate::tensor::{BytesElements, Datatype, Tensor, element_count};

/// How the elements of BYTES tensors are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BytesAs {
    /// As strings. An element that is not UTF-8 cannot be written.
    Text,
    /// As strings, and an element that is not UTF-8 as `{"b64": "..."}`.
    TextOrBase64,
    /// As `{"b64": "..."}`.
    Base64,
}

/// Why a tensor cannot be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteError {
    /// The data does not fit the shape.
    Mismatch,
    /// An element is not UTF-8.
    NotText,
    /// JSON has no values of this datatype.
    Unsupported(Datatype),
    /// The shape has too many lists without elements.
    TooManyLists,
}

impl fmt::Display for WriteError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WriteError::Mismatch => formatter.write_str("the data does not fit the shape"),
            WriteError::NotText => formatter.write_str("a string is not UTF-8"),
            WriteError::Unsupported(datatype) => {
                write!(formatter, "Failed to write JSON value for tensor type: {}", datatype.tensorflow_name())
            }
            WriteError::TooManyLists => write!(formatter, "the shape has more than {MAX_EMPTY_LISTS} empty lists"),
        }
    }
}

/// The most lists that a tensor without elements may have. Its text is not bounded by its data.
const MAX_EMPTY_LISTS: usize = 1 << 20;

/// Writes the elements of a tensor in order, some at a time.
pub struct Values<'a> {
    datatype: Datatype,
    bytes_as: BytesAs,
    rest: &'a [u8],
}

impl<'a> Values<'a> {
    /// Fails if the tensor cannot be written, as far as datatype and shape show that.
    pub fn new(tensor: &'a Tensor, bytes_as: BytesAs) -> Result<Self, WriteError> {
        if matches!(tensor.datatype, Datatype::Complex64 | Datatype::Complex128) {
            return Err(WriteError::Unsupported(tensor.datatype));
        }
        let elements = element_count(&tensor.shape).ok_or(WriteError::Mismatch)?;
        if tensor.datatype.size().is_some_and(|size| elements.checked_mul(size) != Some(tensor.data.len())) {
            return Err(WriteError::Mismatch);
        }
        if elements == 0 {
            let lists = tensor.shape.iter().take_while(|dimension| **dimension != 0).copied().collect::<Vec<_>>();
            if element_count(&lists).is_none_or(|lists| lists > MAX_EMPTY_LISTS) {
                return Err(WriteError::TooManyLists);
            }
        }
        Ok(Self { datatype: tensor.datatype, bytes_as, rest: &tensor.data })
    }

    /// Writes the next elements as nested lists of this shape, or the next element if the shape is empty.
    pub fn write(&mut self, out: &mut Vec<u8>, shape: &[i64]) -> Result<(), WriteError> {
        match shape {
            [] => self.elements(out, 1),
            [size] => {
                out.push(b'[');
                self.elements(out, *size as usize)?;
                out.push(b']');
                Ok(())
            }
            [size, inner @ ..] => {
                out.push(b'[');
                for index in 0..*size {
                    if index > 0 {
                        out.push(b',');
                    }
                    self.write(out, inner)?;
                }
                out.push(b']');
                Ok(())
            }
        }
    }

    fn elements(&mut self, out: &mut Vec<u8>, count: usize) -> Result<(), WriteError> {
        match self.datatype {
            Datatype::Bool => self.run(out, count, |out, [byte]| {
                out.extend_from_slice(if byte == 0 { b"false" } else { b"true" });
            }),
            Datatype::Uint8 => self.run(out, count, |out, [byte]| write_unsigned(out, u64::from(byte))),
            Datatype::Uint16 => {
                self.run(out, count, |out, bytes| write_unsigned(out, u64::from(u16::from_le_bytes(bytes))))
            }
            Datatype::Uint32 => {
                self.run(out, count, |out, bytes| write_unsigned(out, u64::from(u32::from_le_bytes(bytes))))
            }
            Datatype::Uint64 => self.run(out, count, |out, bytes| write_unsigned(out, u64::from_le_bytes(bytes))),
            Datatype::Int8 => self.run(out, count, |out, bytes| write_signed(out, i64::from(i8::from_le_bytes(bytes)))),
            Datatype::Int16 => {
                self.run(out, count, |out, bytes| write_signed(out, i64::from(i16::from_le_bytes(bytes))))
            }
            Datatype::Int32 => {
                self.run(out, count, |out, bytes| write_signed(out, i64::from(i32::from_le_bytes(bytes))))
            }
            Datatype::Int64 => self.run(out, count, |out, bytes| write_signed(out, i64::from_le_bytes(bytes))),
            Datatype::Fp16 => {
                self.run(out, count, |out, bytes| write_float32(out, widen_half(u16::from_le_bytes(bytes))))
            }
            Datatype::Bf16 => self.run(out, count, |out, bytes| {
                write_float32(out, f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16));
            }),
            Datatype::Fp32 => self.run(out, count, |out, bytes| write_float32(out, f32::from_le_bytes(bytes))),
            Datatype::Fp64 => self.run(out, count, |out, bytes| write_float64(out, f64::from_le_bytes(bytes))),
            Datatype::Bytes => self.strings(out, count),
            Datatype::Complex64 | Datatype::Complex128 => Err(WriteError::Unsupported(self.datatype)),
        }
    }

    fn run<const SIZE: usize>(
        &mut self,
        out: &mut Vec<u8>,
        count: usize,
        write: impl Fn(&mut Vec<u8>, [u8; SIZE]),
    ) -> Result<(), WriteError> {
        let length = count.checked_mul(SIZE).ok_or(WriteError::Mismatch)?;
        let (elements, rest) = self.rest.split_at_checked(length).ok_or(WriteError::Mismatch)?;
        self.rest = rest;
        for (index, element) in elements.as_chunks::<SIZE>().0.iter().enumerate() {
            if index > 0 {
                out.push(b',');
            }
            write(out, *element);
        }
        Ok(())
    }

    fn strings(&mut self, out: &mut Vec<u8>, count: usize) -> Result<(), WriteError> {
        let mut elements = BytesElements::new(self.rest);
        let mut length = 0;
        for index in 0..count {
            let Some(Ok(element)) = elements.next() else { return Err(WriteError::Mismatch) };
            length += 4 + element.len();
            if index > 0 {
                out.push(b',');
            }
            match (self.bytes_as, std::str::from_utf8(element)) {
                (BytesAs::Text | BytesAs::TextOrBase64, Ok(text)) => write_string(out, text),
                (BytesAs::Text, Err(_)) => return Err(WriteError::NotText),
                (BytesAs::TextOrBase64, Err(_)) | (BytesAs::Base64, _) => write_base64(out, element),
            }
        }
        self.rest = self.rest.get(length..).unwrap_or_default();
        Ok(())
    }
}

/// Writes a string with its quotes.
pub fn write_string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    let mut plain = text.as_bytes();
    while let Some(length) = plain.iter().position(|byte| matches!(byte, b'"' | b'\\' | 0..0x20)) {
        let (head, tail) = plain.split_at(length);
        out.extend_from_slice(head);
        let Some((special, tail)) = tail.split_first() else { break };
        match special {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            control => out.extend_from_slice(format!("\\u{control:04x}").as_bytes()),
        }
        plain = tail;
    }
    out.extend_from_slice(plain);
    out.push(b'"');
}

/// Writes `{"b64": "..."}`.
pub fn write_base64(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(b"{\"b64\":\"");
    out.extend_from_slice(base64::engine::general_purpose::STANDARD.encode(bytes).as_bytes());
    out.extend_from_slice(b"\"}");
}

fn write_unsigned(out: &mut Vec<u8>, mut value: u64) {
    let mut digits = [0u8; 20];
    let mut start = digits.len();
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (value % 10) as u8;
        start -= 1;
        value /= 10;
        if value == 0 {
            break;
        }
    }
    out.extend_from_slice(digits.get(start..).unwrap_or_default());
}

fn write_signed(out: &mut Vec<u8>, value: i64) {
    if value < 0 {
        out.push(b'-');
    }
    write_unsigned(out, value.unsigned_abs());
}

/// Writes a float as TensorFlow Serving does: six digits where these are read back as the same float, otherwise as many
/// as that takes; with an exponent below 0.0001 and from the number of digits on; always with a point, so that readers
/// take it for a float. NaN and infinities are written as `NaN`, `Infinity` and `-Infinity`.
pub fn write_float32(out: &mut Vec<u8>, value: f32) {
    if !value.is_finite() {
        write_non_finite(out, f64::from(value));
        return;
    }
    let mut buffer = ryu::Buffer::new();
    let shortest = buffer.format_finite(value);
    if value == 0.0 || (1e-4..1e6).contains(&value.abs()) {
        out.extend_from_slice(shortest.as_bytes());
    } else {
        write_decimal(out, shortest, 9);
    }
}

/// Writes a double like [`write_float32`].
pub fn write_float64(out: &mut Vec<u8>, value: f64) {
    if !value.is_finite() {
        write_non_finite(out, value);
        return;
    }
    let mut buffer = ryu::Buffer::new();
    let shortest = buffer.format_finite(value);
    if value == 0.0 || (1e-4..1e6).contains(&value.abs()) {
        out.extend_from_slice(shortest.as_bytes());
    } else {
        write_decimal(out, shortest, 17);
    }
}

fn write_non_finite(out: &mut Vec<u8>, value: f64) {
    out.extend_from_slice(if value.is_nan() {
        b"NaN"
    } else if value > 0.0 {
        b"Infinity"
    } else {
        b"-Infinity"
    });
}

/// Writes a number, of which `text` has the shortest digits, in the layout of C's `%g`, with six digits if these are
/// enough, otherwise with `precision`.
fn write_decimal(out: &mut Vec<u8>, text: &str, precision: usize) {
    let (sign, text) = text.strip_prefix('-').map_or(("", text), |text| ("-", text));
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let all = [whole, fraction].concat();
    let zeros = all.len() - all.trim_start_matches('0').len();
    let digits = all.trim_matches('0');
    // The exponent of the first digit.
    let exponent = exponent.parse::<i64>().unwrap_or(0) + whole.len() as i64 - 1 - zeros as i64;
    let precision = if digits.len() <= 6 { 6 } else { precision as i64 };
    let or_zero = |digits: &str| if digits.is_empty() { "0".to_owned() } else { digits.to_owned() };
    let written = if exponent < -4 || exponent >= precision {
        let (first, rest) = digits.split_at(1.min(digits.len()));
        let signum = if exponent < 0 { '-' } else { '+' };
        format!("{sign}{first}.{}e{signum}{:02}", or_zero(rest), exponent.abs())
    } else if exponent < 0 {
        format!("{sign}0.{}{digits}", "0".repeat(exponent.unsigned_abs() as usize - 1))
    } else {
        let whole = exponent as usize + 1;
        let padded = format!("{digits:0<whole$}");
        let (whole, fraction) = padded.split_at(whole);
        format!("{sign}{whole}.{}", or_zero(fraction))
    };
    out.extend_from_slice(written.as_bytes());
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::json::{Decoder, Dialect, Scanner};
    use crate::tensor::push_element;

    fn float32(value: f32) -> String {
        let mut out = Vec::new();
        write_float32(&mut out, value);
        String::from_utf8(out).expect("text")
    }

    fn float64(value: f64) -> String {
        let mut out = Vec::new();
        write_float64(&mut out, value);
        String::from_utf8(out).expect("text")
    }

    fn tensor(datatype: Datatype, shape: &[i64], data: &[u8]) -> Tensor {
        Tensor { name: "t".to_owned(), datatype, shape: shape.to_vec(), data: Bytes::copy_from_slice(data) }
    }

    fn written(tensor: &Tensor, bytes_as: BytesAs) -> Result<String, WriteError> {
        let mut out = Vec::new();
        Values::new(tensor, bytes_as)?.write(&mut out, &tensor.shape)?;
        Ok(String::from_utf8(out).expect("text"))
    }

    #[test]
    fn floats_have_as_many_digits_as_they_need_and_look_like_floats() {
        for (value, text) in [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.0, "1.0"),
            (-2.5, "-2.5"),
            (0.2, "0.2"),
            (0.1 + 0.2, "0.3"),
            (1.0 / 3.0, "0.33333334"),
            (0.0001, "0.0001"),
            (0.00003, "3.0e-05"),
            (0.000_012_345_678, "1.2345678e-05"),
            (123_456.0, "123456.0"),
            (999_999.0, "999999.0"),
            (1_000_000.0, "1.0e+06"),
            (9_000_000.0, "9.0e+06"),
            (1_234_567.0, "1234567.0"),
            (16_777_216.0, "16777216.0"),
            (-123_456_790.0, "-123456790.0"),
            (1.234_568e9, "1.234568e+09"),
            (1e20, "1.0e+20"),
            (1.5e20, "1.5e+20"),
            (f32::MAX, "3.4028235e+38"),
            (f32::MIN_POSITIVE, "1.1754944e-38"),
            (1e-45, "1.0e-45"),
            (f32::NAN, "NaN"),
            (f32::INFINITY, "Infinity"),
            (f32::NEG_INFINITY, "-Infinity"),
        ] {
            assert_eq!(float32(value), text);
        }
        for (value, text) in [
            (0.1, "0.1"),
            (0.1 + 0.2, "0.30000000000000004"),
            (1e6, "1.0e+06"),
            (1_234_567.0, "1234567.0"),
            (12_345_678_901_234_567.0, "12345678901234568.0"),
            (123_456_789_012_345_680.0, "1.2345678901234568e+17"),
            (1e100, "1.0e+100"),
            (5e-324, "5.0e-324"),
            (f64::NEG_INFINITY, "-Infinity"),
        ] {
            assert_eq!(float64(value), text);
        }
    }

    #[test]
    fn strings_are_escaped() {
        let mut out = Vec::new();
        write_string(&mut out, "a\"\\\n\r\t\u{1}\u{1f}\u{7f}/é𝄞");
        assert_eq!(String::from_utf8(out).expect("text"), "\"a\\\"\\\\\\n\\r\\t\\u0001\\u001f\u{7f}/é𝄞\"");
    }

    #[test]
    fn tensors_are_written_as_nested_lists() {
        use Datatype::*;
        let mut strings = Vec::new();
        for element in [&b"a"[..], b"", b"\xff"] {
            push_element(&mut strings, element);
        }
        for (tensor, text) in [
            (tensor(Bool, &[2], &[1, 0]), "[true,false]"),
            (tensor(Uint8, &[2, 2], &[0, 9, 10, 255]), "[[0,9],[10,255]]"),
            (tensor(Int8, &[2], &[128, 127]), "[-128,127]"),
            (tensor(Uint16, &[1], &[255, 255]), "[65535]"),
            (tensor(Int16, &[1], &[0, 128]), "[-32768]"),
            (tensor(Uint32, &[1], &[255; 4]), "[4294967295]"),
            (tensor(Int32, &[], &[255; 4]), "-1"),
            (tensor(Uint64, &[1], &[255; 8]), "[18446744073709551615]"),
            (tensor(Int64, &[1], &[0, 0, 0, 0, 0, 0, 0, 128]), "[-9223372036854775808]"),
            (tensor(Fp16, &[3], &[0, 0x3c, 0, 0x7c, 0x66, 0x2e]), "[1.0,Infinity,0.099975586]"),
            (tensor(Bf16, &[2], &[0x80, 0x3f, 0xcd, 0x3d]), "[1.0,0.100097656]"),
            (tensor(Fp32, &[1, 1, 2], &[0, 0, 0xc0, 0x3f, 0, 0, 0, 0]), "[[[1.5,0.0]]]"),
            (tensor(Fp64, &[1], &[0, 0, 0, 0, 0, 0, 0xf8, 0x3f]), "[1.5]"),
            (tensor(Fp32, &[0], &[]), "[]"),
            (tensor(Fp32, &[2, 0], &[]), "[[],[]]"),
            (tensor(Fp32, &[0, i64::MAX], &[]), "[]"),
            (tensor(Bytes, &[3], &strings), r#"["a","",{"b64":"/w=="}]"#),
        ] {
            assert_eq!(written(&tensor, BytesAs::TextOrBase64).as_deref(), Ok(text));
        }
        let strings = tensor(Bytes, &[3], &strings);
        assert_eq!(written(&strings, BytesAs::Text), Err(WriteError::NotText));
        assert_eq!(written(&strings, BytesAs::Base64).as_deref(), Ok(r#"[{"b64":"YQ=="},{"b64":""},{"b64":"/w=="}]"#));
    }

    #[test]
    fn tensors_that_json_cannot_have_are_errors() {
        use Datatype::*;
        for (tensor, error) in [
            (tensor(Complex64, &[1], &[0; 8]), WriteError::Unsupported(Complex64)),
            (tensor(Fp32, &[2], &[0; 4]), WriteError::Mismatch),
            (tensor(Fp32, &[-1], &[]), WriteError::Mismatch),
            (tensor(Fp32, &[i64::MAX, 8], &[]), WriteError::Mismatch),
            (tensor(Bytes, &[2], &[0; 4]), WriteError::Mismatch),
            (tensor(Bytes, &[1 << 40], &[0; 4]), WriteError::Mismatch),
            (tensor(Fp32, &[1 << 40, 0], &[]), WriteError::TooManyLists),
        ] {
            assert_eq!(written(&tensor, BytesAs::Text), Err(error));
        }
    }

    proptest! {
        #[test]
        fn floats_are_read_back(single: u32, double: u64) {
            let (single, double) = (f32::from_bits(single), f64::from_bits(double));
            if single.is_finite() {
                let text = float32(single);
                prop_assert_eq!(text.parse::<f32>().map(f32::to_bits), Ok(single.to_bits()), "{}", text);
                prop_assert!(text.contains('.'));
                let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
                prop_assert!(value.is_f64());
            }
            if double.is_finite() {
                let text = float64(double);
                prop_assert_eq!(text.parse::<f64>().map(f64::to_bits), Ok(double.to_bits()), "{}", text);
            }
        }

        #[test]
        fn six_digits_are_used_where_they_are_enough(digits in 1u32..1_000_000, exponent in -30i32..30) {
            let value: f32 = format!("{digits}e{exponent}").parse().expect("a float");
            prop_assume!(value.is_normal());
            let text = float32(value);
            let mantissa = text.split('e').next().unwrap_or_default().replace('.', "");
            prop_assert!(mantissa.trim_matches('0').len() <= 6, "{}", text);
        }

        #[test]
        fn strings_are_read_back(text: String) {
            let mut out = Vec::new();
            write_string(&mut out, &text);
            prop_assert_eq!(serde_json::from_slice::<String>(&out).expect("JSON"), text.clone());
            prop_assert_eq!(Scanner::strict(&out).string().expect("a string"), text);
        }

        #[test]
        fn tensors_are_read_back(data: Vec<u8>, datatype in 0usize..16) {
            let datatype = Datatype::ALL[datatype];
            let Some(size) = datatype.size().filter(|_| !datatype.name().starts_with("COMPLEX")) else { return Ok(()) };
            let data: Vec<u8> = match datatype {
                Datatype::Bool => data.iter().map(|byte| byte & 1).collect(),
                _ => data[..data.len() / size * size].to_vec(),
            };
            let tensor = tensor(datatype, &[(data.len() / size) as i64], &data);
            let text = written(&tensor, BytesAs::Text).expect("text");
            prop_assume!(!text.contains("NaN"));
            let mut decoder = Decoder::new(datatype, Dialect::TensorflowServing);
            let shape = decoder.value(&mut Scanner::lenient(text.as_bytes())).expect("values").to_vec();
            prop_assert_eq!(shape, vec![data.len() / size]);
            prop_assert_eq!(&decoder.finish()[..], &data[..]);
        }

        #[test]
        fn any_bytes_are_written_or_refused(data: Vec<u8>, count in 0i64..5) {
            let tensor = tensor(Datatype::Bytes, &[count], &data);
            if let Ok(text) = written(&tensor, BytesAs::TextOrBase64) {
                let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
                prop_assert_eq!(value.as_array().map(Vec::len), Some(count as usize));
            }
        }
    }
}
