//! The handles: `room.sticky().rtc()`, its sessions, and their streams.
//!
//! In: what the application asks for. Out: snapshots, and streams of what changes. All streams of a room share one
//! feed, and so one roster. Never: a task; the feed works while one of the streams is polled.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures_core::Stream;
use futures_util::StreamExt as _;
use matrix_sdk::Room;
use ruma::RoomId;

use super::{
    change::{RtcChange, SessionChange},
    feed::Feed,
    slot::session_of,
    snapshot::{RtcSnapshot, SessionSnapshot},
};
use crate::context::RoomContext;

/// The MatrixRTC sessions of a room. Cheap to clone, and costs nothing until it is asked.
///
/// # Examples
///
/// ```no_run
/// # use matrix_sdk_sticky::StickyRoomExt as _;
/// # async fn example(room: matrix_sdk::Room) {
/// use futures_util::StreamExt as _;
///
/// let mut subscription = room.sticky().rtc().subscribe().await;
/// for session in subscription.snapshot.sessions() {
///     println!("{} members are in {}", session.len(), session.slot_id());
/// }
/// while let Some(update) = subscription.changes.next().await {
///     println!("{} changes", update.changes.len());
/// }
/// # }
/// ```
#[derive(Clone)]
pub struct Rtc {
    sticky: RoomContext,
    room: Room,
}

impl Rtc {
    pub(crate) fn new(sticky: RoomContext, room: Room) -> Self {
        Self { sticky, room }
    }

    /// Returns the sessions now.
    ///
    /// It asks the server once for the room's state, for up to 12 s. If the server cannot be reached, the
    /// snapshot has what the client knows. The members are as current as
    /// [`Sticky::state`](crate::Sticky::state) says.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future is safe.
    pub async fn snapshot(&self) -> RtcSnapshot {
        self.subscribe().await.snapshot
    }

    /// Returns the sessions now, and what changes from here on. It asks the server as
    /// [`snapshot`](Self::snapshot) does.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future is safe.
    pub async fn subscribe(&self) -> RtcSubscription {
        let (snapshot, updates) = Feed::subscribe(&self.sticky, &self.room).await;
        let changes = updates.map(|(changes, snapshot)| RtcUpdate { changes, snapshot });
        RtcSubscription { snapshot, changes: RtcChanges { changes: changes.boxed() } }
    }

    /// Returns the room's id.
    pub fn room_id(&self) -> &RoomId {
        self.room.room_id()
    }

    /// Returns the session of a slot, e.g. [`ROOM_CALL`](super::ROOM_CALL), whether anybody is in it or not.
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

/// One session of a room. Cheap to clone, and costs nothing until it is asked.
///
/// # Examples
///
/// ```no_run
/// # use matrix_sdk_sticky::StickyRoomExt as _;
/// # async fn example(room: matrix_sdk::Room) {
/// use futures_util::StreamExt as _;
/// use matrix_sdk_sticky::rtc::{ROOM_CALL, SessionChange};
///
/// let call = room.sticky().rtc().session(ROOM_CALL);
/// let mut subscription = call.subscribe().await;
/// println!("{} members are in the call", subscription.snapshot.len());
/// while let Some(update) = subscription.changes.next().await {
///     for change in &update.changes {
///         match change {
///             SessionChange::Joined(member) => println!("{} joined", member.user_id()),
///             SessionChange::Left { member, reason } => {
///                 println!("{} is gone: {reason}", member.user_id());
///             }
///             _ => {}
///         }
///     }
/// }
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Session {
    rtc: Rtc,
    slot_id: Arc<str>,
}

impl Session {
    /// Returns the id of the session's slot.
    pub fn slot_id(&self) -> &str {
        &self.slot_id
    }

    /// Returns who is in the session now, and who is not and why. See [`Rtc::snapshot`].
    pub async fn snapshot(&self) -> SessionSnapshot {
        self.rtc.snapshot().await.session(&self.slot_id)
    }

    /// Returns who is in the session now, and what changes from here on. See [`Rtc::subscribe`].
    pub async fn subscribe(&self) -> SessionSubscription {
        let RtcSubscription { snapshot, changes } = self.rtc.subscribe().await;
        let slot_id: Arc<str> = session_of(&self.slot_id).into();
        let snapshot = snapshot.session(&slot_id);
        let changes = changes.filter_map(move |update| {
            let of_it = update
                .changes
                .into_iter()
                .filter(|change| change.slot_id.as_ref() == Some(&slot_id))
                .map(|change| change.change);
            let changes: Vec<_> = of_it.collect();
            let update = (!changes.is_empty())
                .then(|| SessionUpdate { changes, snapshot: update.snapshot.session(&slot_id) });
            std::future::ready(update)
        });
        SessionSubscription { snapshot, changes: SessionChanges { changes: changes.boxed() } }
    }

    pub(super) fn rtc(&self) -> &Rtc {
        &self.rtc
    }
}

/// The sessions of a room, and the changes that follow. Nothing is lost or reported twice between them.
#[derive(Debug)]
#[non_exhaustive]
pub struct RtcSubscription {
    /// The sessions at this moment.
    pub snapshot: RtcSnapshot,
    /// What changes from here on.
    pub changes: RtcChanges,
}

/// What changed in a room's sessions. It is never empty.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RtcUpdate {
    /// The changes: slots first, then in the order of the members' user ids. They can be applied in this order.
    pub changes: Vec<RtcChange>,
    /// The sessions from now on.
    pub snapshot: RtcSnapshot,
}

/// A stream of [`RtcUpdate`]s. It never fails and never ends. A slow subscriber gets one merged update, and if
/// nothing visible changed, it gets none.
pub struct RtcChanges {
    changes: Pin<Box<dyn Stream<Item = RtcUpdate> + Send>>,
}

/// A session, and the changes that follow. Nothing is lost or reported twice between them.
#[derive(Debug)]
#[non_exhaustive]
pub struct SessionSubscription {
    /// The session at this moment.
    pub snapshot: SessionSnapshot,
    /// What changes from here on.
    pub changes: SessionChanges,
}

/// What changed in a session. It is never empty.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SessionUpdate {
    /// The changes: the slot first, then in the order of the members' user ids. They can be applied in this
    /// order.
    pub changes: Vec<SessionChange>,
    /// The session from now on.
    pub snapshot: SessionSnapshot,
}

/// A stream of [`SessionUpdate`]s. It never fails and never ends. A slow subscriber gets one merged update, and
/// if nothing visible changed, it gets none.
pub struct SessionChanges {
    changes: Pin<Box<dyn Stream<Item = SessionUpdate> + Send>>,
}

impl Stream for RtcChanges {
    type Item = RtcUpdate;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<RtcUpdate>> {
        self.changes.poll_next_unpin(cx)
    }
}

impl Stream for SessionChanges {
    type Item = SessionUpdate;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<SessionUpdate>> {
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
