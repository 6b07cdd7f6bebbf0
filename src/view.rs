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

/// A view of the live entries, of all rooms or of some. It costs nothing until it is asked.
///
/// A view, and every stream that it gives, keeps the work behind it alive.
#[derive(Clone)]
pub struct View {
    maps: EphemeralMaps,
    filter: Filter,
    /// What has to live for as long as anybody looks: the shell's task.
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

    /// Only the entries of this room.
    #[must_use]
    pub fn in_room(mut self, room_id: impl Into<OwnedRoomId>) -> Self {
        self.filter.room_id = Some(room_id.into());
        self
    }

    /// Only the entries of this event type, e.g. `m.rtc.member`.
    #[must_use]
    pub fn of_type(mut self, event_type: impl Into<Arc<str>>) -> Self {
        self.filter.event_type = Some(event_type.into());
        self
    }

    /// Only the entries of this sender.
    #[must_use]
    pub fn by_sender(mut self, sender: impl Into<OwnedUserId>) -> Self {
        self.filter.sender = Some(sender.into());
        self
    }

    /// Only the entries of `C`'s type, with their contents read as `C`.
    pub fn read_as<C: StickyContent>(self) -> TypedView<C> {
        TypedView::new(self.of_type(C::TYPE))
    }

    /// The entries that are live now. Nothing that has ended is among them.
    pub fn snapshot(&self) -> Snapshot {
        self.maps.snapshot(&self.filter)
    }

    /// What is there now for this key. In a view of more than one room, the first room's.
    pub fn get(&self, key: &StickyKey) -> Option<Entry> {
        self.maps.get(&self.filter, key)
    }

    /// A snapshot, and the changes that follow it.
    pub fn subscribe(&self) -> Subscription {
        let (snapshot, id) = self.maps.subscribe(&self.filter);
        let changes = Changes::new(self.maps.clone(), id, self.keeper.clone());
        Subscription { snapshot, changes }
    }

    /// The entries as a list, and the diffs that keep it up to date, for a user interface.
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
