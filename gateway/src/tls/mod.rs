//! TLS: handshakes, which are bounded in time, and certificates, which are read again when their files change.

mod access_list;
mod client_certificates;
mod der;
mod expiry;
mod files;
mod subject;
#[cfg(test)]
pub mod test_certificates;
#[cfg(test)]
mod tests;

use std::future::poll_fn;
use std::io;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
pub use tokio_rustls::server::TlsStream;

use crate::log;
use crate::peeked::Peeked;
use crate::settings::{Settings, TlsSettings};
use crate::statistics::Statistics;
pub use client_certificates::ClientCertificate;
use client_certificates::{Authorities, ClientCertificates};
use expiry::Reminder;

/// How long a handshake may take, from the first byte of a connection.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// How often files are looked at. They are read when they have not changed since the look before.
const LOOK: Duration = Duration::from_millis(500);

/// When files that could not be used are read again, although they have not changed: a folder may have been out of reach.
const RETRY: Duration = Duration::from_secs(10);

/// Handshakes that fail are logged at most so often.
const REPORT: Duration = Duration::from_secs(10);

/// The first byte of a connection with TLS: its first record is one of a handshake.
const HANDSHAKE_RECORD: u8 = 22;

/// What a client gets that does not speak TLS, if it speaks HTTP/1.1.
const NO_TLS: &str = "this address speaks TLS: use https://";

/// TLS for all tcp listeners.
pub struct Tls {
    used: RwLock<Arc<Used>>,
    shown: ClientCertificates,
    /// How long a handshake may take.
    limit: Duration,
    failures: Mutex<Failures>,
    /// Where it is reported when the certificate expires.
    statistics: Arc<Statistics>,
}

/// What new connections use.
struct Used {
    config: Arc<ServerConfig>,
    authorities: Option<Authorities>,
}

/// A connection that has shaken hands, and the certificate that its client has shown, if it has shown one.
pub type Accepted<S> = (TlsStream<Peeked<S>>, Option<Arc<ClientCertificate>>);

/// Handshakes that have failed since the last line in the log.
#[derive(Default)]
struct Failures {
    reported_at: Option<Instant>,
    count: u64,
}

impl Used {
    fn new(loaded: files::Loaded) -> Self {
        Self { config: Arc::new(loaded.config), authorities: loaded.authorities }
    }

    fn has_same_authorities(&self, other: &Self) -> bool {
        self.certificates_of_authorities() == other.certificates_of_authorities()
    }

    fn certificates_of_authorities(&self) -> Option<&[CertificateDer<'static>]> {
        self.authorities.as_ref().map(|authorities| authorities.certificates.as_slice())
    }
}

impl Tls {
    /// Reads the files of the settings, and watches them in a thread; None without TLS.
    ///
    /// The error is a sentence: the files cannot be used.
    pub fn start(settings: &Settings, statistics: Arc<Statistics>) -> Result<Option<Arc<Self>>, String> {
        let Some(files) = settings.tls.clone() else { return Ok(None) };
        let tokens = settings.security;
        // Before they are read: a change in between is found later.
        let stamp = files::stamp(&files);
        let tls = Arc::new(Self::new(files::load(&files, tokens)?, statistics));
        let watched = tls.clone();
        let thread = thread::Builder::new().name("certificates".to_owned());
        thread.spawn(move || watched.watch(&files, tokens, stamp)).map_err(|error| error.to_string())?;
        Ok(Some(tls))
    }

    fn new(loaded: files::Loaded, statistics: Arc<Statistics>) -> Self {
        statistics.set_certificate_expiry(loaded.expiry);
        let used = RwLock::new(Arc::new(Used::new(loaded)));
        Self { used, shown: ClientCertificates::default(), limit: HANDSHAKE, failures: Mutex::default(), statistics }
    }

    fn used(&self) -> Arc<Used> {
        self.used.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads the files again whenever they have changed, and logs it when the certificate expires soon. Never returns.
    fn watch(&self, files: &TlsSettings, tokens: bool, first: files::Stamp) {
        let mut watch = Watch { used: first.clone(), seen: first, refused: None };
        let mut reminder = Reminder::default();
        loop {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
            if let Some((message, fields)) = reminder.due(self.statistics.certificate_expiry(), now, &files.certificate)
            {
                log::warning(message, fields);
            }
            thread::sleep(LOOK);
            self.shown.forget_ended();
            self.look(files, tokens, &mut watch);
        }
    }

    /// Looks at the files once. Returns whether they were read.
    fn look(&self, files: &TlsSettings, tokens: bool, watch: &mut Watch) -> bool {
        let now = files::stamp(files);
        let settled = now == watch.seen;
        watch.seen = now;
        let changed = watch.seen != watch.used;
        let due = watch.refused.as_ref().is_some_and(|&(_, at)| at <= Instant::now());
        if !settled || !(changed || due) {
            return false;
        }
        watch.used.clone_from(&watch.seen);
        let refused = watch.refused.take();
        match files::load(files, tokens) {
            Ok(loaded) => {
                self.statistics.set_certificate_expiry(loaded.expiry);
                self.replace(Used::new(loaded));
                log::info("the certificate was read again: its files have changed", json!({}));
            }
            Err(cause) => {
                if changed || refused.is_none_or(|(known, _)| known != cause) {
                    log::error(
                        "the files of the certificate have changed, but cannot be used: the former ones stay in use",
                        json!({"cause": cause}),
                    );
                }
                watch.refused = Some((cause, Instant::now() + RETRY));
            }
        }
        true
    }

    /// Has new connections use this. Connections end whose clients would not be accepted by the new authorities.
    fn replace(&self, used: Used) {
        let used = Arc::new(used);
        let former = std::mem::replace(&mut *self.used.write().unwrap_or_else(PoisonError::into_inner), used.clone());
        if former.has_same_authorities(&used) {
            return;
        }
        let count = self.shown.verify_again(used.authorities.as_ref());
        if count > 0 {
            let message =
                "connections are closed: the authorities of their clients' certificates are no longer accepted";
            log::info(message, json!({"count": count}));
        }
    }

    /// Shakes hands with a client. Returns None if that fails, takes too long, or `until` ends before.
    ///
    /// `from` is the client's address.
    pub async fn accept<S>(&self, stream: S, from: &str, until: impl Future<Output = ()>) -> Option<Accepted<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let outcome = tokio::select! {
            outcome = timeout(self.limit, self.shake_hands(stream)) => outcome,
            () = until => return None,
        };
        match outcome {
            Ok(Ok((stream, used))) => {
                let certificate = self.certificate_of(&stream, &used);
                return Some((stream, certificate));
            }
            // A client that connects and goes, such as a load balancer's check.
            Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {}
            Ok(Err(error)) => self.report(&cause_of(&error), from),
            Err(_) => self.report(&format!("it took more than {} s", self.limit.as_secs_f64()), from),
        }
        None
    }

    /// Returns the certificate that a client has shown in a handshake, for which this was used.
    fn certificate_of<S>(&self, stream: &TlsStream<S>, used: &Arc<Used>) -> Option<Arc<ClientCertificate>> {
        let chain = stream.get_ref().1.peer_certificates()?;
        let certificate = Arc::new(ClientCertificate::new(chain.to_vec()));
        self.shown.add(&certificate);
        // The authorities may have changed during the handshake. If they change from here on, `replace` finds it.
        let now = self.used();
        if !now.has_same_authorities(used) {
            certificate.verify_again(now.authorities.as_ref());
        }
        Some(certificate)
    }

    async fn shake_hands<S>(&self, stream: S) -> io::Result<(TlsStream<Peeked<S>>, Arc<Used>)>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let mut stream = Peeked::new(stream);
        match poll_fn(|context| stream.poll_first(context)).await? {
            None => return Err(io::ErrorKind::UnexpectedEof.into()),
            Some(HANDSHAKE_RECORD) => {}
            Some(first) => {
                if first.is_ascii_uppercase() {
                    stream.write_all(&refusal()).await?;
                    stream.shutdown().await?;
                    // What is left unread would reset the connection, and the client would not see the answer.
                    while stream.read(&mut [0; 4096]).await? > 0 {}
                }
                return Err(io::Error::new(io::ErrorKind::InvalidData, "the client does not speak TLS"));
            }
        }
        let used = self.used();
        let stream = TlsAcceptor::from(used.config.clone()).accept(stream).await?;
        Ok((stream, used))
    }

    fn report(&self, cause: &str, from: &str) {
        let count = {
            let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
            failures.count += 1;
            if failures.reported_at.is_some_and(|at| at.elapsed() < REPORT) {
                return;
            }
            failures.reported_at = Some(Instant::now());
            std::mem::take(&mut failures.count)
        };
        log::warning("TLS handshakes have failed", json!({"count": count, "cause": cause, "from": from}));
    }
}

/// Why a handshake has failed, as a sentence. What rustls passes on from webpki has the form of Rust's debugger.
fn cause_of(error: &io::Error) -> String {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidCertificate(rustls::CertificateError::Other(other))) => {
            let text = match other.0.downcast_ref::<webpki::Error>() {
                Some(webpki::Error::CaUsedAsEndEntity) => {
                    "the client's certificate is that of an authority, not of a client"
                }
                Some(webpki::Error::UnsupportedCertVersion) => {
                    "the client's certificate is not of X.509 version 3: make one that has an extension"
                }
                _ => return format!("the client's certificate cannot be used: {other}"),
            };
            text.to_owned()
        }
        _ => error.to_string(),
    }
}

/// What is known of the files.
struct Watch {
    /// When they were read the last time.
    used: files::Stamp,
    /// When they were looked at the last time.
    seen: files::Stamp,
    /// Why they could not be used, and when they are read again; None if they are used.
    refused: Option<(String, Instant)>,
}

/// The answer to a request without TLS.
fn refusal() -> Vec<u8> {
    let body = crate::http::error_body(NO_TLS);
    let head = format!(
        "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\nmultitower-code: INVALID_ARGUMENT\r\n\
         multitower-reason: malformed\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    [head.into_bytes(), body].concat()
}
