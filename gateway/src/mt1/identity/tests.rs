use bytes::Bytes;

use super::*;
use crate::mt1::stand_in::StandIn;

const LIMIT: Duration = Duration::from_secs(30);

fn token(text: &str) -> Credential {
    Credential::Token(text.into())
}

/// A connection of its own.
fn origin() -> Origin {
    let turns = Arc::new(Semaphore::new(MAX_ASKING_OF_CONNECTION));
    Origin { from: "1.2.3.4:5".into(), interface: "http", turns }
}

async fn start() -> (StandIn, Daemon) {
    let stand_in = StandIn::start();
    stand_in.accept("a.token", "1111111111111111");
    let daemon = Daemon::start(&stand_in.settings(json!({})));
    daemon.connected().await;
    (stand_in, daemon)
}

/// Waits until something is true.
async fn until(mut is_true: impl FnMut() -> bool) {
    let waiting = async {
        while !is_true() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(LIMIT, waiting).await.expect("it does not happen");
}

#[tokio::test]
async fn requests_have_the_handle_of_whom_they_are_sent_for() {
    let (stand_in, daemon) = start().await;
    let identity = daemon.authenticate(token("a.token"), origin()).await.unwrap();
    let theirs = daemon.for_identity(identity);
    theirs.call("MT1:model_ready", json!({})).await.unwrap();
    theirs.infer_raw(Bytes::from_static(b"{}"), Vec::new(), LIMIT).await.unwrap();
    theirs.operate("MT1:load", json!({})).await.unwrap();
    daemon.call("MT1:server_live", json!({})).await.unwrap();
    for (kind, handle) in [
        ("MT1:authenticate", ""),
        ("MT1:model_ready", "1111111111111111"),
        ("MT1:infer", "1111111111111111"),
        ("MT1:load", "1111111111111111"),
        ("MT1:server_live", "anonymous"),
    ] {
        assert_eq!(stand_in.received(kind)[0].handle, handle, "{kind}");
    }
    let asked = &stand_in.received("MT1:authenticate")[0].header;
    assert_eq!(*asked, json!({"token": "a.token", "from": "1.2.3.4:5", "interface": "http"}));
}

#[tokio::test]
async fn a_cancelled_request_has_the_handle_too() {
    let (stand_in, daemon) = start().await;
    stand_in.keep_silent("MT1:infer");
    let theirs = daemon.for_identity(daemon.authenticate(token("a.token"), origin()).await.unwrap());
    let request = tokio::spawn(async move { theirs.infer_raw(Bytes::from_static(b"{}"), Vec::new(), LIMIT).await });
    until(|| !stand_in.received("MT1:infer").is_empty()).await;
    request.abort();
    until(|| !stand_in.received("MT1:cancel").is_empty()).await;
    assert_eq!(stand_in.received("MT1:cancel")[0].handle, "1111111111111111");
}

#[tokio::test]
async fn without_security_nothing_says_for_whom_a_request_is() {
    let stand_in = StandIn::start();
    let daemon = Daemon::start(&stand_in.settings(json!({"security": false})));
    assert!(daemon.call("MT1:server_live", json!({})).await.is_err(), "the stand-in has `security`");
    assert_eq!(stand_in.received("MT1:server_live")[0].handle, "");
}

#[tokio::test]
async fn a_credential_is_verified_once_for_many_requests() {
    let (stand_in, daemon) = start().await;
    let all = (0..50).map(|_| daemon.authenticate(token("a.token"), origin()));
    let all = futures_util::future::join_all(all).await;
    let first = all[0].as_ref().expect("it is valid");
    // What a connection holds is what is asked about again.
    assert!(all.iter().all(|each| Arc::ptr_eq(each.as_ref().expect("it is valid"), first)));
    let asked = stand_in.received("MT1:authenticate").len();
    assert!(asked <= MAX_ASKING, "{asked}");
    for _ in 0..50 {
        daemon.authenticate(token("a.token"), origin()).await.unwrap();
    }
    assert!(stand_in.received("MT1:authenticate").len() <= asked + 1);
    let certificate = Credential::CertificateName("a.token".into());
    daemon.authenticate(certificate, origin()).await.unwrap();
    assert_eq!(stand_in.received("MT1:authenticate").last().unwrap().header["certificate_name"], "a.token");
}

#[tokio::test]
async fn what_is_refused_is_not_asked_again_for_a_moment_and_never_repeated() {
    let (stand_in, daemon) = start().await;
    let long = "x".repeat(MAX_CREDENTIAL_BYTES + 1);
    for text in ["a.wrong", "a.wrong", "", &long] {
        let error = daemon.authenticate(token(text), origin()).await.map(drop).unwrap_err();
        assert_eq!((error.code, &error.reason[..]), (Code::Unauthenticated, "unauthenticated"));
        assert!(!error.message.contains("a.wrong"), "{}", error.message);
    }
    assert_eq!(stand_in.received("MT1:authenticate").len(), 2);
    stand_in.accept("a.wrong", "2222222222222222");
    // A new principal's first try may have come too early.
    let accepted = async {
        while daemon.authenticate(token("a.wrong"), origin()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(LIMIT, accepted).await.expect("it is accepted");
}

#[tokio::test]
async fn a_handle_that_is_not_known_any_more_is_renewed_once() {
    let (stand_in, daemon) = start().await;
    let identity = daemon.authenticate(token("a.token"), origin()).await.unwrap();
    let theirs = daemon.for_identity(identity.clone());
    stand_in.accept("a.token", "2222222222222222");
    theirs.call("MT1:model_ready", json!({})).await.unwrap();
    let handles = |kind| stand_in.received(kind).into_iter().map(|message| message.handle).collect::<Vec<_>>();
    assert_eq!(handles("MT1:model_ready"), ["1111111111111111", "2222222222222222"]);
    stand_in.accept("a.token", "3333333333333333");
    theirs.operate("MT1:load", json!({})).await.unwrap();
    assert_eq!(handles("MT1:load"), ["2222222222222222", "3333333333333333"]);
    stand_in.revoke("a.token");
    let error = theirs.call("MT1:statistics", json!({})).await.unwrap_err();
    assert_eq!(error.reason, "unauthenticated");
    assert_eq!(handles("MT1:statistics"), ["3333333333333333"]);
    assert!(identity.is_refused());
    assert!(daemon.authenticate(token("a.token"), origin()).await.is_err());
}

#[tokio::test]
async fn a_revoked_credential_of_an_open_connection_is_noticed_within_a_second() {
    let (stand_in, daemon) = start().await;
    let identity = daemon.authenticate(token("a.token"), origin()).await.unwrap();
    let began = Instant::now();
    stand_in.revoke("a.token");
    until(|| identity.is_refused()).await;
    // Twice the time: other tests run, too.
    assert!(began.elapsed() < 2 * MAX_AGE, "{:?}", began.elapsed());
    // A credential that no connection uses is not asked about.
    stand_in.accept("b.token", "2222222222222222");
    drop(daemon.authenticate(token("b.token"), origin()).await.unwrap());
    tokio::time::sleep(2 * REFRESH_AGE).await;
    let asked = stand_in.received("MT1:authenticate");
    assert_eq!(asked.iter().filter(|message| message.header["token"] == "b.token").count(), 1);
}

#[tokio::test]
async fn metadata_is_not_shown_to_others_than_those_who_asked_for_it() {
    let (stand_in, daemon) = start().await;
    stand_in.accept("b.token", "2222222222222222");
    stand_in.forbid("2222222222222222", "MT1:model_metadata");
    let model = crate::mt1::ModelRef::latest("m");
    let of = async |text: &str| daemon.for_identity(daemon.authenticate(token(text), origin()).await.unwrap());
    let (first, second) = (of("a.token").await, of("b.token").await);
    first.model_metadata(&model).await.unwrap();
    first.model_metadata(&model).await.unwrap();
    assert_eq!(stand_in.received("MT1:model_metadata").len(), 1, "it is remembered");
    assert_eq!(second.model_metadata(&model).await.map(drop).unwrap_err().reason, "forbidden");
    assert_eq!(daemon.model_metadata(&model).await.map(drop).unwrap_err().reason, "unauthenticated");
}

#[tokio::test]
async fn credentials_that_wait_are_bounded_and_those_that_are_known_need_not_wait() {
    let (stand_in, daemon) = start().await;
    let known = daemon.authenticate(token("a.token"), origin()).await.unwrap();
    stand_in.keep_silent("MT1:authenticate");
    let asking = |number: usize| {
        let daemon = daemon.clone();
        tokio::spawn(async move { daemon.authenticate(token(&format!("t{number}")), origin()).await.map(drop) })
    };
    let waiting: Vec<_> = (0..MAX_WAITING).map(asking).collect();
    until(|| daemon.identities().waiting.available_permits() == 0).await;
    let error = asking(MAX_WAITING).await.unwrap().unwrap_err();
    assert_eq!((error.code, &error.reason[..]), (Code::ResourceExhausted, "queue_full"));
    assert!(stand_in.received("MT1:authenticate").len() <= MAX_ASKING + 2);
    known.state().checked_at = Instant::now();
    assert!(daemon.authenticate(token("a.token"), origin()).await.is_ok());
    waiting.iter().for_each(tokio::task::JoinHandle::abort);
    until(|| daemon.identities().waiting.available_permits() == MAX_WAITING).await;
}

#[tokio::test]
async fn a_connection_with_many_unknown_credentials_leaves_places_to_others() {
    let (stand_in, daemon) = start().await;
    stand_in.keep_silent("MT1:authenticate");
    let connection = origin();
    let ask = |text: String, origin: Origin| {
        let daemon = daemon.clone();
        tokio::spawn(async move { daemon.authenticate(token(&text), origin).await.map(drop) })
    };
    let many: Vec<_> = (0..=MAX_WAITING).map(|number| ask(format!("t{number}"), connection.clone())).collect();
    until(|| stand_in.received("MT1:authenticate").len() >= MAX_ASKING_OF_CONNECTION).await;
    assert!(daemon.identities().waiting.available_permits() >= MAX_WAITING - MAX_ASKING_OF_CONNECTION);
    let other = ask("other".to_owned(), origin());
    until(|| stand_in.received("MT1:authenticate").iter().any(|asked| asked.header["token"] == "other")).await;
    many.iter().chain([&other]).for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn an_answer_that_cannot_be_read_is_no_handle() {
    let (stand_in, daemon) = start().await;
    for handle in ["", "12345678901234567"] {
        stand_in.accept(&format!("token {handle}"), handle);
        let error = daemon.authenticate(token(&format!("token {handle}")), origin()).await.map(drop).unwrap_err();
        assert_eq!(error.code, Code::Internal);
    }
}
