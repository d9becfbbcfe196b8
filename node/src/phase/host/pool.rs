//! The processes of one phase host: started when there is more to do than they can take, started
//! again when they die, replaced when they are worn.
//!
//! Who may run how much at once is the core's to decide, by slots: whatever comes here gets a place.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};
use tracing::{debug, warn};

use super::{HostSettings, frame::Hello, process::Process};
use crate::phase::{Fields, PhaseContext, PhaseError};

/// How long after a process died by itself the next is started: twice as long each time.
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = Duration::from_secs(10);

/// See the [module](self). Dropping it ends its processes.
pub(super) struct Pool {
    settings: Arc<HostSettings>,
    hello: Hello,
    members: Mutex<Members>,
    /// There may be room, or need of a process.
    changed: Arc<Notify>,
}

#[derive(Default)]
struct Members {
    all: Vec<Member>,
    starting: usize,
    /// Attempts that have a place or want one.
    wanted: usize,
    /// Processes that died by themselves, one after the other.
    deaths: u32,
    not_before: Option<Instant>,
}

struct Member {
    process: Arc<Process>,
    running: usize,
    served: u64,
    /// It is to be replaced once nothing runs in it.
    worn: bool,
}

impl Member {
    fn of(process: Process) -> Self {
        Self { process: Arc::new(process), running: 0, served: 0, worn: false }
    }

    fn takes_more(&self) -> bool {
        !self.worn && self.process.is_well()
    }
}

/// What comes next for an attempt without a place.
enum Next {
    Run(Arc<Process>),
    Start,
    Wait,
    WaitUntil(Instant),
}

impl Members {
    fn died(&mut self) {
        self.deaths += 1;
        let backoff = FIRST_BACKOFF.saturating_mul(1 << (self.deaths - 1).min(10));
        self.not_before = Some(Instant::now() + backoff.min(MAX_BACKOFF));
    }

    /// Takes leave of those that have ended.
    fn bury(&mut self) {
        let over: Vec<_> = self.all.iter().filter_map(|member| member.process.over()).collect();
        self.all.retain(|member| member.process.over().is_none());
        for over in over {
            if over.by_itself {
                warn!("{}", over.why);
                self.died();
            } else {
                debug!("{}", over.why);
            }
        }
    }

    fn next(&mut self, concurrency: usize) -> Next {
        self.bury();
        let well = self.all.iter_mut().filter(|member| member.takes_more());
        let free = well.filter(|member| member.running < concurrency);
        if let Some(member) = free.min_by_key(|member| member.running) {
            member.running += 1;
            return Next::Run(member.process.clone());
        }
        let well = self.all.iter().filter(|member| member.takes_more());
        let places = (well.count() + self.starting) * concurrency;
        // What runs in worn processes has a place there.
        let elsewhere = self.all.iter().filter(|member| !member.takes_more());
        if places + elsewhere.map(|member| member.running).sum::<usize>() >= self.wanted {
            return Next::Wait;
        }
        match self.not_before.filter(|at| *at > Instant::now()) {
            Some(at) => Next::WaitUntil(at),
            None => {
                self.starting += 1;
                Next::Start
            }
        }
    }
}

impl Pool {
    /// Starts the first process, which says what all of them offer.
    ///
    /// # Errors
    /// It cannot be started, or is no phase host.
    pub(super) async fn start(settings: HostSettings) -> Result<Self, String> {
        let (settings, changed) = (Arc::new(settings), Arc::new(Notify::new()));
        let first = Process::start(settings.clone(), changed.clone()).await?;
        let hello = first.hello.clone();
        let members = Members { all: vec![Member::of(first)], ..Members::default() };
        let members = Mutex::new(members);
        Ok(Self { settings, hello, members, changed })
    }

    /// What its processes offer.
    pub(super) fn hello(&self) -> &Hello {
        &self.hello
    }

    /// Runs one attempt in a process of its own or a shared one.
    ///
    /// # Errors
    /// The attempt has failed, or its process.
    pub(super) async fn run(
        self: &Arc<Self>,
        phase: &str,
        context: &PhaseContext,
    ) -> Result<Fields, PhaseError> {
        let wanted = Wanted::by(self);
        let process = tokio::select! {
            // Until there is a process, the attempt's silence is not the handler's.
            process = context.not_silent(self.place()) => process?,
            () = context.cancelled().cancelled() => {
                return Err(PhaseError::Retry("the attempt was cancelled".to_owned()));
            }
        };
        let place = Place { wanted, process };
        place.process.run(phase, context).await
    }

    async fn place(self: &Arc<Self>) -> Result<Arc<Process>, PhaseError> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let next = self.members().next(self.hello.concurrency);
            match next {
                Next::Run(process) => return Ok(process),
                Next::Wait => changed.await,
                Next::WaitUntil(at) => tokio::select! {
                    () = sleep_until(at) => {}
                    () = changed => {}
                },
                Next::Start => self.start_another().await?,
            }
        }
    }

    /// Starts a process, by itself: an attempt whose time is over before must not take that with it, or
    /// a host that starts slowly would never start again.
    async fn start_another(self: &Arc<Self>) -> Result<(), PhaseError> {
        let starting = Starting(self.clone());
        let started = tokio::spawn(async move {
            let pool = &starting.0;
            let started = Process::start(pool.settings.clone(), pool.changed.clone()).await;
            let started =
                started.and_then(|process| match process.hello.phases == pool.hello.phases {
                    true => Ok(process),
                    false => {
                        Err("it offers other phases than when the node started: restart it".into())
                    }
                });
            let mut members = pool.members();
            match started {
                Ok(process) => members.all.push(Member::of(process)),
                Err(why) => {
                    members.died();
                    return Err(PhaseError::Retry(why));
                }
            }
            Ok(())
        });
        started.await.unwrap_or_else(|_| Err(PhaseError::Retry("the node ends".to_owned())))
    }

    fn members(&self) -> MutexGuard<'_, Members> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A process has room again, unless it is worn.
    fn leave(&self, process: &Arc<Process>) {
        let mut members = self.members();
        let found = members.all.iter().position(|member| Arc::ptr_eq(&member.process, process));
        let Some(index) = found else { return };
        let member = &mut members.all[index];
        member.running -= 1;
        member.served += 1;
        let settings = &self.settings;
        member.worn |= settings.recycle_after.is_some_and(|most| member.served >= most)
            || settings.recycle_memory.is_some_and(|most| process.memory() > Some(most));
        let well = process.is_well();
        if member.worn && member.running == 0 && well {
            let process = members.all.swap_remove(index).process;
            tokio::spawn(async move { process.retire().await });
        }
        if well {
            (members.deaths, members.not_before) = (0, None);
        }
    }
}

/// An attempt that has a place or wants one.
struct Wanted<'a>(&'a Pool);

impl<'a> Wanted<'a> {
    fn by(pool: &'a Pool) -> Self {
        pool.members().wanted += 1;
        Self(pool)
    }
}

impl Drop for Wanted<'_> {
    fn drop(&mut self) {
        self.0.members().wanted -= 1;
        self.0.changed.notify_waiters();
    }
}

/// A process that is being started.
struct Starting(Arc<Pool>);

impl Drop for Starting {
    fn drop(&mut self) {
        self.0.members().starting -= 1;
        self.0.changed.notify_waiters();
    }
}

/// An attempt's place in a process.
struct Place<'a> {
    wanted: Wanted<'a>,
    process: Arc<Process>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.wanted.0.leave(&self.process);
    }
}
