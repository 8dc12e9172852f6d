//! Bodies of responses.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};

use crate::budget::Held;
use crate::grpc::GrpcBody;

/// The body of a response: nothing, one or more pieces of known length, or messages and the status of a gRPC call.
pub enum Body {
    Empty,
    Full(Bytes),
    /// Pieces that are written one after the other, without being joined.
    Pieces(VecDeque<Bytes>),
    Grpc(GrpcBody),
}

/// Errors of bodies: there are none, since a failed gRPC call ends with its status.
pub type BodyError = Infallible;

impl Body {
    /// Returns the pieces of a body of known length. A streamed body has none: it is not known yet.
    pub fn pieces(&self) -> Vec<Bytes> {
        match self {
            Body::Empty | Body::Grpc(_) => Vec::new(),
            Body::Full(bytes) => vec![bytes.clone()],
            Body::Pieces(pieces) => pieces.iter().cloned().collect(),
        }
    }

    /// Has large pieces counted until the connection has written them. Those of a stream are not.
    pub fn counted(self, held: &Held) -> Body {
        match self {
            Body::Empty => Body::Empty,
            Body::Full(bytes) => Body::Full(held.count_answer(bytes)),
            Body::Pieces(mut pieces) => {
                held.count_answers(&mut pieces);
                Body::Pieces(pieces)
            }
            Body::Grpc(body) => Body::Grpc(body.counted(held)),
        }
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        if bytes.is_empty() { Body::Empty } else { Body::Full(bytes) }
    }
}

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Self {
        Bytes::from(bytes).into()
    }
}

impl From<String> for Body {
    fn from(text: String) -> Self {
        Bytes::from(text).into()
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Body::Empty => Poll::Ready(None),
            this @ Body::Full(_) => match std::mem::replace(this, Body::Empty) {
                Body::Full(bytes) => Poll::Ready(Some(Ok(Frame::data(bytes)))),
                _ => Poll::Ready(None),
            },
            Body::Pieces(pieces) => Poll::Ready(pieces.pop_front().map(|piece| Ok(Frame::data(piece)))),
            Body::Grpc(body) => body.poll_next(context).map(|frame| frame.map(Ok)),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Body::Empty => true,
            Body::Full(_) => false,
            Body::Pieces(pieces) => pieces.is_empty(),
            Body::Grpc(body) => body.is_end(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Body::Empty => SizeHint::with_exact(0),
            Body::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Body::Pieces(pieces) => SizeHint::with_exact(pieces.iter().map(|piece| piece.len() as u64).sum()),
            Body::Grpc(_) => SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::Budget;

    #[test]
    fn all_forms_of_answers_are_counted() {
        let budget = Budget::new(1 << 20, 0);
        let held = budget.hold();
        let large = || Bytes::from(vec![0; 50_000]);
        let pieces = || [large(), Bytes::from_static(b"x"), large()];
        for (body, counted) in [
            (Body::Empty, 0),
            (Body::from(large()), 50_000),
            (Body::Pieces(pieces().into()), 100_000),
            (Body::Grpc(GrpcBody::unary(pieces().into(), http::HeaderMap::new())), 100_000),
        ] {
            let body = body.counted(&held);
            assert_eq!(budget.used(), counted);
            drop(body);
            assert_eq!(budget.used(), 0);
        }
    }
}
