//! The elements of a BYTES tensor: for each an unsigned little-endian length of four bytes, then that many bytes.

/// Appends one element to the data of a BYTES tensor.
///
/// Elements of 4 GiB or more cannot be written; bodies are limited far below that.
pub fn push_element(data: &mut Vec<u8>, element: &[u8]) {
    data.extend_from_slice(&(element.len() as u32).to_le_bytes());
    data.extend_from_slice(element);
}

/// Iterates over the elements of a BYTES tensor. An element that is cut short is an error, and the last item.
pub struct BytesElements<'a> {
    rest: &'a [u8],
}

/// The data of a BYTES tensor end within an element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Truncated;

impl<'a> BytesElements<'a> {
    pub fn new(data: &'a [u8]) -> Self {
        Self { rest: data }
    }
}

impl<'a> Iterator for BytesElements<'a> {
    type Item = Result<&'a [u8], Truncated>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let Some((length, rest)) = self.rest.split_first_chunk::<4>() else {
            self.rest = &[];
            return Some(Err(Truncated));
        };
        let Some((element, rest)) = rest.split_at_checked(u32::from_le_bytes(*length) as usize) else {
            self.rest = &[];
            return Some(Err(Truncated));
        };
        self.rest = rest;
        Some(Ok(element))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_read_as_they_are_written() {
        let mut data = Vec::new();
        for element in [&b""[..], b"a", b"\xff\x00"] {
            push_element(&mut data, element);
        }
        let read: Result<Vec<_>, _> = BytesElements::new(&data).collect();
        assert_eq!(read, Ok(vec![&b""[..], b"a", b"\xff\x00"]));
    }

    #[test]
    fn an_element_that_is_cut_short_is_an_error() {
        for data in [&b"\x01"[..], b"\x01\x00\x00\x00", b"\xff\xff\xff\xffab"] {
            let read: Vec<_> = BytesElements::new(data).collect();
            assert_eq!(read, vec![Err(Truncated)]);
        }
    }
}
