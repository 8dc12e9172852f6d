//! One event loop: its connection to the daemon, its listeners, and the connections that they accept.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::sync::watch;
use tokio::time::{interval, sleep};

use super::activity::Registry;
use super::connection::{self, Builders};
use super::dispatch::Dispatch;
use super::listener::{Descriptor, Listener, Stream};
use crate::budget::Budget;
use crate::context::Context;
use crate::mt1::Daemon;
use crate::operations::Operations;
use crate::settings::Settings;
use crate::statistics::Statistics;
use crate::{grpc, log};

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
            let services = settings.grpc.then(|| grpc::Services::new(context.clone()));
            let dispatch = Dispatch::new(context.clone(), settings.http, services);
            listeners.push((descriptor.listener()?, Arc::new(dispatch)));
        }
        Ok(Self { process, registry: Arc::default(), context, listeners })
    }

    /// Serves until the process drains and all requests are answered. Calls `ready` once the daemon is connected.
    pub async fn serve(mut self, ready: impl FnOnce()) {
        self.context.daemon.connected().await;
        ready();
        let mut draining = self.process.draining.clone();
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
                    statistics: self.process.statistics.clone(),
                    max_connections: limits.max_connections,
                };
                tokio::spawn(acceptor.run())
            })
            .collect();
        let mut sweeps = interval(SWEEP);
        loop {
            tokio::select! {
                _ = sweeps.tick() => {
                    let connections = self.process.statistics.connections.load(Relaxed) as usize;
                    self.registry.sweep(limits, connections >= limits.max_connections);
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
    statistics: Arc<Statistics>,
    max_connections: usize,
}

impl Acceptor {
    async fn run(self) {
        let mut failing = false;
        loop {
            // Clients beyond the limit wait in the listener's queue.
            while self.statistics.connections.load(Relaxed) as usize >= self.max_connections {
                sleep(CROWDED).await;
            }
            match self.listener.accept().await {
                Ok(stream) => {
                    failing = false;
                    self.begin(stream);
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

    fn begin(&self, stream: Stream) {
        let (builders, dispatch) = (self.builders.clone(), self.dispatch.clone());
        let open = OpenConnection::begin(self.registry.clone(), self.statistics.clone(), self.dispatch.budget());
        tokio::spawn(async move {
            let activity = open.activity.clone();
            match stream {
                Stream::Tcp(stream) => connection::serve(stream, builders, dispatch, activity).await,
                Stream::Unix(stream) => connection::serve(stream, builders, dispatch, activity).await,
            }
            drop(open);
        });
    }
}

/// Counts a connection until it is dropped, also by a panic.
struct OpenConnection {
    activity: Arc<super::activity::Activity>,
    registry: Arc<Registry>,
    statistics: Arc<Statistics>,
}

impl OpenConnection {
    fn begin(registry: Arc<Registry>, statistics: Arc<Statistics>, budget: Arc<Budget>) -> Self {
        statistics.connections.fetch_add(1, Relaxed);
        Self { activity: registry.add(budget), registry, statistics }
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.registry.remove(&self.activity);
        self.statistics.connections.fetch_sub(1, Relaxed);
    }
}
