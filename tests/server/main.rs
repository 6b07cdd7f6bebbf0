//! The crate against a real Synapse, over sliding sync, beside real main loops of matrix-sdk.
//!
//! One server serves all tests; each has users and rooms of its own. Tests that stop it, or need
//! another kind of server, start their own. Nothing here waits by sleeping and hoping: whatever is
//! waited for is a condition with a deadline, and what was there instead is said when that passes.
#![cfg(all(feature = "client", feature = "e2e-encryption"))]
#![recursion_limit = "256"]
#![allow(clippy::disallowed_methods, reason = "a real server, on the real clock")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod app;
mod attacker;
mod delayed;
mod element_call;
mod encrypted;
mod encrypted_send;
mod heartbeat;
mod js;
#[cfg(feature = "media-keys")]
mod keys;
mod limits;
mod live;
mod main_loops;
mod outages;
mod presence;
mod proxy;
mod refresh;
mod rooms;
mod rtc;
mod sealed;
mod send;
mod support;
mod v3;
