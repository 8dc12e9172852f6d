//! The live page: one file that loads nothing but `/status.json`.

use std::sync::LazyLock;

use ::http::{HeaderMap, HeaderValue, StatusCode, header};
use bytes::Bytes;

use super::content::Content;
use super::respond;
use crate::http::{Body, Response, response};

const PAGE: &[u8] = include_bytes!("page.html");

/// What the page may do: run its one script, apply its one style sheet, show its icon, and ask its own server.
///
/// The hashes are those of the texts within `<script>` and `<style>`. tests/unit/test_live_page.py compares them.
const POLICY: &str = "default-src 'none'; \
    script-src 'sha256-YXc11HIPHcsABA9FiyXRLJSD9nUYWgMsKPsUmcI8Iuw='; \
    style-src 'sha256-bj/IlZtRpX7YXoRZMHfNlM1ay80En3MMgGfFWxsiAIM='; \
    img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
    require-trusted-types-for 'script'; trusted-types 'none'";

static CONTENT: LazyLock<Content> =
    LazyLock::new(|| Content::new(HeaderValue::from_static("text/html; charset=utf-8"), Bytes::from_static(PAGE)));

/// Identifies the page of this release. The tag is weak because the compressed form has the same one.
static TAG: LazyLock<Option<HeaderValue>> =
    LazyLock::new(|| HeaderValue::from_str(&format!("W/\"{:016x}\"", fnv_1a(PAGE))).ok());

/// Returns the page, or 304 to a client that has it.
pub async fn answer(headers: &HeaderMap) -> Response {
    let known = headers.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let tag = TAG.as_ref();
    let is_known = tag.and_then(|tag| tag.to_str().ok()).is_some_and(|tag| names(known, tag));
    let mut page =
        if is_known { response(StatusCode::NOT_MODIFIED, Body::Empty) } else { respond(&CONTENT, headers).await };
    let headers = page.headers_mut();
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(header::VARY, HeaderValue::from_static("Accept-Encoding"));
    if let Some(tag) = tag {
        headers.insert(header::ETAG, tag.clone());
    }
    page
}

/// Whether a value of If-None-Match names a tag. Weak and strong tags compare equal there (RFC 9110, section 13.1.2).
fn names(known: &str, tag: &str) -> bool {
    known.trim() == "*" || known.split(',').any(|each| opaque(each.trim()) == opaque(tag))
}

/// Returns a tag without the mark of a weak one.
fn opaque(tag: &str) -> &str {
    tag.strip_prefix("W/").unwrap_or(tag)
}

/// A hash that is short to write. It is not used for security.
fn fnv_1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_client_that_has_the_page_does_not_get_it_again() {
        let first = answer(&HeaderMap::new()).await;
        assert_eq!((first.status(), first.body().pieces().concat().len()), (StatusCode::OK, PAGE.len()));
        let mut headers = HeaderMap::new();
        headers.insert(header::IF_NONE_MATCH, first.headers()[header::ETAG].clone());
        let second = answer(&headers).await;
        assert_eq!((second.status(), second.body().pieces().len()), (StatusCode::NOT_MODIFIED, 0));
        assert_eq!(second.headers()[header::VARY], "Accept-Encoding");
        assert_eq!(fnv_1a(b"a"), 0xaf63_dc4c_8601_ec8c);
    }

    #[test]
    fn a_client_may_name_the_page_in_several_ways() {
        for (known, expected) in
            [("*", true), ("\"a\"", true), ("W/\"b\", W/\"a\"", true), ("\"b\"", false), ("", false), ("a", false)]
        {
            assert_eq!(names(known, "W/\"a\""), expected, "{known}");
        }
    }
}
