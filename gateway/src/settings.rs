//! The settings, one line of JSON on standard input, as the daemon writes them.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

/// What the daemon states at the start. Unknown keys are ignored, so that daemon and gateway can grow.
#[derive(Clone, Debug, Deserialize)]
pub struct Settings {
    /// The daemon's version, which must be the gateway's own.
    pub version: String,
    /// The daemon's process, which must be the parent of this one.
    #[serde(default)]
    pub daemon_pid: Option<u32>,
    /// Path of the daemon's socket for inference.
    pub daemon: PathBuf,
    /// Path of the daemon's control socket, for loading and unloading.
    #[serde(default)]
    pub control: Option<PathBuf>,
    /// Whether clients may load and unload models.
    #[serde(default)]
    pub operate: bool,
    /// Event loops, each with its own connection to the daemon.
    #[serde(default = "one")]
    pub threads: usize,
    /// Whether the daemon has `security`: then each request needs a credential.
    #[serde(default)]
    pub security: bool,
    /// The files for TLS, which all tcp listeners speak then.
    #[serde(default)]
    pub tls: Option<TlsSettings>,
    pub listeners: Vec<ListenerSettings>,
    #[serde(default)]
    pub limits: Limits,
}

/// The files for TLS, in PEM.
#[derive(Clone, Debug, Deserialize)]
pub struct TlsSettings {
    /// The server's certificate, and those between it and its root.
    pub certificate: PathBuf,
    pub private_key: PathBuf,
    /// Whose certificates of clients are accepted; without it, clients are not asked for any.
    #[serde(default)]
    pub client_ca: Option<PathBuf>,
}

/// One listening socket that the daemon has bound and passed on.
#[derive(Clone, Debug, Deserialize)]
pub struct ListenerSettings {
    pub fd: i32,
    /// As the configuration states it, for the log.
    pub address: String,
    #[serde(default)]
    pub http: bool,
    #[serde(default)]
    pub grpc: bool,
}

/// Limits on what clients may use. Times are seconds.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct Limits {
    pub max_body_bytes: usize,
    pub max_header_bytes: usize,
    header_timeout_s: f64,
    body_timeout_s: f64,
    idle_timeout_s: f64,
    pub max_connections: usize,
    pub max_outstanding: usize,
    max_buffered_bytes: Option<usize>,
    request_timeout_s: f64,
    drain_timeout_s: f64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_body_bytes: 64 << 20,
            max_header_bytes: 64 << 10,
            header_timeout_s: 10.0,
            body_timeout_s: 60.0,
            idle_timeout_s: 300.0,
            max_connections: 1024,
            max_outstanding: 4096,
            max_buffered_bytes: None,
            request_timeout_s: 30.0,
            drain_timeout_s: 30.0,
        }
    }
}

/// Unless the settings state a number of bytes, the memory of requests has room for this many bodies of the largest size,
/// and for this many bytes at least.
const BUFFERED_BODIES: usize = 8;
const BUFFERED_BYTES: usize = 512 << 20;

/// A compressed body and its content, which are in memory together, and what some requests take beside their bodies.
const FEWEST_BUFFERED_BODIES: usize = 2;
const FEWEST_OTHER_BYTES: usize = 64 << 10;

impl Limits {
    /// The bytes that all requests together may have in memory while they are received or wait for their answers.
    pub fn max_buffered_bytes(&self) -> usize {
        let bodies = |count: usize| self.max_body_bytes.saturating_mul(count);
        self.max_buffered_bytes
            .unwrap_or(bodies(BUFFERED_BODIES).max(BUFFERED_BYTES))
            .max(bodies(FEWEST_BUFFERED_BODIES).saturating_add(FEWEST_OTHER_BYTES))
    }

    /// The bytes of them that the windows of HTTP/2 connections may have: a quarter, but never the room of two bodies.
    pub fn max_window_bytes(&self) -> usize {
        let all = self.max_buffered_bytes();
        (all / 4).min(all.saturating_sub(self.max_body_bytes.saturating_mul(FEWEST_BUFFERED_BODIES)))
    }

    /// From the first byte of a request's head to its last.
    pub fn header_timeout(&self) -> Duration {
        seconds(self.header_timeout_s)
    }

    /// Without any progress while a body is read or a response is written.
    pub fn body_timeout(&self) -> Duration {
        seconds(self.body_timeout_s)
    }

    /// Between two requests of a connection.
    pub fn idle_timeout(&self) -> Duration {
        seconds(self.idle_timeout_s)
    }

    /// The longest time that a request may take when its client states none.
    pub fn request_timeout(&self) -> Duration {
        seconds(self.request_timeout_s)
    }

    /// From SIGTERM until connections of HTTP/1.1 without a request are closed: a request may be on its way.
    pub fn last_request_time(&self) -> Duration {
        LAST_REQUEST.min(self.drain_timeout() / 2)
    }

    /// From SIGTERM until requests that are still unanswered are given up.
    pub fn drain_timeout(&self) -> Duration {
        seconds(self.drain_timeout_s)
    }
}

/// A client that has not used its connection for this long finds out that it is closed before it uses it again.
const LAST_REQUEST: Duration = Duration::from_secs(1);

fn one() -> usize {
    1
}

fn seconds(value: f64) -> Duration {
    // No timer needs more than a year; this also keeps deadlines far from the clock's end.
    Duration::try_from_secs_f64(value).unwrap_or(Duration::ZERO).min(Duration::from_secs(365 * 86_400))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_keys_are_ignored_and_missing_ones_have_defaults() {
        let text = r#"{"version": "0.1.0", "daemon": "/run/m/gateway", "new": 1, "limits": {"body_timeout_s": 2.5},
                       "listeners": [{"fd": 3, "address": "127.0.0.1:8000", "http": true}]}"#;
        let settings: Settings = serde_json::from_str(text).unwrap();
        assert_eq!(settings.limits.body_timeout(), Duration::from_millis(2500));
        assert_eq!(settings.limits.max_body_bytes, 64 << 20);
        assert_eq!(settings.limits.max_buffered_bytes(), 512 << 20);
        assert_eq!((settings.threads, settings.operate, settings.security), (1, false, false));
        assert!(settings.tls.is_none());
        assert!(settings.listeners[0].http && !settings.listeners[0].grpc);
    }

    #[test]
    fn the_memory_of_requests_has_room_for_two_bodies_at_least() {
        let limits = |text| serde_json::from_str::<Limits>(text).unwrap().max_buffered_bytes();
        assert_eq!(limits(r#"{"max_body_bytes": 1000}"#), 512 << 20);
        assert_eq!(limits(r#"{"max_body_bytes": 134217728}"#), 1 << 30);
        assert_eq!(limits(r#"{"max_body_bytes": 1000, "max_buffered_bytes": 100000}"#), 100_000);
        assert_eq!(limits(r#"{"max_body_bytes": 1000, "max_buffered_bytes": 1}"#), 2000 + 65_536);
        assert_eq!(limits(r#"{"max_body_bytes": 18446744073709551615}"#), usize::MAX);
    }

    #[test]
    fn windows_leave_the_room_of_two_bodies() {
        let limits = |text| serde_json::from_str::<Limits>(text).unwrap().max_window_bytes();
        assert_eq!(limits("{}"), 128 << 20);
        assert_eq!(limits(r#"{"max_body_bytes": 1000, "max_buffered_bytes": 100000}"#), 25_000);
        assert_eq!(limits(r#"{"max_body_bytes": 50000, "max_buffered_bytes": 170000}"#), 42_500);
        assert_eq!(limits(r#"{"max_body_bytes": 1048576, "max_buffered_bytes": 1}"#), 65_536);
    }
}
