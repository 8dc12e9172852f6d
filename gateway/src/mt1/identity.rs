//! Who asks: credentials that the daemon has verified, and the handles that stand for them in requests.
//!
//! The daemon decides. It is asked again about each credential that is in use, so that one that was revoked is out within
//! a second, also on connections that are idle.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ring::digest::{SHA256, digest};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::Semaphore;
use tokio::time::{timeout, timeout_at};

use super::pending::AUTHENTICATE;
use super::{Code, Daemon, DaemonError, Handle};

/// The age from which on the daemon is asked again beside the request that uses an answer.
const REFRESH_AGE: Duration = Duration::from_millis(400);

/// An answer of this age is not used.
const MAX_AGE: Duration = Duration::from_secs(1);

/// How often credentials of open connections are looked at.
const LOOK: Duration = Duration::from_millis(100);

/// How long the daemon may take to verify a credential: some wait for others.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// Credentials that the daemon does not know yet, and is asked about at one time, and requests that wait for that.
const MAX_ASKING: usize = 32;
const MAX_WAITING: usize = 4096;

/// Those of one connection among them; further ones wait for their turn. HTTP/2 sends hundreds of requests at once over
/// one connection, and would otherwise leave no place to clients of other connections.
pub const MAX_ASKING_OF_CONNECTION: usize = 4;

/// Credentials that are kept: those that are valid, and those that were refused lately.
const MAX_KNOWN: usize = 4096;
const MAX_REFUSED: usize = 1024;

/// A valid credential is forgotten when no connection uses it, and no request has for so long.
const UNUSED: Duration = Duration::from_secs(60);

/// Longer ones are refused without asking.
const MAX_CREDENTIAL_BYTES: usize = 512;

/// What a client shows. It has no `Debug`, so that no log line can have a token.
#[derive(Clone, PartialEq, Eq)]
pub enum Credential {
    /// A bearer token.
    Token(Box<str>),
    /// The common name of a certificate that TLS has verified.
    CertificateName(Box<str>),
}

type Digest = [u8; 32];

impl Credential {
    fn digest(&self) -> Digest {
        let (kind, text) = self.parts();
        let digest = digest(&SHA256, &[&[kind], text.as_bytes()].concat());
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest.as_ref());
        bytes
    }

    fn parts(&self) -> (u8, &str) {
        match self {
            Self::Token(text) => (b't', text),
            Self::CertificateName(text) => (b'c', text),
        }
    }

    fn header(&self, origin: &Origin) -> serde_json::Value {
        let key = match self {
            Self::Token(_) => "token",
            Self::CertificateName(_) => "certificate_name",
        };
        json!({key: self.parts().1, "from": origin.from, "interface": origin.interface})
    }
}

/// Where a credential was shown.
#[derive(Clone, Debug)]
pub struct Origin {
    /// The client's address, for the daemon's log.
    pub from: Box<str>,
    /// `http` or `grpc`.
    pub interface: &'static str,
    /// The turns of the connection's credentials that the daemon does not know yet.
    pub turns: Arc<Semaphore>,
}

/// A credential that the daemon has verified.
pub struct Identity {
    credential: Credential,
    /// Where it was shown first.
    origin: Origin,
    state: Mutex<State>,
    /// Held while the daemon is asked.
    asking: tokio::sync::Mutex<()>,
}

struct State {
    handle: Handle,
    checked_at: Instant,
    used_at: Instant,
    refreshing: bool,
    /// Why the daemon accepts it no more.
    refused: Option<DaemonError>,
}

impl Identity {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns what requests have.
    pub fn handle(&self) -> Handle {
        self.state().handle
    }

    /// Whether both stand for one credential: it may have been forgotten and shown again.
    pub fn is_same(&self, other: &Identity) -> bool {
        self.credential == other.credential
    }

    /// Whether the daemon has accepted it once, and accepts it no more.
    pub fn is_refused(&self) -> bool {
        self.state().refused.is_some()
    }

    /// Returns a handle that is at most so old, and asks the daemon if there is none.
    async fn checked(&self, daemon: &Daemon, max_age: Duration) -> Result<Handle, DaemonError> {
        let _turn = self.asking.lock().await;
        {
            let state = self.state();
            if let Some(error) = &state.refused {
                return Err(error.clone());
            }
            if state.checked_at.elapsed() < max_age {
                return Ok(state.handle);
            }
        }
        let asked_at = Instant::now();
        let answer = daemon.ask_identity(&self.credential, &self.origin).await;
        let mut state = self.state();
        state.refreshing = false;
        match answer {
            Ok(handle) => {
                (state.handle, state.checked_at) = (handle, asked_at);
                Ok(handle)
            }
            Err(error) => {
                if is_refusal(&error) {
                    state.refused = Some(error.clone());
                }
                Err(error)
            }
        }
    }

    /// Returns another handle after the daemon has refused a request with this one.
    pub async fn renewed(&self, daemon: &Daemon, refused: Handle) -> Result<Handle, DaemonError> {
        {
            let mut state = self.state();
            if state.handle == refused
                && let Some(past) = Instant::now().checked_sub(MAX_AGE)
            {
                state.checked_at = past;
            }
        }
        self.checked(daemon, MAX_AGE).await
    }
}

fn is_refusal(error: &DaemonError) -> bool {
    matches!(error.code, Code::Unauthenticated | Code::PermissionDenied)
}

/// The credentials that clients have shown lately.
pub struct Identities {
    known: Mutex<HashMap<Digest, Arc<Identity>>>,
    refused: Mutex<HashMap<Digest, (Instant, DaemonError)>>,
    places: Semaphore,
    waiting: Semaphore,
}

impl Default for Identities {
    fn default() -> Self {
        Self {
            known: Mutex::default(),
            refused: Mutex::default(),
            places: Semaphore::new(MAX_ASKING),
            waiting: Semaphore::new(MAX_WAITING),
        }
    }
}

impl Identities {
    fn known(&self) -> MutexGuard<'_, HashMap<Digest, Arc<Identity>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn refused(&self) -> MutexGuard<'_, HashMap<Digest, (Instant, DaemonError)>> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the identity of a credential, as the daemon has verified it within the last second.
    ///
    /// The error is UNAUTHENTICATED if the daemon refuses it.
    pub async fn get(
        &self,
        daemon: &Daemon,
        credential: Credential,
        origin: Origin,
    ) -> Result<Arc<Identity>, DaemonError> {
        if credential.parts().1.len() > MAX_CREDENTIAL_BYTES {
            return Err(DaemonError::unauthenticated("the credential is not valid"));
        }
        let digest = credential.digest();
        let known = self.known().get(&digest).cloned();
        if let Some(identity) = known {
            let age = {
                let mut state = identity.state();
                state.used_at = Instant::now();
                state.checked_at.elapsed()
            };
            return match age < MAX_AGE && !identity.is_refused() {
                true => {
                    refresh(&identity, daemon, age);
                    Ok(identity)
                }
                false => match identity.checked(daemon, MAX_AGE).await {
                    Ok(_) => Ok(identity),
                    Err(error) => {
                        if is_refusal(&error) {
                            self.forget(digest, &identity, &error);
                        }
                        Err(error)
                    }
                },
            };
        }
        let recent = |refused: Option<&(Instant, DaemonError)>| {
            refused.filter(|(at, _)| at.elapsed() < MAX_AGE).map(|(_, error)| error.clone())
        };
        if let Some(error) = recent(self.refused().get(&digest)) {
            return Err(error);
        }
        let full = || DaemonError::queue_full("too many credentials wait to be verified");
        let until = tokio::time::Instant::now() + ANSWER_LIMIT;
        let turn = origin.turns.clone().acquire_owned();
        let Ok(Ok(_turn)) = timeout_at(until, turn).await else { return Err(full()) };
        let _waiting = self.waiting.try_acquire().map_err(|_| full())?;
        let Ok(Ok(_place)) = timeout_at(until, self.places.acquire()).await else { return Err(full()) };
        // Those that came with the same one may have waited for it.
        if let Some(identity) = self.known().get(&digest) {
            return Ok(identity.clone());
        }
        if let Some(error) = recent(self.refused().get(&digest)) {
            return Err(error);
        }
        let asked_at = Instant::now();
        match daemon.ask_identity(&credential, &origin).await {
            Ok(handle) => {
                let mut known = self.known();
                // Another request may have asked meanwhile. Only what is in the list is asked about again: a connection
                // must not keep an identity that is not.
                if let Some(identity) = known.get(&digest) {
                    return Ok(identity.clone());
                }
                if known.len() >= MAX_KNOWN {
                    known.retain(|_, identity| Arc::strong_count(identity) > 1);
                    if known.len() >= MAX_KNOWN {
                        return Err(DaemonError::queue_full("connections of too many principals are open"));
                    }
                }
                let state = State { handle, checked_at: asked_at, used_at: asked_at, refreshing: false, refused: None };
                let (state, asking) = (Mutex::new(state), tokio::sync::Mutex::new(()));
                let identity = Arc::new(Identity { credential, origin, state, asking });
                known.insert(digest, identity.clone());
                Ok(identity)
            }
            Err(error) => {
                if is_refusal(&error) {
                    self.remember_refusal(digest, &error);
                }
                Err(error)
            }
        }
    }

    fn forget(&self, digest: Digest, identity: &Arc<Identity>, error: &DaemonError) {
        {
            let mut known = self.known();
            if known.get(&digest).is_some_and(|present| Arc::ptr_eq(present, identity)) {
                known.remove(&digest);
            }
        }
        self.remember_refusal(digest, error);
    }

    fn remember_refusal(&self, digest: Digest, error: &DaemonError) {
        let mut refused = self.refused();
        if refused.len() >= MAX_REFUSED {
            refused.clear();
        }
        refused.insert(digest, (Instant::now(), error.clone()));
    }

    /// Asks about the credentials of open connections again, and forgets the others some time. Never returns.
    ///
    /// Needs the daemon without an identity.
    pub async fn watch(daemon: Daemon) {
        loop {
            tokio::time::sleep(LOOK).await;
            let identities = daemon.identities();
            let used: Vec<Arc<Identity>> = {
                let mut known = identities.known();
                known.retain(|_, identity| {
                    let state = identity.state();
                    state.refused.is_none() && (Arc::strong_count(identity) > 1 || state.used_at.elapsed() < UNUSED)
                });
                known.values().filter(|identity| Arc::strong_count(identity) > 1).cloned().collect()
            };
            for identity in used {
                let age = identity.state().checked_at.elapsed();
                refresh(&identity, &daemon, age);
            }
        }
    }
}

/// Asks the daemon again in the background, if an answer is old enough.
fn refresh(identity: &Arc<Identity>, daemon: &Daemon, age: Duration) {
    if age < REFRESH_AGE || std::mem::replace(&mut identity.state().refreshing, true) {
        return;
    }
    let (identity, daemon) = (identity.clone(), daemon.clone());
    tokio::spawn(async move {
        // All requests that wait for the answer get the error, too.
        let _ = identity.checked(&daemon, REFRESH_AGE).await;
        identity.state().refreshing = false;
    });
}

/// The answer to `MT1:authenticate`.
#[derive(Deserialize)]
struct Answer {
    handle: String,
}

impl Daemon {
    /// Has the daemon verify a credential.
    async fn ask_identity(&self, credential: &Credential, origin: &Origin) -> Result<Handle, DaemonError> {
        let daemon = self.without_identity();
        let asked = daemon.call(AUTHENTICATE, credential.header(origin));
        let reply = timeout(ANSWER_LIMIT, asked).await.unwrap_or_else(|_| {
            let message = "the daemon did not verify the credential in time";
            Err(DaemonError::new(Code::Unavailable, "not_connected", message))
        })?;
        let answer = serde_json::from_value::<Answer>(reply).ok();
        answer
            .and_then(|answer| Handle::new(answer.handle.as_bytes()))
            .ok_or_else(|| DaemonError::internal("the daemon's answer about a credential cannot be read"))
    }
}

#[cfg(test)]
mod tests;
