//! The tests of the example `presence`, which stand beside what they test: a program that is run by
//! other tests cannot be a test itself.
#![cfg(all(feature = "client", feature = "e2e-encryption", feature = "sqlite"))]
#![recursion_limit = "256"]
#![allow(
    dead_code,
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "it is a program's, and not all of it is run here"
)]

#[path = "../examples/common/mod.rs"]
mod common;
#[path = "../examples/presence/json.rs"]
mod json;
#[path = "../examples/common/names.rs"]
mod names;
#[path = "../examples/presence/plain.rs"]
mod plain;
#[path = "../examples/presence/screen.rs"]
mod screen;
#[path = "../examples/common/terminal.rs"]
mod terminal;
