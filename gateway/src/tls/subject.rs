//! The common name of a certificate's subject (X.690, RFC 5280).

use rustls::pki_types::CertificateDer;

use super::der::{SEQUENCE, next, take};

const SET: u8 = 0x31;
const OBJECT_IDENTIFIER: u8 = 0x06;
const UTF8_STRING: u8 = 0x0c;
const PRINTABLE_STRING: u8 = 0x13;
const IA5_STRING: u8 = 0x16;

/// 2.5.4.3: commonName.
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];

/// Returns the common name of a certificate; None if it has none, several, or one that is no plain text.
pub fn common_name(certificate: &CertificateDer<'_>) -> Option<String> {
    let certificate = webpki::EndEntityCert::try_from(certificate).ok()?;
    name_of(certificate.subject())
}

/// As `common_name`, of a subject: what its sequence holds.
fn name_of(mut subject: &[u8]) -> Option<String> {
    let mut found = None;
    while !subject.is_empty() {
        let mut set = take(&mut subject, SET)?;
        while !set.is_empty() {
            let mut attribute = take(&mut set, SEQUENCE)?;
            if take(&mut attribute, OBJECT_IDENTIFIER)? != COMMON_NAME {
                continue;
            }
            let (tag, value) = next(&mut attribute)?;
            if found.is_some() || !matches!(tag, UTF8_STRING | PRINTABLE_STRING | IA5_STRING) {
                return None;
            }
            found = Some(std::str::from_utf8(value).ok()?);
        }
    }
    found.filter(|name| !name.is_empty() && !name.contains(char::is_control)).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::der::tests::element;
    use super::*;

    fn attribute(kind: &[u8], tag: u8, value: &[u8]) -> Vec<u8> {
        element(SET, &element(SEQUENCE, &[element(OBJECT_IDENTIFIER, kind), element(tag, value)].concat()))
    }

    #[test]
    fn a_subject_has_one_name_or_none() {
        let name = |text: &str| attribute(COMMON_NAME, UTF8_STRING, text.as_bytes());
        let organization = attribute(&[0x55, 0x04, 0x0a], UTF8_STRING, b"o");
        let long = "n".repeat(300);
        let two_in_one = element(SET, &[&name("a")[2..], &name("b")[2..]].concat());
        for (subject, expected) in [
            (name("checkout"), Some("checkout")),
            ([organization.clone(), name("checkout")].concat(), Some("checkout")),
            (attribute(COMMON_NAME, PRINTABLE_STRING, b"checkout"), Some("checkout")),
            (name(&long), Some(&long[..])),
            (vec![], None),
            (organization, None),
            ([name("a"), name("b")].concat(), None),
            (two_in_one, None),
            (name(""), None),
            (name("a\0b"), None),
            (attribute(COMMON_NAME, UTF8_STRING, &[0xff]), None),
            (attribute(COMMON_NAME, 0x1e, b"\0a"), None),
            (name("checkout")[..8].to_vec(), None),
        ] {
            assert_eq!(name_of(&subject).as_deref(), expected, "{}", subject.escape_ascii());
        }
    }

    proptest! {
        #[test]
        fn any_bytes_have_a_name_or_none(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = name_of(&bytes);
        }
    }
}
