//! Work that would stop an event loop for too long, in other threads.

use crate::mt1::DaemonError;

/// Runs work in another thread. The error is INTERNAL if the work panics.
pub async fn in_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, DaemonError> + Send + 'static,
) -> Result<T, DaemonError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|_| Err(DaemonError::internal("a defect in the gateway; its log has the cause")))
}
