//! Each partition of the pipeline is a group of its own, and is held to all invariants by itself: it is
//! told what concerns it and what concerns everybody. Beyond that, a key is one job and a token one
//! attempt whatever partition they are in.

use std::collections::BTreeMap;

use carbonmesh_protocol::{
    id::{JobId, PipelineId, Token},
    message::Message,
};

use super::{Fact, Invariants, Kind, Seen, Violation};
use crate::{Options, world::PIPELINE};

/// What one of them has not brought to its end: which, and what.
pub(crate) type Unfinished = (usize, String);

/// See the [module](self).
pub(crate) struct Partitions {
    all: Vec<(PipelineId, Invariants)>,
    /// In which of them each attempt began.
    attempts: BTreeMap<Token, usize>,
    /// In which of them jobs were to be stored, by gateway and number: answers do not say it.
    stores: BTreeMap<(usize, u64), usize>,
    /// The job of each key.
    keys: BTreeMap<String, JobId>,
}

impl Partitions {
    pub(crate) fn new(options: &Options) -> Self {
        let of = |at| {
            // Schedules are the first one's.
            let options = Options { cron: options.cron && at == 0, ..options.clone() };
            (PipelineId::of_partition(PIPELINE, at), Invariants::new(&options))
        };
        Self {
            all: (0..options.partitions).map(of).collect(),
            attempts: BTreeMap::new(),
            stores: BTreeMap::new(),
            keys: BTreeMap::new(),
        }
    }

    /// Whether all have held so far.
    pub(crate) fn hold(&self) -> bool {
        self.all.iter().all(|(_, invariants)| invariants.hold())
    }

    /// How many jobs were acknowledged.
    pub(crate) fn acknowledged(&self) -> usize {
        self.all.iter().map(|(_, invariants)| invariants.acknowledged()).sum()
    }

    /// What did not hold.
    pub(crate) fn into_violations(self) -> Vec<Violation> {
        let split = self.all.len() > 1;
        let each = self.all.into_iter().enumerate().flat_map(|(at, (_, invariants))| {
            let violations = invariants.into_violations().into_iter();
            violations.map(move |it| match split {
                true => Violation { detail: format!("partition {at}: {}", it.detail), ..it },
                false => it,
            })
        });
        each.collect()
    }

    /// Something happens.
    pub(crate) fn see(&mut self, seen: &Seen<'_>, fact: &Fact<'_>) {
        let of = match self.all.len() {
            1 => Some(0),
            _ => self.of(fact),
        };
        for (_, (pipeline, invariants)) in
            self.all.iter_mut().enumerate().filter(|(at, _)| of.is_none_or(|of| of == *at))
        {
            invariants.see(&seen.of(*pipeline), fact);
        }
    }

    /// A look at the whole world.
    pub(crate) fn inspect(&mut self, seen: &Seen<'_>) {
        for (pipeline, invariants) in &mut self.all {
            invariants.inspect(&seen.of(*pipeline));
        }
    }

    /// What peace has not brought about yet.
    pub(crate) fn unfinished(&self, seen: &Seen<'_>) -> Option<Unfinished> {
        let mut all = self.all.iter().enumerate();
        all.find_map(|(at, (pipeline, invariants))| {
            Some((at, invariants.unfinished(&seen.of(*pipeline))?))
        })
    }

    /// The end of a run; `unfinished` is what peace did not bring about.
    pub(crate) fn finish(&mut self, seen: &Seen<'_>, unfinished: Option<Unfinished>) {
        if !self.hold() {
            return;
        }
        let (first, what) = unfinished.unzip();
        for (at, (pipeline, invariants)) in self.all.iter_mut().enumerate() {
            // Of others it is not known whether they have come to their end.
            if first.is_none_or(|first| first == at) {
                invariants.finish(&seen.of(*pipeline), what.clone());
            }
        }
    }

    /// Which partition is concerned; none says that all are.
    fn of(&mut self, fact: &Fact<'_>) -> Option<usize> {
        match fact {
            Fact::Acknowledged { receipt, job } => {
                let of = self.of_job(receipt.job);
                if let Some(key) = &job.key {
                    self.note_key(key, receipt.job);
                }
                of
            }
            Fact::Changed { job, .. } | Fact::Heard { job, .. } => self.of_job(*job),
            Fact::Told { view, .. } => self.of_job(view.job),
            Fact::Started { attempt, .. } => {
                let of = self.of_job(attempt.job)?;
                self.note_attempt(attempt.token, of);
                Some(of)
            }
            Fact::Ended { token, .. } | Fact::Gave { token, .. } => {
                self.attempts.get(token).copied()
            }
            Fact::Sent { at, to, message } => {
                if let Message::Store { store, pipeline, .. } = message {
                    let of = self.of_pipeline(*pipeline);
                    self.stores.extend(of.map(|of| ((*at, *store), of)));
                }
                self.of_message(*to, message)
            }
            Fact::Delivered { at, message, .. } => self.of_message(*at, message),
            _ => None,
        }
    }

    /// Which partition a message is about, which `to` is sent; none if it may be about several.
    fn of_message(&self, to: usize, message: &Message) -> Option<usize> {
        match message {
            Message::PreVote { pipeline, .. }
            | Message::Vote { pipeline, .. }
            | Message::Stale { pipeline, .. }
            | Message::Admit { pipeline, .. }
            | Message::SyncPush { pipeline, .. }
            | Message::Store { pipeline, .. } => self.of_pipeline(*pipeline),
            Message::Ballot(ballot) => self.of_pipeline(ballot.pipeline),
            Message::SyncPage(page) => self.of_pipeline(page.pipeline),
            Message::Assign(assignment) => self.of_pipeline(assignment.pipeline),
            Message::Completed(end) => self.of_pipeline(end.pipeline),
            Message::Items(items) => self.of_pipeline(items.pipeline),
            Message::Stored { store, .. } => self.stores.get(&(to, *store)).copied(),
            _ => None,
        }
    }

    fn of_pipeline(&self, pipeline: PipelineId) -> Option<usize> {
        self.all.iter().position(|(of, _)| *of == pipeline)
    }

    fn of_job(&self, job: JobId) -> Option<usize> {
        self.all.iter().position(|(of, _)| job.may_belong_to(*of))
    }

    /// A key's job was taken: within a partition others see to it that it is one.
    fn note_key(&mut self, key: &str, job: JobId) {
        let first = *self.keys.entry(key.to_owned()).or_insert(job);
        if self.of_job(first) != self.of_job(job) {
            let detail = format!("key {key} is job {first} and, elsewhere, job {job}");
            self.violate("same-key", detail);
        }
    }

    /// An attempt has begun: within a partition others see to it that it is the only one.
    fn note_attempt(&mut self, token: Token, of: usize) {
        let before = self.attempts.insert(token, of);
        if let Some(before) = before.filter(|before| *before != of) {
            self.violate(
                "fenced",
                format!("{token} is an attempt of partitions {before} and {of}"),
            );
        }
    }

    fn violate(&mut self, invariant: &'static str, detail: String) {
        if let Some((_, first)) = self.all.first_mut() {
            first.violations.push(Violation { kind: Kind::Safety, invariant, detail });
        }
    }
}
