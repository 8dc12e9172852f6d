//! Responses to inference: JSON, and after it the bytes of binary outputs.

use std::collections::VecDeque;
use std::sync::{Arc, PoisonError};

use ::http::{HeaderValue, StatusCode, header};
use bytes::Bytes;

use super::infer::{HEADER_LENGTH, INLINE_JSON_BYTES, Plan};
use super::infer_request::InferBody;
use crate::compression::Compression;
use crate::context::Context;
use crate::http::{Body, Response, compressed, response, unwritable};
use crate::json::{BytesAs, Values, write_string};
use crate::mt1::{DaemonError, OutputHeader, RawReply, ReplyHeader, put_shape};
use crate::tensor::{Datatype, Tensor, element_count};
use crate::threads::in_thread;

/// Larger responses are not joined into one piece.
const JOINED_BYTES: usize = 16 << 10;

const OCTETS: HeaderValue = HeaderValue::from_static("application/octet-stream");
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// The JSON of a response whose outputs are all binary.
#[derive(Clone)]
pub struct Head {
    reply: Arc<ReplyHeader>,
    text: Bytes,
    length: HeaderValue,
}

impl Plan {
    /// Returns the response to a request whose outputs all have come in frames.
    pub async fn respond(
        self: Arc<Self>,
        context: &Context,
        reply: RawReply,
        accepted: Option<Compression>,
    ) -> Result<Response, DaemonError> {
        let header = context.daemon.reply_header(&reply)?;
        if header.framed() != header.outputs.len() {
            let message = "the daemon's reply refers to shared memory that the request did not have";
            return Err(DaemonError::internal(message));
        }
        self.respond_with(header, reply.tensors, accepted).await
    }

    /// Returns the response with these outputs.
    pub async fn respond_with(
        self: Arc<Self>,
        header: Arc<ReplyHeader>,
        tensors: Vec<Bytes>,
        accepted: Option<Compression>,
    ) -> Result<Response, DaemonError> {
        if !header.outputs.iter().all(|output| self.body.is_binary(&output.name)) {
            return self.respond_json(header, tensors, accepted).await;
        }
        let known = self.head.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let head = match known.filter(|head| Arc::ptr_eq(&head.reply, &header)) {
            Some(head) => head,
            None => {
                let text: Bytes = write_head(&self.body, &header, &tensors)?.into();
                let length = HeaderValue::from(text.len());
                let head = Head { reply: header.clone(), text, length };
                if header.outputs.iter().all(|output| output.datatype != Datatype::Bytes) {
                    *self.head.lock().unwrap_or_else(PoisonError::into_inner) = Some(head.clone());
                }
                head
            }
        };
        Ok(compressed(whole_response(head.text, &tensors, Some(head.length)), accepted).await)
    }

    async fn respond_json(
        self: Arc<Self>,
        header: Arc<ReplyHeader>,
        tensors: Vec<Bytes>,
        accepted: Option<Compression>,
    ) -> Result<Response, DaemonError> {
        let binary: Vec<Bytes> = header
            .outputs
            .iter()
            .zip(&tensors)
            .filter(|(output, _)| self.body.is_binary(&output.name))
            .map(|(_, tensor)| tensor.clone())
            .collect();
        let bytes: usize = tensors.iter().map(Bytes::len).sum();
        let text = if bytes > INLINE_JSON_BYTES {
            in_thread(move || write_head(&self.body, &header, &tensors)).await?
        } else {
            write_head(&self.body, &header, &tensors)?
        };
        let length = (!binary.is_empty()).then(|| HeaderValue::from(text.len()));
        Ok(compressed(whole_response(text.into(), &binary, length), accepted).await)
    }
}

/// Writes the JSON of a response.
pub fn write_head(body: &InferBody, header: &ReplyHeader, tensors: &[Bytes]) -> Result<Vec<u8>, DaemonError> {
    let mut text = Vec::with_capacity(256);
    text.extend_from_slice(b"{\"model_name\":");
    write_string(&mut text, &header.model_name);
    text.extend_from_slice(b",\"model_version\":");
    write_string(&mut text, &header.model_version);
    if let Some(id) = &body.id {
        text.extend_from_slice(b",\"id\":");
        write_string(&mut text, id);
    }
    text.extend_from_slice(b",\"outputs\":[");
    for (index, (output, tensor)) in header.outputs.iter().zip(tensors).enumerate() {
        text.extend_from_slice(if index == 0 { b"{\"name\":" } else { b",{\"name\":" });
        write_string(&mut text, &output.name);
        text.extend_from_slice(b",\"datatype\":\"");
        text.extend_from_slice(output.datatype.name().as_bytes());
        text.extend_from_slice(b"\",\"shape\":");
        put_shape(&mut text, &output.shape);
        if body.is_binary(&output.name) {
            let size = tensor.len();
            text.extend_from_slice(format!(",\"parameters\":{{\"binary_data_size\":{size}}}}}").as_bytes());
        } else {
            text.extend_from_slice(b",\"data\":");
            write_data(&mut text, output, tensor)?;
            text.push(b'}');
        }
    }
    text.extend_from_slice(b"]}");
    Ok(text)
}

/// Writes the elements of an output as one flat list.
fn write_data(text: &mut Vec<u8>, output: &OutputHeader, data: &Bytes) -> Result<(), DaemonError> {
    let elements = element_count(&output.shape).and_then(|count| i64::try_from(count).ok());
    let tensor = Tensor {
        name: String::new(),
        datatype: output.datatype,
        shape: vec![elements.unwrap_or(-1)],
        data: data.clone(),
    };
    let written = Values::new(&tensor, BytesAs::Text).and_then(|mut values| values.write(text, &tensor.shape));
    written.map_err(|error| {
        let message = format!("output '{}' cannot be written as JSON ({error}); ask for binary data", output.name);
        unwritable(error, message)
    })
}

/// Returns a response of JSON and the tensors after it.
pub fn whole_response(text: Bytes, tensors: &[Bytes], header_length: Option<HeaderValue>) -> Response {
    let size = text.len() + tensors.iter().map(Bytes::len).sum::<usize>();
    let body = if tensors.is_empty() {
        Body::from(text)
    } else if size <= JOINED_BYTES {
        let mut whole = Vec::with_capacity(size);
        whole.extend_from_slice(&text);
        tensors.iter().for_each(|tensor| whole.extend_from_slice(tensor));
        Body::from(whole)
    } else {
        let mut pieces = VecDeque::with_capacity(1 + tensors.len());
        pieces.push_back(text);
        pieces.extend(tensors.iter().filter(|tensor| !tensor.is_empty()).cloned());
        Body::Pieces(pieces)
    };
    let mut response = response(StatusCode::OK, body);
    match header_length {
        Some(length) => {
            response.headers_mut().insert(header::CONTENT_TYPE, OCTETS);
            response.headers_mut().insert(HEADER_LENGTH, length);
        }
        None => drop(response.headers_mut().insert(header::CONTENT_TYPE, JSON)),
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::open_inference::http::request_tensors::Output;

    #[test]
    fn responses_are_written_as_they_are_wanted() {
        let output = |name: &str, datatype| OutputHeader { name: name.into(), datatype, shape: vec![2], area: None };
        let header = ReplyHeader {
            model_name: "m".into(),
            model_version: "3".into(),
            outputs: vec![output("y", Datatype::Fp32), output("s", Datatype::Bytes)],
        };
        let numbers: Vec<u8> = [1.5f32, f32::NAN].into_iter().flat_map(f32::to_le_bytes).collect();
        let tensors = [Bytes::from(numbers), Bytes::from_static(b"\x01\0\0\0a\0\0\0\0")];
        let outputs = vec![Output { name: "s".into(), binary: Some(true) }];
        let body = InferBody { id: Some("7".into()), outputs, ..InferBody::default() };
        let text = String::from_utf8(write_head(&body, &header, &tensors).unwrap()).unwrap();
        let expected = r#"{"model_name":"m","model_version":"3","id":"7","outputs":[{"name":"y","datatype":"FP32","shape":[2],"data":[1.5,NaN]},{"name":"s","datatype":"BYTES","shape":[2],"parameters":{"binary_data_size":9}}]}"#;
        assert_eq!(text, expected);
        let body = InferBody::default();
        let tensors = [tensors[0].clone(), Bytes::from_static(b"\x01\0\0\0\xff\0\0\0\0")];
        assert!(write_head(&body, &header, &tensors).unwrap_err().message.contains("'s'"));
    }
}
