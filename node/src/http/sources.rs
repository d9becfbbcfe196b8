//! What a feed reads from: one stream of events, or one of each of a pipeline's partitions.
//!
//! Where there are many, a place among their events is a place in each, with `~` between them; those that
//! came when the pipeline was split further begin with their oldest.

use std::{collections::BTreeSet, fmt, str::FromStr, time::Duration};

use carbonmesh_protocol::{
    event::{Event, EventPage, EventQuery, EventToken, EventsFrom},
    io::{Refusal, Request, Response},
    name::Name,
};
use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::time::timeout;

use super::{Problem, events::may_pass};
use crate::handle::NodeHandle;

/// How long those are waited for that have answered nothing yet, when one could not be asked.
const AGAIN: Duration = Duration::from_secs(1);

/// The smallest page of a partition.
const FEWEST: u32 = 8;

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
    /// Questions that partitions have not answered yet: one that is slow is not asked anew.
    asked: FuturesUnordered<BoxFuture<'static, (usize, Answered)>>,
    asking: BTreeSet<usize>,
}

type Answered = Result<Result<EventPage, Refusal>, Problem>;

impl Sources {
    pub(super) fn new(
        handle: NodeHandle,
        pipeline: Option<Name>,
        query: EventQuery,
        place: Place,
    ) -> Self {
        let (asked, asking) = (FuturesUnordered::new(), BTreeSet::new());
        Self { handle, pipeline, query, place, asked, asking }
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
        let (pages, failed) = self.ask_all(wait.filter(|_| begun)).await?;
        let heard = self.heard(pages);
        match failed {
            Some(problem) if heard.is_empty() => Err(problem),
            _ => Ok(heard),
        }
    }

    /// Asks all partitions: until one has something if they are to wait, else until all have answered.
    /// With what came, why some could not be asked.
    async fn ask_all(
        &mut self,
        wait: Option<Duration>,
    ) -> Result<(Vec<(usize, EventPage)>, Option<Problem>), Problem> {
        for at in 0..self.place.0.len() {
            if self.asking.insert(at) {
                let answer = self.ask(Some(at as u16), self.place.0[at], wait);
                self.asked.push(async move { (at, answer.await) }.boxed());
            }
        }
        let (mut pages, mut failed) = (Vec::new(), None);
        loop {
            let limit = if failed.is_some() { AGAIN } else { Duration::MAX };
            let Ok(Some((at, answer))) = timeout(limit, self.asked.next()).await else { break };
            self.asking.remove(&at);
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
        Ok((pages, failed))
    }

    /// What has no events is told with that.
    fn heard(&mut self, pages: Vec<(usize, EventPage)>) -> Vec<Heard> {
        let pages =
            pages.into_iter().map(|(at, EventPage { events, next })| Heard { at, events, next });
        let (heard, silent): (Vec<Heard>, Vec<Heard>) =
            pages.partition(|heard| !heard.events.is_empty());
        silent.iter().for_each(|silent| self.done(silent));
        heard
    }

    fn ask(
        &self,
        partition: Option<u16>,
        from: EventsFrom,
        wait: Option<Duration>,
    ) -> impl Future<Output = Answered> + Send + use<> {
        // Many partitions have small pages: all of them may come at once.
        let count = self.place.0.len() as u32;
        let limit = (self.query.limit / count).max(FEWEST);
        let query = EventQuery { from, wait, limit, ..self.query };
        let (handle, pipeline) = (self.handle.clone(), self.pipeline.clone());
        async move {
            match handle.request(Request::Events { pipeline, partition, query }).await? {
                Response::Events(page) => Ok(Ok(*page)),
                Response::Refused(refusal) => Ok(Err(refusal)),
                other => Err(Problem::unexpected(&other)),
            }
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
