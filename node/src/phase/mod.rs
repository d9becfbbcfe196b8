//! Phase hosts.
