//! Messages in the body of a gRPC call: a flag for compression, a length of four bytes, and the message.

use std::sync::Arc;
use std::time::Duration;

use ::http::HeaderMap;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use http_body_util::BodyExt;
use tokio::time::{Instant, timeout_at};

use crate::budget::Held;
use crate::compression::Compression;
use crate::http::{RequestBody, next_piece_until};
use crate::mt1::{Code, DaemonError, LARGE_BYTES, Lease, Regions};

const PREFIX: usize = 5;

/// A first piece below this size is joined with the prefix.
const JOINED_BYTES: usize = 64 << 10;

/// Memory that is reserved for a message before its bytes have come.
const RESERVED_BYTES: usize = 1 << 20;

/// What this server accepts, for `grpc-accept-encoding`.
pub const ACCEPTED_ENCODINGS: &str = "identity,deflate,gzip";

/// Returns how the messages of a call are compressed (`grpc-encoding`). The error is UNIMPLEMENTED, as gRPC asks for.
pub fn compression_of(headers: &HeaderMap) -> Result<Option<Compression>, DaemonError> {
    let Some(name) = headers.get("grpc-encoding") else { return Ok(None) };
    match Compression::from_name(name.as_bytes()) {
        None if !matches!(name.as_bytes(), b"identity" | b"") => Err(DaemonError::unsupported(format!(
            "the compression {name:?} is not supported, only {ACCEPTED_ENCODINGS}"
        ))),
        known => Ok(known),
    }
}

/// Reads the messages of a call.
pub struct MessageReader {
    body: RequestBody,
    /// Received and not yet used: one piece as it arrived, or several joined.
    received: Bytes,
    compression: Option<Compression>,
    /// Bytes that a message may have, also once decompressed.
    limit: usize,
    /// How long a message may take, and longer if it is large.
    body_timeout: Duration,
    /// Counts the memory of the call, or of a stream's current message.
    held: Arc<Held>,
    /// Large messages are received into shared memory, so that their tensors need not be copied there.
    regions: Regions,
}

impl MessageReader {
    pub fn new(
        body: RequestBody,
        compression: Option<Compression>,
        limit: usize,
        body_timeout: Duration,
        regions: Regions,
    ) -> Self {
        let held = body.held().clone();
        Self { body, received: Bytes::new(), compression, limit, body_timeout, held, regions }
    }

    /// Returns the only message of a call.
    pub async fn only(mut self) -> Result<Bytes, DaemonError> {
        let message = self.next_until(Some(Instant::now() + self.body_timeout)).await?;
        let Some(message) = message else {
            return Err(DaemonError::invalid("the call ended without a message"));
        };
        // By the protocol the client ends its side now; usually that came with the message.
        let until = Instant::now() + self.body_timeout;
        if !self.received.is_empty() || self.next_piece(Some(until)).await?.is_some() {
            return Err(DaemonError::invalid("the call has more than one message, but the method takes one"));
        }
        Ok(message)
    }

    /// Returns the next message of a stream and what counts its memory, or None after the last one. Waits for its
    /// beginning without limit.
    pub async fn next(&mut self) -> Result<Option<(Bytes, Arc<Held>)>, DaemonError> {
        self.held = self.held.another();
        let message = self.next_until(None).await?;
        Ok(message.map(|message| (message, self.held.clone())))
    }

    async fn next_until(&mut self, first: Option<Instant>) -> Result<Option<Bytes>, DaemonError> {
        if self.received.is_empty() {
            match self.next_piece(first).await? {
                Some(piece) => self.received = piece,
                None => return Ok(None),
            }
        }
        if self.received.len() < PREFIX {
            self.gather(PREFIX).await?;
        }
        let compressed = match self.received[0] {
            0 => false,
            1 => true,
            flag => return Err(DaemonError::invalid(format!("a message has the compression flag {flag}"))),
        };
        let length = u32::from_be_bytes([self.received[1], self.received[2], self.received[3], self.received[4]]);
        let length = length as usize;
        if length > self.limit {
            return Err(DaemonError::too_large("message", self.limit));
        }
        if self.received.len() < PREFIX + length {
            if !compressed
                && length >= LARGE_BYTES
                && let Some(region) = self.regions.take_for_message(length)
            {
                return self.receive_into(&region, length).await.map(Some);
            }
            self.gather(PREFIX + length).await?;
        }
        let mut message = self.received.split_to(PREFIX + length);
        let message = message.split_off(PREFIX);
        if !compressed {
            return Ok(Some(message));
        }
        let Some(compression) = self.compression else {
            // gRPC asks for this code.
            let text = "a message is compressed, but the call has no grpc-encoding";
            return Err(DaemonError::new(Code::Internal, "malformed", text));
        };
        compression.decompress(message, "message", self.limit, self.held.clone()).await.map(Some)
    }

    /// Receives a message of this length into a region. Its prefix has been received.
    async fn receive_into(&mut self, region: &Lease, length: usize) -> Result<Bytes, DaemonError> {
        self.received.advance(PREFIX);
        let (began, mut missing) = (Instant::now(), length);
        loop {
            let piece = self.received.split_to(missing.min(self.received.len()));
            region.append(&piece);
            missing -= piece.len();
            if missing == 0 {
                return Ok(region.appended());
            }
            let until = next_piece_until(began, self.body_timeout, length - missing);
            self.received = self.next_piece(Some(until)).await?.ok_or_else(ended_early)?;
        }
    }

    /// Waits until as many bytes have been received.
    async fn gather(&mut self, wanted: usize) -> Result<(), DaemonError> {
        let mut joined = BytesMut::with_capacity(wanted.min(RESERVED_BYTES));
        joined.put_slice(&self.received);
        self.received = Bytes::new();
        let began = Instant::now();
        while joined.len() < wanted {
            match self.next_piece(Some(next_piece_until(began, self.body_timeout, joined.len()))).await? {
                Some(piece) if joined.len() + piece.len() <= wanted => joined.put_slice(&piece),
                Some(piece) => joined.extend_from_slice(&piece),
                None => return Err(ended_early()),
            }
        }
        self.received = joined.freeze();
        Ok(())
    }

    /// Returns the next piece of the body that is not empty, or None at its end.
    async fn next_piece(&mut self, until: Option<Instant>) -> Result<Option<Bytes>, DaemonError> {
        loop {
            let frame = match until {
                Some(until) => timeout_at(until, self.body.frame())
                    .await
                    .map_err(|_| DaemonError::too_slow("message", self.body_timeout))?,
                None => self.body.frame().await,
            };
            match frame {
                None => return Ok(None),
                Some(Err(error)) => {
                    let message = format!("the connection was lost within a call: {error}");
                    return Err(DaemonError::new(Code::Cancelled, "cancelled", message));
                }
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data()
                        && !data.is_empty()
                    {
                        self.held.add(data.len())?;
                        return Ok(Some(data));
                    }
                }
            }
        }
    }
}

/// Returns a message with its prefix, compressed if that makes it smaller.
pub async fn framed(mut pieces: Vec<Bytes>, compression: Option<Compression>) -> Result<Vec<Bytes>, DaemonError> {
    let compressed = match compression {
        Some(compression) => compression.compress(pieces.clone()).await,
        None => None,
    };
    let is_compressed = compressed.is_some();
    if let Some(compressed) = compressed {
        pieces = vec![compressed];
    }
    let length: usize = pieces.iter().map(Bytes::len).sum();
    let Ok(stated) = u32::try_from(length) else {
        let message = format!("the reply has {length} bytes, more than a gRPC message can have");
        return Err(DaemonError::new(Code::ResourceExhausted, "too_large", message));
    };
    // The first piece is small, or the only one: joined with the prefix it is one frame instead of two.
    let first = match pieces.first() {
        Some(first) if first.len() < JOINED_BYTES => pieces.remove(0),
        _ => Bytes::new(),
    };
    let mut start = BytesMut::with_capacity(PREFIX + first.len());
    start.put_u8(u8::from(is_compressed));
    start.put_u32(stated);
    start.put_slice(&first);
    pieces.insert(0, start.freeze());
    Ok(pieces)
}

fn ended_early() -> DaemonError {
    DaemonError::invalid("the call ended within a message")
}
