//! Names the client that a request is sent for: one more address frame in front, where the daemon has `security`.

/// A handle has this many bytes at most.
const MAX_BYTES: usize = 16;

/// What the daemon calls a credential that it has verified. Without `security` there are none, and nothing is sent.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Handle {
    length: u8,
    bytes: [u8; MAX_BYTES],
}

impl Handle {
    /// No handle: messages have no frame for it.
    pub const NONE: Self = Self { length: 0, bytes: [0; MAX_BYTES] };

    /// The handle of clients that show no credential.
    pub fn anonymous() -> Self {
        Self::new(b"anonymous").unwrap_or(Self::NONE)
    }

    /// Returns the handle of these bytes; None if they cannot be one.
    pub fn new(text: &[u8]) -> Option<Self> {
        let mut bytes = [0; MAX_BYTES];
        bytes.get_mut(..text.len()).filter(|_| !text.is_empty())?.copy_from_slice(text);
        Some(Self { length: text.len() as u8, bytes })
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }

    pub fn is_none(&self) -> bool {
        self.length == 0
    }
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Handle({})", self.as_bytes().escape_ascii())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_has_one_to_sixteen_bytes() {
        assert_eq!(Handle::new(b""), None);
        assert_eq!(Handle::new(&[b'a'; 17]), None);
        assert_eq!(Handle::new(&[b'a'; 16]).unwrap().as_bytes(), [b'a'; 16]);
        assert_eq!(Handle::anonymous().as_bytes(), b"anonymous");
        assert!(Handle::NONE.is_none() && Handle::NONE.as_bytes().is_empty() && !Handle::anonymous().is_none());
    }
}
