//! Reads one JSON text from front to back, value by value.

use std::borrow::Cow;
use std::fmt;

use memchr::memchr2;

use super::number::{self, Number};
use super::{Error, MAX_DEPTH, Result};

/// Kinds of values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Null,
    False,
    True,
    Number,
    String,
    Array,
    Object,
}

impl fmt::Display for Kind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, formatter)
    }
}

/// A position in a JSON text, and how to go on from there. A copy reads the same values again.
#[derive(Clone, Copy)]
pub struct Scanner<'a> {
    text: &'a [u8],
    at: usize,
    /// Whether `NaN`, `Infinity` and `-Infinity` are numbers.
    non_finite: bool,
}

/// A list whose elements are being read.
pub struct List {
    first: bool,
}

/// An object whose members are being read.
pub struct Object {
    first: bool,
}

impl<'a> Scanner<'a> {
    /// Reads JSON by RFC 8259.
    pub fn strict(text: &'a [u8]) -> Self {
        Self { text, at: 0, non_finite: false }
    }

    /// Reads JSON that may contain `NaN`, `Infinity` and `-Infinity` as numbers.
    pub fn lenient(text: &'a [u8]) -> Self {
        Self { text, at: 0, non_finite: true }
    }

    /// The position in the text, in bytes.
    pub fn offset(&self) -> usize {
        self.at
    }

    #[inline(always)]
    pub(super) fn space(&mut self) {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.text.get(self.at) {
            self.at += 1;
        }
    }

    /// The next byte that is not white space.
    #[inline(always)]
    pub(super) fn next_byte(&mut self) -> Option<u8> {
        self.space();
        self.text.get(self.at).copied()
    }

    /// Moves to the next element of a list if it is a number and stands where most writers put it: behind a comma, or a
    /// comma and a blank. Otherwise does nothing.
    #[inline(always)]
    pub(super) fn advance_to_number(&mut self) -> bool {
        let next = match self.text.get(self.at..) {
            Some([b',', b' ', b'0'..=b'9' | b'-', ..]) => self.at + 2,
            Some([b',', b'0'..=b'9' | b'-', ..]) => self.at + 1,
            _ => return false,
        };
        self.at = next;
        true
    }

    /// The kind of the next value, which is not read yet.
    pub fn kind(&mut self) -> Result<Kind> {
        match self.next_byte() {
            Some(b'-' | b'0'..=b'9') => Ok(Kind::Number),
            Some(b'"') => Ok(Kind::String),
            Some(b'[') => Ok(Kind::Array),
            Some(b'{') => Ok(Kind::Object),
            Some(b't') => Ok(Kind::True),
            Some(b'f') => Ok(Kind::False),
            Some(b'n') => Ok(Kind::Null),
            Some(b'N' | b'I') if self.non_finite => Ok(Kind::Number),
            None if self.text.iter().all(u8::is_ascii_whitespace) => {
                Err(Error::syntax(self.at, "The document is empty."))
            }
            _ => Err(self.invalid()),
        }
    }

    #[cold]
    fn invalid(&self) -> Error {
        Error::syntax(self.at, "Invalid value.")
    }

    #[cold]
    fn too_deep(&self) -> Error {
        Error::syntax(self.at, &format!("Lists and objects are nested more than {MAX_DEPTH} levels deep."))
    }

    fn word(&mut self, word: &str) -> Result<()> {
        self.space();
        if !self.text.get(self.at..).is_some_and(|rest| rest.starts_with(word.as_bytes())) {
            return Err(self.invalid());
        }
        self.at += word.len();
        Ok(())
    }

    /// Reads `null`.
    pub fn null(&mut self) -> Result<()> {
        self.word("null")
    }

    /// Reads `true` or `false`.
    pub fn boolean(&mut self) -> Result<bool> {
        if self.next_byte() == Some(b't') {
            self.word("true").map(|()| true)
        } else {
            self.word("false").map(|()| false)
        }
    }

    /// Reads a number.
    #[inline(always)]
    pub fn number(&mut self) -> Result<Number> {
        self.space();
        if let Some((value, end)) = number::parse_short(self.text, self.at) {
            self.at = end;
            return Ok(Number::Float(value));
        }
        match number::parse(self.text, self.at) {
            Ok((number, end)) => {
                self.at = end;
                Ok(number)
            }
            Err(error) => self.non_finite_number().ok_or(error),
        }
    }

    #[cold]
    fn non_finite_number(&mut self) -> Option<Number> {
        if !self.non_finite {
            return None;
        }
        let rest = self.text.get(self.at..)?;
        for (word, value) in [
            ("NaN", f64::NAN),
            ("Infinity", f64::INFINITY),
            ("-Infinity", f64::NEG_INFINITY),
            ("Inf", f64::INFINITY),
            ("-Inf", f64::NEG_INFINITY),
        ] {
            if rest.starts_with(word.as_bytes()) {
                self.at += word.len();
                return Some(Number::Float(value));
            }
        }
        None
    }

    /// Reads a string.
    pub fn string(&mut self) -> Result<Cow<'a, str>> {
        let (span, escaped) = self.string_span()?;
        if !escaped {
            return Ok(Cow::Borrowed(span));
        }
        let mut decoded = String::with_capacity(span.len());
        self.unescape(span, |part| decoded.push_str(part))?;
        Ok(Cow::Owned(decoded))
    }

    /// What is between the quotes of a string, and whether it contains escapes.
    fn string_span(&mut self) -> Result<(&'a str, bool)> {
        if self.next_byte() != Some(b'"') {
            return Err(self.invalid());
        }
        let start = self.at + 1;
        let mut end = start;
        let mut escaped = false;
        loop {
            match self.text.get(end..).and_then(|rest| Some((memchr2(b'"', b'\\', rest)?, rest))) {
                Some((length, rest)) if rest.get(length) == Some(&b'"') => {
                    end += length;
                    break;
                }
                // The byte behind the backslash is not the end of the string, whatever it is.
                Some((length, _)) => {
                    escaped = true;
                    end += length + 2;
                }
                None => return Err(Error::syntax(self.text.len(), "Missing a closing quotation mark in string.")),
            }
        }
        let span = self.text.get(start..end).unwrap_or_default();
        if let Some(control) = span.iter().position(|byte| *byte < 0x20) {
            return Err(Error::syntax(
                start + control,
                "Invalid encoding in string: a control character is not escaped.",
            ));
        }
        let span = std::str::from_utf8(span).map_err(|error| {
            Error::syntax(start + error.valid_up_to(), "Invalid encoding in string: it is not UTF-8.")
        })?;
        self.at = end + 1;
        Ok((span, escaped))
    }

    /// Passes the parts of a string to `sink`, with the characters for which escapes stand. The scanner is behind
    /// the string.
    fn unescape(&self, span: &str, mut sink: impl FnMut(&str)) -> Result<()> {
        let start = self.at - 1 - span.len();
        let mut rest = span;
        while let Some(backslash) = rest.find('\\') {
            let (plain, escape) = rest.split_at(backslash);
            sink(plain);
            let offset = start + span.len() - escape.len();
            let (character, length) = match escape.as_bytes().get(1) {
                Some(b'"') => ('"', 2),
                Some(b'\\') => ('\\', 2),
                Some(b'/') => ('/', 2),
                Some(b'b') => ('\u{8}', 2),
                Some(b'f') => ('\u{c}', 2),
                Some(b'n') => ('\n', 2),
                Some(b'r') => ('\r', 2),
                Some(b't') => ('\t', 2),
                Some(b'u') => unicode_escape(escape, offset)?,
                _ => return Err(Error::syntax(offset, "Invalid escape character in string.")),
            };
            sink(character.encode_utf8(&mut [0; 4]));
            rest = escape.get(length..).unwrap_or_default();
        }
        sink(rest);
        Ok(())
    }

    /// Begins to read a list. Then [`Self::next_element`] must be called before each element.
    pub fn list(&mut self) -> Result<List> {
        if self.next_byte() != Some(b'[') {
            return Err(self.invalid());
        }
        self.at += 1;
        Ok(List { first: true })
    }

    /// Whether the list has one more element. If not, the scanner is behind the list.
    #[inline]
    pub fn next_element(&mut self, list: &mut List) -> Result<bool> {
        let first = std::mem::replace(&mut list.first, false);
        match self.next_byte() {
            Some(b']') => {
                self.at += 1;
                return Ok(false);
            }
            Some(b',') if !first => self.at += 1,
            Some(_) if first => return Ok(true),
            _ => return Err(Error::syntax(self.at, "Missing a comma or ] after an array element.")),
        }
        // A bracket here would otherwise be taken for the end of the list.
        if self.next_byte() == Some(b']') { Err(self.invalid()) } else { Ok(true) }
    }

    /// Begins to read an object. Then [`Self::next_key`] must be called before each value.
    pub fn object(&mut self) -> Result<Object> {
        if self.next_byte() != Some(b'{') {
            return Err(self.invalid());
        }
        self.at += 1;
        Ok(Object { first: true })
    }

    /// The next key of the object; its value is read next. If there is none, the scanner is behind the object.
    pub fn next_key(&mut self, object: &mut Object) -> Result<Option<Cow<'a, str>>> {
        let first = std::mem::replace(&mut object.first, false);
        match self.next_byte() {
            Some(b'}') => {
                self.at += 1;
                return Ok(None);
            }
            Some(b',') if !first => self.at += 1,
            Some(_) if first => {}
            _ => return Err(Error::syntax(self.at, "Missing a comma or } after an object member.")),
        }
        if self.next_byte() != Some(b'"') {
            return Err(Error::syntax(self.at, "Missing a name for object member."));
        }
        let key = self.string()?;
        if self.next_byte() != Some(b':') {
            return Err(Error::syntax(self.at, "Missing a colon after a name of object member."));
        }
        self.at += 1;
        Ok(Some(key))
    }

    /// Reads a value of any kind and returns its text. It is checked like all others, but nothing is decoded.
    pub fn skip(&mut self) -> Result<&'a [u8]> {
        self.space();
        let start = self.at;
        // One bit for each level: whether it is an object. All levels are read in this loop, without recursion.
        let mut objects = 0u128;
        let mut depth = 0;
        loop {
            // A value begins here.
            match self.kind()? {
                Kind::Null => self.null()?,
                Kind::True | Kind::False => {
                    self.boolean()?;
                }
                Kind::Number => {
                    self.number()?;
                }
                Kind::String => {
                    let (span, escaped) = self.string_span()?;
                    if escaped {
                        self.unescape(span, |_| ())?;
                    }
                }
                kind @ (Kind::Array | Kind::Object) => {
                    if depth == MAX_DEPTH {
                        return Err(self.too_deep());
                    }
                    self.at += 1;
                    depth += 1;
                    objects = objects << 1 | u128::from(kind == Kind::Object);
                    let more = if kind == Kind::Object {
                        self.next_key(&mut Object { first: true })?.is_some()
                    } else {
                        self.next_element(&mut List { first: true })?
                    };
                    if more {
                        continue;
                    }
                    depth -= 1;
                    objects >>= 1;
                }
            }
            // A value ended here. Lists and objects that end with it end here, too.
            loop {
                if depth == 0 {
                    return Ok(self.text.get(start..self.at).unwrap_or_default());
                }
                let more = if objects & 1 == 1 {
                    self.next_key(&mut Object { first: false })?.is_some()
                } else {
                    self.next_element(&mut List { first: false })?
                };
                if more {
                    break;
                }
                depth -= 1;
                objects >>= 1;
            }
        }
    }

    /// Checks that nothing but white space follows.
    pub fn end(&mut self) -> Result<()> {
        match self.next_byte() {
            None => Ok(()),
            Some(_) => Err(Error::syntax(self.at, "The document root must not be followed by other values.")),
        }
    }
}

/// The character for `\uXXXX` at the beginning of `escape`, or for two of them that are a surrogate pair, and their
/// length.
fn unicode_escape(escape: &str, offset: usize) -> Result<(char, usize)> {
    let unit = |at: usize| {
        let digits = escape.as_bytes().get(at..at + 4).filter(|digits| digits.iter().all(u8::is_ascii_hexdigit))?;
        u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
    };
    let Some(high) = unit(2) else {
        return Err(Error::syntax(offset, "Incorrect hex digit after \\u escape in string."));
    };
    if let Some(character) = char::from_u32(high) {
        return Ok((character, 6));
    }
    let low = if escape.get(6..8) == Some("\\u") { unit(8) } else { None };
    match low {
        Some(low @ 0xdc00..=0xdfff) if high < 0xdc00 => {
            let code = 0x1_0000 + ((high - 0xd800) << 10) + (low - 0xdc00);
            Ok((char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER), 12))
        }
        _ => Err(Error::syntax(offset, "The surrogate pair in string is invalid.")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn skip(text: &[u8]) -> Result<&[u8]> {
        Scanner::strict(text).skip()
    }

    fn refusal(text: &str) -> String {
        skip(text.as_bytes()).expect_err(text).to_string()
    }

    #[test]
    fn strings_are_decoded() {
        for (text, decoded) in [
            (r#""""#, ""),
            (r#""plain""#, "plain"),
            (r#""\"\\\/\b\f\n\r\t""#, "\"\\/\u{8}\u{c}\n\r\t"),
            (r#""a\u0041b""#, "aAb"),
            (r#""\u00e9\uD834\uDD1E\u0000""#, "é𝄞\0"),
            (r#""\\""#, "\\"),
            ("\"dé𝄞\u{7f}\"", "dé𝄞\u{7f}"),
            (r#"  "x" "#, "x"),
        ] {
            assert_eq!(Scanner::strict(text.as_bytes()).string().expect(text), decoded, "{text}");
            assert!(skip(text.as_bytes()).is_ok(), "{text}");
        }
    }

    #[test]
    fn what_is_no_json_is_refused_with_its_position() {
        for (text, message) in [
            ("", "The document is empty. at offset: 0"),
            (" \n ", "The document is empty. at offset: 3"),
            ("instances", "Invalid value. at offset: 0"),
            ("nul", "Invalid value. at offset: 0"),
            ("truE", "Invalid value. at offset: 0"),
            ("NaN", "Invalid value. at offset: 0"),
            ("-Infinity", "Invalid value. at offset: 1"),
            ("[", "Missing a comma or ] after an array element. at offset: 1"),
            ("[1", "Missing a comma or ] after an array element. at offset: 2"),
            ("[1 2]", "Missing a comma or ] after an array element. at offset: 3"),
            ("[01]", "Missing a comma or ] after an array element. at offset: 2"),
            ("[1,]", "Invalid value. at offset: 3"),
            ("[,1]", "Invalid value. at offset: 1"),
            ("[1}", "Missing a comma or ] after an array element. at offset: 2"),
            ("{", "Missing a comma or } after an object member. at offset: 1"),
            ("{\"a\"", "Missing a colon after a name of object member. at offset: 4"),
            ("{\"a\":", "Invalid value. at offset: 5"),
            ("{\"a\":1", "Missing a comma or } after an object member. at offset: 6"),
            ("{\"a\":1,}", "Missing a name for object member. at offset: 7"),
            ("{1:2}", "Missing a name for object member. at offset: 1"),
            ("\"abc", "Missing a closing quotation mark in string. at offset: 4"),
            ("\"abc\\\"", "Missing a closing quotation mark in string. at offset: 6"),
            ("\"abc\\", "Missing a closing quotation mark in string. at offset: 5"),
            ("\"\\x\"", "Invalid escape character in string. at offset: 1"),
            ("\"\\u12G4\"", "Incorrect hex digit after \\u escape in string. at offset: 1"),
            ("\"\\u123\"", "Incorrect hex digit after \\u escape in string. at offset: 1"),
            ("\"\\ud800\"", "The surrogate pair in string is invalid. at offset: 1"),
            ("\"a\\udc00\\ud800\"", "The surrogate pair in string is invalid. at offset: 2"),
            ("\"\\ud800\\u0041\"", "The surrogate pair in string is invalid. at offset: 1"),
            ("\"a\nb\"", "Invalid encoding in string: a control character is not escaped. at offset: 2"),
        ] {
            assert_eq!(refusal(text), format!("JSON Parse error: {message}"), "{text}");
        }
        assert!(skip(b"\"\xff\"").expect_err("not UTF-8").to_string().contains("it is not UTF-8. at offset: 1"));
        assert!(skip(b"\"\xed\xa0\x80\"").is_err(), "a surrogate in UTF-8");
    }

    #[test]
    fn depth_is_bounded_without_recursion() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(skip(nested(MAX_DEPTH).as_bytes()).is_ok());
        assert!(refusal(&nested(MAX_DEPTH + 1)).contains("more than 128 levels"));
        assert!(skip("[".repeat(10_000_000).as_bytes()).is_err());
        assert!(skip("{\"a\":".repeat(1_000_000).as_bytes()).is_err());
    }

    #[test]
    fn skip_returns_the_text_of_one_value() {
        let mut scanner = Scanner::strict(b" {\"a\": [1, {\"b\": null}, true], \"c\": \"]}\"} tail");
        assert_eq!(scanner.skip().expect("an object"), b"{\"a\": [1, {\"b\": null}, true], \"c\": \"]}\"}");
        assert!(scanner.end().is_err());
        let mut scanner = Scanner::strict(b"[] \n");
        assert_eq!(scanner.skip().expect("a list"), b"[]");
        assert!(scanner.end().is_ok());
    }

    #[test]
    fn lists_and_objects_are_read_element_by_element() {
        let mut scanner = Scanner::lenient(b"{\"k\": [1, NaN, -Infinity], \"\\u006c\": {}}");
        let mut object = scanner.object().expect("object");
        assert_eq!(scanner.next_key(&mut object).expect("key").as_deref(), Some("k"));
        let mut list = scanner.list().expect("list");
        let mut numbers = Vec::new();
        while scanner.next_element(&mut list).expect("element") {
            numbers.push(scanner.number().expect("number").as_f64());
        }
        assert_eq!(numbers.len(), 3);
        assert!(numbers[1].is_nan());
        assert_eq!(numbers[2], f64::NEG_INFINITY);
        assert_eq!(scanner.next_key(&mut object).expect("key").as_deref(), Some("l"));
        assert_eq!(scanner.skip().expect("value"), b"{}");
        assert_eq!(scanner.next_key(&mut object).expect("end"), None);
        assert!(scanner.end().is_ok());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(text: Vec<u8>) {
            let _ = skip(&text);
            let _ = Scanner::lenient(&text).skip();
        }

        #[test]
        fn texts_like_json_are_judged_as_serde_json_does(text in "[\\[\\]{},:\"0-9.eE+ \\\\untrfalsbé-]{0,24}") {
            let ours = Scanner::strict(text.as_bytes()).skip();
            let mut scanner = Scanner::strict(text.as_bytes());
            let whole = scanner.skip().and_then(|_| scanner.end());
            let theirs: std::result::Result<serde_json::Value, _> = serde_json::from_str(&text);
            match theirs {
                Ok(_) => prop_assert!(whole.is_ok(), "{text}: {:?}", whole),
                // serde_json refuses numbers that no double holds.
                Err(error) if error.to_string().contains("number out of range") => {}
                Err(error) => prop_assert!(whole.is_err(), "{text}: {error}"),
            }
            let _ = ours;
        }

        #[test]
        fn strings_are_what_serde_json_reads(value: String) {
            let text = serde_json::to_string(&value).expect("a string");
            prop_assert_eq!(Scanner::strict(text.as_bytes()).string().expect("a string"), value);
        }
    }
}
