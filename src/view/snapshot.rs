//! Snapshots: the live entries at one moment.
//!
//! In: what changed in each map. Out: the visible entries, which share the map's events and never
//! copy them.

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

/// The visible entries of a room, each at the number of its cell.
///
/// Why not simply in their order? Keeping the order would cost each change more than sorting costs
/// each reader who asks for it.
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
        // A removal has a cell too, and so has an event that misses its room key. Both show nothing.
        while self.events.len() <= cell {
            self.events.push_back(None);
        }
        self.events.set(cell, event);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// One live entry: an event and its room. It dereferences to the event.
#[derive(Clone)]
pub struct Entry {
    pub(super) room_id: SharedRoom,
    pub(super) event: Arc<StickyEvent>,
}

impl Entry {
    /// Returns the room that the entry is in.
    pub fn room_id(&self) -> &RoomId {
        &self.room_id
    }

    /// Returns the event, which the map shares.
    pub fn event(&self) -> &Arc<StickyEvent> {
        &self.event
    }

    /// Compares the order of entries: by room, then by the order of the events.
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

/// Two entries are equal if they show the same event of the same room.
impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.room_id == other.room_id && self.event.event_id() == other.event.event_id()
    }
}

impl Eq for Entry {}

/// The live entries that a view lets through, at one moment.
///
/// Taking and cloning a snapshot costs the same however many entries there are. A snapshot keeps what
/// it shows while the map goes on.
///
/// # Examples
///
/// ```
/// use matrix_sdk_sticky::view::Snapshot;
///
/// fn list(snapshot: &Snapshot) {
///     println!("{} entries of {} users", snapshot.len(), snapshot.senders().len());
///     for entry in snapshot.iter() {
///         println!("{}: {:?}", entry.sender(), entry.expires_in(snapshot.taken_at()));
///     }
/// }
/// ```
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

    /// Returns the entries in their order: by room, then type, then sender, keyed before unkeyed, then
    /// by sticky key or event id. The first call sorts them; a clone that is made later has them
    /// sorted.
    pub fn iter(&self) -> impl Iterator<Item = Entry> + '_ {
        let sorted = || {
            let mut entries: Vec<_> = self.entries().collect();
            entries.sort_unstable_by(Entry::cmp_order);
            entries.into()
        };
        self.in_order.get_or_init(sorted).iter().cloned()
    }

    /// Returns the entry of a key. If several rooms have one, this is the first room's, by room id.
    pub fn get(&self, key: &StickyKey) -> Option<Entry> {
        self.entries().find(|entry| {
            entry.event_type() == key.event_type
                && entry.sender() == key.sender
                && entry.sticky_key() == Some(&key.sticky_key)
        })
    }

    /// Returns the number of entries. If the view filters by type or sender, this counts them.
    pub fn len(&self) -> usize {
        if self.filter.only_rooms() {
            self.shown().map(|(_, shown)| shown.len).sum()
        } else {
            self.events().count()
        }
    }

    /// Returns whether there are no entries.
    pub fn is_empty(&self) -> bool {
        self.events().next().is_none()
    }

    /// Returns when the snapshot was taken. [`StickyEvent::expires_in`] asks for it.
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

    /// Returns the entries, in no order within a room.
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

impl Snapshot {
    /// Returns the users who have at least one entry, each once, in the order of their ids.
    pub fn senders(&self) -> Vec<&UserId> {
        let mut senders: Vec<_> = self.events().map(|(_, event)| event.sender()).collect();
        senders.sort_unstable();
        senders.dedup();
        senders
    }
}
