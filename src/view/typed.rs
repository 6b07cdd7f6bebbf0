//! Typed views: entries of one type, with their contents read once, when the subscriber gets them.

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

/// A content that a view can read: `room.sticky().view::<MyContent>()`.
///
/// # Examples
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
    /// The event type that carries this content, e.g. `com.example.presence`.
    const TYPE: &str;
}

/// A view of the entries of `C`'s type, with their contents read as `C`.
///
/// An entry whose content is not a `C` is there all the same, with the error. Anybody in the room can
/// send anything, and such an entry may replace one that was fine.
///
/// # Examples
///
/// ```
/// use matrix_sdk_sticky::view::{StickyContent, View};
///
/// #[derive(serde::Deserialize)]
/// struct Presence {
///     status: String,
/// }
///
/// impl StickyContent for Presence {
///     const TYPE: &str = "com.example.presence";
/// }
///
/// fn list(view: View) {
///     for entry in view.read_as::<Presence>().snapshot() {
///         match entry.content() {
///             Ok(presence) => println!("{} is {}", entry.sender(), presence.status),
///             Err(error) => println!("{} sent something else: {error}", entry.sender()),
///         }
///     }
/// }
/// ```
pub struct TypedView<C> {
    view: View,
    content: PhantomData<fn() -> C>,
}

/// An entry and its content. It dereferences to the entry.
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

    /// Returns the content.
    ///
    /// # Errors
    ///
    /// Returns serde's error if the sender sent something that is not a `C`. The entry is live all
    /// the same: treat it as one with an unknown content.
    pub fn content(&self) -> Result<&C, &serde_json::Error> {
        self.content.as_ref()
    }

    /// Returns the entry and its content.
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

/// A snapshot and the changes that follow it, with typed contents. Both are taken under one lock.
#[derive(Debug)]
#[non_exhaustive]
pub struct TypedSubscription<C> {
    /// The entries at this moment, in the order of entries.
    pub snapshot: Vec<TypedEntry<C>>,
    /// The changes from here on.
    pub changes: TypedChanges<C>,
}

/// How one typed entry changed; see [`EntryChange`].
#[derive(Debug)]
#[non_exhaustive]
pub enum TypedChange<C> {
    /// The key has an entry, and had none before.
    Added(TypedEntry<C>),
    /// Another event is the value of the key now, or the SDK has learned who encrypted it.
    Updated(TypedEntry<C>),
    /// The key has no entry any more.
    Removed {
        /// The entry that left. Its content is not read again.
        entry: Entry,
        /// Why it left.
        reason: RemovalReason,
    },
}

impl<C: StickyContent> TypedView<C> {
    pub(super) fn new(view: View) -> Self {
        Self { view, content: PhantomData }
    }

    /// Returns the entries that are live now, in the order of entries.
    pub fn snapshot(&self) -> Vec<TypedEntry<C>> {
        self.view.snapshot().iter().map(TypedEntry::new).collect()
    }

    /// Returns the entry of a key, if there is one now.
    pub fn get(&self, key: &StickyKey) -> Option<TypedEntry<C>> {
        self.view.get(key).map(TypedEntry::new)
    }

    /// Returns a snapshot, and the changes that follow it.
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

/// A stream of typed changes, one [`Change`](super::Change) at a time. It never fails, never lags and
/// never ends. Dropping it ends the subscription.
///
/// # Cancel safety
///
/// `next()` is cancel safe: a change that was not taken stays, merged with those that follow.
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
