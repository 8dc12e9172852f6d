//! One gRPC call: its messages, its time limit, and how its reply is compressed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ::http::HeaderMap;
use bytes::Bytes;
use futures_util::{Stream, stream};

use super::message::{MessageReader, compression_of};
use crate::budget::Held;
use crate::compression::Compression;
use crate::context::Context;
use crate::http::RequestBody;
use crate::mt1::{Code, DaemonError};

/// A call whose headers have been read.
pub struct Call {
    pub context: Context,
    held: Arc<Held>,
    messages: MessageReader,
    compression: Option<Compression>,
    deadline: Option<Instant>,
}

impl Call {
    /// Errors: an encoding that is not supported (UNIMPLEMENTED), and a `grpc-timeout` that is none.
    pub fn new(context: Context, headers: &HeaderMap, body: RequestBody) -> Result<Self, DaemonError> {
        let compression = compression_of(headers)?;
        let deadline = match headers.get("grpc-timeout") {
            None => None,
            Some(value) => {
                let timeout = parse_timeout(value.as_bytes())
                    .ok_or_else(|| DaemonError::invalid(format!("grpc-timeout {value:?} is no time")))?;
                Instant::now().checked_add(timeout)
            }
        };
        let limits = &context.settings.limits;
        let held = body.held().clone();
        let regions = context.daemon.regions().clone();
        let messages = MessageReader::new(body, compression, limits.max_body_bytes, limits.body_timeout(), regions);
        Ok(Self { context, held, messages, compression, deadline })
    }

    /// A client that compresses its requests gets compressed replies. Most accept them, but few want the time spent.
    pub fn reply_compression(&self) -> Option<Compression> {
        self.compression
    }

    /// Returns the call's only message, if it comes before the deadline.
    pub async fn message(self) -> Result<Bytes, DaemonError> {
        self.deadline().within(self.messages.only()).await
    }

    /// Returns what counts the memory of a call with one message.
    pub fn held(&self) -> Arc<Held> {
        self.held.clone()
    }

    /// Returns the messages of a streaming call, each with what counts its memory. An error is the last item.
    ///
    /// When this process drains, the stream ends with UNAVAILABLE: nobody knows when its client would end it. At the
    /// deadline it ends with DEADLINE_EXCEEDED.
    pub fn messages(self) -> impl Stream<Item = Result<(Bytes, Arc<Held>), DaemonError>> + Send {
        let deadline = self.deadline();
        stream::unfold(Some((self.context, self.messages)), move |state| async move {
            let (context, mut reader) = state?;
            let message = tokio::select! {
                message = deadline.within(reader.next()) => message,
                () = context.until_draining() => Err(draining()),
            };
            match message {
                Ok(Some(message)) => Some((Ok(message), Some((context, reader)))),
                Ok(None) => None,
                Err(error) => Some((Err(error), None)),
            }
        })
    }

    /// Returns the deadline that the client states.
    pub fn deadline(&self) -> Deadline {
        Deadline(self.deadline)
    }
}

/// When the client of a call stops waiting.
#[derive(Clone, Copy)]
pub struct Deadline(Option<Instant>);

impl Deadline {
    /// Returns the time that is left, at most the limit that the request states itself.
    ///
    /// The error is DEADLINE_EXCEEDED if none is left.
    pub fn timeout(self, stated: Option<Duration>) -> Result<Option<Duration>, DaemonError> {
        let Some(deadline) = self.0 else {
            return Ok(stated);
        };
        let left = deadline.saturating_duration_since(Instant::now());
        // MT1 counts microseconds, from 1.
        if left < Duration::from_micros(1) {
            return Err(expired());
        }
        Ok(Some(stated.map_or(left, |stated| stated.min(left))))
    }

    /// Waits for a result until the deadline.
    pub async fn within<T>(self, work: impl Future<Output = Result<T, DaemonError>>) -> Result<T, DaemonError> {
        match self.0 {
            None => work.await,
            Some(deadline) => tokio::time::timeout_at(deadline.into(), work).await.unwrap_or_else(|_| Err(expired())),
        }
    }
}

/// The error for a stream that ends because this process does.
pub fn draining() -> DaemonError {
    DaemonError::new(Code::Unavailable, "draining", "the server is shutting down; open the stream again")
}

fn expired() -> DaemonError {
    DaemonError::new(Code::DeadlineExceeded, "deadline", "the deadline of the call has passed")
}

/// Reads `grpc-timeout`: one to eight digits and a unit.
fn parse_timeout(text: &[u8]) -> Option<Duration> {
    let (unit, digits) = text.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = digits.iter().fold(0u64, |number, digit| number * 10 + u64::from(digit - b'0'));
    Some(match unit {
        b'H' => Duration::from_secs(number * 3600),
        b'M' => Duration::from_secs(number * 60),
        b'S' => Duration::from_secs(number),
        b'm' => Duration::from_millis(number),
        b'u' => Duration::from_micros(number),
        b'n' => Duration::from_nanos(number),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_have_digits_and_a_unit() {
        let table: &[(&str, Option<Duration>)] = &[
            ("1S", Some(Duration::from_secs(1))),
            ("1500m", Some(Duration::from_millis(1500))),
            ("99999999H", Some(Duration::from_secs(99_999_999 * 3600))),
            ("2M", Some(Duration::from_secs(120))),
            ("7u", Some(Duration::from_micros(7))),
            ("0n", Some(Duration::ZERO)),
            ("100000000m", None),
            ("", None),
            ("S", None),
            ("1", None),
            ("-1S", None),
            ("1s", None),
            ("1.5S", None),
        ];
        for (text, timeout) in table {
            assert_eq!(parse_timeout(text.as_bytes()), *timeout, "{text}");
        }
    }

    #[test]
    fn the_shorter_of_two_limits_counts() {
        let second = Duration::from_secs(1);
        assert_eq!(Deadline(None).timeout(Some(second)), Ok(Some(second)));
        assert_eq!(Deadline(None).timeout(None), Ok(None));
        let far = Deadline(Some(Instant::now() + Duration::from_secs(100)));
        assert_eq!(far.timeout(Some(second)), Ok(Some(second)));
        assert!(far.timeout(None).unwrap().unwrap() > second);
        let passed = Deadline(Some(Instant::now()));
        assert_eq!(passed.timeout(None).unwrap_err().code, Code::DeadlineExceeded);
    }
}
