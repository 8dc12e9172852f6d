//! The trace that a request belongs to, by the headers of W3C Trace Context, on its way to the daemon.
//!
//! It is in a task-local variable, so that functions need no parameter for it.

use bytes::Bytes;
use http::{HeaderMap, HeaderName};
use serde_json::Value;

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// The longest `tracestate` that is passed on, in bytes. W3C requires 512.
const MAX_TRACESTATE: usize = 512;

tokio::task_local! {
    static CURRENT: Trace;
}

/// A trace that is sampled.
#[derive(Clone, Debug)]
pub struct Trace {
    /// What names it in the header of a request: further parameters, as JSON.
    parameters: Bytes,
}

impl Trace {
    /// Returns the trace that a client names, if it is valid and sampled.
    ///
    /// Others are left out: each such header is different, so the daemon cannot take its plan from the cache.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let mut named = headers.get_all(TRACEPARENT).iter();
        let traceparent = named.next()?.to_str().ok()?.trim();
        if named.next().is_some() || !is_sampled(traceparent) {
            return None;
        }
        let mut parameters = format!(",\"traceparent\":\"{traceparent}\"");
        let states: Option<Vec<&str>> = headers.get_all(TRACESTATE).iter().map(|value| value.to_str().ok()).collect();
        let state = states.unwrap_or_default().join(",");
        if !state.is_empty() && state.len() <= MAX_TRACESTATE && !state.contains('\t') {
            parameters.push_str(",\"tracestate\":");
            parameters.push_str(&Value::from(state).to_string());
        }
        Some(Self { parameters: parameters.into() })
    }

    /// Returns the trace of the request that is being answered.
    pub fn current() -> Option<Self> {
        CURRENT.try_with(Clone::clone).ok()
    }

    /// Does work that belongs to the request.
    pub async fn scope<T>(self, work: impl Future<Output = T>) -> T {
        CURRENT.scope(self, work).await
    }
}

/// Adds the trace of the request that is being answered, if there is one, to the header of `MT1:infer`.
///
/// The header must end with its parameters, of which there is at least one.
pub fn add_current(header: Bytes) -> Bytes {
    let added = CURRENT.try_with(|trace| match header.strip_suffix(b"}}") {
        Some(start) => Bytes::from([start, &trace.parameters, b"}}"].concat()),
        None => header.clone(),
    });
    added.unwrap_or(header)
}

/// Whether a `traceparent` is valid and its span is sampled.
fn is_sampled(text: &str) -> bool {
    // VERSION-TRACE-SPAN-FLAGS, of 2, 32, 16 and 2 hexadecimal digits. Later versions may have more.
    let mut parts = text.split('-');
    let mut next =
        |digits: usize| parts.next().filter(|part| part.len() == digits && part.bytes().all(is_lower_hexadecimal));
    let (Some(version), Some(trace), Some(span), Some(flags)) = (next(2), next(32), next(16), next(2)) else {
        return false;
    };
    let has_more = parts.next().is_some();
    let is_zero = |part: &str| part.bytes().all(|byte| byte == b'0');
    let is_invalid = version == "ff" || (version == "00" && has_more) || is_zero(trace) || is_zero(span);
    !is_invalid
        && u8::from_str_radix(flags, 16).is_ok_and(|flags| flags & 1 == 1)
        && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"' && byte != b'\\')
}

fn is_lower_hexadecimal(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn headers(traceparents: &[&str], states: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for text in traceparents {
            headers.append(TRACEPARENT, HeaderValue::from_bytes(text.as_bytes()).unwrap());
        }
        for text in states {
            headers.append(TRACESTATE, HeaderValue::from_bytes(text.as_bytes()).unwrap());
        }
        headers
    }

    async fn header_with(headers: &HeaderMap) -> String {
        let header = Bytes::from_static(br#"{"parameters":{"timeout":5}}"#);
        let added = match Trace::of(headers) {
            None => add_current(header),
            Some(trace) => trace.scope(async { add_current(header) }).await,
        };
        String::from_utf8(added.to_vec()).unwrap()
    }

    #[tokio::test]
    async fn a_sampled_trace_is_added_to_the_header() {
        let header = header_with(&headers(&[PARENT], &["a=1,b=2", "q=\"\\\""])).await;
        let read: Value = serde_json::from_str(&header).unwrap();
        let expected = serde_json::json!({"timeout": 5, "traceparent": PARENT, "tracestate": "a=1,b=2,q=\"\\\""});
        assert_eq!(read["parameters"], expected);
        let header = header_with(&headers(&[PARENT], &["a=\t1"])).await;
        assert!(header.ends_with(&format!(r#","traceparent":"{PARENT}"}}}}"#)), "{header}");
        assert!(Trace::current().is_none());
    }

    #[tokio::test]
    async fn other_traces_are_left_out() {
        let sampled_not = PARENT.replace("-01", "-00");
        for wrong in [
            "",
            "00",
            &sampled_not,
            &PARENT.to_uppercase(),
            &PARENT.replace("00-", "ff-"),
            &PARENT.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            &PARENT.replace("00f067aa0ba902b7", &"0".repeat(16)),
            &format!("{PARENT}-more"),
            &format!("cc{}-\"", &PARENT[2..]),
            &PARENT[..54],
            "00-é-é-01",
        ] {
            assert_eq!(header_with(&headers(&[wrong], &["a=1"])).await, r#"{"parameters":{"timeout":5}}"#, "{wrong}");
        }
        assert!(Trace::of(&headers(&[PARENT, PARENT], &[])).is_none());
        assert!(Trace::of(&headers(&[&format!("cc{}-more", &PARENT[2..])], &[])).is_some());
        assert!(Trace::of(&headers(&[], &["a=1"])).is_none());
    }
}
