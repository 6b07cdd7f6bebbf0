//! All rooms' maps behind one lock, and who looks at them.

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

/// The ephemeral maps of all rooms. Cheap to clone; all clones are one.
///
/// This is the door for who drives their own sync, and the whole of the crate for who has no
/// matrix-sdk: hand in what arrives with [`handle`](Self::handle), look with
/// [`view`](Self::view), and wait with [`poll_next_deadline`](Self::poll_next_deadline).
#[derive(Clone)]
pub struct EphemeralMaps {
    shared: Arc<Shared>,
}

struct Shared {
    clock: Box<dyn Clock>,
    limits: Limits,
    state: Mutex<State>,
}

/// What is known of a room, for whoever wants to know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RoomStats {
    /// Events that are known: values, others, removals, redacted ones and those that wait.
    pub events: usize,
    /// Encrypted events that wait for their room key.
    pub pending_decryption: usize,
    /// Events that were dropped because their sender had used up [`Limits::per_sender`].
    pub dropped: u64,
}

impl EphemeralMaps {
    /// No rooms yet. Every reader looks at `clock` first, so that nothing that has ended is seen.
    pub fn new(clock: impl Clock + 'static, limits: Limits) -> Self {
        let state = Mutex::default();
        Self { shared: Arc::new(Shared { clock: Box::new(clock), limits, state }) }
    }

    /// A view of the entries of all rooms.
    pub fn view(&self) -> View {
        View::new(self.clone())
    }

    /// The moment now, on the clock that the entries end by.
    pub fn now(&self) -> Moment {
        self.shared.clock.now()
    }

    /// Takes what one response brought, for all its rooms: subscribers are told its net effect as
    /// one change. A malformed event is dropped alone and logged with its event id: the first of a
    /// sender in a room is a warning, and after an hour the next.
    pub fn handle(&self, deliveries: impl IntoIterator<Item = Delivery>) {
        // Before the lock: the iterator is the caller's, and may look at the maps.
        self.take(deliveries.into_iter().collect());
    }

    /// As [`handle`](Self::handle). How many events were not known before.
    pub(crate) fn take(&self, deliveries: SmallVec<[Delivery; 2]>) -> usize {
        let mut kept = 0;
        let mut state = self.lock();
        let now = self.now();
        // What has ended takes no place from what comes.
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

    /// Takes the news that we are not in a room any more: its entries leave, for that reason.
    pub fn handle_left(&self, room_id: &RoomId) {
        let mut state = self.lock();
        let now = self.now();
        // What was over before has expired, and did not leave with the room.
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

    /// Takes the whole list of ignored users. Their entries leave all views at once, and are back
    /// when they are not ignored any more and still live.
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

    /// Drops what has ended by now, and tells the subscribers.
    pub fn advance(&self) {
        let mut state = self.lock();
        let now = self.now();
        state.advance(now);
        state.set_timer();
    }

    /// When [`advance`](Self::advance) has something to do next.
    pub fn next_deadline(&self) -> Option<Deadline> {
        self.lock().next_deadline()
    }

    /// [`next_deadline`](Self::next_deadline), once it is another than `known`. For one waiter: the
    /// shell's timer.
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

    /// What is known of a room.
    pub fn stats(&self, room_id: &RoomId) -> RoomStats {
        self.lock().rooms.get(room_id).map_or_else(RoomStats::default, |room| RoomStats {
            events: room.map.known(),
            pending_decryption: room.map.pending_len(),
            dropped: room.map.dropped(),
        })
    }

    /// The rooms of which something is known.
    pub fn rooms(&self) -> Vec<OwnedRoomId> {
        self.lock().rooms.keys().map(|room_id| (**room_id).to_owned()).collect()
    }

    /// The encrypted events of a room that wait for the key of this session; all that wait, for
    /// `None`.
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

    /// Has nothing be visible of these rooms, unless something is already, until
    /// [`reveal`](Self::reveal) is called. What arrives is kept, and ends as it would.
    #[cfg(feature = "client")]
    pub(crate) fn hide(&self, rooms: Vec<OwnedRoomId>) {
        let mut state = self.lock();
        let State { hidden, rooms: known, .. } = &mut *state;
        hidden.extend(rooms.into_iter().filter(|room_id| !known.contains_key::<RoomId>(room_id)));
    }

    /// Has what is known of this room be visible.
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

    /// The rooms that are hidden.
    #[cfg(feature = "client")]
    pub(crate) fn hidden(&self) -> Vec<OwnedRoomId> {
        self.lock().hidden.iter().cloned().collect()
    }

    /// The events of which it was not known yet who encrypted them, with their sessions.
    #[cfg(feature = "e2e-encryption")]
    pub(crate) fn unproven(&self) -> Vec<(OwnedRoomId, Unproven)> {
        let state = self.lock();
        let rooms = state.rooms.iter().filter(|(_, room)| room.map.unproven_len() > 0);
        rooms.map(|(room_id, room)| ((**room_id).to_owned(), room.map.unproven())).collect()
    }

    /// How many they are.
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
        // Outside the lock: its waker may hold a task, and that task another subscription.
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

    /// A panic of another thread while it held the lock would be a bug of ours; what it left is
    /// still the best that there is.
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
        // The log has a warning of this sender already, and one member could fill it.
        Err(malformed) => debug!(%room_id, "dropped a {malformed}"),
        Ok(Admission::Full { first: true }) => warn!(
            %room_id,
            "a sender has {} sticky events here, which is the most that is kept; \
             dropping further ones",
            limits.per_sender
        ),
        Ok(_) => {}
    }
}
