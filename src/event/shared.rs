//! Identifiers whose text all events of a room share: senders, types, and the room itself.
//!
//! In: an identifier. Out: one text for all its users, and how often the map uses it.

use std::{
    borrow::Borrow,
    cmp::Ordering,
    fmt,
    hash::{Hash, Hasher},
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
};

use ruma::{OwnedRoomId, OwnedUserId, RoomId, UserId};

/// An identifier whose text all its users share.
#[derive(Clone)]
pub(crate) struct Shared<T>(Arc<Counted<T>>);

struct Counted<T> {
    id: T,
    /// An atomic, so that the map counts at the identifier and need not look it up.
    uses: AtomicU32,
}

/// A sender, shared by all their events in a room.
pub(crate) type SharedSender = Shared<OwnedUserId>;

/// A type, shared by all events of it in a room.
pub(crate) type SharedType = Shared<Box<str>>;

/// A room, shared by all that is kept of it.
pub(crate) type SharedRoom = Shared<OwnedRoomId>;

impl<T> From<T> for Shared<T> {
    fn from(id: T) -> Self {
        Self(Arc::new(Counted { id, uses: AtomicU32::new(0) }))
    }
}

impl<T> Shared<T> {
    /// Returns whether the two share one text.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Returns how often the map uses it. Only the map counts, under its owner's lock.
    pub(crate) fn uses(&self) -> u32 {
        self.0.uses.load(Relaxed)
    }

    /// Counts one more use by the map.
    pub(crate) fn add_use(&self) {
        self.0.uses.fetch_add(1, Relaxed);
    }

    /// Counts one use less by the map. Returns whether that was the last use.
    pub(crate) fn end_use(&self) -> bool {
        self.0.uses.fetch_sub(1, Relaxed) == 1
    }
}

impl<T: fmt::Debug> fmt::Debug for Shared<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.id.fmt(f)
    }
}

impl<T: Deref> Deref for Shared<T> {
    type Target = T::Target;

    fn deref(&self) -> &T::Target {
        &self.0.id
    }
}

impl<T: Ord> Ord for Shared<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        if self.is_same(other) { Ordering::Equal } else { self.0.id.cmp(&other.0.id) }
    }
}

impl<T: Ord> PartialOrd for Shared<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T: PartialEq> PartialEq for Shared<T> {
    fn eq(&self, other: &Self) -> bool {
        self.is_same(other) || self.0.id == other.0.id
    }
}

impl<T: Eq> Eq for Shared<T> {}

impl Borrow<UserId> for SharedSender {
    fn borrow(&self) -> &UserId {
        self
    }
}

impl Borrow<str> for SharedType {
    fn borrow(&self) -> &str {
        self
    }
}

impl Borrow<RoomId> for SharedRoom {
    fn borrow(&self) -> &RoomId {
        self
    }
}

impl<T: Deref<Target: Hash>> Hash for Shared<T> {
    /// Hashes as the borrowed identifier does, because a lookup uses that one.
    fn hash<H: Hasher>(&self, state: &mut H) {
        T::Target::hash(self, state);
    }
}
