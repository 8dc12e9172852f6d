//! Certificates and keys: read at the start, and again whenever the files change.

use std::fs::{self, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};

use super::access_list::mode_for_others;
use super::client_certificates::Authorities;
use super::expiry;
use crate::settings::TlsSettings;

/// Files of certificates are a few kilobytes.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// The protocols within TLS, the preferred one first.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// What tells that a file has changed.
pub type Stamp = Vec<Option<(u64, u64, u64, i64, i64, i64, i64)>>;

/// Returns what differs when one of the files has been written or replaced.
pub fn stamp(settings: &TlsSettings) -> Stamp {
    let seen = |path: &PathBuf| {
        let metadata = fs::metadata(path).ok()?;
        let (written, changed) = ((metadata.mtime(), metadata.mtime_nsec()), (metadata.ctime(), metadata.ctime_nsec()));
        Some((metadata.dev(), metadata.ino(), metadata.size(), written.0, written.1, changed.0, changed.1))
    };
    [&settings.certificate, &settings.private_key].into_iter().chain(&settings.client_ca).map(seen).collect()
}

/// What the files hold.
pub struct Loaded {
    pub config: ServerConfig,
    /// When the certificate expires, or one behind it that does so earlier, in seconds since 1970; None if unknown.
    pub expiry: Option<u64>,
    /// Who issues certificates of clients; None if clients are not asked for any.
    pub authorities: Option<Authorities>,
}

/// Reads the files. `tokens` is whether clients may do without a certificate, since they can show a token.
///
/// The error is a sentence without anything that the files hold.
pub fn load(settings: &TlsSettings, tokens: bool) -> Result<Loaded, String> {
    let provider = Arc::new(default_provider());
    let chain = certificates(&settings.certificate, Guard::None)?;
    let expiry = expiry::first_expiry(&chain);
    let key = private_key(&settings.private_key)?;
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("TLS cannot be set up: {error}"))?;
    let authorities = settings.client_ca.as_ref().map(|path| authorities(path, tokens, provider)).transpose()?;
    let builder = match &authorities {
        None => builder.with_no_client_auth(),
        Some(authorities) => builder.with_client_cert_verifier(authorities.verifier.clone()),
    };
    let mut config = builder.with_single_cert(chain, key).map_err(|error| {
        let (certificate, key) = (settings.certificate.display(), settings.private_key.display());
        match error {
            rustls::Error::InconsistentKeys(_) => format!("{key} does not belong to the certificate {certificate}"),
            _ => format!("{certificate} and {key} cannot be used together: {error}"),
        }
    })?;
    if authorities.is_some() {
        // A session that is resumed is not asked for its certificate again, which may have expired meanwhile.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
    }
    config.alpn_protocols = PROTOCOLS.iter().map(|name| name.to_vec()).collect();
    Ok(Loaded { config, expiry, authorities })
}

fn authorities(path: &Path, tokens: bool, provider: Arc<CryptoProvider>) -> Result<Authorities, String> {
    let certificates = certificates(path, Guard::Written)?;
    let mut roots = RootCertStore::empty();
    for certificate in &certificates {
        roots.add(certificate.clone()).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    let builder = if tokens { builder.allow_unauthenticated() } else { builder };
    let verifier = builder.build().map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(Authorities { certificates, verifier })
}

fn certificates(path: &Path, guard: Guard) -> Result<Vec<CertificateDer<'static>>, String> {
    let text = read(path, guard)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(format!("{} has no certificate in PEM", path.display())),
        Err(_) => Err(format!("{} is not valid PEM", path.display())),
    }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    let text = read(path, Guard::Used)?;
    PrivateKeyDer::from_pem_slice(&text).map_err(|_| {
        format!(
            "{} has no private key in PEM, or one with a password: `openssl pkey -in KEY -out PLAIN` writes it without",
            path.display()
        )
    })
}

/// What others than the user of this process and root must not be able to do with a file.
#[derive(Clone, Copy, PartialEq)]
enum Guard {
    None,
    /// A user who may write the authorities can issue a certificate for any principal.
    Written,
    /// Nor may anybody read a key.
    Used,
}

fn read(path: &Path, guard: Guard) -> Result<Vec<u8>, String> {
    let wrong = |error: std::io::Error| format!("{}: {error}", path.display());
    // A named pipe would block the open until somebody writes.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(wrong)?;
    let metadata = file.metadata().map_err(wrong)?;
    if !metadata.is_file() {
        return Err(format!("{} is not a regular file", path.display()));
    }
    // SAFETY: only reads the user of this process.
    let user = unsafe { libc::geteuid() };
    let (forbidden, what) = match guard {
        Guard::None => (0, ""),
        Guard::Written => (0o022, "write it (chmod go-w)"),
        Guard::Used => (0o077, "have access (chmod 600)"),
    };
    if guard != Guard::None && ![0, user].contains(&metadata.uid()) {
        return Err(format!("{} belongs to user {}, who can read and write it", path.display(), metadata.uid()));
    }
    if mode_for_others(&file, &metadata, user) & forbidden != 0 {
        let mode = metadata.mode() & 0o777;
        return Err(format!("{} has mode {mode:04o}: others than its owner must not {what}", path.display()));
    }
    let mut text = Vec::new();
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut text).map_err(wrong)?;
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(format!("{} has more than {MAX_FILE_BYTES} bytes", path.display()));
    }
    Ok(text)
}
