//! Elements of DER (X.690), as certificates consist of them.

pub const SEQUENCE: u8 = 0x30;

/// Takes an element off the input, which must have this tag.
pub fn take<'a>(input: &mut &'a [u8], tag: u8) -> Option<&'a [u8]> {
    next(input).filter(|(found, _)| *found == tag).map(|(_, value)| value)
}

/// Takes an element off the input: its tag and its value.
pub fn next<'a>(input: &mut &'a [u8]) -> Option<(u8, &'a [u8])> {
    let (&[tag, length], rest) = input.split_first_chunk::<2>()?;
    let (length, rest) = match length {
        0..=0x7f => (usize::from(length), rest),
        // The length itself takes this many bytes.
        0x81 => (usize::from(*rest.first()?), &rest[1..]),
        0x82 => {
            let (bytes, rest) = rest.split_first_chunk::<2>()?;
            (usize::from(u16::from_be_bytes(*bytes)), rest)
        }
        _ => return None, // no certificate that a handshake can carry is longer
    };
    let (value, rest) = rest.split_at_checked(length)?;
    *input = rest;
    Some((tag, value))
}

#[cfg(test)]
pub mod tests {
    pub fn element(tag: u8, value: &[u8]) -> Vec<u8> {
        let mut element = vec![tag];
        match value.len() {
            length @ 0..=0x7f => element.push(length as u8),
            length => {
                element.push(0x82);
                element.extend_from_slice(&(length as u16).to_be_bytes());
            }
        }
        element.extend_from_slice(value);
        element
    }
}
