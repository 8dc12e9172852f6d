//! Ties this process to the daemon that started it.
//!
//! The daemon's end also shows on standard input, but that needs a thread of this process which still runs, and a pipe
//! whose other end no third process has.

use std::io;
use std::os::unix::process::parent_id;

/// Has the kernel kill this process when its parent ends. Must be called as early as possible: see `check`.
pub fn end_with_parent() -> io::Result<()> {
    // SAFETY: sets an attribute of this process.
    match unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Fails if the daemon is not the parent of this process: it ended before `end_with_parent`.
pub fn check(daemon_pid: Option<u32>) -> Result<(), String> {
    match daemon_pid {
        Some(expected) if expected != parent_id() => {
            Err(format!("the daemon (process {expected}) has ended, or is not the parent of the gateway"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_daemon_may_be_the_parent() {
        assert_eq!(check(None), Ok(()));
        assert_eq!(check(Some(parent_id())), Ok(()));
        assert!(check(Some(parent_id() + 1)).is_err());
    }
}
