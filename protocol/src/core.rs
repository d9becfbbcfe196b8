//! The core (under construction).
use crate::{
    config::Config,
    io::{Effect, Input},
    store::{ReadError, Reader},
    time::Timestamp,
};
/// One node's brain.
pub struct Core {}
impl Core {
    /// Starts it. `unix_ms` is the wall clock at `now`.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn new(
        _config: Config,
        _seed: u64,
        _now: Timestamp,
        _unix_ms: u64,
        _reader: Box<dyn Reader>,
    ) -> Result<Self, ReadError> {
        Ok(Self {})
    }
    /// Something happened.
    ///
    /// # Errors
    /// The store cannot be read: the node must stop.
    pub fn handle_input(&mut self, _now: Timestamp, _input: Input) -> Result<(), ReadError> {
        Ok(())
    }
    /// The moment that [`poll_timeout`](Self::poll_timeout) named has come.
    ///
    /// # Errors
    /// The store cannot be read: the node must stop.
    pub fn handle_timeout(&mut self, _now: Timestamp) -> Result<(), ReadError> {
        Ok(())
    }
    /// When to call `handle_timeout`.
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        None
    }
    /// The next thing to do.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        None
    }
    /// The wall clock was set.
    pub fn set_wall_clock(&mut self, _now: Timestamp, _unix_ms: u64) {}
}
