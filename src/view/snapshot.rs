//! Snapshots: the live entries at one moment, shared with the map and never copied.

use std::{
    cmp::Ordering,
    fmt,
    ops::Deref,
    sync::{Arc, OnceLock},
};

use imbl::{OrdMap, Vector};
use ruma::{RoomId, UserId};

use super::filter::Filter;
use crate::{
    event::{SharedRoom, StickyEvent, StickyKey},
    map::Delta,
    time::Moment,
};

/// The visible entries of all rooms.
pub(super) type Rooms = OrdMap<SharedRoom, Shown>;

/// The visible entries of a room, each at the number of its cell, and not in their order: keeping that would
/// cost each change more than sorting costs each reader who asks for it.
#[derive(Clone, Default)]
pub(super) struct Shown {
    events: Vector<Option<Arc<StickyEvent>>>,
    len: usize,
}

impl Shown {
    pub(super) fn handle_delta(&mut self, delta: &Delta) {
        let Delta { cell, before, after } = delta;
        self.len -= usize::from(before.is_some());
        self.len += usize::from(after.is_ok());
        let (cell, event) = (*cell as usize, after.as_ref().ok().cloned());
        // Removals have cells too, and what waits for its room key: those show nothing.
        while self.events.len() <= cell {
            self.events.push_back(None);
        }
        self.events.set(cell, event);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }
}

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

    /// The order of entries: by room, then by entry order.
    pub(super) fn cmp_order(&self, other: &Self) -> Ordering {
        self.room_id.cmp(&other.room_id).then_with(|| self.event.cmp_order(&other.event))
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
    rooms: Rooms,
    filter: Filter,
    taken_at: Moment,
    in_order: OnceLock<Arc<[Entry]>>,
}

impl Snapshot {
    pub(super) fn new(rooms: Rooms, filter: Filter, taken_at: Moment) -> Self {
        Self { rooms, filter, taken_at, in_order: OnceLock::new() }
    }

    /// The entries in their order: by room, then type, then sender, keyed before unkeyed, then by
    /// sticky key or event id. The first call sorts them, and what is cloned later has them sorted.
    pub fn iter(&self) -> impl Iterator<Item = Entry> + '_ {
        let sorted = || {
            let mut entries: Vec<_> = self.entries().collect();
            entries.sort_unstable_by(Entry::cmp_order);
            entries.into()
        };
        self.in_order.get_or_init(sorted).iter().cloned()
    }

    /// The entry of a key. In a view of more than one room, that of the first room that has it.
    pub fn get(&self, key: &StickyKey) -> Option<Entry> {
        self.entries().find(|entry| {
            entry.event_type() == key.event_type
                && entry.sender() == key.sender
                && entry.sticky_key() == Some(&key.sticky_key)
        })
    }

    /// How many entries there are. Counts them where the view filters by type or sender.
    pub fn len(&self) -> usize {
        if self.filter.only_rooms() {
            self.shown().map(|(_, shown)| shown.len).sum()
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

    fn shown(&self) -> impl Iterator<Item = (&SharedRoom, &Shown)> {
        let one = self.filter.room_id().map(|room_id| self.rooms.get_key_value(room_id));
        let all = one.is_none().then(|| self.rooms.iter());
        one.flatten().into_iter().chain(all.into_iter().flatten())
    }

    fn entries(&self) -> impl Iterator<Item = Entry> {
        self.events()
            .map(|(room_id, event)| Entry { room_id: room_id.clone(), event: event.clone() })
    }

    /// The entries, in no order within a room.
    fn events(&self) -> impl Iterator<Item = (&SharedRoom, &Arc<StickyEvent>)> {
        self.shown()
            .flat_map(|(room_id, shown)| {
                shown.events.iter().flatten().map(move |event| (room_id, event))
            })
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
