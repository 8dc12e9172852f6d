//! `Content-Encoding` and `Accept-Encoding`: which compression a client uses, and which one it wants.

use http::{HeaderMap, header};

use crate::compression::Compression;
use crate::mt1::DaemonError;

/// Returns the compression of a request's body; None if it has none.
pub fn of_request(headers: &HeaderMap) -> Result<Option<Compression>, DaemonError> {
    let Some(value) = headers.get(header::CONTENT_ENCODING) else { return Ok(None) };
    let name = value.as_bytes().trim_ascii().to_ascii_lowercase();
    match (from_name(&name), &name[..]) {
        (None, b"" | b"identity") => Ok(None),
        (None, _) => Err(DaemonError::invalid("Content-Encoding is neither gzip nor deflate nor identity")),
        (known, _) => Ok(known),
    }
}

/// Returns the compression that a client wants for the response; gzip if it accepts both alike.
pub fn of_response(headers: &HeaderMap) -> Option<Compression> {
    let mut best: Option<(Compression, f32)> = None;
    for value in headers.get_all(header::ACCEPT_ENCODING) {
        for item in value.to_str().unwrap_or_default().split(',') {
            let mut parts = item.split(';');
            let name = parts.next().unwrap_or_default().trim().to_ascii_lowercase();
            let Some(compression) = from_name(name.as_bytes()) else { continue };
            let quality = parts.find_map(|part| part.trim().strip_prefix("q=")?.parse::<f32>().ok());
            let quality = quality.unwrap_or(1.0);
            let better = match best {
                None => quality > 0.0,
                Some((_, known)) => quality > known || quality == known && compression == Compression::Gzip,
            };
            if better {
                best = Some((compression, quality));
            }
        }
    }
    best.map(|(compression, _)| compression)
}

/// As `Compression::from_name`, with HTTP's older name of gzip.
fn from_name(name: &[u8]) -> Option<Compression> {
    if name == b"x-gzip" { Some(Compression::Gzip) } else { Compression::from_name(name) }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn clients_choose_the_compression_of_responses() {
        let table = [
            ("gzip, deflate", Some(Compression::Gzip)),
            ("deflate, gzip", Some(Compression::Gzip)),
            ("gzip;q=0.5, deflate", Some(Compression::Deflate)),
            ("gzip;q=0", None),
            ("identity", None),
            ("br, DEFLATE", Some(Compression::Deflate)),
            ("", None),
        ];
        for (value, expected) in table {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static(value));
            assert_eq!(of_response(&headers), expected, "{value}");
        }
    }

    #[test]
    fn the_compression_of_a_request_is_known_or_refused() {
        assert_eq!(of_request(&HeaderMap::new()), Ok(None));
        for (value, expected) in [
            ("gzip", Some(Some(Compression::Gzip))),
            (" X-GZIP ", Some(Some(Compression::Gzip))),
            ("Deflate", Some(Some(Compression::Deflate))),
            ("identity", Some(None)),
            ("", Some(None)),
            ("br", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(value));
            assert_eq!(of_request(&headers).ok(), expected, "{value}");
        }
    }
}
