//! What the tests and the chores of `matrix-sdk-sticky` share: a real homeserver, a plain way to
//! speak to it, and another client.
//!
//! [`homeserver::Synapse`] installs (once), starts, pauses, restarts and ends a Synapse on
//! loopback. [`api::Api`] is one user's raw client. [`npm::Js`] installs (once) matrix-js-sdk, and
//! runs programs that use it. None knows matrix-sdk nor the crate that is tested: what a test reads
//! through them is what others say, not what our code makes of it.
//!
//! Everything here blocks the calling thread; an async test calls it from there just the same.
#![warn(missing_docs, unreachable_pub)]
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(
    clippy::disallowed_methods,
    reason = "the walls of clippy.toml are the main crate's; here the clock and the threads are real"
)]

pub mod api;
pub mod bindings;
pub mod folders;
pub mod homeserver;
pub mod npm;
pub mod tools;
