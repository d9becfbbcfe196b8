//! Looks at the cluster.

use serde::Deserialize;

use crate::{Client, Error, Node, Status, Version, send::Call};

#[derive(Deserialize)]
struct Nodes {
    nodes: Vec<Node>,
}

impl Client {
    /// All members, the node that was asked among them.
    ///
    /// # Errors
    /// Nobody can say.
    pub async fn nodes(&self) -> Result<Vec<Node>, Error> {
        let all: Nodes = self.send.document(&Call::get(["nodes"])).await?;
        Ok(all.nodes)
    }

    /// The cluster at a glance.
    ///
    /// # Errors
    /// Nobody can say.
    pub async fn status(&self) -> Result<Status, Error> {
        self.send.document(&Call::get(["status"])).await
    }

    /// Which program the node is.
    ///
    /// # Errors
    /// Nobody answers.
    pub async fn version(&self) -> Result<Version, Error> {
        self.send.document(&Call::get(["version"])).await
    }
}
