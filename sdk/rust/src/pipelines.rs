//! Looks after pipelines: makes them known, shows them, stops and removes them.

use bytes::Bytes;
use reqwest::Method;
use serde::{Deserialize, Serialize};

use crate::{
    Applied, Client, Error, Pipeline,
    send::{Again, Call},
};

#[derive(Deserialize)]
struct Pipelines {
    pipelines: Vec<Pipeline>,
}

impl Client {
    /// Makes a pipeline known to the cluster, or changes it: a [`PipelineSpec`](crate::PipelineSpec), or
    /// anything that is a pipeline document as JSON.
    ///
    /// # Errors
    /// It is no pipeline, or the cluster cannot take it now.
    pub async fn apply<T: Serialize + ?Sized>(&self, definition: &T) -> Result<Applied, Error> {
        let json = serde_json::to_vec(definition);
        let json = json.map_err(|error| Error::setting("pipeline", error))?;
        let call = Call::new(Method::POST, ["pipelines"], Again::Always).json(Bytes::from(json));
        self.send.document(&call).await
    }

    /// A pipeline, with its jobs by state.
    ///
    /// # Errors
    /// There is none of that name, or nobody can say.
    pub async fn pipeline(&self, name: &str) -> Result<Pipeline, Error> {
        self.send.document(&Call::get(["pipelines", name])).await
    }

    /// All pipelines, in order of their names.
    ///
    /// # Errors
    /// Nobody can say.
    pub async fn pipelines(&self) -> Result<Vec<Pipeline>, Error> {
        let all: Pipelines = self.send.document(&Call::get(["pipelines"])).await?;
        Ok(all.pipelines)
    }

    /// Removes a pipeline that has no unfinished jobs.
    ///
    /// # Errors
    /// It has some, there is none of that name, or nobody can do it.
    pub async fn remove_pipeline(&self, name: &str) -> Result<(), Error> {
        self.send.done(&Call::new(Method::DELETE, ["pipelines", name], Again::IfRefused)).await
    }

    /// Gives out no more work of a pipeline, or of one of its phases.
    ///
    /// # Errors
    /// There is none of that name, or nobody can do it.
    pub async fn pause(&self, pipeline: &str, phase: Option<&str>) -> Result<Applied, Error> {
        self.set_paused(pipeline, phase, "pause").await
    }

    /// Gives out work of a pipeline, or of one of its phases, again.
    ///
    /// # Errors
    /// There is none of that name, or nobody can do it.
    pub async fn resume(&self, pipeline: &str, phase: Option<&str>) -> Result<Applied, Error> {
        self.set_paused(pipeline, phase, "resume").await
    }

    async fn set_paused(
        &self,
        pipeline: &str,
        phase: Option<&str>,
        verb: &str,
    ) -> Result<Applied, Error> {
        let mut call = Call::new(Method::POST, ["pipelines", pipeline, verb], Again::Always);
        if let Some(phase) = phase {
            call = call.query("phase", phase);
        }
        self.send.document(&call).await
    }
}
