//! View: what subscribers see of all rooms' maps: snapshots, changes, filters, typed contents.
//!
//! In: what arrives for the rooms, each with the moment. Out: [`Snapshot`]s, which share the events
//! and never copy them, and streams of [`Change`]s. Never: I/O, a task, a timer. One lock guards all
//! rooms.
//!
//! If you drive your own sync, you own an [`EphemeralMaps`]: hand in what arrives, and call
//! [`advance`](EphemeralMaps::advance) when [`next_deadline`](EphemeralMaps::next_deadline) comes. If
//! your timer is late, nobody sees an expired entry all the same, because every reader looks at the
//! clock first.
//!
//! What a subscriber sees:
//! - A snapshot and the stream that follows it come as one value, taken under one lock.
//! - One response is one change. If nothing visible changed, the subscriber gets nothing.
//! - A stream never lags. A slow subscriber gets one merged change: the net effect since its last
//!   one. Its size is bounded by the number of entries then and now.
//! - A change names each key once, in the order of the entries: by room, then type, then sender,
//!   keyed before unkeyed, then sticky key or event id.

mod changes;
mod delivery;
mod filter;
mod list;
mod maps;
mod snapshot;
mod state;
mod subscriber;
mod typed;

use std::{any::Any, fmt, sync::Arc};

use ruma::{OwnedRoomId, OwnedUserId};

use self::filter::Filter;
pub use self::{
    changes::{Change, Changes, EntryChange, Subscription},
    delivery::{Arrival, Delivery},
    list::{DiffStream, ListSubscription},
    maps::{EphemeralMaps, RoomStats},
    snapshot::{Entry, Snapshot},
    typed::{StickyContent, TypedChange, TypedChanges, TypedEntry, TypedSubscription, TypedView},
};
use crate::event::StickyKey;

/// A view of the live entries: of all rooms, or of those that its filters let through.
///
/// A view costs nothing until you ask it. A view, and every stream that it gives, keeps the work
/// behind it alive: receiving stops when the last of them is dropped.
///
/// A view filters by room, type and sender only. All three are part of an entry's order, so an entry
/// never comes or goes because its content changed.
///
/// # Examples
///
/// ```
/// use matrix_sdk_sticky::view::{EphemeralMaps, Subscription};
/// # use matrix_sdk_sticky::{map::Limits, time::{Clock, Moment}};
/// # #[derive(Debug)]
/// # struct Still;
/// # impl Clock for Still {
/// #     fn now(&self) -> Moment {
/// #         Moment::new(Default::default(), Default::default())
/// #     }
/// # }
/// # let maps = EphemeralMaps::new(Still, Limits::default());
///
/// // With matrix-sdk, `client.sticky().events()` gives the view.
/// let view = maps.view().of_type("com.example.presence");
/// for entry in view.snapshot().iter() {
///     println!("{} has {:?}", entry.sender(), entry.sticky_key());
/// }
/// let Subscription { snapshot, changes, .. } = view.subscribe();
/// # assert!(snapshot.is_empty());
/// ```
#[derive(Clone)]
pub struct View {
    maps: EphemeralMaps,
    filter: Filter,
    /// The shell's task, which lives for as long as anybody looks.
    keeper: Option<Arc<dyn Any + Send + Sync>>,
}

impl View {
    fn new(maps: EphemeralMaps) -> Self {
        Self { maps, filter: Filter::default(), keeper: None }
    }

    /// Has this view, and every stream that it gives, keep `keeper` alive.
    #[cfg(any(feature = "client", test))]
    pub(crate) fn with_keeper(mut self, keeper: Arc<dyn Any + Send + Sync>) -> Self {
        self.keeper = Some(keeper);
        self
    }

    /// Lets through the entries of this room only.
    #[must_use]
    pub fn in_room(mut self, room_id: impl Into<OwnedRoomId>) -> Self {
        self.filter.room_id = Some(room_id.into());
        self
    }

    /// Lets through the entries of this event type only, e.g. `m.rtc.member`.
    #[must_use]
    pub fn of_type(mut self, event_type: impl Into<Arc<str>>) -> Self {
        self.filter.event_type = Some(event_type.into());
        self
    }

    /// Lets through the entries of this sender only.
    #[must_use]
    pub fn by_sender(mut self, sender: impl Into<OwnedUserId>) -> Self {
        self.filter.sender = Some(sender.into());
        self
    }

    /// Lets through the entries of `C`'s type only, and reads their contents as `C`.
    pub fn read_as<C: StickyContent>(self) -> TypedView<C> {
        TypedView::new(self.of_type(C::TYPE))
    }

    /// Returns the entries that are live now. An expired entry is never among them.
    pub fn snapshot(&self) -> Snapshot {
        self.maps.snapshot(&self.filter)
    }

    /// Returns the entry of a key, if there is one now. If several rooms have one, this is the first
    /// room's, by room id.
    pub fn get(&self, key: &StickyKey) -> Option<Entry> {
        self.maps.get(&self.filter, key)
    }

    /// Returns a snapshot, and the changes that follow it.
    pub fn subscribe(&self) -> Subscription {
        let (snapshot, id) = self.maps.subscribe(&self.filter);
        let changes = Changes::new(self.maps.clone(), id, self.keeper.clone());
        Subscription { snapshot, changes }
    }

    /// Returns the entries as an ordered list, and the diffs that keep it up to date, for a user
    /// interface.
    pub fn subscribe_list(&self) -> ListSubscription {
        ListSubscription::new(self.subscribe())
    }
}

impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("View").field("filter", &self.filter).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
