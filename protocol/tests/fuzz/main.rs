//! Whatever bytes come from outside, they lead to a value or an error. See `tests/fuzz/README.md`.

mod core;
mod memory;
mod records;
mod samples;
mod wire;
mod world;
