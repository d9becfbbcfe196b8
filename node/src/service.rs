//! What a node tells the manager that started it as a service, if there is one: that it serves, that it
//! stops, and that it is still alive (`sd_notify`).
//!
//! Without a manager, all of it does nothing.

use std::{env, time::Duration};

use carbonmesh_protocol::io::Request;
use sd_notify::NotifyState;
use tokio::time::timeout;
use tracing::warn;

use crate::handle::NodeHandle;

/// The node serves.
pub(crate) fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// The node is about to stop.
pub(crate) fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("stopping: what runs may end")]);
}

/// Tells again and again that the node answers, where the manager wants to know; it starts the node
/// anew if it does not hear of it in time. Ends with the node.
pub(crate) async fn keep_alive(handle: NodeHandle) {
    let within = sd_notify::watchdog_enabled().filter(|within| !within.is_zero());
    let Some(within) = within else { return };
    // Twice in that time at least, whatever the answer takes.
    let (wait, patience) = (within / 4, within / 4);
    let wait = wait.max(Duration::from_millis(10));
    loop {
        match timeout(patience, handle.request(Request::Cluster)).await {
            Ok(Ok(_)) => tell(&[NotifyState::Watchdog]),
            // It has stopped.
            Ok(Err(_)) => return,
            Err(_) => warn!("the node's core does not answer"),
        }
        tokio::time::sleep(wait).await;
    }
}

fn tell(states: &[NotifyState]) {
    if env::var_os("NOTIFY_SOCKET").is_none() {
        return;
    }
    if let Err(error) = sd_notify::notify(states) {
        warn!(%error, "cannot tell the service manager (NOTIFY_SOCKET)");
    }
}
