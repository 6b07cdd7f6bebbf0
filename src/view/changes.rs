//! Changes: what a subscriber gets, against what it got last.

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

/// A snapshot and the changes that follow it. Both are taken under one lock, so nothing is lost or
/// repeated between them.
///
/// # Examples
///
/// ```no_run
/// use futures_util::StreamExt as _;
/// use matrix_sdk_sticky::view::{EntryChange, Subscription, View};
///
/// async fn follow(view: &View) {
///     let Subscription { snapshot, mut changes, .. } = view.subscribe();
///     println!("{} entries at first", snapshot.len());
///     while let Some(change) = changes.next().await {
///         for entry in change.entries {
///             match entry {
///                 EntryChange::Added(entry) => println!("{} came", entry.sender()),
///                 EntryChange::Updated { entry, .. } => println!("{} changed", entry.sender()),
///                 EntryChange::Removed { entry, reason } => {
///                     println!("{} left: {reason}", entry.sender());
///                 }
///                 _ => {}
///             }
///         }
///     }
/// }
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub struct Subscription {
    /// The entries at this moment.
    pub snapshot: Snapshot,
    /// The changes from here on.
    pub changes: Changes,
}

/// What changed since the subscriber's last change. It is never empty, names each key at most once,
/// and lists the keys in the order of the entries.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Change {
    /// One change for each entry that changed.
    pub entries: Vec<EntryChange>,
    /// When the subscriber got this change. [`StickyEvent::expires_in`] asks for it.
    pub told_at: Moment,
}

/// How one entry changed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EntryChange {
    /// The key has an entry, and had none before.
    Added(Entry),
    /// Another event is the value of the key now. Or the value is the same event, and the SDK has
    /// learned who encrypted it.
    Updated {
        /// The entry from now on.
        entry: Entry,
        /// The event that it replaced.
        previous: Arc<StickyEvent>,
    },
    /// The key has no entry any more.
    Removed {
        /// The entry that left, as the subscriber knew it.
        entry: Entry,
        /// Why it left.
        reason: RemovalReason,
    },
}

impl EntryChange {
    /// Returns the entry that changed: the one that is there now, or the one that left.
    pub fn entry(&self) -> &Entry {
        match self {
            Self::Added(entry) | Self::Updated { entry, .. } | Self::Removed { entry, .. } => entry,
        }
    }
}

/// A stream of [`Change`]s. It never fails, never lags and never ends. Dropping it ends the
/// subscription.
///
/// # Cancel safety
///
/// `next()` is cancel safe: a change that was not taken stays, merged with those that follow.
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

    /// Returns what changed since the last change, without waiting; `None` if nothing did.
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
