//! The process: event loops, signals, what it reports; listening sockets, connections, which handler gets what.

mod activity;
mod client;
mod connection;
mod descriptor_limit;
mod dispatch;
mod event_loop;
mod listener;
#[cfg(test)]
mod locked_tests;
mod open_paths;
mod own_wakes;
mod refusal;
#[cfg(test)]
mod tests;
mod watched;

use std::io::{self, Read};
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, watch};

use crate::budget::Budget;
use crate::log;
use crate::operations::Operations;
use crate::settings::Settings;
use crate::statistics::Statistics;
use crate::tls::Tls;
use event_loop::{EventLoop, Process};
use listener::Descriptor;

/// How often statistics are looked at, and after how many looks they are reported although nothing has changed.
const REPORT: Duration = Duration::from_secs(1);
const UNCHANGED_REPORTS: u32 = 10;

/// Serves until the daemon ends or asks for the end. Returns the exit code.
pub fn run(mut settings: Settings) -> ExitCode {
    std::panic::set_hook(Box::new(|panic| {
        log::error("a defect in the gateway ended one connection", json!({"cause": panic.to_string()}));
    }));
    descriptor_limit::apply(&mut settings);
    return_large_allocations();
    match serve(settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error("the gateway cannot start", json!({"cause": error.to_string()}));
            ExitCode::FAILURE
        }
    }
}

fn serve(settings: Settings) -> io::Result<()> {
    let settings = Arc::new(settings);
    let mut descriptors = Vec::new();
    for listener in &settings.listeners {
        let descriptor = Descriptor::from_settings(listener)
            .map_err(|error| io::Error::new(error.kind(), format!("cannot listen on {}: {error}", listener.address)))?;
        descriptors.push(descriptor);
    }
    let (drain, draining) = watch::channel(false);
    let statistics = Arc::new(Statistics::default());
    let budget = Budget::new(settings.limits.max_buffered_bytes(), settings.limits.max_window_bytes());
    let process = Arc::new(Process {
        settings: settings.clone(),
        statistics: statistics.clone(),
        budget,
        operations: Arc::new(Operations::new()),
        descriptors,
        tls: Tls::start(&settings, statistics.clone()).map_err(io::Error::other)?,
        newcomers: Arc::new(Semaphore::new(newcomers(&settings))),
        draining,
    });
    let starting = Arc::new(AtomicUsize::new(settings.threads.max(1)));
    let ready = move || {
        if starting.fetch_sub(1, Ordering::AcqRel) == 1 {
            log::record(&json!({"record": "ready"}));
        }
    };
    let (ended, all_ended) = mpsc::channel();
    for number in 1..settings.threads {
        let (process, ready, ended) = (process.clone(), ready.clone(), ended.clone());
        thread::Builder::new().name(format!("loop {number}")).spawn(move || {
            // The thread has ended when the sender is dropped.
            let _ended = ended;
            if let Err(error) = run_loop(process, ready, |_| Ok(())) {
                // Without one of its threads the gateway would serve less than configured, and nobody would know.
                log::error("an event loop cannot start", json!({"cause": error.to_string()}));
                std::process::exit(1);
            }
        })?;
    }
    drop(ended);
    watch_standard_input()?;
    report_statistics(statistics.clone())?;
    run_loop(process, ready, |runtime| {
        let _guard = runtime.enter();
        let mut terminate = signal(SignalKind::terminate())?;
        // The daemon decides when the gateway ends; Ctrl-C and a hang-up reach both.
        let (mut interrupt, mut hangup) = (signal(SignalKind::interrupt())?, signal(SignalKind::hangup())?);
        runtime.spawn(async move {
            loop {
                tokio::select! {
                    _ = terminate.recv() => break,
                    _ = interrupt.recv() => {}
                    _ = hangup.recv() => {}
                }
            }
            drain.send_replace(true);
        });
        Ok(())
    })?;
    // Fails when all threads have ended, since none sends anything.
    let _: Result<(), _> = all_ended.recv();
    // What was counted since the last report. The daemon adds up the totals of all processes.
    report(&statistics);
    Ok(())
}

/// Returns how many connections may have had no request yet: half of all, so that silent ones cannot take the memory of
/// all of them. Each listener of each event loop holds one more place while it waits for its next connection.
fn newcomers(settings: &Settings) -> usize {
    let max_connections = settings.limits.max_connections;
    let waiting = settings.listeners.len() * settings.threads.max(1);
    (max_connections / 2).max(max_connections.min(64)) + waiting
}

/// Runs an event loop in the current thread until it has drained.
fn run_loop(
    process: Arc<Process>,
    ready: impl FnOnce(),
    begin: impl FnOnce(&Runtime) -> io::Result<()>,
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(4).build()?;
    begin(&runtime)?;
    runtime.block_on(async {
        EventLoop::new(process)?.serve(ready).await;
        Ok(())
    })
}

/// Ends the process when standard input does: the daemon is gone.
fn watch_standard_input() -> io::Result<()> {
    thread::Builder::new().name("standard input".to_owned()).spawn(|| {
        let mut buffer = [0; 256];
        let mut input = io::stdin().lock();
        while matches!(input.read(&mut buffer), Ok(1..)) {}
        std::process::exit(0);
    })?;
    Ok(())
}

/// Reports totals to the daemon, in a thread: a daemon that does not read must not stop the event loops.
fn report_statistics(statistics: Arc<Statistics>) -> io::Result<()> {
    thread::Builder::new().name("statistics".to_owned()).spawn(move || {
        let (mut seen, mut unchanged, mut idle, mut next) = (statistics.totals(), 0, 0, Instant::now());
        loop {
            next += REPORT;
            thread::sleep(next.saturating_duration_since(Instant::now()));
            let totals = statistics.totals();
            idle = if totals.is_idle_since(&seen) { idle + 1 } else { 0 };
            if idle % UNCHANGED_REPORTS == UNCHANGED_REPORTS - 1 {
                return_free_memory();
            }
            unchanged = if totals == seen { unchanged + 1 } else { 0 };
            if unchanged % UNCHANGED_REPORTS == 0 {
                report(&statistics);
            }
            seen = totals;
        }
    })?;
    Ok(())
}

/// Reports the totals of now.
fn report(statistics: &Statistics) {
    // Held over both, so that no report of another thread with earlier totals comes after this one.
    let _output = io::stdout().lock();
    log::record(&statistics.totals().to_record());
}

/// Has the allocator return large blocks to the system when they are freed. By default glibc comes to keep blocks of up to
/// 32 MiB, and a burst of large requests would leave its memory with the gateway.
fn return_large_allocations() {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets parameters of the allocator, before other threads exist.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 128 << 10);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 4 << 20);
    }
}

/// Returns the free memory between small blocks to the system. Takes time, so only while there are no requests.
fn return_free_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: may be called at any time in any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}
