//! `carbonmesh top`: the cluster on one screen of the terminal.
//!
//! What is shown is asked for every second; failures come by the pipelines' events. Keys and answers
//! change a state, and the state alone says what is drawn.

mod screen;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io::{IsTerminal, stdin, stdout},
    sync::Arc,
    thread,
    time::Duration,
};

use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval},
};

use super::{
    client::Client,
    events::{Stream, path},
    failure::Failure,
};
use crate::http::view::{EventDoc, NodesDoc, StatusDoc};

/// How often the node is asked.
const EVERY: Duration = Duration::from_secs(1);

/// How many failures are kept.
const FAILURES: usize = 200;

/// Of how many pipelines failures are followed: each takes a stream.
const FOLLOWED: usize = 32;

/// What is shown.
#[derive(Default)]
struct State {
    status: Option<StatusDoc>,
    nodes: Option<NodesDoc>,
    /// How many jobs of each pipeline end in a second.
    rates: BTreeMap<String, f64>,
    /// How many had ended when that was looked at last.
    ended: BTreeMap<String, u64>,
    looked: Option<Instant>,
    failures: VecDeque<EventDoc>,
    /// By how many lines the failures are scrolled.
    scrolled: usize,
    paused: bool,
    trouble: Option<String>,
}

/// What a key means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Key {
    Quit,
    Pause,
    Up,
    Down,
    Top,
}

impl Key {
    fn of(key: &KeyEvent) -> Option<Self> {
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        match key.code {
            _ if key.kind == KeyEventKind::Release => None,
            KeyCode::Char('c') if control => Some(Self::Quit),
            KeyCode::Char('q') | KeyCode::Esc => Some(Self::Quit),
            KeyCode::Char(' ') | KeyCode::Char('p') => Some(Self::Pause),
            KeyCode::Up | KeyCode::Char('k') => Some(Self::Up),
            KeyCode::Down | KeyCode::Char('j') => Some(Self::Down),
            KeyCode::Home | KeyCode::Char('g') => Some(Self::Top),
            _ => None,
        }
    }
}

impl State {
    /// Says whether to go on.
    fn press(&mut self, key: Key) -> bool {
        match key {
            Key::Quit => return false,
            Key::Pause => self.paused = !self.paused,
            Key::Up => self.scrolled = self.scrolled.saturating_sub(1),
            Key::Down => {
                let last = self.failures.len().saturating_sub(1);
                self.scrolled = (self.scrolled + 1).min(last);
            }
            Key::Top => self.scrolled = 0,
        }
        true
    }

    fn look(&mut self, status: StatusDoc, nodes: NodesDoc, now: Instant) {
        let passed = self.looked.map(|looked| (now - looked).as_secs_f64());
        for pipeline in &status.pipelines {
            let Some(counts) = pipeline.counts else { continue };
            let ended = counts.succeeded + counts.dead + counts.cancelled;
            let before = self.ended.insert(pipeline.name.clone(), ended);
            if let (Some(before), Some(passed)) = (before, passed.filter(|passed| *passed > 0.1)) {
                // Those that are forgotten meanwhile make it less.
                let rate = ended.saturating_sub(before) as f64 / passed;
                self.rates.insert(pipeline.name.clone(), rate);
            }
        }
        (self.status, self.nodes, self.looked) = (Some(status), Some(nodes), Some(now));
        self.trouble = None;
    }

    fn fail(&mut self, event: EventDoc) {
        self.failures.push_front(event);
        self.failures.truncate(FAILURES);
        if self.scrolled > 0 {
            // What is looked at stays where it is.
            self.scrolled = (self.scrolled + 1).min(self.failures.len() - 1);
        }
    }
}

/// Shows the screen until a key ends it.
pub(super) async fn run(client: Client) -> Result<(), Failure> {
    if !stdout().is_terminal() || !stdin().is_terminal() {
        return Err(Failure::Usage(
            "top draws on a terminal, and there is none: use `carbonmesh status` or `carbonmesh \
             events --follow`"
                .to_owned(),
        ));
    }
    // Who cannot be asked at all is told without a screen.
    let (status, nodes) = ask(&client).await?;
    let mut state = State::default();
    state.look(status, nodes, Instant::now());
    let mut terminal = ratatui::try_init().map_err(Failure::Output)?;
    let shown = show(&mut terminal, state, Arc::new(client)).await;
    let _ = ratatui::try_restore();
    shown
}

async fn ask(client: &Client) -> Result<(StatusDoc, NodesDoc), Failure> {
    let status = client.get::<StatusDoc>(&["status"], &[]).await?.document;
    let nodes = client.get::<NodesDoc>(&["nodes"], &[]).await?.document;
    Ok((status, nodes))
}

async fn show(
    terminal: &mut ratatui::DefaultTerminal,
    mut state: State,
    client: Arc<Client>,
) -> Result<(), Failure> {
    let mut keys = keys().map_err(Failure::Runtime)?;
    let (told, mut failures) = mpsc::channel(FAILURES);
    let (mut followers, mut followed) = (JoinSet::new(), BTreeSet::new());
    let mut tick = interval(EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let pipelines = state.status.iter().flat_map(|status| &status.pipelines);
        for pipeline in pipelines.map(|pipeline| pipeline.name.clone()) {
            if followed.len() < FOLLOWED && followed.insert(pipeline.clone()) {
                followers.spawn(follow(client.clone(), pipeline, told.clone()));
            }
        }
        terminal.draw(|frame| screen::draw(frame, &state)).map_err(Failure::Output)?;
        tokio::select! {
            key = keys.recv() => match key {
                Some(Some(key)) if !state.press(key) => return Ok(()),
                // Another size is drawn anew.
                Some(_) => {}
                None => return Ok(()),
            },
            Some(failure) = failures.recv() => if !state.paused {
                state.fail(failure);
            },
            Some(_) = followers.join_next(), if !followers.is_empty() => {}
            _ = tick.tick() => if !state.paused {
                match ask(&client).await {
                    Ok((status, nodes)) => state.look(status, nodes, Instant::now()),
                    Err(failure) => state.trouble = Some(failure.to_string()),
                }
            },
        }
    }
}

/// Tells failures of a pipeline until it is gone.
async fn follow(client: Arc<Client>, pipeline: String, told: mpsc::Sender<EventDoc>) {
    let query = vec![("kinds", "attempt_failed,dead".to_owned())];
    let mut stream = Stream::new(&client, path(Some(&pipeline)), query, None, true).quiet();
    while let Ok(Some((_, event))) = stream.next().await {
        if event.kind != "gap" && told.send(event).await.is_err() {
            return;
        }
    }
}

/// Keys as they are pressed; none for what only wants the screen drawn.
fn keys() -> std::io::Result<mpsc::Receiver<Option<Key>>> {
    let (pressed, keys) = mpsc::channel(16);
    thread::Builder::new().name("keys".to_owned()).spawn(move || {
        while let Ok(event) = event::read() {
            let key = match &event {
                Event::Key(key) => match Key::of(key) {
                    Some(key) => Some(key),
                    None => continue,
                },
                Event::Resize(..) => None,
                _ => continue,
            };
            if pressed.blocking_send(key).is_err() {
                return;
            }
        }
    })?;
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_end_pause_and_scroll() {
        let pressed = |code, modifiers| Key::of(&KeyEvent::new(code, modifiers));
        assert_eq!(pressed(KeyCode::Char('q'), KeyModifiers::NONE), Some(Key::Quit));
        assert_eq!(pressed(KeyCode::Char('c'), KeyModifiers::CONTROL), Some(Key::Quit));
        assert_eq!(pressed(KeyCode::Char('c'), KeyModifiers::NONE), None);
        let mut state = State::default();
        assert!(state.press(Key::Pause) && state.paused);
        assert!(state.press(Key::Down) && state.scrolled == 0);
        assert!(!state.press(Key::Quit));
    }
}
