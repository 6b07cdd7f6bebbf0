//! Source: what a place that sticky events come from has to do, whichever it is.
//!
//! In: nothing. Out: the words in which the machine and the worker speak of a source: what to [`Ask`],
//! and the [`RoomEvents`] that an answer brings. Never: a decision.
//!
//! # The seam
//!
//! A source is a pure half and a request. There are two: sliding sync ([`Connection`] and
//! `sliding.rs`) and v3 ([`Follower`] and `v3.rs`). Nothing outside of `src/sync` knows which one is
//! there. A new source, such as matrix-sdk's own `Room::sticky_events()`, needs:
//!
//! 1. a pure half, which says what to ask next and what an answer means: whether more is to come, and
//!    how long to wait. [`Connection`] has the waits after failures, for each source;
//! 2. a variant of [`Ask`], and the arm in `worker.rs` that performs it. The arm hands all events to
//!    `Worker::deliver`, which decrypts them and hides the rooms that nobody has called ours yet;
//! 3. a `handle_..` in [`SyncMachine`] for its answer, which ends in the states that `machine.rs`
//!    keeps for each source: live only after an answer that left nothing out;
//! 4. a way to fetch single rooms, in `fetch.rs`, for rooms that were joined and timelines with gaps;
//! 5. a variant of [`SyncSource`](super::SyncSource), and a line in `SyncMachine::choose_source`.
//!
//! What a source need not do: redactions, the ignore list, room keys, and who is in a room. These come
//! from the client and its main loop, for each source.
//!
//! Why not simply a trait? The two sources agree on nothing but this list. One holds a long poll, the
//! other follows somebody else's tokens and can be at rest; one can lack the extension, the other can
//! lack a main loop. A trait would have one implementor for nearly each of its methods.
//!
//! [`Connection`]: super::connection::Connection
//! [`Follower`]: super::v3::Follower
//! [`SyncMachine`]: super::machine::SyncMachine

use std::time::Duration;

use ruma::OwnedRoomId;
use serde_json::value::RawValue;

use super::{sliding, v3};

/// One request of the source, to be performed once. Its answer or its failure goes back to the machine.
#[derive(Debug)]
pub(super) enum Ask {
    /// Asks whether the server has what the sources need.
    Versions,
    /// Asks for the next page of our own connection.
    Sliding(Box<sliding::Request>),
    /// Asks one question of the follower, for no longer than `patience`.
    V3 { question: v3::Question, request: Box<v3::Request>, patience: Duration },
}

/// What `/versions` says of the features that the sources need.
#[derive(Clone, Copy, Debug)]
pub(super) struct Features {
    pub(super) sticky_events: bool,
    pub(super) sliding_sync: bool,
}

/// The sticky events that an answer brings, by room, as text.
#[derive(Debug, Default)]
pub(super) struct RoomEvents(pub(super) Vec<(OwnedRoomId, Vec<Box<RawValue>>)>);

impl RoomEvents {
    /// Returns how many events there are, in all rooms.
    pub(super) fn len(&self) -> usize {
        self.0.iter().map(|(_, events)| events.len()).sum()
    }

    /// Returns the rooms.
    pub(super) fn rooms(&self) -> Vec<OwnedRoomId> {
        self.0.iter().map(|(room_id, _)| room_id.clone()).collect()
    }
}
