//! gzip and deflate, for bodies of HTTP and for messages of gRPC.

use std::io::{self, Read, Write};
use std::sync::Arc;

use bytes::Bytes;
use flate2::bufread::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};
use flate2::write::{GzEncoder, ZlibEncoder};

use crate::budget::{Counted, Held};
use crate::mt1::DaemonError;
use crate::threads::in_thread;

/// How something is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    Gzip,
    Deflate,
}

/// Less is not worth it.
const MIN_COMPRESSED_BYTES: usize = 1 << 10;

/// More is compressed or decompressed in another thread. Compressed data of this size can have a megabyte of content.
const INLINE_COMPRESSED_BYTES: usize = 1 << 10;
const INLINE_PLAIN_BYTES: usize = 16 << 10;

impl Compression {
    /// Returns the compression of a name in lower case, or None if there is no such one.
    pub fn from_name(name: &[u8]) -> Option<Self> {
        match name {
            b"gzip" => Some(Self::Gzip),
            b"deflate" => Some(Self::Deflate),
            _ => None,
        }
    }

    /// Returns its name in headers.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Deflate => "deflate",
        }
    }

    /// Decompresses what a client sent, and adds the content to the memory of its request.
    ///
    /// `what` names it in errors: "body" or "message". The error for more than `limit` bytes is RESOURCE_EXHAUSTED /
    /// `too_large`; for data that cannot be decompressed INVALID_ARGUMENT; where all requests together use too much
    /// memory RESOURCE_EXHAUSTED / `queue_full`.
    pub async fn decompress(
        self,
        compressed: Bytes,
        what: &'static str,
        limit: usize,
        held: Arc<Held>,
    ) -> Result<Bytes, DaemonError> {
        if compressed.len() <= INLINE_COMPRESSED_BYTES {
            return self.decompress_now(&compressed, what, limit, &held);
        }
        in_thread(move || self.decompress_now(&compressed, what, limit, &held)).await
    }

    fn decompress_now(
        self,
        compressed: &[u8],
        what: &'static str,
        limit: usize,
        held: &Held,
    ) -> Result<Bytes, DaemonError> {
        let mut plain = Vec::new();
        let bound = (limit as u64).saturating_add(1);
        let outcome = match self {
            Self::Gzip => Counted::new(MultiGzDecoder::new(compressed), held).take(bound).read_to_end(&mut plain),
            // By RFC 9110 it is the zlib format, but some send deflate without it. The first bytes tell.
            Self::Deflate if is_zlib(compressed) => {
                Counted::new(ZlibDecoder::new(compressed), held).take(bound).read_to_end(&mut plain)
            }
            Self::Deflate => Counted::new(DeflateDecoder::new(compressed), held).take(bound).read_to_end(&mut plain),
        };
        outcome.map_err(|error| {
            let name = self.name();
            let wrong = |error| DaemonError::invalid(format!("the {what} cannot be decompressed ({name}): {error}"));
            error.downcast::<DaemonError>().unwrap_or_else(wrong)
        })?;
        if plain.len() > limit { Err(DaemonError::too_large(what, limit)) } else { Ok(plain.into()) }
    }

    /// Compresses what consists of these pieces, or returns None if that would not make it smaller.
    pub async fn compress(self, pieces: Vec<Bytes>) -> Option<Bytes> {
        let before = pieces.iter().map(Bytes::len).sum();
        if before < MIN_COMPRESSED_BYTES {
            return None;
        }
        let compressed = if before <= INLINE_PLAIN_BYTES {
            self.compress_now(&pieces, before).ok()?
        } else {
            tokio::task::spawn_blocking(move || self.compress_now(&pieces, before)).await.ok()?.ok()?
        };
        (compressed.len() < before).then(|| compressed.into())
    }

    fn compress_now(self, pieces: &[Bytes], bytes: usize) -> io::Result<Vec<u8>> {
        let (output, level) = (Vec::with_capacity(bytes / 2), flate2::Compression::fast());
        match self {
            Self::Gzip => {
                let mut encoder = GzEncoder::new(output, level);
                pieces.iter().try_for_each(|piece| encoder.write_all(piece))?;
                encoder.finish()
            }
            Self::Deflate => {
                let mut encoder = ZlibEncoder::new(output, level);
                pieces.iter().try_for_each(|piece| encoder.write_all(piece))?;
                encoder.finish()
            }
        }
    }
}

/// Whether deflated data begin with zlib's header: a method of 8, and a check that is a multiple of 31.
fn is_zlib(compressed: &[u8]) -> bool {
    matches!(compressed, [first, second, ..]
        if first & 0x0f == 8 && u16::from_be_bytes([*first, *second]).is_multiple_of(31))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::Budget;
    use crate::mt1::Code;

    fn held() -> Arc<Held> {
        Budget::new(1 << 20, 0).hold()
    }

    async fn read(compression: Compression, compressed: Bytes, limit: usize) -> Result<Bytes, DaemonError> {
        compression.decompress(compressed, "body", limit, held()).await
    }

    #[tokio::test]
    async fn what_was_compressed_is_read_again() {
        for compression in [Compression::Gzip, Compression::Deflate] {
            for size in [2_000, 200_000] {
                let (first, second) = (Bytes::from(vec![7u8; size / 2]), Bytes::from(vec![8u8; size / 2]));
                let compressed = compression.compress(vec![first.clone(), second.clone()]).await.unwrap();
                assert!(compressed.len() < size);
                let plain = read(compression, compressed.clone(), size).await.unwrap();
                assert_eq!(plain, [first, second].concat());
                let error = read(compression, compressed, size - 1).await.unwrap_err();
                assert_eq!(error.reason, "too_large");
            }
            let large = compression.compress(vec![Bytes::from(vec![7u8; 2 << 20])]).await.unwrap();
            let error = read(compression, large, usize::MAX).await.unwrap_err();
            assert_eq!(error.reason, "queue_full", "requests may use a mebibyte here");
            assert_eq!(compression.compress(vec![Bytes::from_static(b"short")]).await, None);
            let error = read(compression, Bytes::from_static(b"\xffnot compressed"), 100).await.unwrap_err();
            assert_eq!(error.code, Code::InvalidArgument);
            assert!(error.message.contains(compression.name()), "{}", error.message);
        }
    }

    #[tokio::test]
    async fn gzip_may_have_several_members() {
        let member = |content: &[u8]| {
            let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(content).unwrap();
            encoder.finish().unwrap()
        };
        let compressed = Bytes::from([member(b"abc"), member(b"def")].concat());
        assert_eq!(read(Compression::Gzip, compressed, 100).await, Ok(Bytes::from_static(b"abcdef")));
    }

    #[tokio::test]
    async fn deflate_is_read_without_zlib_header_too() {
        let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(b"abcabcabc").unwrap();
        let raw = Bytes::from(encoder.finish().unwrap());
        assert_eq!(read(Compression::Deflate, raw, 100).await, Ok(Bytes::from_static(b"abcabcabc")));
    }
}
