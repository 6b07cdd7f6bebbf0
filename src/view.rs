//! View: what subscribers see of all rooms' maps: snapshots, changes, filters, typed contents.
//!
//! In: what arrives for the rooms, each with the moment. Out: [`Snapshot`]s, which share and never
//! copy, and streams of [`Change`]s against what each subscriber was last told. One lock for all
//! rooms, held for no I/O; no timer: whoever owns [`EphemeralMaps`] calls
//! [`advance`](EphemeralMaps::advance) when [`next_deadline`](EphemeralMaps::next_deadline) has
//! come, and if that is late nobody sees a ghost all the same, as every reader looks at the clock
//! first.
//!
//! What a subscriber sees:
//! - A snapshot and the stream that follows it come as one value, taken under one lock.
//! - One response is one change. Nothing visible changed: nothing is sent.
//! - It never lags. Who is slow gets one merged change, the net effect against what they were last
//!   told, whose size is bounded by what was and what is there.
//! - Within a change each key is named once, in the order of the entries: by room, then type, then
//!   sender, keyed before unkeyed, then sticky key or event id.

mod changes;
mod filter;
mod list;
mod maps;
mod snapshot;
mod typed;

pub use self::{
    changes::{Change, Changes, EntryChange, Subscription},
    filter::View,
    list::{DiffStream, ListSubscription},
    maps::{Arrival, Delivery, EphemeralMaps, RoomStats},
    snapshot::{Entry, Snapshot},
    typed::{StickyContent, TypedChange, TypedChanges, TypedEntry, TypedSubscription, TypedView},
};

#[cfg(test)]
mod tests;
