//! `multitower-gateway`: HTTP and gRPC in front of the multitower daemon, which starts and supervises this program.

#![deny(clippy::unwrap_used, clippy::expect_used)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod budget;
mod compression;
mod context;
#[cfg(test)]
mod documented_paths;
mod grpc;
mod http;
mod json;
mod log;
mod mt1;
mod open_inference;
mod operations;
mod parent;
mod peeked;
mod proto;
mod server;
mod settings;
mod statistics;
mod tensor;
mod tensorflow_serving;
mod threads;
mod tls;
mod trace;

use std::process::ExitCode;

use serde_json::json;

use settings::Settings;

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// As for the daemon: wrong arguments, and settings that cannot be used.
const EXIT_USAGE: u8 = 2;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        None => {}
        Some("--version" | "-V") => {
            println!("multitower-gateway {VERSION}");
            return ExitCode::SUCCESS;
        }
        Some("--help" | "-h") => {
            println!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Some(other) => {
            eprintln!("multitower-gateway has no argument {other:?}. Try --help.");
            return ExitCode::from(EXIT_USAGE);
        }
    }
    if let Err(error) = parent::end_with_parent() {
        log::warning("the gateway would outlive a daemon that is killed", json!({"cause": error.to_string()}));
    }
    match read_settings() {
        Ok(settings) => server::run(settings),
        Err(cause) => {
            log::error("the gateway cannot start", json!({"cause": cause}));
            ExitCode::from(EXIT_USAGE)
        }
    }
}

const HELP: &str = "\
multitower-gateway: HTTP and gRPC in front of the multitower daemon

The daemon starts this program when its configuration has `gateway:`. It reads its settings, one line of JSON, from
standard input, and exits when standard input ends.

  --version   print the version
  --help      print this text";

/// Reads the first line of standard input. What follows it is left there.
fn read_settings() -> Result<Settings, String> {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).map_err(|error| format!("standard input cannot be read: {error}"))?;
    if line.trim().is_empty() {
        return Err("standard input ended before the settings; the daemon starts this program".to_owned());
    }
    let settings: Settings = serde_json::from_str(&line).map_err(|error| format!("settings are wrong: {error}"))?;
    if settings.version != VERSION {
        let daemon = &settings.version;
        return Err(format!("the gateway has version {VERSION}, but the daemon {daemon}; install both together"));
    }
    parent::check(settings.daemon_pid)?;
    if settings.listeners.is_empty() {
        return Err("settings have no listeners".to_owned());
    }
    Ok(settings)
}
