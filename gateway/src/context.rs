//! What every handler of a request may use.

use std::sync::Arc;

use tokio::sync::watch;

use crate::budget::Budget;
use crate::mt1::Daemon;
use crate::open_inference::Endpoints;
use crate::operations::Operations;
use crate::settings::Settings;
use crate::statistics::Statistics;

/// What every handler of a request may use. One for each event loop; cloning it is cheap.
#[derive(Clone)]
pub struct Context {
    pub daemon: Daemon,
    pub settings: Arc<Settings>,
    pub statistics: Arc<Statistics>,
    /// The memory of requests, over all event loops.
    pub budget: Arc<Budget>,
    pub endpoints: Arc<Endpoints>,
    /// What operators ask for, over all event loops.
    pub operations: Arc<Operations>,
    /// True from SIGTERM on.
    pub draining: watch::Receiver<bool>,
}

impl Context {
    /// Whether this process ends as soon as it has answered what it has.
    pub fn is_draining(&self) -> bool {
        *self.draining.borrow()
    }

    /// Waits until this process begins to drain. What has no end of its own must end then.
    pub async fn until_draining(&self) {
        // The sender exists as long as the process.
        let _ = self.draining.clone().wait_for(|&draining| draining).await;
    }
}
