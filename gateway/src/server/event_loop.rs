//! One event loop: its connection to the daemon, its listeners, and the connections that they accept.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{interval, sleep};

use super::activity::{Activity, Crowd, LastRequest, Registry};
use super::client::Client;
use super::connection::{self, Builders};
use super::dispatch::Dispatch;
use super::listener::{Descriptor, Listener, Stream};
use crate::budget::Budget;
use crate::context::Context;
use crate::log;
use crate::mt1::Daemon;
use crate::operations::Operations;
use crate::settings::Settings;
use crate::statistics::Statistics;
use crate::tls::Tls;

/// How often connections are looked through.
const SWEEP: Duration = Duration::from_millis(250);

/// How often a listener that must not accept looks whether it may.
const CROWDED: Duration = Duration::from_millis(50);

/// After an error of `accept`, such as too few descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What all event loops of the process share.
pub struct Process {
    pub settings: Arc<Settings>,
    pub statistics: Arc<Statistics>,
    pub budget: Arc<Budget>,
    pub operations: Arc<Operations>,
    pub descriptors: Vec<Descriptor>,
    /// What tcp listeners speak; None without TLS.
    pub tls: Option<Arc<Tls>>,
    /// Places for connections that have had no request yet.
    pub newcomers: Arc<Semaphore>,
    /// True from SIGTERM on.
    pub draining: watch::Receiver<bool>,
}

/// One event loop.
pub struct EventLoop {
    process: Arc<Process>,
    registry: Arc<Registry>,
    context: Context,
    listeners: Vec<(Listener, Arc<Dispatch>)>,
}

impl EventLoop {
    /// Prepares everything, and begins to connect to the daemon. Needs the tokio runtime that `serve` will use.
    pub fn new(process: Arc<Process>) -> io::Result<Self> {
        let (settings, statistics) = (process.settings.clone(), process.statistics.clone());
        let (budget, draining) = (process.budget.clone(), process.draining.clone());
        let (daemon, endpoints) = (Daemon::start(&settings), Arc::default());
        let operations = process.operations.clone();
        let context = Context { daemon, settings, statistics, budget, endpoints, operations, draining };
        let mut listeners = Vec::new();
        for (settings, descriptor) in process.settings.listeners.iter().zip(&process.descriptors) {
            let dispatch = Dispatch::new(context.clone(), settings.http, settings.grpc);
            listeners.push((descriptor.listener()?, Arc::new(dispatch)));
        }
        Ok(Self { process, registry: Arc::default(), context, listeners })
    }

    /// Serves until the process drains and all requests are answered. Calls `ready` once the daemon is connected.
    pub async fn serve(mut self, ready: impl FnOnce()) {
        let mut draining = self.process.draining.clone();
        tokio::select! {
            () = self.context.daemon.connected() => ready(),
            // The daemon may have no descriptor left for this connection: its end must not wait for it.
            _ = draining.wait_for(|&draining| draining) => return,
        }
        let limits = &self.process.settings.limits;
        let builders = Arc::new(Builders::new(limits));
        let accepting: Vec<_> = std::mem::take(&mut self.listeners)
            .into_iter()
            .map(|(listener, dispatch)| {
                let acceptor = Acceptor {
                    listener,
                    dispatch,
                    builders: builders.clone(),
                    registry: self.registry.clone(),
                    process: self.process.clone(),
                };
                tokio::spawn(acceptor.run())
            })
            .collect();
        let mut sweeps = interval(SWEEP);
        loop {
            tokio::select! {
                _ = sweeps.tick() => {
                    let connections = self.process.statistics.connections.load(Relaxed) as usize;
                    let newcomers = self.process.newcomers.available_permits() == 0;
                    let full = connections >= limits.max_connections;
                    self.registry.sweep(limits, Crowd { connections: full, newcomers: newcomers || full });
                }
                // The sender exists as long as the process.
                _ = draining.wait_for(|&draining| draining) => break,
            }
        }
        accepting.iter().for_each(tokio::task::JoinHandle::abort);
        self.registry.finish();
        let until = Instant::now() + limits.drain_timeout();
        while self.registry.len() > 0 && Instant::now() < until {
            sleep(Duration::from_millis(10)).await;
        }
        let left = self.registry.len();
        if left > 0 {
            log::warning("connections were closed before their requests were answered", json!({"connections": left}));
        }
    }
}

/// Accepts the connections of one listener.
struct Acceptor {
    listener: Listener,
    dispatch: Arc<Dispatch>,
    builders: Arc<Builders>,
    registry: Arc<Registry>,
    process: Arc<Process>,
}

impl Acceptor {
    async fn run(self) {
        let mut failing = false;
        loop {
            // Clients beyond the limit wait in the listener's queue.
            let Process { statistics, settings, newcomers, .. } = &*self.process;
            while statistics.connections.load(Relaxed) as usize >= settings.limits.max_connections {
                sleep(CROWDED).await;
            }
            // Never closed.
            let Ok(newcomer) = newcomers.clone().acquire_owned().await else { return };
            match self.listener.accept().await {
                Ok(stream) => {
                    failing = false;
                    self.begin(stream, newcomer);
                }
                Err(error) => {
                    if !failing {
                        log::warning("cannot accept connections", json!({"cause": error.to_string()}));
                    }
                    failing = true;
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn begin(&self, stream: Stream, newcomer: OwnedSemaphorePermit) {
        let (builders, dispatch) = (self.builders.clone(), self.dispatch.clone());
        let tls = self.process.tls.clone();
        let locked = self.process.settings.security;
        let last_request_time = self.process.settings.limits.last_request_time();
        let client = (tls.is_some() || locked).then(|| {
            let from = match &stream {
                Stream::Tcp(_, from) => from.to_string(),
                Stream::Unix(_) => "unix".to_owned(),
            };
            Client::new(from, locked)
        });
        let statistics = self.process.statistics.clone();
        let activity = self.registry.add(self.dispatch.budget(), Some(newcomer), client);
        let open = OpenConnection::begin(activity, self.registry.clone(), statistics);
        tokio::spawn(async move {
            let activity = open.activity.clone();
            match (stream, tls) {
                (Stream::Tcp(stream, _), None) => connection::serve(stream, builders, dispatch, activity).await,
                (Stream::Tcp(stream, from), Some(tls)) => {
                    // On the heap: connections without TLS need less memory.
                    Box::pin(async move {
                        let mut last_request = LastRequest::new(last_request_time);
                        let until = activity.until_ending(&mut last_request);
                        let accepted = tls.accept(stream, &from.to_string(), until).await;
                        let Some((stream, certificate)) = accepted else { return };
                        if let (Some(client), Some(certificate)) = (activity.client(), certificate) {
                            client.set_certificate(certificate);
                        }
                        connection::serve(stream, builders, dispatch, activity).await;
                    })
                    .await;
                }
                // The mode of a Unix socket's file says who can connect: nobody listens in between.
                (Stream::Unix(stream), _) => connection::serve(stream, builders, dispatch, activity).await,
            }
            drop(open);
        });
    }
}

/// Counts a connection until it is dropped, also by a panic.
struct OpenConnection {
    activity: Arc<Activity>,
    registry: Arc<Registry>,
    statistics: Arc<Statistics>,
}

impl OpenConnection {
    fn begin(activity: Arc<Activity>, registry: Arc<Registry>, statistics: Arc<Statistics>) -> Self {
        statistics.connections.fetch_add(1, Relaxed);
        Self { activity, registry, statistics }
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.registry.remove(&self.activity);
        self.statistics.connections.fetch_sub(1, Relaxed);
    }
}
