//! Decodes numbers, strings, booleans, and lists of them straight into the data of a tensor.

use bytes::Bytes;

use super::base64::read_base64;
use super::number::{self, Number};
use super::scanner::List;
use super::{Error, Kind, MAX_RANK, Result, Scanner};
use crate::tensor::{Datatype, push_element};

/// The interface whose JSON is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// An element of a BYTES tensor may be `{"b64": "..."}`, and errors have TensorFlow's names of datatypes.
    TensorflowServing,
    OpenInference,
}

impl Dialect {
    fn name(self, datatype: Datatype) -> &'static str {
        match self {
            Dialect::TensorflowServing => datatype.tensorflow_name(),
            Dialect::OpenInference => datatype.name(),
        }
    }
}

/// The size of a dimension whose list has not ended yet.
const UNKNOWN: usize = usize::MAX;

/// How much of a value is quoted in an error, in bytes.
const EXCERPT: usize = 120;

/// Evaluates an expression with the function that converts numbers to a datatype: it returns the bytes of an element, or
/// `None` for a number that the datatype cannot hold. The value is `None` for datatypes that numbers do not have.
macro_rules! with_conversion {
    ($datatype:expr, $convert:ident => $expression:expr) => {
        with_conversion!(@ $datatype, $convert, $expression,
            Fp16: |number| Some(number::narrow(number.as_f64(), 10)),
            Bf16: |number| Some(number::narrow(number.as_f64(), 7)),
            Fp32: |number| Some(number.as_f64() as f32),
            Fp64: |number| Some(number.as_f64()),
            Int8: |number| i8::try_from(number.as_i64()?).ok(),
            Int16: |number| i16::try_from(number.as_i64()?).ok(),
            Int32: |number| i32::try_from(number.as_i64()?).ok(),
            Int64: |number| number.as_i64(),
            Uint8: |number| u8::try_from(number.as_u64()?).ok(),
            Uint16: |number| u16::try_from(number.as_u64()?).ok(),
            Uint32: |number| u32::try_from(number.as_u64()?).ok(),
            Uint64: |number| number.as_u64())
    };
    (@ $datatype:expr, $convert:ident, $expression:expr, $($name:ident: |$number:ident| $value:expr),*) => {
        match $datatype {
            $(Datatype::$name => {
                let convert = |$number: Number| $value;
                let $convert = |number: Number| convert(number).map(|value| value.to_le_bytes());
                Some($expression)
            })*
            Datatype::Bool | Datatype::Bytes | Datatype::Complex64 | Datatype::Complex128 => None,
        }
    };
}

/// Collects the data of one tensor from one JSON value or several.
pub struct Decoder {
    datatype: Datatype,
    dialect: Dialect,
    data: Vec<u8>,
    /// Shape of the value that is being read, as far as its first elements have shown.
    shape: Vec<usize>,
    /// Levels of lists above its elements, once an element or an empty list has been seen.
    rank: Option<usize>,
}

impl Decoder {
    pub fn new(datatype: Datatype, dialect: Dialect) -> Self {
        Self { datatype, dialect, data: Vec::new(), shape: Vec::new(), rank: None }
    }

    /// Reads one value, a scalar or nested lists, appends its elements to the data, and returns its shape.
    ///
    /// Fails if the lists are ragged or an element does not fit the datatype. The data is then incomplete.
    pub fn value(&mut self, scanner: &mut Scanner<'_>) -> Result<&[usize]> {
        self.shape.clear();
        self.rank = None;
        self.item(scanner, 0)?;
        Ok(&self.shape)
    }

    /// Returns the elements of all values in the order in which they were read, as MT1 transmits them.
    pub fn finish(self) -> Bytes {
        Bytes::from(self.data)
    }

    fn item(&mut self, scanner: &mut Scanner<'_>, level: usize) -> Result<()> {
        if scanner.next_byte() == Some(b'[') {
            return self.list(scanner, level);
        }
        let rank = *self.rank.get_or_insert(level);
        if rank != level {
            return Err(wrong_level(scanner, level, rank));
        }
        self.element(scanner)
    }

    fn list(&mut self, scanner: &mut Scanner<'_>, level: usize) -> Result<()> {
        let offset = scanner.offset();
        match self.rank {
            Some(rank) if level >= rank => {
                let message = format!("Encountered list at unexpected level: {level} expected < {rank}");
                return Err(Error::value(offset, message));
            }
            _ if level == MAX_RANK => {
                let message = format!("Lists are nested more than {MAX_RANK} levels deep.");
                return Err(Error::value(offset, message));
            }
            _ => {}
        }
        if self.shape.len() == level {
            self.shape.push(UNKNOWN);
        }
        let mut size = 0;
        let mut list = scanner.list()?;
        let mut more = scanner.next_element(&mut list)?;
        if !more {
            self.rank.get_or_insert(level + 1);
        }
        while more {
            if starts_number(scanner) && *self.rank.get_or_insert(level + 1) == level + 1 {
                more = self.numbers(scanner, &mut list, &mut size)?;
            } else {
                self.item(scanner, level + 1)?;
                size += 1;
                more = scanner.next_element(&mut list)?;
            }
        }
        match self.shape.get_mut(level) {
            Some(expected) if *expected == UNKNOWN => *expected = size,
            Some(expected) if *expected != size => {
                let message =
                    format!("Encountered list at unexpected size: {size} at level: {level} expected size: {expected}");
                return Err(Error::value(offset, message));
            }
            _ => {}
        }
        Ok(())
    }

    /// Reads elements of a list as long as they are numbers. Returns whether the list has an element of another kind
    /// next; otherwise it has ended.
    fn numbers(&mut self, scanner: &mut Scanner<'_>, list: &mut List, size: &mut usize) -> Result<bool> {
        // One loop for each datatype: this is where large requests spend their time.
        let data = &mut self.data;
        let fits = with_conversion!(self.datatype, convert => run(scanner, list, size, data, convert)?).flatten();
        match fits {
            Some(more) => Ok(more),
            None => Err(self.wrong_type(scanner)),
        }
    }

    /// Reads one element that is no list.
    fn element(&mut self, scanner: &mut Scanner<'_>) -> Result<()> {
        match (scanner.kind()?, self.datatype) {
            (_, Datatype::Complex64 | Datatype::Complex128) => Err(self.wrong_type(scanner)),
            (Kind::True | Kind::False, Datatype::Bool) => {
                self.data.push(u8::from(scanner.boolean()?));
                Ok(())
            }
            (Kind::String, Datatype::Bytes) => {
                push_element(&mut self.data, scanner.string()?.as_bytes());
                Ok(())
            }
            (Kind::Object, Datatype::Bytes) if self.dialect == Dialect::TensorflowServing => {
                push_element(&mut self.data, &read_base64(scanner)?);
                Ok(())
            }
            (Kind::Number, datatype) if !matches!(datatype, Datatype::Bool | Datatype::Bytes) => {
                let start = *scanner;
                let number = scanner.number()?;
                let data = &mut self.data;
                let fits = with_conversion!(datatype, convert => {
                    convert(number).map(|bytes| data.extend_from_slice(&bytes))
                });
                if let Some(Some(())) = fits {
                    return Ok(());
                }
                *scanner = start;
                Err(self.wrong_type(scanner))
            }
            _ => Err(self.wrong_type(scanner)),
        }
    }

    #[cold]
    fn wrong_type(&self, scanner: &mut Scanner<'_>) -> Error {
        let offset = scanner.offset();
        let (kind, value) = match (scanner.kind(), quote(scanner)) {
            (Ok(kind), Ok(value)) => (kind, value),
            (Err(error), _) | (_, Err(error)) => return error,
        };
        let name = self.dialect.name(self.datatype);
        if matches!(self.datatype, Datatype::Complex64 | Datatype::Complex128) {
            return Error::unsupported(offset, format!("Conversion of JSON Value: {value} to type: {name}"));
        }
        Error::value(offset, format!("JSON Value: {value} Type: {kind} is not of expected type: {name}"))
    }
}

#[inline(always)]
fn starts_number(scanner: &mut Scanner<'_>) -> bool {
    matches!(scanner.next_byte(), Some(b'0'..=b'9' | b'-'))
}

/// Reads elements of a list as long as they are numbers. Returns whether the list has an element of another kind next,
/// and `None` if `convert` refuses a number, with the scanner in front of it.
#[inline(always)]
fn run<const SIZE: usize>(
    scanner: &mut Scanner<'_>,
    list: &mut List,
    size: &mut usize,
    data: &mut Vec<u8>,
    convert: impl Fn(Number) -> Option<[u8; SIZE]>,
) -> Result<Option<bool>> {
    loop {
        let start = *scanner;
        let Some(bytes) = convert(scanner.number()?) else {
            *scanner = start;
            return Ok(None);
        };
        data.extend_from_slice(&bytes);
        *size += 1;
        if scanner.advance_to_number() {
            continue;
        }
        if !scanner.next_element(list)? {
            return Ok(Some(false));
        }
        if !starts_number(scanner) {
            return Ok(Some(true));
        }
    }
}

#[cold]
fn wrong_level(scanner: &mut Scanner<'_>, level: usize, rank: usize) -> Error {
    let offset = scanner.offset();
    let level = level + 1;
    match quote(scanner) {
        Ok(value) => Error::value(
            offset,
            format!("JSON Value: {value} found at incorrect level: {level} in the JSON DOM. Expected at level: {rank}"),
        ),
        Err(error) => error,
    }
}

/// The text of the next value, shortened, for an error.
pub fn quote(scanner: &mut Scanner<'_>) -> Result<String> {
    Ok(shorten(scanner.skip()?))
}

fn shorten(text: &[u8]) -> String {
    let Some((head, _)) = text.split_at_checked(EXCERPT).filter(|(_, tail)| !tail.is_empty()) else {
        return String::from_utf8_lossy(text).into_owned();
    };
    // A character that is cut is left out.
    let head = head.utf8_chunks().next().map_or("", |chunk| chunk.valid());
    format!("{head}...")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decode(datatype: Datatype, text: &str) -> Result<(Bytes, Vec<usize>)> {
        let mut decoder = Decoder::new(datatype, Dialect::TensorflowServing);
        let mut scanner = Scanner::lenient(text.as_bytes());
        let shape = decoder.value(&mut scanner)?.to_vec();
        scanner.end()?;
        Ok((decoder.finish(), shape))
    }

    fn refusal(datatype: Datatype, text: &str) -> String {
        decode(datatype, text).expect_err(text).to_string()
    }

    #[test]
    fn elements_become_the_bytes_of_their_datatype() {
        let table: &[(Datatype, &str, &[u8])] = &[
            (Datatype::Bool, "[true, false]", &[1, 0]),
            (Datatype::Uint8, "[0, 255]", &[0, 255]),
            (Datatype::Int8, "[-128, 127, -0]", &[128, 127, 0]),
            (Datatype::Uint16, "[65535]", &[255, 255]),
            (Datatype::Int16, "[-2]", &[254, 255]),
            (Datatype::Uint32, "[4294967295]", &[255; 4]),
            (Datatype::Int32, "[-2147483648]", &[0, 0, 0, 128]),
            (Datatype::Uint64, "[18446744073709551615]", &[255; 8]),
            (Datatype::Int64, "[-9223372036854775808]", &[0, 0, 0, 0, 0, 0, 0, 128]),
            (Datatype::Fp16, "[1, -2.5]", &[0, 0x3c, 0, 0xc1]),
            (Datatype::Bf16, "[1, -2.5]", &[0x80, 0x3f, 0x20, 0xc0]),
            (Datatype::Fp32, "[1.5, 1]", &[0, 0, 0xc0, 0x3f, 0, 0, 0x80, 0x3f]),
            (Datatype::Fp32, "[1e39, -1e39]", &[0, 0, 0x80, 0x7f, 0, 0, 0x80, 0xff]),
            (Datatype::Fp32, "[Infinity, -Infinity, 0]", &[0, 0, 0x80, 0x7f, 0, 0, 0x80, 0xff, 0, 0, 0, 0]),
            (Datatype::Fp64, "[-0.0]", &[0, 0, 0, 0, 0, 0, 0, 128]),
            (Datatype::Fp64, "[1e400]", &[0, 0, 0, 0, 0, 0, 0xf0, 0x7f]),
            (Datatype::Bytes, r#"["ab", ""]"#, b"\x02\0\0\0ab\0\0\0\0"),
            (Datatype::Bytes, r#"[{"b64": "/wA="}, "\u00e9"]"#, b"\x02\0\0\0\xff\0\x02\0\0\0\xc3\xa9"),
            (Datatype::Bytes, r#"[{"b64": "/w\nA"}]"#, b"\x02\0\0\0\xff\0"),
        ];
        for (datatype, text, data) in table {
            let (decoded, shape) = decode(*datatype, text).expect(text);
            assert_eq!(decoded, data, "{text}");
            assert_eq!(shape.len(), 1, "{text}");
        }
        let (data, _) = decode(Datatype::Fp32, "[NaN]").expect("NaN");
        assert!(f32::from_le_bytes(data[..4].try_into().expect("four bytes")).is_nan());
    }

    #[test]
    fn shapes_are_those_of_the_lists() {
        for (text, shape) in [
            ("7", &[][..]),
            ("[]", &[0]),
            ("[[]]", &[1, 0]),
            ("[[], []]", &[2, 0]),
            ("[1]", &[1]),
            ("[[1, 2, 3], [4, 5, 6]]", &[2, 3]),
            ("[[[1], [2]], [[3], [4]], [[5], [6]]]", &[3, 2, 1]),
        ] {
            assert_eq!(decode(Datatype::Int32, text).expect(text).1, shape, "{text}");
        }
    }

    #[test]
    fn values_of_one_decoder_are_joined() {
        let mut decoder = Decoder::new(Datatype::Uint8, Dialect::OpenInference);
        let mut scanner = Scanner::strict(b"[1, 2] 3 [[4]]");
        for shape in [&[2][..], &[], &[1, 1]] {
            assert_eq!(decoder.value(&mut scanner).expect("a value"), shape);
        }
        assert_eq!(&decoder.finish()[..], [1, 2, 3, 4]);
    }

    #[test]
    fn ragged_lists_and_wrong_elements_are_refused_with_the_reason() {
        use Datatype::*;
        for (datatype, text, message) in [
            (Fp32, "[[1, 2], [3]]", "Encountered list at unexpected size: 1 at level: 1 expected size: 2"),
            (Fp32, "[[1], [2, 3]]", "Encountered list at unexpected size: 2 at level: 1 expected size: 1"),
            (Fp32, "[[], [1]]", "Encountered list at unexpected size: 1 at level: 1 expected size: 0"),
            (Fp32, "[[1], 2]", "JSON Value: 2 found at incorrect level: 2 in the JSON DOM. Expected at level: 2"),
            (Fp32, "[1, [2]]", "Encountered list at unexpected level: 1 expected < 1"),
            (Fp32, "[[], 1]", "JSON Value: 1 found at incorrect level: 2 in the JSON DOM. Expected at level: 2"),
            (Fp32, "[1, \"a\"]", "JSON Value: \"a\" Type: String is not of expected type: float"),
            (Fp32, "null", "JSON Value: null Type: Null is not of expected type: float"),
            (Fp64, "[true]", "JSON Value: true Type: True is not of expected type: double"),
            (
                Fp32,
                "{\"b64\": \"AA==\"}",
                "JSON Value: {\"b64\": \"AA==\"} Type: Object is not of expected type: float",
            ),
            (Int32, "[1.0]", "JSON Value: 1.0 Type: Number is not of expected type: int32"),
            (Int32, "[2147483648]", "JSON Value: 2147483648 Type: Number is not of expected type: int32"),
            (Int32, "[1, 1e3]", "JSON Value: 1e3 Type: Number is not of expected type: int32"),
            (
                Int64,
                "9223372036854775808",
                "JSON Value: 9223372036854775808 Type: Number is not of expected type: int64",
            ),
            (Int8, "[128]", "JSON Value: 128 Type: Number is not of expected type: int8"),
            (Uint8, "[-1]", "JSON Value: -1 Type: Number is not of expected type: uint8"),
            (Int32, "[NaN]", "JSON Value: NaN Type: Number is not of expected type: int32"),
            (Bool, "[1]", "JSON Value: 1 Type: Number is not of expected type: bool"),
            (Bytes, "[1]", "JSON Value: 1 Type: Number is not of expected type: string"),
            (Bytes, "{\"b64\": 1}", "JSON Value: {\"b64\": 1} not formatted correctly for base64 data"),
            (
                Bytes,
                "{\"b64\": \"\", \"x\": 1}",
                "JSON Value: {\"b64\": \"\", \"x\": 1} not formatted correctly for base64 data",
            ),
            (Bytes, "{\"b64\": \"A\"}", "Unable to base64 decode: Invalid input length: 1"),
            (Bytes, "{\"b64\": \"?\"}", "Unable to base64 decode"),
            (Complex64, "[1]", "Conversion of JSON Value: 1 to type: complex64"),
            (Fp32, "[1,]", "JSON Parse error: Invalid value. at offset: 3"),
            (Fp32, "[1 2]", "JSON Parse error: Missing a comma or ] after an array element. at offset: 3"),
            (Fp32, "[1", "JSON Parse error: Missing a comma or ] after an array element. at offset: 2"),
            (Fp32, "[-]", "JSON Parse error: Invalid value. at offset: 2"),
            (Int32, "[1, tru]", "JSON Parse error: Invalid value. at offset: 4"),
        ] {
            let refusal = refusal(datatype, text);
            assert!(refusal.starts_with(message), "{text}: {refusal}");
        }
        assert!(refusal(Fp32, &format!("{}1{}", "[".repeat(65), "]".repeat(65))).contains("more than 64 levels"));
        let quoted = refusal(Fp32, &format!("\"{}\"", "é".repeat(1000)));
        assert!(quoted.len() < 250 && quoted.contains("é... Type: String"), "{quoted}");
    }

    #[test]
    fn the_open_inference_protocol_has_no_base64_objects() {
        let mut decoder = Decoder::new(Datatype::Bytes, Dialect::OpenInference);
        let refusal = decoder.value(&mut Scanner::strict(br#"{"b64": ""}"#)).expect_err("an object").to_string();
        assert!(refusal.ends_with("Type: Object is not of expected type: BYTES"), "{refusal}");
    }

    #[test]
    fn a_small_text_makes_a_small_tensor() {
        for datatype in Datatype::ALL {
            for text in [format!("[{}1]", "1,".repeat(1000)), format!("[{}[]]", "[],".repeat(1000))] {
                let mut decoder = Decoder::new(datatype, Dialect::TensorflowServing);
                let _ = decoder.value(&mut Scanner::lenient(text.as_bytes()));
                assert!(decoder.data.capacity() <= 16 * text.len());
            }
        }
    }

    #[derive(Clone, Debug)]
    enum Tree {
        Leaf(f64),
        List(Vec<Tree>),
    }

    impl Tree {
        fn text(&self) -> String {
            match self {
                Tree::Leaf(value) => format!("{value:?}"),
                Tree::List(list) => format!("[{}]", list.iter().map(Tree::text).collect::<Vec<_>>().join(" , ")),
            }
        }

        /// The shape and the elements, or `None` if the lists are ragged.
        fn flatten(&self) -> Option<(Vec<usize>, Vec<f64>)> {
            match self {
                Tree::Leaf(value) => Some((Vec::new(), vec![*value])),
                Tree::List(list) => {
                    let mut shape = vec![list.len()];
                    let mut values = Vec::new();
                    for (index, tree) in list.iter().enumerate() {
                        let (inner, elements) = tree.flatten()?;
                        if index == 0 {
                            shape.extend(&inner);
                        }
                        if shape[1..] != inner[..] {
                            return None;
                        }
                        values.extend(elements);
                    }
                    Some((shape, values))
                }
            }
        }
    }

    fn trees() -> impl Strategy<Value = Tree> {
        let finite = any::<f64>().prop_filter("finite", |value| value.is_finite());
        finite
            .prop_map(Tree::Leaf)
            .prop_recursive(4, 40, 4, |inner| prop::collection::vec(inner, 0..4).prop_map(Tree::List))
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded_or_refused(text: Vec<u8>, datatype in 0usize..16) {
            let mut decoder = Decoder::new(Datatype::ALL[datatype], Dialect::TensorflowServing);
            let _ = decoder.value(&mut Scanner::lenient(&text));
        }

        #[test]
        fn texts_like_tensors_are_decoded_or_refused(text in "[\\[\\]{},:\"0-9.eE+ \\\\NaInfity-]{0,40}", datatype in 0usize..16) {
            let mut decoder = Decoder::new(Datatype::ALL[datatype], Dialect::TensorflowServing);
            let mut scanner = Scanner::lenient(text.as_bytes());
            if let Ok(shape) = decoder.value(&mut scanner) {
                let elements: usize = shape.iter().product();
                if let Some(size) = Datatype::ALL[datatype].size() {
                    prop_assert_eq!(decoder.data.len(), elements * size);
                }
                prop_assert!(Scanner::lenient(text.as_bytes()).skip().is_ok(), "skip refuses {}", text);
            }
        }

        #[test]
        fn nested_lists_are_decoded_exactly_if_they_are_regular(tree in trees()) {
            let text = tree.text();
            match (tree.flatten(), decode(Datatype::Fp64, &text)) {
                (Some((shape, values)), Ok((data, decoded))) => {
                    prop_assert_eq!(decoded, shape);
                    let expected: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
                    prop_assert_eq!(&data[..], &expected[..]);
                }
                (None, Err(_)) => {}
                (expected, found) => prop_assert!(false, "{}: {:?} {:?}", text, expected, found),
            }
        }
    }
}
