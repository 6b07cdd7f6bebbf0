//! Changes: what a subscriber is told, against what it was last told.

use std::{
    any::Any,
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures_core::Stream;

use super::{
    maps::EphemeralMaps,
    snapshot::{Entry, Snapshot},
    state::SubscriberId,
};
use crate::{
    event::{RemovalReason, StickyEvent},
    time::Moment,
};

/// A snapshot and the changes that follow it, taken under one lock: nothing is lost or told twice
/// between them.
#[derive(Debug)]
#[non_exhaustive]
pub struct Subscription {
    /// The entries at this moment.
    pub snapshot: Snapshot,
    /// What changes from here on.
    pub changes: Changes,
}

/// What changed since the subscriber was last told. Never empty, each key at most once, in the
/// order of the entries.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Change {
    /// What changed, an entry each.
    pub entries: Vec<EntryChange>,
    /// When it was told; what [`StickyEvent::expires_in`] asks for.
    pub told_at: Moment,
}

/// How one entry changed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EntryChange {
    /// There is one where there was none.
    Added(Entry),
    /// Another event is the value of the key. Or the value is the same event, and it became known who
    /// encrypted it.
    Updated {
        /// The entry from now on.
        entry: Entry,
        /// The event that it replaced.
        previous: Arc<StickyEvent>,
    },
    /// There is none any more.
    Removed {
        /// The entry that left, as the subscriber knew it.
        entry: Entry,
        /// Why it left.
        reason: RemovalReason,
    },
}

impl EntryChange {
    /// The entry that it is about: the one that is there, or the one that left.
    pub fn entry(&self) -> &Entry {
        match self {
            Self::Added(entry) | Self::Updated { entry, .. } | Self::Removed { entry, .. } => entry,
        }
    }
}

/// A stream of [`Change`]s. It never fails, never lags and never ends; dropping it ends the
/// subscription.
pub struct Changes {
    maps: EphemeralMaps,
    id: SubscriberId,
    /// See [`View::with_keeper`](super::View::with_keeper).
    _keeper: Option<Arc<dyn Any + Send + Sync>>,
}

impl Changes {
    pub(super) fn new(
        maps: EphemeralMaps,
        id: SubscriberId,
        keeper: Option<Arc<dyn Any + Send + Sync>>,
    ) -> Self {
        Self { maps, id, _keeper: keeper }
    }

    /// What changed since it was last asked, if anything did, without waiting.
    pub fn next_now(&mut self) -> Option<Change> {
        self.maps.poll_change(self.id, None)
    }
}

impl Stream for Changes {
    type Item = Change;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Change>> {
        match self.maps.poll_change(self.id, Some(cx.waker())) {
            Some(change) => Poll::Ready(Some(change)),
            None => Poll::Pending,
        }
    }
}

impl Drop for Changes {
    fn drop(&mut self) {
        self.maps.unsubscribe(self.id);
    }
}

impl fmt::Debug for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Changes").field("id", &self.id).finish_non_exhaustive()
    }
}
