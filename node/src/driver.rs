//! The loop around the core.
