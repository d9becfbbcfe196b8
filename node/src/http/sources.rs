//! What a feed reads from: one stream of events, or one of each of a pipeline's partitions.
//!
//! Where there are many, a place among their events is a place in each, with `~` between them; those that
//! came when the pipeline was split further begin with their oldest.

use std::{fmt, str::FromStr, time::Duration};

use carbonmesh_protocol::{
    event::{Event, EventPage, EventQuery, EventToken, EventsFrom},
    io::{Refusal, Request, Response},
    name::Name,
};
use futures::{StreamExt, stream::FuturesUnordered};
use tokio::time::timeout;

use super::{Problem, events::may_pass};
use crate::handle::NodeHandle;

/// How long those are waited for that have answered nothing yet, when one could not be asked.
const AGAIN: Duration = Duration::from_secs(1);

/// A place in each of some streams.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place(pub(crate) Vec<EventsFrom>);

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let place = |part: &str| match part {
            "oldest" => Ok(EventsFrom::Oldest),
            "latest" => Ok(EventsFrom::Latest),
            token => match token.parse::<EventToken>() {
                Ok(token) => Ok(EventsFrom::After(token)),
                Err(error) => Err(format!("{error}; or `oldest`, or `latest`")),
            },
        };
        text.split('~').map(place).collect::<Result<_, _>>().map(Self)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, from) in self.0.iter().enumerate() {
            if at > 0 {
                f.write_str("~")?;
            }
            match from {
                EventsFrom::Oldest => f.write_str("oldest")?,
                EventsFrom::Latest => f.write_str("latest")?,
                EventsFrom::After(token) => token.fmt(f)?,
            }
        }
        Ok(())
    }
}

/// Some events of one of the streams.
pub(super) struct Heard {
    at: usize,
    pub(super) events: Vec<Event>,
    next: EventToken,
}

/// See the [module](self).
pub(super) struct Sources {
    handle: NodeHandle,
    pipeline: Option<Name>,
    query: EventQuery,
    place: Place,
    /// Which stream had something last: the one behind it is the first to be asked.
    last: usize,
}

impl Sources {
    pub(super) fn new(
        handle: NodeHandle,
        pipeline: Option<Name>,
        query: EventQuery,
        place: Place,
    ) -> Self {
        Self { handle, pipeline, query, place, last: 0 }
    }

    /// How far all were read; none before anything was.
    pub(super) fn place(&self) -> Option<String> {
        let read = self.place.0.iter().any(|from| matches!(from, EventsFrom::After(_)));
        read.then(|| self.place.to_string())
    }

    /// An event is told: the place behind it.
    pub(super) fn told(&mut self, heard: &Heard, event: EventToken) -> String {
        self.place.0[heard.at] = EventsFrom::After(event);
        self.place.to_string()
    }

    /// All of it is told.
    pub(super) fn done(&mut self, heard: &Heard) {
        self.place.0[heard.at] = EventsFrom::After(heard.next);
    }

    /// The next events of some streams; none if there are none in time. If this is dropped before it
    /// ends, nothing is lost.
    pub(super) async fn next(&mut self, wait: Option<Duration>) -> Result<Vec<Heard>, Problem> {
        let count = self.place.0.len();
        match self.ask(None, self.place.0[0], wait.filter(|_| count == 1)).await? {
            Ok(page) if count == 1 => return Ok(self.heard(vec![(0, page)])),
            Err(Refusal::WhichPartition { count: there, .. }) if there >= count => {
                let new = match self.place.0[0] {
                    EventsFrom::Latest => EventsFrom::Latest,
                    EventsFrom::Oldest | EventsFrom::After(_) => EventsFrom::Oldest,
                };
                self.place.0.resize(there, new);
            }
            Ok(_) | Err(Refusal::WhichPartition { .. }) => {
                let detail = format!(
                    "after: it is a place in {count} partitions, and so many are not to be read: give one that \
                     came with an event of this stream"
                );
                return Err(Problem::bad_request("bad-query", detail));
            }
            Err(refusal) => return Err(refusal.into()),
        }
        // One that begins with what comes has to know where that is.
        let begun = self.place.0.iter().all(|from| *from != EventsFrom::Latest);
        let pages = self.ask_all(wait.filter(|_| begun)).await?;
        Ok(self.heard(pages))
    }

    /// Asks all partitions: until one has something if they are to wait, else until all have answered.
    async fn ask_all(&self, wait: Option<Duration>) -> Result<Vec<(usize, EventPage)>, Problem> {
        let count = self.place.0.len();
        let ask = async |at: usize| (at, self.ask(Some(at as u16), self.place.0[at], wait).await);
        let order = (1..=count).map(|next| (self.last + next) % count);
        let mut asked: FuturesUnordered<_> = order.map(ask).collect();
        let (mut pages, mut failed) = (Vec::new(), None);
        loop {
            let limit = if failed.is_some() { AGAIN } else { Duration::MAX };
            let Ok(Some((at, answer))) = timeout(limit, asked.next()).await else { break };
            match answer? {
                Ok(page) => {
                    let enough = wait.is_some() && !page.events.is_empty();
                    pages.push((at, page));
                    if enough {
                        break;
                    }
                }
                Err(refusal) => {
                    let problem = Problem::from(refusal);
                    if !may_pass(&problem) {
                        return Err(problem);
                    }
                    failed = Some(problem);
                }
            }
        }
        let found = pages.iter().any(|(_, page)| !page.events.is_empty());
        match failed {
            Some(problem) if !found => Err(problem),
            _ => Ok(pages),
        }
    }

    /// What has no events is told with that.
    fn heard(&mut self, pages: Vec<(usize, EventPage)>) -> Vec<Heard> {
        let pages =
            pages.into_iter().map(|(at, EventPage { events, next })| Heard { at, events, next });
        let (heard, silent): (Vec<Heard>, Vec<Heard>) =
            pages.partition(|heard| !heard.events.is_empty());
        silent.iter().for_each(|silent| self.done(silent));
        if let Some(last) = heard.last() {
            self.last = last.at;
        }
        heard
    }

    async fn ask(
        &self,
        partition: Option<u16>,
        from: EventsFrom,
        wait: Option<Duration>,
    ) -> Result<Result<EventPage, Refusal>, Problem> {
        let query = EventQuery { from, wait, ..self.query };
        let request = Request::Events { pipeline: self.pipeline.clone(), partition, query };
        match self.handle.request(request).await? {
            Response::Events(page) => Ok(Ok(*page)),
            Response::Refused(refusal) => Ok(Err(refusal)),
            other => Err(Problem::unexpected(&other)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_reads_back_from_its_text() {
        let token = format!("1.{}.2.3", "0a".repeat(16));
        for text in ["oldest".to_owned(), token.clone(), format!("{token}~latest~oldest~{token}")] {
            let place: Place = text.parse().expect("a place");
            assert_eq!((place.0.len(), place.to_string()), (text.split('~').count(), text));
        }
        for wrong in ["", "~", "oldest~", "first"] {
            let error = wrong.parse::<Place>().expect_err("no place");
            assert!(error.contains("`oldest`, or `latest`"), "{error}");
        }
    }
}
