//! Reads bodies of requests within the limits of size and time, and decompresses them.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body::Body;
use http_body_util::BodyExt;
use tokio::time::{Instant, timeout_at};

use super::{Request, RequestBody, encoding};
use crate::context::Context;
use crate::mt1::DaemonError;

/// A body has a second more for each of these bytes, in both directions.
pub const SLOWEST_BYTES_PER_S: usize = 16 << 10;

/// Returns until when the next piece of a body must come, of which this many bytes have come.
pub fn next_piece_until(began: Instant, timeout: Duration, received: usize) -> Instant {
    began + timeout + Duration::from_secs((received / SLOWEST_BYTES_PER_S) as u64)
}

/// Memory that is reserved for a body before its bytes have come.
const RESERVED_BYTES: usize = 1 << 20;

/// Reads the whole body, decompressed (`Content-Encoding: gzip` or `deflate`).
///
/// The error for a body over `max_body_bytes`, also once decompressed, is RESOURCE_EXHAUSTED / `too_large`; for one that
/// comes too slowly DEADLINE_EXCEEDED; where all requests together use too much memory RESOURCE_EXHAUSTED / `queue_full`.
pub async fn read_body(context: &Context, request: &mut Request) -> Result<Bytes, DaemonError> {
    let compression = encoding::of_request(request.headers())?;
    let limits = &context.settings.limits;
    let held = request.body().held().clone();
    let mut body = BodyReader::new(request.body_mut(), limits.max_body_bytes, limits.body_timeout())?;
    let Some(first) = body.next().await? else { return Ok(Bytes::new()) };
    let whole = if body.is_complete() {
        first
    } else {
        let mut whole = BytesMut::with_capacity(body.expected().min(RESERVED_BYTES).max(first.len()));
        whole.extend_from_slice(&first);
        drop(first);
        while let Some(piece) = body.next().await? {
            whole.extend_from_slice(&piece);
        }
        whole.freeze()
    };
    match compression {
        Some(compression) => compression.decompress(whole, "body", limits.max_body_bytes, held).await,
        None => Ok(whole),
    }
}

/// Reads a body piece by piece, within the limits.
pub struct BodyReader<'a> {
    body: &'a mut RequestBody,
    limit: usize,
    received: usize,
    expected: usize,
    began: Instant,
    timeout: Duration,
}

impl<'a> BodyReader<'a> {
    /// Fails at once if the body is announced to be larger than `limit`.
    pub fn new(body: &'a mut RequestBody, limit: usize, timeout: Duration) -> Result<Self, DaemonError> {
        let expected = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
        if expected > limit {
            return Err(DaemonError::too_large("body", limit));
        }
        Ok(Self { body, limit, received: 0, expected, began: Instant::now(), timeout })
    }

    /// The bytes that the body will have at least.
    pub fn expected(&self) -> usize {
        self.expected
    }

    /// Whether the whole body has been read. False also if only the next read would show that it has.
    pub fn is_complete(&self) -> bool {
        self.body.is_end_stream()
    }

    /// Returns the next piece, or None at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, DaemonError> {
        loop {
            let until = next_piece_until(self.began, self.timeout, self.received);
            let frame =
                timeout_at(until, self.body.frame()).await.map_err(|_| DaemonError::too_slow("body", self.timeout))?;
            let Some(frame) = frame else { return Ok(None) };
            let frame = frame.map_err(|error| DaemonError::invalid(format!("the body cannot be read: {error}")))?;
            let Ok(data) = frame.into_data() else { continue };
            self.received += data.len();
            if self.received > self.limit {
                return Err(DaemonError::too_large("body", self.limit));
            }
            self.body.held().add(data.len())?;
            return Ok(Some(data));
        }
    }
}
