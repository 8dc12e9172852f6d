//! Protocol Buffers' wire format, for the messages that carry tensors.
//!
//! Generated code would build one object for each element of a string tensor, and copy numbers that already are in the
//! tensor's form: what a client sends could then take many times its size in memory. Reading by hand costs one pass,
//! takes at most twice the message's size, and leaves large values where they are.

use bytes::{BufMut, Bytes, BytesMut};
use prost::encoding::{WireType, encode_key, encode_varint};

use crate::mt1::DaemonError;

/// The value of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    Varint(u64),
    Fixed64(u64),
    Fixed32(u32),
    /// A string, bytes, a message, or packed numbers.
    Slice(&'a [u8]),
}

/// Iterates over the fields of a message.
#[derive(Clone)]
pub struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    pub fn new(message: &'a [u8]) -> Self {
        Self { rest: message }
    }

    /// Returns number and value of the next field, or None at the end of the message.
    pub fn next_field(&mut self) -> Result<Option<(u32, Value<'a>)>, DaemonError> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let key = read_varint(&mut self.rest)?;
        let number = u32::try_from(key >> 3).map_err(|_| malformed())?;
        let value = match key & 7 {
            0 => Value::Varint(read_varint(&mut self.rest)?),
            1 => Value::Fixed64(u64::from_le_bytes(self.chunk()?)),
            2 => {
                let length = usize::try_from(read_varint(&mut self.rest)?).map_err(|_| malformed())?;
                let (slice, rest) = self.rest.split_at_checked(length).ok_or_else(malformed)?;
                self.rest = rest;
                Value::Slice(slice)
            }
            5 => Value::Fixed32(u32::from_le_bytes(self.chunk()?)),
            _ => return Err(malformed()),
        };
        if number == 0 { Err(malformed()) } else { Ok(Some((number, value))) }
    }

    fn chunk<const N: usize>(&mut self) -> Result<[u8; N], DaemonError> {
        let (chunk, rest) = self.rest.split_first_chunk::<N>().ok_or_else(malformed)?;
        self.rest = rest;
        Ok(*chunk)
    }
}

impl<'a> Value<'a> {
    /// Returns the bytes of a string, bytes or message field.
    pub fn slice(self) -> Result<&'a [u8], DaemonError> {
        match self {
            Value::Slice(slice) => Ok(slice),
            _ => Err(malformed()),
        }
    }

    /// Returns the text of a string field.
    pub fn text(self) -> Result<&'a str, DaemonError> {
        let slice = self.slice()?;
        std::str::from_utf8(slice).map_err(|_| DaemonError::invalid("the message has a string that is not UTF-8"))
    }

    /// Returns the number of an integer, boolean or enumeration field.
    pub fn varint(self) -> Result<u64, DaemonError> {
        match self {
            Value::Varint(number) => Ok(number),
            _ => Err(malformed()),
        }
    }

    /// Appends the numbers of a repeated integer field, which clients may send packed or one by one.
    pub fn extend_integers(self, numbers: &mut Vec<i64>, limit: usize, what: &str) -> Result<(), DaemonError> {
        match self {
            Value::Varint(number) => numbers.push(number as i64),
            Value::Slice(mut packed) => {
                while !packed.is_empty() && numbers.len() <= limit {
                    numbers.push(read_varint(&mut packed)? as i64);
                }
            }
            _ => return Err(malformed()),
        }
        if numbers.len() > limit {
            return Err(DaemonError::invalid(format!("{what} has more than {limit} numbers")));
        }
        Ok(())
    }
}

/// Reads a varint off the front.
#[inline]
pub fn read_varint(rest: &mut &[u8]) -> Result<u64, DaemonError> {
    match rest.split_first() {
        Some((&byte, tail)) if byte < 0x80 => {
            *rest = tail;
            Ok(u64::from(byte))
        }
        _ => read_long_varint(rest),
    }
}

fn read_long_varint(rest: &mut &[u8]) -> Result<u64, DaemonError> {
    let mut number = 0u64;
    for (index, &byte) in rest.iter().take(10).enumerate() {
        // The tenth byte has room for one bit.
        if index == 9 && byte > 1 {
            return Err(malformed());
        }
        number |= u64::from(byte & 0x7f) << (7 * index);
        if byte < 0x80 {
            *rest = &rest[index + 1..];
            return Ok(number);
        }
    }
    Err(malformed())
}

/// The error for bytes that are no message.
pub fn malformed() -> DaemonError {
    DaemonError::invalid("the message is not a valid Protocol Buffers message of this method")
}

/// A repeated field of numbers, in packed form. Usually it is one piece of the message, and stays a slice of it.
#[derive(Debug, Default)]
pub struct Packed {
    slice: Bytes,
    /// Everything, as soon as there is more than one piece.
    joined: Vec<u8>,
}

impl Packed {
    /// Appends what one field of `message` has: packed numbers, or a single one.
    pub fn extend(&mut self, message: &Bytes, value: Value) {
        match value {
            Value::Slice(packed) if self.slice.is_empty() && self.joined.is_empty() => {
                self.slice = message.slice_ref(packed);
            }
            Value::Slice(packed) => self.join().extend_from_slice(packed),
            Value::Varint(number) => encode_varint(number, self.join()),
            Value::Fixed32(bits) => self.join().extend_from_slice(&bits.to_le_bytes()),
            Value::Fixed64(bits) => self.join().extend_from_slice(&bits.to_le_bytes()),
        }
    }

    fn join(&mut self) -> &mut Vec<u8> {
        if !self.slice.is_empty() {
            self.joined.extend_from_slice(&std::mem::take(&mut self.slice));
        }
        &mut self.joined
    }

    /// Returns all numbers in packed form.
    pub fn into_bytes(self) -> Bytes {
        if self.joined.is_empty() { self.slice } else { self.joined.into() }
    }
}

/// A message that is being written. Large values stay pieces of their own, so that they are not copied.
#[derive(Default)]
pub struct Writer {
    pieces: Vec<Bytes>,
    tail: BytesMut,
}

/// Values below this are copied into the piece before: a frame of its own costs more.
const COPY_BELOW: usize = 16 << 10;

impl Writer {
    pub fn new() -> Self {
        Self::default()
    }

    /// Writes a string, unless it is empty, as proto3 does.
    pub fn text(&mut self, number: u32, text: &str) {
        if !text.is_empty() {
            self.bytes_field(number, text.as_bytes());
        }
    }

    /// Writes a string or bytes field or a message, also an empty one.
    pub fn bytes_field(&mut self, number: u32, bytes: &[u8]) {
        self.begin(number, bytes.len());
        self.tail.put_slice(bytes);
    }

    /// Writes a bytes field, without copying it if it is large.
    pub fn large(&mut self, number: u32, bytes: Bytes) {
        self.begin(number, bytes.len());
        self.raw(bytes);
    }

    /// Writes number and length of a field whose bytes follow.
    pub fn begin(&mut self, number: u32, length: usize) {
        encode_key(number, WireType::LengthDelimited, &mut self.tail);
        encode_varint(length as u64, &mut self.tail);
    }

    /// Writes an integer, also 0.
    pub fn varint(&mut self, number: u32, value: u64) {
        encode_key(number, WireType::Varint, &mut self.tail);
        encode_varint(value, &mut self.tail);
    }

    /// Writes a message that was written before.
    pub fn message(&mut self, number: u32, message: Writer) {
        self.begin(number, message.len());
        for piece in message.finish() {
            self.raw(piece);
        }
    }

    /// Writes bytes as they are.
    pub fn raw(&mut self, bytes: Bytes) {
        if bytes.len() < COPY_BELOW {
            self.tail.put_slice(&bytes);
        } else {
            if !self.tail.is_empty() {
                self.pieces.push(self.tail.split().freeze());
            }
            self.pieces.push(bytes);
        }
    }

    /// Returns the number of bytes written.
    pub fn len(&self) -> usize {
        self.pieces.iter().map(Bytes::len).sum::<usize>() + self.tail.len()
    }

    /// Returns the message in pieces.
    pub fn finish(mut self) -> Vec<Bytes> {
        if !self.tail.is_empty() {
            self.pieces.push(self.tail.freeze());
        }
        self.pieces
    }
}

/// Returns the packed form of integers.
pub fn packed_varints(numbers: impl Iterator<Item = u64>) -> BytesMut {
    let mut packed = BytesMut::with_capacity(numbers.size_hint().0);
    for number in numbers {
        encode_varint(number, &mut packed);
    }
    packed
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn varints_of_every_length_are_read() {
        for number in [0, 1, 127, 128, 300, u64::from(u32::MAX), u64::MAX - 1, u64::MAX] {
            let mut written = BytesMut::new();
            encode_varint(number, &mut written);
            let mut rest = &written[..];
            assert_eq!(read_varint(&mut rest), Ok(number));
            assert!(rest.is_empty());
        }
    }

    #[test]
    fn what_is_cut_short_or_too_long_is_malformed() {
        let table: &[&[u8]] = &[
            b"\x80",
            b"\x08",
            b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02",
            b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
            b"\x0a\x02a",
            b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
            b"\x0d\x00\x00\x00",
            b"\x09\x00\x00\x00\x00",
            b"\x0b",
            b"\x0e",
            b"\x00\x00",
        ];
        for message in table {
            let mut fields = Fields::new(message);
            assert!(fields.next_field().is_err(), "{message:?}");
        }
    }

    #[test]
    fn fields_are_read_as_they_are_written() {
        let mut inner = Writer::new();
        inner.varint(1, 7);
        let mut writer = Writer::new();
        writer.text(1, "ab");
        writer.text(2, "");
        writer.message(3, inner);
        let large = Bytes::from(vec![1u8; COPY_BELOW]);
        writer.large(4, large.clone());
        writer.varint(5, 300);
        let length = writer.len();
        let pieces = writer.finish();
        assert_eq!(pieces.len(), 3);
        assert_eq!(pieces[1].as_ptr(), large.as_ptr());
        let whole = pieces.concat();
        assert_eq!(whole.len(), length);
        let mut fields = Fields::new(&whole);
        assert_eq!(fields.next_field(), Ok(Some((1, Value::Slice(b"ab")))));
        assert_eq!(fields.next_field(), Ok(Some((3, Value::Slice(b"\x08\x07")))));
        assert_eq!(fields.next_field(), Ok(Some((4, Value::Slice(&large)))));
        assert_eq!(fields.next_field(), Ok(Some((5, Value::Varint(300)))));
        assert_eq!(fields.next_field(), Ok(None));
    }

    proptest! {
        #[test]
        fn reading_never_panics_and_ends(message in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut fields = Fields::new(&message);
            let mut count = 0;
            while let Ok(Some(_)) = fields.next_field() {
                count += 1;
            }
            prop_assert!(count <= message.len());
        }
    }
}
