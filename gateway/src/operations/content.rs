//! What several clients may get: bytes, their type, and their compressed form, which is made once.

use ::http::HeaderValue;
use bytes::Bytes;
use serde::Deserialize;
use tokio::sync::OnceCell;

use crate::compression::Compression;
use crate::mt1::RawReply;

/// The content of a response.
pub struct Content {
    pub content_type: HeaderValue,
    pub body: Bytes,
    gzip: OnceCell<Option<Bytes>>,
}

/// The header of a reply whose first frame is the content.
#[derive(Deserialize)]
struct FrameHeader {
    content_type: String,
}

impl Content {
    pub fn new(content_type: HeaderValue, body: Bytes) -> Self {
        Self { content_type, body, gzip: OnceCell::new() }
    }

    /// The content of a reply: its first frame, whose type the header states, or the header itself, which is JSON.
    pub fn from_reply(mut reply: RawReply) -> Self {
        if let Some(frame) = reply.tensors.drain(..).next() {
            let stated = serde_json::from_slice::<FrameHeader>(&reply.header).ok();
            let content_type = stated.and_then(|stated| HeaderValue::from_str(&stated.content_type).ok());
            Self::new(content_type.unwrap_or(HeaderValue::from_static("text/plain; charset=utf-8")), frame)
        } else {
            Self::new(HeaderValue::from_static("application/json"), reply.header)
        }
    }

    /// Returns the compressed content; None if that is not smaller.
    pub async fn gzip(&self) -> Option<Bytes> {
        self.gzip.get_or_init(|| Compression::Gzip.compress(vec![self.body.clone()])).await.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_content_of_a_reply_is_its_frame_or_its_header() {
        let header = Bytes::from_static(br#"{"content_type": "text/plain; version=0.0.4"}"#);
        let frame = Bytes::from("# HELP x\n".repeat(200));
        let content = Content::from_reply(RawReply { header: header.clone(), tensors: vec![frame.clone()] });
        assert_eq!((&content.content_type, &content.body), (&"text/plain; version=0.0.4".parse().unwrap(), &frame));
        assert!(content.gzip().await.unwrap().len() < frame.len());
        let content = Content::from_reply(RawReply { header: header.clone(), tensors: vec![] });
        assert_eq!((&content.content_type, &content.body), (&"application/json".parse().unwrap(), &header));
        assert_eq!(content.gzip().await, None, "too small");
    }
}
