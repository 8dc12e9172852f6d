//! The client at the other end of a connection: its address, its certificate, and the credentials that it has shown.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use ::http::{HeaderMap, HeaderValue, header};
use tokio::sync::Semaphore;

use crate::mt1::{Credential, DaemonError, Identity, MAX_ASKING_OF_CONNECTION, Origin};
use crate::tls::ClientCertificate;

/// The client of a connection.
pub struct Client {
    /// IP address and port, or `unix`.
    from: String,
    /// Whether the daemon has `security`, so that most requests need a credential.
    locked: bool,
    certificate: OnceLock<Arc<ClientCertificate>>,
    shown: Mutex<Shown>,
    /// See `Origin`.
    turns: Arc<Semaphore>,
}

/// The credentials of a connection's requests.
enum Shown {
    None,
    One(Arc<Identity>),
    /// A proxy sends the requests of several principals. A refusal to one of them does not concern the others.
    Several,
}

impl Client {
    pub fn new(from: String, locked: bool) -> Self {
        let turns = Arc::new(Semaphore::new(MAX_ASKING_OF_CONNECTION));
        Self { from, locked, certificate: OnceLock::new(), shown: Mutex::new(Shown::None), turns }
    }

    fn shown(&self) -> MutexGuard<'_, Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// TLS has verified this certificate.
    pub fn set_certificate(&self, certificate: Arc<ClientCertificate>) {
        // There is one handshake.
        let _ = self.certificate.set(certificate);
    }

    /// Returns where a credential of this connection comes from.
    pub fn origin(&self, is_grpc: bool) -> Origin {
        let interface = if is_grpc { "grpc" } else { "http" };
        Origin { from: self.from.as_str().into(), interface, turns: self.turns.clone() }
    }

    /// Returns the credential of a request: its bearer token, otherwise the certificate of the connection.
    ///
    /// The error is UNAUTHENTICATED. It never has a part of what the client sent.
    pub fn credential(&self, headers: &HeaderMap) -> Result<Credential, DaemonError> {
        match bearer_token(headers)? {
            Some(token) => Ok(Credential::Token(token.into())),
            None => match self.certificate.get().and_then(|certificate| certificate.name.as_deref()) {
                Some(name) => Ok(Credential::CertificateName(name.into())),
                None => Err(DaemonError::unauthenticated("a bearer token is needed (Authorization: Bearer TOKEN)")),
            },
        }
    }

    /// A request with this credential has come.
    pub fn has_shown(&self, identity: &Arc<Identity>) {
        let mut shown = self.shown();
        match &*shown {
            Shown::One(known) if Arc::ptr_eq(known, identity) => {}
            Shown::One(known) if !known.is_same(identity) => *shown = Shown::Several,
            Shown::None | Shown::One(_) => *shown = Shown::One(identity.clone()),
            Shown::Several => {}
        }
    }

    /// Whether credentials are needed, and none of the connection's requests had a valid one.
    pub fn is_unknown(&self) -> bool {
        self.locked && matches!(&*self.shown(), Shown::None)
    }

    /// Whether the only credential of the connection, or the certificate of its handshake, was valid once, and is no
    /// more.
    pub fn is_refused(&self) -> bool {
        if self.certificate.get().is_some_and(|certificate| certificate.is_withdrawn()) {
            return true;
        }
        matches!(&*self.shown(), Shown::One(identity) if identity.is_refused())
    }
}

/// Returns the token of `Authorization: Bearer TOKEN`.
fn bearer_token(headers: &HeaderMap) -> Result<Option<&str>, DaemonError> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(DaemonError::unauthenticated("the request has more than one Authorization header"));
    }
    let token = HeaderValue::to_str(value).ok().and_then(|text| {
        let (scheme, token) = text.trim().split_once(' ')?;
        let token = token.trim_start();
        (scheme.eq_ignore_ascii_case("Bearer") && !token.is_empty() && !token.contains(' ')).then_some(token)
    });
    match token {
        Some(token) => Ok(Some(token)),
        None => Err(DaemonError::unauthenticated("the Authorization header must be: Bearer TOKEN")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(values: &[&[u8]]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(header::AUTHORIZATION, HeaderValue::from_bytes(value).unwrap());
        }
        headers
    }

    #[test]
    fn tokens_are_read_and_anything_else_is_refused_without_being_repeated() {
        type Row<'a> = (&'a [&'a [u8]], Result<Option<&'a str>, ()>);
        let table: [Row<'_>; 12] = [
            (&[], Ok(None)),
            (&[b"Bearer a.b"], Ok(Some("a.b"))),
            (&[b"bearer a.b"], Ok(Some("a.b"))),
            (&[b"  BEARER   a.b "], Ok(Some("a.b"))),
            (&[b""], Err(())),
            (&[b"Bearer"], Err(())),
            (&[b"Bearer "], Err(())),
            (&[b"Basic a.b"], Err(())),
            (&[b"a.b"], Err(())),
            (&[b"Bearer a.b c"], Err(())),
            (&[b"Bearer a.b\xff"], Err(())),
            (&[b"Bearer a.b", b"Bearer a.b"], Err(())),
        ];
        for (values, expected) in table {
            let headers = headers(values);
            let found = bearer_token(&headers);
            if let Err(error) = &found {
                assert!(!error.message.contains("a.b"), "{}", error.message);
                assert_eq!(error.reason, "unauthenticated");
            }
            assert_eq!(found.map_err(drop), expected, "{values:?}");
        }
    }

    #[test]
    fn a_token_comes_before_a_certificate() {
        let client = Client::new("unix".to_owned(), true);
        assert!(client.credential(&headers(&[])).is_err());
        client.set_certificate(Arc::new(ClientCertificate::named("n")));
        assert!(client.credential(&headers(&[])).unwrap() == Credential::CertificateName("n".into()));
        assert!(client.credential(&headers(&[b"Bearer t"])).unwrap() == Credential::Token("t".into()));
        assert!(client.credential(&headers(&[b"Basic t"])).is_err(), "what is wrong is not ignored");
    }
    #[test]
    fn a_client_whose_certificate_is_withdrawn_is_refused_with_and_without_security() {
        for locked in [true, false] {
            let client = Client::new("1.2.3.4:5".to_owned(), locked);
            let certificate = Arc::new(ClientCertificate::named("n"));
            client.set_certificate(certificate.clone());
            assert!(!client.is_refused());
            assert!(certificate.verify_again(None));
            assert!(client.is_refused());
        }
    }
}
