//! A whole node.
