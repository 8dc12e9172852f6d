use std::future::pending;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{DuplexStream, duplex};
use tokio_rustls::{TlsConnector, client};

use super::test_certificates::Certificates;
use super::*;

fn tls(certificates: &Certificates, client_ca: bool, tokens: bool) -> Tls {
    Tls::new(files::load(&certificates.settings(client_ca), tokens).unwrap(), Arc::default())
}

/// A client that trusts the authority, and shows this certificate.
fn client(certificates: &Certificates, shown: Option<&str>, protocols: &[&[u8]]) -> TlsConnector {
    let read = |name: &str| CertificateDer::from_pem_file(certificates.path(name)).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(read("ca.pem")).unwrap();
    let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots);
    let mut config = match shown {
        None => builder.with_no_client_auth(),
        Some(name) => {
            let key = PrivateKeyDer::from_pem_file(certificates.path(&format!("{name}.key"))).unwrap();
            builder.with_client_auth_cert(vec![read(&format!("{name}.pem"))], key).unwrap()
        }
    };
    config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    TlsConnector::from(Arc::new(config))
}

type Sides = (io::Result<client::TlsStream<DuplexStream>>, Option<Accepted<DuplexStream>>);

/// Has a client connect. Returns both ends.
async fn connect(tls: &Tls, client: &TlsConnector) -> Sides {
    let (near, far) = duplex(64 << 10);
    let name = ServerName::try_from("localhost").unwrap();
    tokio::join!(client.connect(name, near), tls.accept(far, "test", pending()))
}

/// The certificate that the server shows now.
async fn shown(tls: &Tls, certificates: &Certificates) -> Vec<u8> {
    let (client, server) = connect(tls, &client(certificates, None, &[])).await;
    assert!(server.is_some());
    client.unwrap().get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

#[tokio::test]
async fn the_protocol_is_agreed_on_and_bytes_come_through() {
    let certificates = Certificates::new();
    let tls = tls(&certificates, false, true);
    for (offered, expected) in
        [(&[&b"h2"[..], b"http/1.1"][..], Some(&b"h2"[..])), (&[b"http/1.1"], Some(b"http/1.1")), (&[], None)]
    {
        let (near, far) = connect(&tls, &client(&certificates, None, offered)).await;
        let (mut near, (mut far, certificate)) = (near.unwrap(), far.unwrap());
        assert_eq!(far.get_ref().1.alpn_protocol(), expected);
        near.write_all(b"hello").await.unwrap();
        near.flush().await.unwrap();
        let mut read = [0; 5];
        far.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"hello");
        assert!(certificate.is_none());
    }
}

#[tokio::test]
async fn certificates_of_clients_are_verified_and_name_them() {
    let certificates = Certificates::new();
    certificates.issue("known", "/O=example/CN=checkout-service");
    certificates.issue_by_another("unknown", "/CN=checkout-service");
    // Where there are no tokens, each client needs a certificate.
    for (tokens, shown, expected) in [
        (true, Some("known"), Some(Some("checkout-service"))),
        (true, None, Some(None)),
        (true, Some("unknown"), None),
        (false, Some("known"), Some(Some("checkout-service"))),
        (false, None, None),
        (false, Some("unknown"), None),
    ] {
        let tls = tls(&certificates, true, tokens);
        let (_, server) = connect(&tls, &client(&certificates, shown, &[])).await;
        let name = server.map(|(_, certificate)| certificate.and_then(|certificate| certificate.name.clone()));
        assert_eq!(name.as_ref().map(Option::as_deref), expected, "{tokens} {shown:?}");
    }
}

#[tokio::test]
async fn a_certificate_that_cannot_be_used_is_said_in_words() {
    let certificates = Certificates::new();
    // A client that shows the certificate of an authority.
    let (near, far) = duplex(64 << 10);
    let connector = client(&certificates, Some("ca"), &[]);
    let acceptor = TlsAcceptor::from(Arc::new(files::load(&certificates.settings(true), true).unwrap().config));
    let connect = connector.connect(ServerName::try_from("localhost").unwrap(), near);
    let (_, outcome) = tokio::join!(connect, acceptor.accept(far));
    let error = outcome.err().unwrap();
    assert_eq!(cause_of(&error), "the client's certificate is that of an authority, not of a client");
    let version = rustls::OtherError(Arc::new(webpki::Error::UnsupportedCertVersion));
    let error = rustls::Error::InvalidCertificate(rustls::CertificateError::Other(version));
    let cause = cause_of(&io::Error::other(error));
    assert!(cause.starts_with("the client's certificate is not of X.509 version 3"), "{cause}");
    assert_eq!(cause_of(&io::Error::other("broken")), "broken");
}

#[tokio::test]
async fn changed_files_are_used_once_they_are_whole_and_fit() {
    let certificates = Certificates::new();
    certificates.issue_for("next", "/CN=localhost", 100);
    let settings = certificates.settings(false);
    let stamp = files::stamp(&settings);
    let tls = tls(&certificates, false, true);
    let mut watch = Watch { used: stamp.clone(), seen: stamp, refused: None };
    let first = shown(&tls, &certificates).await;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let days_left = || (tls.statistics.certificate_expiry().unwrap() + 3600 - now) / 86_400;
    assert_eq!(days_left(), 2);
    assert!(!tls.look(&settings, true, &mut watch), "nothing has changed");
    // A certificate without its key, half of a certificate, none at all, a key that others can read.
    let whole = std::fs::read(certificates.path("next.pem")).unwrap();
    let steps: [&dyn Fn(); 4] = [
        &|| certificates.replace("server.pem", "next.pem"),
        &|| std::fs::write(certificates.path("server.pem"), &whole[..whole.len() / 2]).unwrap(),
        &|| std::fs::remove_file(certificates.path("server.pem")).unwrap(),
        &|| {
            certificates.replace("server.pem", "next.pem");
            certificates.replace("server.key", "next.key");
            certificates.set_mode("server.key", 0o640);
        },
    ];
    for step in steps {
        step();
        assert!(!tls.look(&settings, true, &mut watch), "they may still be written");
        assert!(tls.look(&settings, true, &mut watch));
        assert!(!tls.look(&settings, true, &mut watch), "they are as they were");
        assert_eq!((shown(&tls, &certificates).await, days_left()), (first.clone(), 2));
    }
    certificates.set_mode("server.key", 0o600);
    assert!(!tls.look(&settings, true, &mut watch));
    assert!(tls.look(&settings, true, &mut watch));
    assert_ne!(shown(&tls, &certificates).await, first);
    assert_eq!(days_left(), 100);
}

#[tokio::test]
async fn files_that_could_not_be_used_are_read_again_although_they_have_not_changed() {
    let certificates = Certificates::new();
    let (settings, tls) = (certificates.settings(false), tls(&certificates, false, true));
    let first = shown(&tls, &certificates).await;
    certificates.issue("server", "/CN=localhost");
    let stamp = files::stamp(&settings);
    let refused = |at| Some(("Too many open files".to_owned(), at));
    let mut watch = Watch { used: stamp.clone(), seen: stamp, refused: refused(Instant::now() + RETRY) };
    assert!(!tls.look(&settings, true, &mut watch), "not at once");
    watch.refused = refused(Instant::now());
    assert!(tls.look(&settings, true, &mut watch));
    assert_ne!(shown(&tls, &certificates).await, first);
    assert!(!tls.look(&settings, true, &mut watch), "they are used now");
    certificates.set_mode("server.key", 0o640);
    tls.look(&settings, true, &mut watch);
    assert!(tls.look(&settings, true, &mut watch));
    assert!(watch.refused.is_some_and(|(cause, at)| cause.contains("mode 0640") && at > Instant::now()));
}

#[tokio::test]
async fn connections_end_whose_clients_have_certificates_of_an_authority_that_was_removed() {
    let certificates = Certificates::new();
    certificates.issue("stays", "/CN=checkout-service");
    let others = certificates.issue_by_another("leaves", "/CN=checkout-service");
    let own = std::fs::read(certificates.path("ca.pem")).unwrap();
    let both = [own.clone(), std::fs::read(others.path("ca.pem")).unwrap()].concat();
    std::fs::write(certificates.path("ca.pem"), &both).unwrap();
    let clients = ["stays", "leaves"].map(|name| client(&certificates, Some(name), &[]));
    // With and without tokens of clients.
    for tokens in [true, false] {
        let settings = certificates.settings(true);
        let tls = Tls::new(files::load(&settings, tokens).unwrap(), Arc::default());
        let (stamp, former) = (files::stamp(&settings), tls.used());
        let mut watch = Watch { used: stamp.clone(), seen: stamp, refused: None };
        let mut used_now = || {
            tls.look(&settings, tokens, &mut watch);
            assert!(tls.look(&settings, tokens, &mut watch));
        };
        let mut open = Vec::new();
        for client in &clients {
            let (near, far) = connect(&tls, client).await;
            open.push((near.unwrap(), far.unwrap()));
        }
        let withdrawn = || -> Vec<bool> {
            open.iter().map(|(_, (_, certificate))| certificate.as_ref().unwrap().is_withdrawn()).collect()
        };
        certificates.issue("server", "/CN=localhost");
        used_now();
        assert_eq!(withdrawn(), [false, false], "the authorities are the same");
        std::fs::remove_file(certificates.path("ca.pem")).unwrap();
        used_now();
        assert_eq!(withdrawn(), [false, false], "files that cannot be read change nothing");
        std::fs::write(certificates.path("ca.pem"), &own).unwrap();
        used_now();
        assert_eq!(withdrawn(), [false, true]);
        // A handshake that has ended meanwhile.
        let late = open.iter().map(|(_, (stream, _))| tls.certificate_of(stream, &former).unwrap().is_withdrawn());
        assert_eq!(late.collect::<Vec<_>>(), [false, true]);
        std::fs::write(certificates.path("ca.pem"), &both).unwrap();
    }
}

#[test]
fn authorities_that_others_may_replace_are_refused() {
    let certificates = Certificates::new();
    for mode in [0o644, 0o600, 0o444] {
        certificates.set_mode("ca.pem", mode);
        assert!(files::load(&certificates.settings(true), true).is_ok());
    }
    for mode in [0o664, 0o646] {
        certificates.set_mode("ca.pem", mode);
        let error = files::load(&certificates.settings(true), true).err().unwrap();
        assert!(
            error.contains(&format!("ca.pem has mode {mode:04o}: others than its owner must not write it")),
            "{error}"
        );
        assert!(files::load(&certificates.settings(false), true).is_ok());
    }
}

#[test]
fn what_cannot_be_used_is_said_without_its_content() {
    let certificates = Certificates::new();
    certificates.issue("next", "/CN=localhost");
    let secret = "b25jZSB1cG9uIGEgdGltZQ";
    for (file, content, words) in [
        ("server.pem", Some(secret), "has no certificate in PEM"),
        ("server.pem", Some("-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n"), "is not valid PEM"),
        ("server.key", Some(secret), "has no private key in PEM"),
        ("server.key", Some(""), "has no private key in PEM"),
        ("server.key", None, "does not belong to the certificate"),
        ("ca.pem", Some(secret), "has no certificate in PEM"),
    ] {
        let before = std::fs::read(certificates.path(file)).unwrap();
        match content {
            Some(content) => std::fs::write(certificates.path(file), content).unwrap(),
            None => certificates.replace(file, "next.key"),
        }
        let error = files::load(&certificates.settings(true), true).map(drop).unwrap_err();
        assert!(error.contains(file) && error.contains(words), "{error}");
        assert!(!error.contains(secret), "{error}");
        std::fs::write(certificates.path(file), before).unwrap();
    }
    certificates.set_mode("server.key", 0o604);
    let error = files::load(&certificates.settings(false), true).map(drop).unwrap_err();
    assert!(error.contains("mode 0604"), "{error}");
}

/// Sends this, and returns what comes back until the server is done with the connection.
async fn exchange(tls: &Tls, sent: &[u8]) -> (Vec<u8>, bool) {
    let (mut near, far) = duplex(64 << 10);
    let mut received = Vec::new();
    let asking = async {
        near.write_all(sent).await.unwrap();
        near.shutdown().await.unwrap();
        near.read_to_end(&mut received).await.unwrap();
    };
    let ((), accepted) = tokio::join!(asking, tls.accept(far, "test", pending()));
    (received, accepted.is_some())
}

#[tokio::test]
async fn what_is_no_tls_is_refused_and_http_is_answered() {
    let certificates = Certificates::new();
    let tls = tls(&certificates, false, true);
    let long = format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "x".repeat(20_000));
    for sent in ["GET / HTTP/1.1\r\nHost: m\r\n\r\n", "POST /v2/models/m/infer HTTP/1.1\r\n\r\n", &long] {
        let (received, accepted) = exchange(&tls, sent.as_bytes()).await;
        let text = String::from_utf8(received).unwrap();
        assert!(
            text.starts_with("HTTP/1.1 400 ") && text.ends_with(r#"{"error":"this address speaks TLS: use https://"}"#)
        );
        assert!(!accepted);
    }
    for sent in [&b"\0\0\0"[..], b"\x16\x03\x01\x00\x05hello", b"\x16garbage", b"\xff\0\0\0\0\0\0\0\x01\x7f", b""] {
        let (received, accepted) = exchange(&tls, sent).await;
        // At most an alert.
        assert!(received.len() <= 7 && !accepted, "{}", received.escape_ascii());
    }
}

#[tokio::test]
async fn a_handshake_that_takes_too_long_or_is_given_up_ends() {
    let certificates = Certificates::new();
    let mut tls = tls(&certificates, false, true);
    tls.limit = Duration::from_millis(50);
    for sent in [&b""[..], b"\x16\x03\x01\x02\x00", b"GET / HTTP/1.1\r\n"] {
        let (mut near, far) = duplex(64 << 10);
        near.write_all(sent).await.unwrap();
        // `near` stays open: the server ends it.
        let accepted = timeout(Duration::from_secs(30), tls.accept(far, "test", pending())).await;
        assert!(accepted.expect("it goes on").is_none());
    }
    tls.limit = HANDSHAKE;
    let (_near, far) = duplex(64);
    assert!(tls.accept(far, "test", async {}).await.is_none(), "the process drains");
}

#[tokio::test]
async fn sessions_are_resumed_only_where_clients_show_no_certificates() {
    let certificates = Certificates::new();
    certificates.issue("known", "/CN=checkout-service");
    for client_ca in [false, true] {
        let tls = tls(&certificates, client_ca, true);
        let client = client(&certificates, client_ca.then_some("known"), &[]);
        let mut kinds = Vec::new();
        for _ in 0..2 {
            let (near, far) = connect(&tls, &client).await;
            let (mut near, (mut far, _)) = (near.unwrap(), far.unwrap());
            far.write_all(b"x").await.unwrap();
            far.flush().await.unwrap();
            near.read_exact(&mut [0; 1]).await.unwrap(); // tickets come before it
            kinds.push(near.get_ref().1.handshake_kind());
        }
        // A session that is resumed would not be asked for its certificate, which may have expired.
        assert_eq!(kinds[1] == Some(rustls::HandshakeKind::Resumed), !client_ca, "{kinds:?}");
    }
}

#[test]
fn a_named_pipe_in_place_of_a_file_is_refused_at_once() {
    let certificates = Certificates::new();
    let settings = certificates.settings(false);
    std::fs::remove_file(&settings.private_key).unwrap();
    let path = std::ffi::CString::new(settings.private_key.as_os_str().as_encoded_bytes()).unwrap();
    // SAFETY: the path ends with a zero byte.
    assert_eq!(unsafe { libc::mkfifo(path.as_ptr(), 0o600) }, 0);
    let error = files::load(&settings, true).map(drop).unwrap_err();
    assert!(error.contains("is not a regular file"), "{error}");
}
