//! Typed views: entries of one type, with their contents read once, as they are told.

use std::{
    fmt,
    marker::PhantomData,
    ops::Deref,
    pin::Pin,
    task::{Context, Poll},
};

use futures_core::Stream;
use serde::de::DeserializeOwned;

use super::{
    View,
    changes::{Changes, EntryChange, Subscription},
    snapshot::Entry,
};
use crate::event::{RemovalReason, StickyKey};

/// A content that views can be read as: `room.sticky().view::<MyContent>()`.
///
/// ```
/// use matrix_sdk_sticky::view::StickyContent;
///
/// #[derive(serde::Deserialize)]
/// struct Presence {
///     status: String,
/// }
///
/// impl StickyContent for Presence {
///     const TYPE: &str = "com.example.presence";
/// }
/// ```
pub trait StickyContent: DeserializeOwned {
    /// The event type that carries this content, e.g. `m.rtc.member`.
    const TYPE: &str;
}

/// A view of the entries of `C`'s type, with their contents read as `C`.
///
/// An entry whose content is not a `C` is there all the same, with the error: anybody in the room
/// can send anything, and it may take the place of an entry that was fine.
pub struct TypedView<C> {
    view: View,
    content: PhantomData<fn() -> C>,
}

/// An entry and its content. Dereferences to the entry.
#[derive(Debug)]
pub struct TypedEntry<C> {
    entry: Entry,
    content: Result<C, serde_json::Error>,
}

impl<C: StickyContent> TypedEntry<C> {
    fn new(entry: Entry) -> Self {
        let content = entry.content();
        Self { entry, content }
    }

    /// The content.
    ///
    /// # Errors
    ///
    /// What serde says where the sender sent something that is no `C`.
    pub fn content(&self) -> Result<&C, &serde_json::Error> {
        self.content.as_ref()
    }

    /// The entry and its content.
    pub fn into_parts(self) -> (Entry, Result<C, serde_json::Error>) {
        (self.entry, self.content)
    }
}

impl<C> Deref for TypedEntry<C> {
    type Target = Entry;

    fn deref(&self) -> &Entry {
        &self.entry
    }
}

/// A snapshot and the changes that follow it, typed, taken under one lock.
#[derive(Debug)]
#[non_exhaustive]
pub struct TypedSubscription<C> {
    /// The entries at this moment, in the order of entries.
    pub snapshot: Vec<TypedEntry<C>>,
    /// What changes from here on.
    pub changes: TypedChanges<C>,
}

/// How one typed entry changed; see [`EntryChange`].
#[derive(Debug)]
#[non_exhaustive]
pub enum TypedChange<C> {
    /// There is one where there was none.
    Added(TypedEntry<C>),
    /// Another event is the value of the key.
    Updated(TypedEntry<C>),
    /// There is none any more.
    Removed {
        /// The entry that left; its content is not read again.
        entry: Entry,
        /// Why it left.
        reason: RemovalReason,
    },
}

impl<C: StickyContent> TypedView<C> {
    pub(super) fn new(view: View) -> Self {
        Self { view, content: PhantomData }
    }

    /// The entries that are live now, in the order of entries.
    pub fn snapshot(&self) -> Vec<TypedEntry<C>> {
        self.view.snapshot().iter().map(TypedEntry::new).collect()
    }

    /// What is there now for this key.
    pub fn get(&self, key: &StickyKey) -> Option<TypedEntry<C>> {
        self.view.get(key).map(TypedEntry::new)
    }

    /// A snapshot, and the changes that follow it.
    pub fn subscribe(&self) -> TypedSubscription<C> {
        let Subscription { snapshot, changes } = self.view.subscribe();
        TypedSubscription {
            snapshot: snapshot.iter().map(TypedEntry::new).collect(),
            changes: TypedChanges { changes, content: PhantomData },
        }
    }
}

impl<C> fmt::Debug for TypedView<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TypedView").field(&self.view).finish()
    }
}

/// A stream of typed changes, one change of the map at a time. It never fails, lags or ends.
pub struct TypedChanges<C> {
    changes: Changes,
    content: PhantomData<fn() -> C>,
}

impl<C: StickyContent> Stream for TypedChanges<C> {
    type Item = Vec<TypedChange<C>>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let change = std::task::ready!(Pin::new(&mut self.changes).poll_next(cx));
        Poll::Ready(change.map(|change| change.entries.into_iter().map(TypedChange::new).collect()))
    }
}

impl<C: StickyContent> TypedChange<C> {
    fn new(change: EntryChange) -> Self {
        match change {
            EntryChange::Added(entry) => Self::Added(TypedEntry::new(entry)),
            EntryChange::Updated { entry, .. } => Self::Updated(TypedEntry::new(entry)),
            EntryChange::Removed { entry, reason } => Self::Removed { entry, reason },
        }
    }
}

impl<C> fmt::Debug for TypedChanges<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TypedChanges").field(&self.changes).finish()
    }
}
