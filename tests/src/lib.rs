//! Whole clusters under test: see `tests/`. Each test starts real processes and kills some of them.
