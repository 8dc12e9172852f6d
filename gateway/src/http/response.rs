//! Responses.

use http::{HeaderValue, StatusCode, header};

use super::Body;
use crate::compression::Compression;

/// A response as handlers return it.
pub type Response = http::Response<Body>;

/// Returns a response without headers; the server adds `Content-Length` and `Date`.
pub fn response(status: StatusCode, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response
}

/// Returns a response with a JSON body.
pub fn json_response(status: StatusCode, body: impl Into<Body>) -> Response {
    let mut response = response(status, body);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// Compresses a response as its client wants it.
pub async fn compressed(response: Response, accepted: Option<Compression>) -> Response {
    let Some(compression) = accepted else { return response };
    let Some(compressed) = compression.compress(response.body().pieces()).await else { return response };
    let mut response = response.map(|_| compressed.into());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(compression.name()));
    headers.insert(header::VARY, HeaderValue::from_static("Accept-Encoding"));
    response
}
