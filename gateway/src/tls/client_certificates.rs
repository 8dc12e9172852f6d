//! The certificates that clients of open connections have shown. When the authorities change, they are verified again.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::ClientCertVerifier;

use super::subject;

/// The authorities whose certificates are accepted from clients.
pub struct Authorities {
    /// As the file has them.
    pub certificates: Vec<CertificateDer<'static>>,
    pub verifier: Arc<dyn ClientCertVerifier>,
}

/// The certificate that the client of one connection has shown in its handshake.
pub struct ClientCertificate {
    /// The common name of its subject; None without one, or with several.
    pub name: Option<String>,
    /// The certificate, and those of intermediate authorities behind it.
    chain: Vec<CertificateDer<'static>>,
    withdrawn: AtomicBool,
}

impl ClientCertificate {
    /// `chain` is what TLS has verified.
    pub fn new(chain: Vec<CertificateDer<'static>>) -> Self {
        let name = chain.first().and_then(|certificate| subject::common_name(certificate));
        Self { name, chain, withdrawn: AtomicBool::new(false) }
    }

    /// One with this name, for tests.
    #[cfg(test)]
    pub fn named(name: &str) -> Self {
        Self { name: Some(name.to_owned()), ..Self::new(Vec::new()) }
    }

    /// Whether its authority is none of those in use any more.
    pub fn is_withdrawn(&self) -> bool {
        self.withdrawn.load(Relaxed)
    }

    /// Verifies it with other authorities than in the handshake. Returns whether it is withdrawn by that.
    ///
    /// Without authorities nobody would be asked for a certificate.
    pub fn verify_again(&self, authorities: Option<&Authorities>) -> bool {
        let accepted = match (authorities, self.chain.split_first()) {
            (Some(authorities), Some((own, issuers))) => {
                authorities.verifier.verify_client_cert(own, issuers, UnixTime::now()).is_ok()
            }
            _ => false,
        };
        if !accepted {
            self.withdrawn.store(true, Relaxed);
        }
        !accepted
    }
}

/// Those of all open connections.
#[derive(Default)]
pub struct ClientCertificates {
    shown: Mutex<Vec<Weak<ClientCertificate>>>,
}

impl ClientCertificates {
    pub fn add(&self, certificate: &Arc<ClientCertificate>) {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(certificate));
    }

    /// Forgets those of connections that have ended.
    pub fn forget_ended(&self) {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner).retain(|shown| shown.strong_count() > 0);
    }

    /// Verifies all of them with other authorities. Returns how many are withdrawn by that.
    pub fn verify_again(&self, authorities: Option<&Authorities>) -> usize {
        // Not under the lock: new connections would wait for it.
        let shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner).clone();
        shown.iter().filter_map(Weak::upgrade).filter(|shown| shown.verify_again(authorities)).count()
    }
}
