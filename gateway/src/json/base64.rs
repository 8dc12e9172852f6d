//! Bytes as `{"b64": "..."}`, as TensorFlow Serving's clients write them.

use ::base64::Engine;
use ::base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use super::decoder::quote;
use super::{Error, Result, Scanner};

/// Like TensorFlow Serving: the padding may be left out, and left-over bits of the last character are ignored.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &::base64::alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// Whether the next value is an object with `b64` as its only key and a string as its value. The scanner is a copy; a
/// value that cannot be read is no such object.
pub fn is_base64_object(mut scanner: Scanner<'_>) -> bool {
    base64_text(&mut scanner).is_some()
}

fn base64_text<'a>(scanner: &mut Scanner<'a>) -> Option<std::borrow::Cow<'a, str>> {
    let mut object = scanner.object().ok()?;
    scanner.next_key(&mut object).ok()?.filter(|key| key == "b64")?;
    let text = scanner.string().ok()?;
    scanner.next_key(&mut object).ok()?.is_none().then_some(text)
}

/// Reads `{"b64": "..."}` and returns the bytes.
pub fn read_base64(scanner: &mut Scanner<'_>) -> Result<Vec<u8>> {
    let offset = scanner.offset();
    let start = *scanner;
    let Some(text) = base64_text(scanner) else {
        *scanner = start;
        let value = quote(scanner)?;
        return Err(Error::value(offset, format!("JSON Value: {value} not formatted correctly for base64 data")));
    };
    let decoded = if text.contains(|character: char| character.is_ascii_whitespace()) {
        BASE64.decode(text.replace(|character: char| character.is_ascii_whitespace(), ""))
    } else {
        BASE64.decode(text.as_bytes())
    };
    decoded.map_err(|error| Error::value(offset, format!("Unable to base64 decode: {error}")))
}
