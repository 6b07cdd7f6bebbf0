//! Snapshots: the live entries at one moment, shared with the map and never copied.

use std::{cmp::Ordering, fmt, ops::Deref, sync::Arc};

use imbl::{OrdMap, OrdSet};
use ruma::{RoomId, UserId};

use super::filter::Filter;
use crate::{
    event::{SharedRoom, StickyEvent, StickyKey},
    time::Moment,
};

/// The visible entries of all rooms.
pub(super) type Rooms = OrdMap<SharedRoom, OrdSet<InOrder>>;

/// An event in the order of its place.
#[derive(Clone)]
pub(super) struct InOrder(pub(super) Arc<StickyEvent>);

impl Ord for InOrder {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.cmp_place(&other.0)
    }
}

impl PartialOrd for InOrder {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for InOrder {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for InOrder {}

/// One live entry: an event and its room. Dereferences to the event.
#[derive(Clone)]
pub struct Entry {
    pub(super) room_id: SharedRoom,
    pub(super) event: Arc<StickyEvent>,
}

impl Entry {
    /// The room that it is in.
    pub fn room_id(&self) -> &RoomId {
        &self.room_id
    }

    /// The event, shared.
    pub fn event(&self) -> &Arc<StickyEvent> {
        &self.event
    }

    /// The order of entries: by room, then by place.
    pub(super) fn cmp_place(&self, other: &Self) -> Ordering {
        self.room_id.cmp(&other.room_id).then_with(|| self.event.cmp_place(&other.event))
    }
}

impl Deref for Entry {
    type Target = StickyEvent;

    fn deref(&self) -> &StickyEvent {
        &self.event
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry").field("room_id", &self.room_id).field("event", &self.event).finish()
    }
}

/// Equal are entries that show the same event.
impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.room_id == other.room_id && self.event.event_id() == other.event.event_id()
    }
}

impl Eq for Entry {}

/// The live entries that a view lets through, at one moment. Taking one and cloning it costs the
/// same however many entries there are; it keeps what it shows, also while the map goes on.
#[derive(Clone)]
pub struct Snapshot {
    pub(super) rooms: Rooms,
    pub(super) filter: Filter,
    pub(super) taken_at: Moment,
}

impl Snapshot {
    /// The entries in their order: by room, then type, then sender, keyed before unkeyed, then by
    /// sticky key or event id.
    pub fn iter(&self) -> impl Iterator<Item = Entry> + '_ {
        self.events()
            .map(|(room_id, event)| Entry { room_id: room_id.clone(), event: event.clone() })
    }

    /// The entry of a key. In a view of more than one room, that of the first room that has it.
    pub fn get(&self, key: &StickyKey) -> Option<Entry> {
        self.iter().find(|entry| {
            entry.event_type() == key.event_type
                && entry.sender() == key.sender
                && entry.sticky_key() == Some(&key.sticky_key)
        })
    }

    /// How many entries there are. Counts them where the view filters by type or sender.
    pub fn len(&self) -> usize {
        if self.filter.only_rooms() {
            self.sets().map(|(_, set)| set.len()).sum()
        } else {
            self.events().count()
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.events().next().is_none()
    }

    /// When it was taken; what [`StickyEvent::expires_in`] asks for.
    pub fn taken_at(&self) -> Moment {
        self.taken_at
    }

    fn sets(&self) -> impl Iterator<Item = (&SharedRoom, &OrdSet<InOrder>)> {
        let one = self.filter.room_id().map(|room_id| self.rooms.get_key_value(room_id));
        let all = one.is_none().then(|| self.rooms.iter());
        one.flatten().into_iter().chain(all.into_iter().flatten())
    }

    fn events(&self) -> impl Iterator<Item = (&SharedRoom, &Arc<StickyEvent>)> {
        self.sets()
            .flat_map(|(room_id, set)| set.iter().map(move |event| (room_id, &event.0)))
            .filter(|(_, event)| self.filter.lets_event_through(event))
    }
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// The senders that have an entry, each once.
impl Snapshot {
    /// The users who have at least one entry, each once, in order.
    pub fn senders(&self) -> Vec<&UserId> {
        let mut senders: Vec<_> = self.events().map(|(_, event)| event.sender()).collect();
        senders.sort_unstable();
        senders.dedup();
        senders
    }
}
