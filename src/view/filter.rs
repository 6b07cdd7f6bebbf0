//! Filters: which entries a view lets through.
//!
//! In: what a [`View`](super::View) was narrowed to. Out: yes or no, for a room and for an event. A
//! filter looks only at what is part of an entry's order, so an entry never comes or goes because its
//! content changed.

use std::sync::Arc;

use ruma::{OwnedRoomId, OwnedUserId, RoomId};

use crate::event::StickyEvent;

#[derive(Clone, Debug, Default)]
pub(super) struct Filter {
    pub(super) room_id: Option<OwnedRoomId>,
    pub(super) event_type: Option<Arc<str>>,
    pub(super) sender: Option<OwnedUserId>,
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
