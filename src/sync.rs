//! Sync: how sticky events come from the server to the maps.
//!
//! In: the client, and what the application wants as the source. Out: deliveries to the maps, and the
//! [`SyncState`]. Never: a decision on which event counts.
//!
//! The one task that receives is the [`Worker`] in `worker.rs`. What it does next is decided by pure
//! machines: `machine.rs`, which is made of `connection.rs` (where our source stands), `v3.rs` (a
//! follower of the main loop), `fetches.rs`, `listing.rs` and `proofs.rs`. The worker lends a hand in
//! `fetch.rs` (the events of single rooms) and `deliver.rs` (from an answer to the maps). What the main
//! loop says is read in `main_loop.rs`. To add a source, read `source.rs`.

mod connection;
#[cfg(feature = "e2e-encryption")]
mod decrypt;
mod deliver;
mod error;
mod fetch;
mod fetches;
mod listing;
mod machine;
mod main_loop;
mod proofs;
#[cfg(test)]
mod simulation;
mod sliding;
mod source;
pub(crate) mod state;
mod v3;
mod worker;

pub(crate) use self::worker::Worker;
