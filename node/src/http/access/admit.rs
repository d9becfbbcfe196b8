//! Lets a request through to its handler, or says why not; writes down what came of it.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use axum::{
    body::Body,
    extract::{FromRequestParts, MatchedPath, RawPathParams, Request},
    http::{
        StatusCode,
        header::{AUTHORIZATION, EXPECT, HeaderMap, LOCATION},
        request::Parts,
    },
    middleware::Next,
    response::{IntoResponse, Response},
};
use carbonmesh_protocol::{
    id::JobId,
    io::{Refusal, Request as Question, Response as Answer},
    name::Name,
};
use futures::StreamExt;
use serde_json::Value;
use tokio::time::timeout;

use super::{
    Access, Door, Peer, Security,
    audit::{Level, NoRoom, Room},
    chain::Event,
    forbidden,
    routes::{self, On},
    scope::{Scopes, Verb},
    tokens::Grant,
};
use crate::{
    clock,
    http::{Api, Problem},
};

/// How many refused callers go into the audit log at once, and each second: the rest is counted, so that
/// a stranger cannot fill it.
const FAILURES_AT_ONCE: f64 = 100.0;
const FAILURES_A_SECOND: f64 = 1.0;

/// When somebody may call again if the audit log is full, in seconds.
const AGAIN_S: u64 = 1;

/// How much of a body is read before its request is refused, and for how long: some chunks of a bulk
/// upload.
const DRAIN_BYTES: usize = 16 << 20;
const DRAIN_TIME: Duration = Duration::from_secs(5);

/// Room in the audit log for those who are refused.
#[derive(Debug)]
pub(super) struct FailureBudget(Mutex<Budget>);

#[derive(Debug)]
struct Budget {
    room: f64,
    at: Instant,
    left_out: u64,
}

impl Default for FailureBudget {
    fn default() -> Self {
        Self(Mutex::new(Budget { room: FAILURES_AT_ONCE, at: Instant::now(), left_out: 0 }))
    }
}

impl FailureBudget {
    /// How many were left out before this one; none if it is left out too.
    fn take(&self, now: Instant) -> Option<u64> {
        let mut budget = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let passed = now.duration_since(budget.at).as_secs_f64() * FAILURES_A_SECOND;
        (budget.room, budget.at) = ((budget.room + passed).min(FAILURES_AT_ONCE), now);
        if budget.room < 1.0 {
            budget.left_out += 1;
            return None;
        }
        budget.room -= 1.0;
        Some(std::mem::take(&mut budget.left_out))
    }
}

/// Who calls.
enum Caller {
    /// Nobody is asked here.
    Local,
    /// A stranger, where everybody may.
    Unknown,
    Token(Grant),
    Certificate(Grant),
}

impl Caller {
    fn name(&self) -> String {
        match self {
            Self::Local => "local".to_owned(),
            Self::Unknown => "unknown".to_owned(),
            Self::Token(grant) => format!("token {}", grant.name),
            Self::Certificate(grant) => format!("certificate {}", grant.name),
        }
    }

    fn scopes(&self) -> Arc<Scopes> {
        match self {
            Self::Local => Access::to_everything().0,
            Self::Unknown => Arc::default(),
            Self::Token(grant) | Self::Certificate(grant) => grant.scopes.clone(),
        }
    }
}

/// Somebody who is not known.
struct Stranger {
    problem: Box<Problem>,
    /// Whether this counts as a failed login.
    has_guessed: bool,
}

impl From<Problem> for Stranger {
    fn from(problem: Problem) -> Self {
        Self { problem: Box::new(problem), has_guessed: false }
    }
}

/// An entry that waits for what comes of the request. If nobody waits for the answer any more, that
/// is what it says: the change may have been made.
#[derive(Default)]
struct Pending(Option<(Room, Event)>);

impl Pending {
    fn finish(mut self, response: &Response) {
        if let Some((room, mut event)) = self.0.take() {
            tell(&mut event, response);
            room.write(event);
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if let Some((room, mut event)) = self.0.take() {
            event.outcome = "unknown".to_owned();
            room.write(event);
        }
    }
}

/// Says in an entry how a request was answered.
fn tell(event: &mut Event, response: &Response) {
    let status = response.status();
    event.status = Some(status.as_u16());
    event.outcome = match status {
        _ if status.is_success() || status.is_redirection() => "done",
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => "denied",
        StatusCode::GATEWAY_TIMEOUT => "unknown",
        _ if status.is_client_error() => "refused",
        _ => "failed",
    }
    .to_owned();
    // What was made is named by where it is.
    let made = response.headers().get(LOCATION).and_then(|place| place.to_str().ok());
    let below = |folder| made.and_then(|place| place.strip_prefix(folder)).map(str::to_owned);
    event.job = event.job.take().or_else(|| below("/v1/jobs/"));
    let pipeline = || below("/v1/pipelines/").map(|name| name.replace("%2F", "/"));
    event.pipeline = event.pipeline.take().or_else(pipeline);
}

impl Security {
    /// Answers a request: by its handler if the caller may ask for it.
    pub(in crate::http) async fn serve(&self, api: &Api, request: Request, next: Next) -> Response {
        let (mut parts, body) = request.into_parts();
        if self.door.is_none() && self.audit.is_none() {
            parts.extensions.insert(Access::to_everything());
            return next.run(Request::from_parts(parts, body)).await;
        }
        let matched = parts.extensions.get::<MatchedPath>().cloned();
        let matched = matched.as_ref().map(MatchedPath::as_str);
        let (verb, on) = routes::needs(&parts.method, matched);
        let mut event = self.event(&parts, matched);
        let caller = match self.identify(&parts, on) {
            Ok(caller) => caller,
            Err(stranger) => {
                let response = stranger.problem.into_response();
                if stranger.has_guessed {
                    self.note_refused(event, &response);
                }
                return behind(&parts, body, response).await;
            }
        };
        let scopes = caller.scopes();
        event.who = caller.name();
        if let Err(problem) = may(api, &scopes, (verb, on), &mut parts, &mut event).await {
            let denied = problem.status == StatusCode::FORBIDDEN.as_u16();
            let response = problem.into_response();
            if denied {
                self.note_refused(event, &response);
            }
            return behind(&parts, body, response).await;
        }
        let pending = match self.pending(&parts, on, event) {
            Ok(pending) => pending,
            Err(problem) => return behind(&parts, body, problem.into_response()).await,
        };
        parts.extensions.insert(Access(scopes.clone()));
        let response = next.run(Request::from_parts(parts, body)).await;
        pending.finish(&response);
        without_others(&scopes, response)
    }

    fn event(&self, parts: &Parts, matched: Option<&str>) -> Event {
        if self.audit.is_none() {
            return Event::default();
        }
        let peer = parts.extensions.get::<Peer>();
        Event {
            at: jiff::Timestamp::now().to_string(),
            who: Caller::Unknown.name(),
            from: peer.map(|peer| peer.address.ip().to_canonical().to_string()),
            method: parts.method.to_string(),
            route: matched.unwrap_or_default().to_owned(),
            ..Event::default()
        }
    }

    /// Who calls.
    fn identify(&self, parts: &Parts, on: On) -> Result<Caller, Stranger> {
        let Some(door) = &self.door else { return Ok(Caller::Local) };
        if on == On::Open {
            return Ok(Caller::Unknown);
        }
        let peer = parts.extensions.get::<Peer>();
        let address = peer.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |peer| peer.address.ip());
        match token(&parts.headers)? {
            Some(shown) => self.by_token(door, shown, address).map(Caller::Token),
            None => Ok(Caller::Certificate(by_certificate(door, peer)?)),
        }
    }

    fn by_token(&self, door: &Door, shown: &[u8], address: IpAddr) -> Result<Grant, Stranger> {
        let (grants, now) = (door.grants(), Instant::now());
        let found = grants.by_token(shown);
        let known = found.map(|grant| &*grant.name);
        if let Some(left) = self.throttle.blocked(address, known, now) {
            return Err(too_many_logins(left.as_secs() + 1).into());
        }
        match found {
            Some(grant) if !grant.is_over(clock::unix_ms()) => {
                self.throttle.succeeded(address, &grant.name);
                Ok(grant.clone())
            }
            found => {
                self.throttle.failed(address, now);
                let detail = match found {
                    Some(_) => "the token has expired: ask for a new one",
                    None => "this node does not know the token: it is wrong, or was taken back",
                };
                Err(Stranger { has_guessed: true, ..unauthorized(detail).into() })
            }
        }
    }

    /// Writes down that somebody was not let through, if there is room for that.
    fn note_refused(&self, mut event: Event, response: &Response) {
        let Some((_, audit)) = &self.audit else { return };
        let Some(left_out) = self.failures.take(Instant::now()) else { return };
        if let Ok(room) = audit.room() {
            tell(&mut event, response);
            event.left_out = left_out;
            room.write(event);
        }
    }

    /// Room for what is to be written down of this request.
    fn pending(&self, parts: &Parts, on: On, event: Event) -> Result<Pending, Problem> {
        let Some((level, audit)) = &self.audit else { return Ok(Pending::default()) };
        let is_change = routes::is_change(&parts.method);
        if on == On::Open || (*level != Level::All && !is_change) {
            return Ok(Pending::default());
        }
        match audit.room() {
            Ok(room) => Ok(Pending(Some((room, event)))),
            // What is only read does no harm.
            Err(_) if !is_change => Ok(Pending::default()),
            Err(why) => Err(no_audit(why)),
        }
    }
}

/// Answers behind the body: its sender, who may not listen before all is sent, gets to read the
/// refusal.
async fn behind(parts: &Parts, body: Body, response: Response) -> Response {
    // Who waits to be told to send it has not begun.
    if parts.headers.contains_key(EXPECT) {
        return response;
    }
    let mut chunks = body.into_data_stream();
    let all = async {
        let mut read = 0;
        while let Some(Ok(chunk)) = chunks.next().await {
            read += chunk.len();
            if read > DRAIN_BYTES {
                break;
            }
        }
    };
    let _ = timeout(DRAIN_TIME, all).await;
    response
}

/// Whether a caller may do this.
async fn may(
    api: &Api,
    scopes: &Scopes,
    (verb, on): (Verb, On),
    parts: &mut Parts,
    event: &mut Event,
) -> Result<(), Problem> {
    let some = |allowed: bool| if allowed { Ok(()) } else { Err(forbidden(verb, None)) };
    match on {
        On::Open | On::Known => Ok(()),
        On::Some => some(scopes.allow_some(verb)),
        On::All => some(scopes.allow_all(verb)),
        On::Pipeline => {
            let pipeline = param(parts, "name").await?;
            // The name by which the handler will know it: `default/x` is `x`.
            let known = pipeline.parse::<Name>();
            let pipeline = known.map_or(pipeline, |name| name.to_string());
            let allowed = scopes.allow(verb, &pipeline);
            let named = event.pipeline.insert(pipeline);
            if allowed { Ok(()) } else { Err(forbidden(verb, Some(named))) }
        }
        On::Namespace => {
            let namespace = param(parts, "namespace").await?;
            let allowed = scopes.allow_all_in(verb, &namespace);
            let named = event.pipeline.insert(format!("{namespace}/*"));
            if allowed { Ok(()) } else { Err(forbidden(verb, Some(named))) }
        }
        On::Job => {
            let job = param(parts, "id").await?;
            event.job = Some(job.clone());
            if scopes.allow_all(verb) {
                return Ok(());
            }
            some(scopes.allow_some(verb))?;
            let job: JobId = job
                .parse()
                .map_err(|error| Problem::bad_request("bad-path", format!("{error}")))?;
            let view = match api.ask(Question::Job { job, wait: None }).await? {
                Answer::Job(view) => view,
                other => return Err(Problem::unexpected(&other)),
            };
            let pipeline = view.pipeline.as_str();
            if scopes.allow(verb, pipeline) {
                event.pipeline = Some(pipeline.to_owned());
                return Ok(());
            }
            // That a job is there is for those to know who may read it.
            match scopes.allow(Verb::Read, pipeline) {
                true => Err(forbidden(verb, Some(pipeline))),
                false => Err(Refusal::UnknownJob(job).into()),
            }
        }
    }
}

/// A variable part of the path, as the handler gets it.
async fn param(parts: &mut Parts, name: &str) -> Result<String, Problem> {
    let params = RawPathParams::from_request_parts(parts, &()).await;
    let params = params.map_err(|wrong| Problem::bad_request("bad-path", wrong.body_text()))?;
    let found = params.iter().find(|(key, _)| *key == name);
    Ok(found.map(|(_, value)| value.to_owned()).unwrap_or_default())
}

/// The token of a request: there is one at most.
fn token(headers: &HeaderMap) -> Result<Option<&[u8]>, Problem> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        let detail = "Authorization: it is there twice: send one token";
        return Err(Problem::bad_request("bad-header", detail));
    }
    let (scheme, token) = value.as_bytes().split_at_checked(7).unwrap_or_default();
    if !scheme.eq_ignore_ascii_case(b"bearer ") || token.is_empty() {
        return Err(unauthorized("Authorization: send `Bearer` and the token"));
    }
    Ok(Some(token))
}

fn by_certificate(door: &Door, peer: Option<&Peer>) -> Result<Grant, Problem> {
    let Some(certificate) = peer.and_then(|peer| peer.certificate.as_ref()) else {
        return Err(unauthorized(
            "say who you are: send a token in the Authorization header (`carbonmesh --token-file`, \
             or CARBONMESH_TOKEN)",
        ));
    };
    match door.grants().by_certificate(certificate) {
        Some(grant) if !grant.is_over(clock::unix_ms()) => Ok(grant.clone()),
        Some(_) => Err(unauthorized("the entry of the client's certificate has expired")),
        None => Err(unauthorized("no entry of the tokens file is for the client's certificate")),
    }
}

/// Takes pipelines that a caller may not see out of what a refusal says that there are.
fn without_others(scopes: &Scopes, response: Response) -> Response {
    let Some(problem) = response.extensions().get::<Problem>() else { return response };
    let Some(Value::Array(known)) = problem.values.get("known") else { return response };
    if scopes.allow_all(Verb::Read) {
        return response;
    }
    let seen = |name: &&Value| name.as_str().is_some_and(|name| scopes.allow(Verb::Read, name));
    let known: Vec<Value> = known.iter().filter(seen).cloned().collect();
    let detail = "no pipeline or phase has this name, or you may not know of it";
    let problem = Problem { detail: detail.to_owned(), ..problem.clone() };
    problem.with("known", known).into_response()
}

fn unauthorized(detail: &str) -> Problem {
    Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", "unauthorized", detail)
}

fn too_many_logins(seconds: u64) -> Problem {
    let detail = "too many logins from this address have failed: wait, and use the right token";
    let status = StatusCode::TOO_MANY_REQUESTS;
    let problem = Problem::new(status, "too-many-logins", "too many failed logins", detail);
    Problem { retry_after_s: Some(seconds), ..problem }
}

fn no_audit(why: NoRoom) -> Problem {
    let detail = match why {
        NoRoom::Busy => "too many changes wait to be written into the audit log",
        NoRoom::Failing => {
            "the audit log cannot be written, so that nothing may be changed through this node: see \
             its log"
        }
    };
    let status = StatusCode::SERVICE_UNAVAILABLE;
    let problem = Problem::new(status, "audit-unavailable", "audit log not writable", detail);
    Problem { retry_after_s: Some(AGAIN_S), ..problem }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refused_callers_cannot_fill_the_log() {
        let (budget, now) = (FailureBudget::default(), Instant::now());
        let taken = (0..1000).filter(|_| budget.take(now).is_some()).count();
        assert_eq!(taken, FAILURES_AT_ONCE as usize);
        assert_eq!(budget.take(now + Duration::from_secs(1)), Some(900));
        assert_eq!(budget.take(now + Duration::from_secs(1)), None);
    }
}
