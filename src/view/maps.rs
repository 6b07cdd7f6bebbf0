//! All rooms' maps behind one lock: the door for an application that drives its own sync.
//!
//! In: [`Delivery`]s, the list of ignored users, rooms that were left. Out: [`View`]s, and the next
//! deadline. Never: I/O, a task, a timer.

use std::{
    borrow::Cow,
    collections::HashSet,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, Waker},
};

use ruma::{OwnedRoomId, OwnedUserId, RoomId};
use serde_json::value::RawValue;
use smallvec::SmallVec;
use tracing::{debug, warn};

use super::{
    View,
    changes::Change,
    delivery::{Arrival, Delivery},
    filter::Filter,
    snapshot::{Entry, Snapshot},
    state::{Locked, Room, State, SubscriberId, Woken},
    subscriber::Subscriber,
};
use crate::{
    event::{SharedRoom, StickyEvent, StickyKey},
    map::{Admission, EphemeralMap, Limits, ReceivedVia},
    time::{Clock, Deadline, Moment},
    wire::{self, Malformed},
};

/// Events of a room with the ids of their sessions.
#[cfg(feature = "e2e-encryption")]
pub(crate) type Unproven = Vec<(Arc<StickyEvent>, Box<str>)>;

/// The ephemeral maps of all rooms. They are cheap to clone, and all clones are one.
///
/// You need this if you drive your own sync. Without the feature `client`, it is the whole door of
/// the crate:
/// 1. Cut up each response, with [`wire::read_sliding`](crate::wire::read_sliding) or
///    [`wire::read_v3`](crate::wire::read_v3).
/// 2. Decrypt the events that [`needs_decryption`](Self::needs_decryption) names.
/// 3. Hand them in with [`handle`](Self::handle).
/// 4. Hand in the rest: [`handle_left`](Self::handle_left) when you leave a room,
///    [`handle_ignored`](Self::handle_ignored) when the list changes, and the events of
///    [`pending_decryption`](Self::pending_decryption) when their room key comes.
/// 5. Call [`advance`](Self::advance) at each [`next_deadline`](Self::next_deadline).
///
/// # Examples
///
/// ```
/// use std::time::Duration;
///
/// use matrix_sdk_sticky::{
///     map::{Limits, ReceivedVia},
///     time::{Clock, Moment},
///     view::{Arrival, Delivery, EphemeralMaps},
///     wire,
/// };
///
/// #[derive(Debug)]
/// struct MyClock;
///
/// impl Clock for MyClock {
///     fn now(&self) -> Moment {
///         // The time since boot, suspended time included, and the time since the Unix epoch.
///         Moment::new(Duration::from_secs(100), Duration::from_secs(1_700_000_000))
///     }
/// }
///
/// let maps = EphemeralMaps::new(MyClock, Limits::default());
/// let body = br#"{"next_batch":"s1","rooms":{"join":{"!room:example.org":{
///     "msc4354_sticky":{"events":[{
///         "event_id":"$e","sender":"@alice:example.org","type":"com.example.presence",
///         "origin_server_ts":1700000000000,"msc4354_sticky":{"duration_ms":60000},
///         "content":{"msc4354_sticky_key":"laptop","status":"busy"}
///     }]}
/// }}}}"#;
///
/// let received = maps.now();
/// let response = wire::read_v3(body)?;
/// maps.handle(response.sections.into_iter().map(|(room_id, events)| Delivery {
///     room_id,
///     received,
///     via: ReceivedVia::Section,
///     arrivals: events.into_iter().map(|event| Arrival::Event(event.to_owned())).collect(),
/// }));
///
/// let snapshot = maps.view().snapshot();
/// assert_eq!(snapshot.len(), 1);
/// assert_eq!(maps.next_deadline(), Some(received.deadline(Duration::from_secs(60))));
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone)]
pub struct EphemeralMaps {
    shared: Arc<Shared>,
}

struct Shared {
    clock: Box<dyn Clock>,
    limits: Limits,
    state: Mutex<State>,
}

/// How much the map of a room keeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RoomStats {
    /// The number of known events: values, others of their keys, removals, redacted events, and
    /// events that miss their room key.
    pub events: usize,
    /// The number of encrypted events that miss their room key.
    pub pending_decryption: usize,
    /// The number of events that were dropped because their sender's quota was full. See
    /// [`Limits::max_events_per_sender`].
    pub dropped: u64,
}

impl EphemeralMaps {
    /// Makes the maps, with no rooms yet. Every reader looks at `clock` first, so that nobody sees an
    /// expired entry.
    pub fn new(clock: impl Clock + 'static, limits: Limits) -> Self {
        let state = Mutex::default();
        Self { shared: Arc::new(Shared { clock: Box::new(clock), limits, state }) }
    }

    /// Returns a view of the entries of all rooms.
    pub fn view(&self) -> View {
        View::new(self.clone())
    }

    /// Returns the moment now, on the clock by which the entries end.
    pub fn now(&self) -> Moment {
        self.shared.clock.now()
    }

    /// Takes what one response brought, for all its rooms. Each subscriber gets the net effect as one
    /// change.
    ///
    /// A malformed event is dropped alone and logged with its event id. The first one of a sender in a
    /// room within an hour is a warning; the others are logged at debug level.
    pub fn handle(&self, deliveries: impl IntoIterator<Item = Delivery>) {
        // Before the lock: the iterator is the caller's, and may look at the maps.
        self.take(deliveries.into_iter().collect());
    }

    /// As [`handle`](Self::handle). Returns the number of events that were not known before.
    pub(crate) fn take(&self, deliveries: SmallVec<[Delivery; 2]>) -> usize {
        let mut kept = 0;
        let mut state = self.lock();
        let now = self.now();
        // First drop what has ended, so that it takes no quota from what comes.
        state.advance(now);
        let mut rooms = SmallVec::<[_; 1]>::new();
        for delivery in deliveries {
            let Delivery { room_id, received, via, arrivals } = delivery;
            if arrivals.is_empty() {
                continue;
            }
            let State { rooms: known, ignored, .. } = &mut *state;
            let (room_id, room) = match known.get_key_value_mut::<RoomId>(&room_id) {
                Some((room_id, room)) => (room_id.clone(), room),
                None => {
                    let mut map = EphemeralMap::new(self.shared.limits);
                    map.handle_ignored(ignored.clone());
                    let room_id = SharedRoom::from(room_id);
                    let room =
                        known.entry(room_id.clone()).insert(Room { map, unproven: 0, noted: None });
                    (room_id, room.into_mut())
                }
            };
            for arrival in arrivals {
                let admission = arrive(&mut room.map, received, via, arrival);
                kept += usize::from(admission == Ok(Admission::Kept));
                let warns = admission.is_err() && room.map.poll_warning();
                log(&room_id, &self.shared.limits, &admission, warns);
            }
            rooms.push(room_id);
        }
        for room_id in rooms {
            state.settle(&room_id, now);
        }
        state.set_timer();
        kept
    }

    /// Takes the news that we are not in a room any more. Its entries leave with
    /// [`RemovalReason::RoomLeft`](crate::RemovalReason::RoomLeft), and the map forgets them.
    pub fn handle_left(&self, room_id: &RoomId) {
        let mut state = self.lock();
        let now = self.now();
        // What ended before has expired. It did not leave with the room.
        state.advance(now);
        state.hidden.remove(room_id);
        let Some((room_id, mut room)) = state.rooms.remove_entry(room_id) else {
            return;
        };
        state.unproven -= room.unproven;
        if let Some(noted) = room.noted {
            state.deadlines.remove(&(noted, room_id.clone()));
        }
        state.tell(&room_id, &room.map.handle_left());
        state.set_timer();
    }

    /// Takes the whole list of ignored users. Their entries leave all views at once. When a user is
    /// not ignored any more, those of their entries that are still live are added again.
    pub fn handle_ignored(&self, ignored: HashSet<OwnedUserId>) {
        let mut state = self.lock();
        let now = self.now();
        state.ignored = Arc::new(ignored);
        let ignored = state.ignored.clone();
        for room in state.rooms.values_mut() {
            room.map.handle_ignored(ignored.clone());
        }
        let rooms: Vec<_> = state.rooms.keys().cloned().collect();
        for room_id in rooms {
            state.settle(&room_id, now);
        }
        state.set_timer();
    }

    /// Drops what has ended by now, and notifies the subscribers. Call it at each
    /// [`next_deadline`](Self::next_deadline). A late call shows nobody an expired entry; it only
    /// delays the notification.
    pub fn advance(&self) {
        let mut state = self.lock();
        let now = self.now();
        state.advance(now);
        state.set_timer();
    }

    /// Returns when [`advance`](Self::advance) has something to do next; `None` if nothing ends.
    pub fn next_deadline(&self) -> Option<Deadline> {
        self.lock().next_deadline()
    }

    /// Waits until [`next_deadline`](Self::next_deadline) is another than `known`, and returns it.
    ///
    /// This is for the one timer that drives the maps: there is room for one waker, and a second waiter
    /// replaces the first.
    pub fn poll_next_deadline(
        &self,
        cx: &mut Context<'_>,
        known: Option<Deadline>,
    ) -> Poll<Option<Deadline>> {
        let waker = cx.waker().clone();
        let mut state = self.lock();
        let next = state.next_deadline();
        if next != known {
            return Poll::Ready(next);
        }
        let before = state.timer.replace((waker, known));
        drop(state);
        // Outside the lock, as in `poll_change`.
        drop(before);
        Poll::Pending
    }

    /// Returns how much the map of a room keeps.
    pub fn stats(&self, room_id: &RoomId) -> RoomStats {
        self.lock().rooms.get(room_id).map_or_else(RoomStats::default, |room| RoomStats {
            events: room.map.known(),
            pending_decryption: room.map.pending_len(),
            dropped: room.map.dropped(),
        })
    }

    /// Returns the rooms whose map keeps anything.
    pub fn rooms(&self) -> Vec<OwnedRoomId> {
        self.lock().rooms.keys().map(|room_id| (**room_id).to_owned()).collect()
    }

    /// Returns the encrypted events of a room that miss the key of this Megolm session; with `None`,
    /// those that miss any key.
    ///
    /// When a room key comes, decrypt them and hand them in as [`Arrival::Decrypted`].
    pub fn pending_decryption(
        &self,
        room_id: &RoomId,
        session_id: Option<&str>,
    ) -> Vec<Arc<StickyEvent>> {
        let state = self.lock();
        state.rooms.get(room_id).map(|room| room.map.pending(session_id)).unwrap_or_default()
    }

    /// Returns for each event of a response whether decryption can tell something new about it, in
    /// the order of the events. It takes one lock for all of them.
    ///
    /// It is `false` for an event in the clear, and for an encrypted one that is known already, that
    /// is over, or that the map would drop because its sender's quota is full. Decrypt the others,
    /// and hand them in as [`Arrival::Decrypted`], or as [`Arrival::Event`] if their room key is
    /// missing. Hand in the rest as [`Arrival::Event`].
    pub fn needs_decryption<'a>(
        &self,
        events: impl IntoIterator<Item = (&'a RoomId, &'a RawValue)>,
    ) -> Vec<bool> {
        // Before the lock: an event of 64 KiB takes its time to be read.
        let encrypted: Vec<_> = events
            .into_iter()
            .map(|(room_id, event)| wire::encrypted_event(event).map(|event| (room_id, event)))
            .collect();
        if encrypted.iter().all(Option::is_none) {
            return vec![false; encrypted.len()];
        }
        let state = self.lock();
        let needs = |(room_id, (event_id, sender)): &(&RoomId, (Cow<'_, _>, Cow<'_, _>))| {
            let room = state.rooms.get::<RoomId>(room_id);
            room.is_none_or(|room| room.map.needs_decryption(event_id, sender))
        };
        encrypted.iter().map(|event| event.as_ref().is_some_and(needs)).collect()
    }

    /// Hides these rooms until [`reveal`](Self::reveal) is called; a room of which something is known
    /// already stays visible. A hidden room's map keeps what arrives, and drops it at its end.
    #[cfg(feature = "client")]
    pub(crate) fn hide(&self, rooms: Vec<OwnedRoomId>) {
        let mut state = self.lock();
        let State { hidden, rooms: known, .. } = &mut *state;
        hidden.extend(rooms.into_iter().filter(|room_id| !known.contains_key::<RoomId>(room_id)));
    }

    /// Makes a hidden room visible.
    #[cfg(feature = "client")]
    pub(crate) fn reveal(&self, room_id: &RoomId) {
        let mut state = self.lock();
        if !state.hidden.remove(room_id) {
            return;
        }
        let now = self.now();
        state.advance(now);
        let room_id =
            state.rooms.get_key_value::<RoomId>(room_id).map(|(room_id, _)| room_id.clone());
        if let Some(room_id) = room_id {
            state.settle(&room_id, now);
        }
        state.set_timer();
    }

    /// Returns the hidden rooms.
    #[cfg(feature = "client")]
    pub(crate) fn hidden(&self) -> Vec<OwnedRoomId> {
        self.lock().hidden.iter().cloned().collect()
    }

    /// Returns the events whose encrypting device is not proven yet, with their sessions.
    #[cfg(feature = "e2e-encryption")]
    pub(crate) fn unproven(&self) -> Vec<(OwnedRoomId, Unproven)> {
        let state = self.lock();
        let rooms = state.rooms.iter().filter(|(_, room)| room.map.unproven_len() > 0);
        rooms.map(|(room_id, room)| ((**room_id).to_owned(), room.map.unproven())).collect()
    }

    /// Returns the number of [`unproven`](Self::unproven) events.
    #[cfg(feature = "e2e-encryption")]
    pub(crate) fn unproven_len(&self) -> usize {
        self.lock().unproven
    }

    pub(super) fn snapshot(&self, filter: &Filter) -> Snapshot {
        let mut state = self.lock();
        let now = self.now();
        state.advance(now);
        state.snapshot(filter, now)
    }

    pub(super) fn get(&self, filter: &Filter, key: &StickyKey) -> Option<Entry> {
        let mut state = self.lock();
        let now = self.now();
        state.advance(now);
        let State { rooms, visible, .. } = &mut *state;
        visible.keys().filter(|room_id| filter.lets_room_through(room_id)).find_map(|room_id| {
            let event = rooms.get_mut(room_id)?.map.get(now, key)?;
            filter
                .lets_event_through(event)
                .then(|| Entry { room_id: room_id.clone(), event: event.clone() })
        })
    }

    pub(super) fn subscribe(&self, filter: &Filter) -> (Snapshot, SubscriberId) {
        let mut state = self.lock();
        let now = self.now();
        state.advance(now);
        let id = SubscriberId(state.next_subscriber);
        state.next_subscriber += 1;
        state.subscribers.insert(id, Subscriber::new(filter.clone()));
        (state.snapshot(filter, now), id)
    }

    pub(super) fn unsubscribe(&self, id: SubscriberId) {
        let gone = self.lock().subscribers.remove(&id);
        // Dropped outside the lock: its waker may hold a task, and that task another subscription.
        drop(gone);
    }

    #[cfg(test)]
    pub(super) fn subscribers(&self) -> usize {
        self.lock().subscribers.len()
    }

    pub(super) fn poll_change(&self, id: SubscriberId, waker: Option<&Waker>) -> Option<Change> {
        // Dropped after the lock: a waker may hold a task, and that task another subscription.
        let mut waker = waker.cloned();
        let mut state = self.lock();
        let now = self.now();
        state.advance(now);
        state.subscribers.get_mut(&id)?.poll_change(now, &mut waker)
    }

    /// Takes the lock, also after another thread panicked while it held it. Such a panic would be a
    /// bug of ours, and what that thread left is still the best that there is.
    fn lock(&self) -> Locked<'_> {
        let state = self.shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        Locked { state, woken: Woken::default() }
    }
}

impl fmt::Debug for EphemeralMaps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EphemeralMaps")
            .field("rooms", &self.lock().rooms.len())
            .finish_non_exhaustive()
    }
}

fn arrive(
    map: &mut EphemeralMap,
    received: Moment,
    via: ReceivedVia,
    arrival: Arrival,
) -> Result<Admission, Malformed> {
    match arrival {
        Arrival::Event(text) => map.handle_event(received, via, text),
        Arrival::Decrypted { outer, clear, encryption } => {
            map.handle_decrypted(received, via, &outer, clear, encryption)
        }
        Arrival::Redaction(event_id) => {
            map.handle_redaction(received, &event_id);
            Ok(Admission::Repeated)
        }
        Arrival::Encryption { event_id, encryption } => {
            map.handle_encryption(&event_id, encryption);
            Ok(Admission::Repeated)
        }
    }
}

fn log(room_id: &RoomId, limits: &Limits, admission: &Result<Admission, Malformed>, warns: bool) {
    match admission {
        Err(malformed) if warns => warn!(%room_id, "dropped a {malformed}"),
        // The log has a warning about this sender already, and one member could fill the log.
        Err(malformed) => debug!(%room_id, "dropped a {malformed}"),
        Ok(Admission::Full { first: true }) => warn!(
            %room_id,
            "a sender has {} sticky events here, which is the most that is kept; \
             dropping further ones",
            limits.max_events_per_sender
        ),
        Ok(_) => {}
    }
}
