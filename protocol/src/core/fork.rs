//! A core's state as a value: copied, so that one node can go on in several ways, and written down,
//! so that two nodes can be told to be in the same state. A model checker needs both.
//!
//! What a copy and its origin have in common is only read: they share nothing that changes.

use std::fmt::{self, Write};

use crate::store::Reader;

use super::Core;

impl Core {
    /// The same node at the same moment, reading from another store.
    #[must_use]
    pub fn fork(&self, reader: Box<dyn Reader>) -> Self {
        Self { reader: reader.into(), ..self.clone() }
    }

    /// Writes down all that decides what this node does next, but for what its store holds: of two
    /// cores that write the same, neither can do what the other cannot.
    ///
    /// # Errors
    /// Those of `into`.
    pub fn write_state(&self, into: &mut impl Write) -> fmt::Result {
        // The generator does not tell its state, but how far it has come from its seed.
        write!(into, "{} {self:?}", self.rng.get_word_pos())
    }
}
