//! The handles: `room.sticky().rtc()`, its sessions, and their streams.
//!
//! In: what the application asks for. Out: snapshots, and streams of what changes. Each stream has a watch, and
//! so a roster, of its own, which works while the stream is polled. Never: a task, a lock.

use std::{fmt, pin::Pin, sync::Arc};

use futures_core::Stream;
use futures_util::{StreamExt as _, stream};
use matrix_sdk::Room;
use ruma::RoomId;

use super::{
    change::{RtcChange, SessionChange},
    slot::session_of,
    snapshot::{RtcSnapshot, SessionSnapshot},
    watch::Watch,
};
use crate::context::RoomContext;

/// The MatrixRTC sessions of a room. Cheap to clone, costs nothing until it is asked.
#[derive(Clone)]
pub struct Rtc {
    sticky: RoomContext,
    room: Room,
}

impl Rtc {
    pub(crate) fn new(sticky: RoomContext, room: Room) -> Self {
        Self { sticky, room }
    }

    /// The sessions now.
    ///
    /// Asks the server once for the room's state, with what the client has of it where it cannot be
    /// reached. Who is shown is as current as [`Sticky::state`](crate::Sticky::state) says.
    pub async fn snapshot(&self) -> RtcSnapshot {
        self.subscribe().await.snapshot
    }

    /// The sessions now, and what changes from here on.
    pub async fn subscribe(&self) -> RtcSubscription {
        let mut watch = Watch::start(&self.sticky, &self.room).await;
        let snapshot = watch.snapshot();
        let changes = stream::unfold(watch, async |mut watch| {
            let (changes, snapshot) = watch.next().await;
            Some((RtcUpdate { changes, snapshot }, watch))
        });
        RtcSubscription { snapshot, changes: RtcChanges { changes: changes.boxed() } }
    }

    /// The room.
    pub fn room_id(&self) -> &RoomId {
        self.room.room_id()
    }

    /// The session of a slot, e.g. [`ROOM_CALL`](super::ROOM_CALL), whether anybody is in it or not.
    pub fn session(&self, slot_id: impl Into<String>) -> Session {
        Session { rtc: self.clone(), slot_id: slot_id.into().into() }
    }

    pub(super) fn sticky(&self) -> &RoomContext {
        &self.sticky
    }

    pub(super) fn room(&self) -> &Room {
        &self.room
    }
}

impl fmt::Debug for Rtc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rtc").field("room_id", &self.room.room_id()).finish_non_exhaustive()
    }
}

/// One session of a room. Cheap to clone, costs nothing until it is asked.
#[derive(Clone, Debug)]
pub struct Session {
    rtc: Rtc,
    slot_id: Arc<str>,
}

impl Session {
    /// The id of its slot.
    pub fn slot_id(&self) -> &str {
        &self.slot_id
    }

    /// Who is there now, who is not, and why. See [`Rtc::snapshot`].
    pub async fn snapshot(&self) -> SessionSnapshot {
        self.rtc.snapshot().await.session(&self.slot_id)
    }

    /// Who is there now, and what changes from here on.
    pub async fn subscribe(&self) -> SessionSubscription {
        let RtcSubscription { snapshot, changes } = self.rtc.subscribe().await;
        let slot_id: Arc<str> = session_of(&self.slot_id).into();
        let snapshot = snapshot.session(&slot_id);
        let changes = changes.filter_map(move |change| {
            let of_it = change
                .changes
                .into_iter()
                .filter(|change| change.slot_id.as_ref() == Some(&slot_id))
                .map(|change| change.change);
            let changes: Vec<_> = of_it.collect();
            let update = (!changes.is_empty())
                .then(|| SessionUpdate { changes, snapshot: change.snapshot.session(&slot_id) });
            std::future::ready(update)
        });
        SessionSubscription { snapshot, changes: SessionChanges { changes: changes.boxed() } }
    }

    pub(super) fn rtc(&self) -> &Rtc {
        &self.rtc
    }
}

/// The sessions of a room, and the changes that follow: nothing is lost or told twice between them.
#[derive(Debug)]
#[non_exhaustive]
pub struct RtcSubscription {
    /// The sessions at this moment.
    pub snapshot: RtcSnapshot,
    /// What changes from here on.
    pub changes: RtcChanges,
}

/// What changed in a room's sessions. Never empty.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RtcUpdate {
    /// What changed: slots first, then in the order of the members' user ids.
    pub changes: Vec<RtcChange>,
    /// The sessions from now on.
    pub snapshot: RtcSnapshot,
}

/// A stream of [`RtcUpdate`]s. It never fails, never lags and never ends.
pub struct RtcChanges {
    changes: Pin<Box<dyn Stream<Item = RtcUpdate> + Send>>,
}

/// A session, and the changes that follow.
#[derive(Debug)]
#[non_exhaustive]
pub struct SessionSubscription {
    /// The session at this moment.
    pub snapshot: SessionSnapshot,
    /// What changes from here on.
    pub changes: SessionChanges,
}

/// What changed in a session. Never empty.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SessionUpdate {
    /// What changed: the slot first, then in the order of the members' user ids.
    pub changes: Vec<SessionChange>,
    /// The session from now on.
    pub snapshot: SessionSnapshot,
}

/// A stream of [`SessionUpdate`]s. It never fails, never lags and never ends.
pub struct SessionChanges {
    changes: Pin<Box<dyn Stream<Item = SessionUpdate> + Send>>,
}

impl Stream for RtcChanges {
    type Item = RtcUpdate;

    fn poll_next(
        mut self: Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<RtcUpdate>> {
        self.changes.poll_next_unpin(cx)
    }
}

impl Stream for SessionChanges {
    type Item = SessionUpdate;

    fn poll_next(
        mut self: Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<SessionUpdate>> {
        self.changes.poll_next_unpin(cx)
    }
}

impl fmt::Debug for RtcChanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RtcChanges").finish_non_exhaustive()
    }
}

impl fmt::Debug for SessionChanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionChanges").finish_non_exhaustive()
    }
}
