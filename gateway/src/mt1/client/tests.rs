use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::task::{Context, Waker};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use super::*;
use crate::mt1::zmtp::{self, Decoder, GREETING_BYTES, Incoming};

/// The daemon's side of a connection, one message at a time.
struct Peer {
    stream: UnixStream,
    decoder: Decoder,
    buffer: bytes::BytesMut,
}

impl Peer {
    async fn accept(listener: &UnixListener) -> Self {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut greeting = [0; GREETING_BYTES];
        stream.read_exact(&mut greeting).await.unwrap();
        stream.write_all(&zmtp::greeting()).await.unwrap();
        stream.write_all(&zmtp::ready()).await.unwrap();
        Self { stream, decoder: Decoder::default(), buffer: bytes::BytesMut::new() }
    }

    /// Returns the kind and the id of the next message.
    async fn receive(&mut self) -> (Bytes, Bytes) {
        loop {
            match self.decoder.next(&mut self.buffer).unwrap() {
                Some(Incoming::Message(frames)) => return (frames[1].clone(), frames[2].clone()),
                Some(_) => {}
                None => assert_ne!(self.stream.read_buf(&mut self.buffer).await.unwrap(), 0),
            }
        }
    }

    /// Returns the number of bytes that have come and were not read.
    fn unread(&self) -> i32 {
        let mut bytes = 0;
        // SAFETY: FIONREAD writes an int.
        assert_eq!(unsafe { libc::ioctl(self.stream.as_raw_fd(), libc::FIONREAD, &mut bytes) }, 0);
        bytes
    }

    async fn answer(&mut self, id: &[u8], header: &'static str) {
        let mut outgoing = Outgoing::default();
        outgoing.push_message(Handle::NONE, "MT1:ok", id, &Bytes::from_static(header.as_bytes()), &[]);
        outgoing.write_all(&mut self.stream).await.unwrap();
    }
}

/// Polls a request once, and returns whether it waits.
fn waits(request: &mut Pin<Box<dyn Future<Output = Result<RawReply, DaemonError>> + '_>>) -> bool {
    request.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending()
}

fn settings(name: &str) -> (Settings, PathBuf) {
    let path = std::env::temp_dir().join(format!("gateway-{}-{name}", std::process::id()));
    let text = serde_json::json!({"version": "0", "daemon": path, "listeners": []}).to_string();
    (serde_json::from_str(&text).unwrap(), path)
}

/// Returns a client that is connected, and the daemon's side of its connection.
async fn connect(settings: &Settings, path: &Path) -> (Daemon, Peer) {
    let listener = UnixListener::bind(path).unwrap();
    let daemon = Daemon::start(settings);
    let peer = Peer::accept(&listener).await;
    daemon.connected().await;
    (daemon, peer)
}

#[tokio::test]
async fn stated_timeouts_are_rounded_and_the_longest_one_is_exact() {
    let (mut settings, path) = settings("timeouts");
    settings.limits = serde_json::from_str(r#"{"request_timeout_s": 33.333}"#).unwrap();
    let daemon = Daemon::start(&settings);
    let longest = Duration::from_millis(33_333);
    assert_eq!(daemon.timeout(None), longest);
    assert_eq!(daemon.timeout(Some(Duration::from_secs(34))), longest);
    assert_eq!(daemon.timeout(Some(Duration::from_micros(4_998_731))), Duration::from_millis(4900));
    assert!(!path.exists());
}

#[tokio::test]
async fn a_sent_request_fails_with_its_connection_and_a_waiting_one_is_sent_later() {
    let (settings, path) = settings("lost");
    let daemon = Daemon::start(&settings);
    // There is no daemon yet: this request waits for it.
    let waiting = tokio::spawn({
        let daemon = daemon.clone();
        async move { daemon.call("MT1:server_live", Value::Null).await }
    });
    tokio::task::yield_now().await;
    let listener = UnixListener::bind(&path).unwrap();
    let mut peer = Peer::accept(&listener).await;
    let (kind, _) = peer.receive().await;
    assert_eq!(kind, "MT1:server_live");
    drop(peer);
    assert_eq!(waiting.await.unwrap().unwrap_err().reason, "connection_lost");
    let mut peer = Peer::accept(&listener).await;
    let (answer, ()) = tokio::join!(daemon.call("MT1:server_live", Value::Null), async {
        let (_, id) = peer.receive().await;
        // A PING in between is answered, or the daemon would take the gateway for dead.
        peer.stream.write_all(b"\x04\x07\x04PING\x00\x0a").await.unwrap();
        peer.answer(&id, r#"{"live":true}"#).await;
    });
    assert_eq!(answer.unwrap()["live"], true);
    let mut pong = [0; 7];
    peer.stream.read_exact(&mut pong).await.unwrap();
    assert_eq!(&pong, b"\x04\x05\x04PONG");
    let _ = std::fs::remove_file(path);
}

#[tokio::test]
async fn many_who_watch_the_daemon_ask_it_once() {
    let (settings, path) = settings("watched");
    let (daemon, mut peer) = connect(&settings, &path).await;
    let limit = Duration::from_secs(30);
    let watch = || daemon.was_ready(limit, limit);
    let (answers, ()) = tokio::join!(async { tokio::join!(watch(), watch(), watch()) }, async {
        let (kind, id) = peer.receive().await;
        assert_eq!(kind, "MT1:server_ready");
        peer.answer(&id, r#"{"ready":true}"#).await;
    });
    assert_eq!(answers, (true, true, true));
    // Without an age, the daemon is asked again.
    let (ready, ()) = tokio::join!(daemon.was_ready(Duration::ZERO, limit), async {
        let (_, id) = peer.receive().await;
        peer.answer(&id, r#"{"ready":false}"#).await;
    });
    assert!(!ready);
    let _ = std::fs::remove_file(path);
}

#[tokio::test]
async fn what_a_daemon_does_not_read_is_bounded_although_it_is_cancelled() {
    let (mut settings, path) = settings("unread");
    settings.limits = serde_json::from_str(r#"{"max_body_bytes": 100000, "max_buffered_bytes": 800000}"#).unwrap();
    let (daemon, mut peer) = connect(&settings, &path).await;
    // The socket takes some of them, too.
    let mut refused = None;
    for _ in 0..100 {
        let frames = vec![Bytes::from(vec![0; 100_000])];
        let infer = daemon.infer_raw(Bytes::from_static(b"{}"), frames, Duration::from_secs(60));
        match tokio::time::timeout(Duration::ZERO, infer).await {
            Err(_) => tokio::task::yield_now().await,
            Ok(outcome) => {
                refused = Some(outcome.unwrap_err());
                break;
            }
        }
    }
    assert_eq!(refused.expect("a refusal").reason, "queue_full");
    // As soon as the daemon reads, requests are accepted again.
    let (answer, ()) = tokio::join!(
        async {
            loop {
                match daemon.call("MT1:server_live", Value::Null).await {
                    Err(error) if error.reason == "queue_full" => tokio::task::yield_now().await,
                    answer => return answer,
                }
            }
        },
        async {
            loop {
                let (kind, id) = peer.receive().await;
                if kind == "MT1:server_live" {
                    return peer.answer(&id, r#"{"live":true}"#).await;
                }
            }
        }
    );
    assert_eq!(answer.unwrap()["live"], true);
    let _ = std::fs::remove_file(path);
}

#[tokio::test]
async fn a_request_whose_future_is_dropped_is_cancelled() {
    let (settings, path) = settings("dropped");
    let (daemon, mut peer) = connect(&settings, &path).await;
    let request = tokio::spawn({
        let daemon = daemon.clone();
        async move { daemon.infer_raw(Bytes::from_static(b"{}"), Vec::new(), Duration::from_secs(60)).await }
    });
    let (kind, id) = peer.receive().await;
    assert_eq!(kind, "MT1:infer");
    request.abort();
    assert_eq!(peer.receive().await, (Bytes::from_static(b"MT1:cancel"), id));
    let _ = std::fs::remove_file(path);
}

#[tokio::test]
async fn without_a_daemon_a_request_fails_at_its_own_deadline() {
    let (settings, _) = settings("absent");
    let daemon = Daemon::start(&settings);
    let outcome = daemon.infer_raw(Bytes::from_static(b"{}"), Vec::new(), Duration::from_millis(50)).await;
    assert_eq!(outcome.unwrap_err().reason, "not_connected");
}

#[tokio::test]
async fn a_daemon_that_accepts_a_connection_and_is_silent_keeps_no_request_beyond_its_deadline() {
    let (settings, path) = settings("silent");
    let listener = UnixListener::bind(&path).unwrap();
    let daemon = Daemon::start(&settings);
    let (mut stream, _) = listener.accept().await.unwrap();
    stream.read_exact(&mut [0; GREETING_BYTES]).await.unwrap();
    let outcome = daemon.infer_raw(Bytes::from_static(b"{}"), Vec::new(), Duration::from_millis(50)).await;
    assert_eq!(outcome.unwrap_err().reason, "not_connected");
    let given_up = stream.try_read(&mut [0; 1]);
    assert!(given_up.is_err(), "the request has waited until the handshake was given up");
    let _ = std::fs::remove_file(path);
}

#[tokio::test]
async fn a_request_with_areas_is_written_before_the_event_loop_has_another_turn() {
    let (settings, path) = settings("areas");
    let (daemon, mut peer) = connect(&settings, &path).await;
    let limit = Duration::from_secs(60);
    let mut other: Pin<Box<dyn Future<Output = _>>> =
        Box::pin(daemon.infer_raw(Bytes::from_static(b"{}"), Vec::new(), limit));
    let before = peer.unread();
    assert!(waits(&mut other));
    assert_eq!(peer.unread(), before, "other requests are written together, in the next turn");
    let mut first: Pin<Box<dyn Future<Output = _>>> =
        Box::pin(daemon.infer_in_areas(Bytes::from_static(b"{}"), Vec::new(), limit));
    assert!(waits(&mut first));
    assert!(peer.unread() > before);
    for request in [other, first] {
        let (_, id) = peer.receive().await;
        peer.answer(&id, "{}").await;
        assert!(request.await.is_ok());
    }
    let _ = std::fs::remove_file(path);
}

#[tokio::test]
async fn what_the_socket_has_no_room_for_at_once_is_written_later_and_in_its_order() {
    let (settings, path) = settings("no-room");
    let (daemon, mut peer) = connect(&settings, &path).await;
    let send = |byte: u8| -> Pin<Box<dyn Future<Output = _>>> {
        let frames = vec![Bytes::from(vec![byte; 3_000_000])];
        Box::pin(daemon.infer_in_areas(Bytes::from_static(b"{}"), frames, Duration::from_secs(60)))
    };
    let mut requests = [send(1), send(2)];
    assert!(requests.iter_mut().all(waits));
    for request in requests {
        let (_, id) = peer.receive().await;
        peer.answer(&id, "{}").await;
        assert!(request.await.is_ok());
    }
    let _ = std::fs::remove_file(path);
}
