//! The sync half in simulated time, against a homeserver that does whatever a test wants: refuses,
//! lies, stalls, hangs up. What a real server does is tested in `tests/server`.
#![cfg(feature = "client")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test may fail, and the real time that it waits at most is real"
)]

mod account;
mod app;
mod builder;
mod clock;
mod connection;
#[cfg(feature = "e2e-encryption")]
mod delayed;
mod encrypted_send;
mod features;
mod heartbeat;
mod nonsense;
mod outage;
mod rooms;
mod rtc;
mod secrets;
mod send;
mod support;
mod tasks;
mod transports;
mod v3;
