//! Filters: which entries a view lets through. Only what is part of an entry's order can be
//! filtered by, so an entry never comes or goes because its content changed.

use std::{any::Any, fmt, sync::Arc};

use ruma::{OwnedRoomId, OwnedUserId, RoomId};

use super::{
    changes::{Changes, Subscription},
    list::ListSubscription,
    maps::EphemeralMaps,
    snapshot::{Entry, Snapshot},
    typed::{StickyContent, TypedView},
};
use crate::event::{StickyEvent, StickyKey};

#[derive(Clone, Debug, Default)]
pub(super) struct Filter {
    room_id: Option<OwnedRoomId>,
    event_type: Option<Arc<str>>,
    sender: Option<OwnedUserId>,
}

impl Filter {
    pub(super) fn room_id(&self) -> Option<&RoomId> {
        self.room_id.as_deref()
    }

    pub(super) fn only_rooms(&self) -> bool {
        self.event_type.is_none() && self.sender.is_none()
    }

    pub(super) fn lets_room_through(&self, room_id: &RoomId) -> bool {
        self.room_id.as_ref().is_none_or(|only| only == room_id)
    }

    pub(super) fn lets_event_through(&self, event: &StickyEvent) -> bool {
        self.event_type.as_ref().is_none_or(|only| **only == *event.event_type())
            && self.sender.as_ref().is_none_or(|only| only == event.sender())
    }
}

/// A view of the live entries, of all rooms or of some. It costs nothing until it is asked.
///
/// A view, and every stream that it gives, keeps the work behind it alive.
#[derive(Clone)]
pub struct View {
    pub(super) maps: EphemeralMaps,
    pub(super) filter: Filter,
    /// What has to live for as long as anybody looks: the shell's task.
    pub(super) keeper: Option<Arc<dyn Any + Send + Sync>>,
}

impl View {
    pub(super) fn new(maps: EphemeralMaps) -> Self {
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
