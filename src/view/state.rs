//! What the lock of [`EphemeralMaps`](super::EphemeralMaps) guards.
//!
//! In: rooms that may have changed, and the moment. Out: the visible entries, and the wakers of those
//! to notify. Never: a waker that is woken or dropped under the lock.

use std::{
    collections::{BTreeSet, HashSet},
    ops::{Deref, DerefMut},
    sync::{Arc, MutexGuard},
    task::Waker,
};

use hashbrown::HashMap;
use ruma::{OwnedRoomId, OwnedUserId, RoomId};
use smallvec::SmallVec;

use super::{
    filter::Filter,
    snapshot::{Rooms, Shown, Snapshot},
    subscriber::Subscriber,
};
use crate::{
    event::SharedRoom,
    map::{Delta, EphemeralMap},
    time::{Deadline, Moment},
};

#[derive(Default)]
pub(super) struct State {
    /// The rooms whose map keeps anything. A room without sticky events costs nothing.
    pub(super) rooms: HashMap<SharedRoom, Room>,
    /// The rooms of which nothing is visible yet, because nobody has said that we are in them.
    pub(super) hidden: HashSet<OwnedRoomId>,
    /// The visible entries.
    pub(super) visible: Rooms,
    /// When each room's map has something to do next.
    pub(super) deadlines: BTreeSet<(Deadline, SharedRoom)>,
    /// The number of events, over all rooms, whose encrypting device is not proven yet.
    pub(super) unproven: usize,
    pub(super) subscribers: HashMap<SubscriberId, Subscriber>,
    pub(super) next_subscriber: u64,
    pub(super) ignored: Arc<HashSet<OwnedUserId>>,
    /// The waker of the timer, and the deadline that the timer knows of.
    pub(super) timer: Option<(Waker, Option<Deadline>)>,
    /// The wakers to wake when the lock is free again.
    pub(super) woken: Woken,
}

pub(super) struct Room {
    pub(super) map: EphemeralMap,
    /// The number of its events that count in [`State::unproven`].
    pub(super) unproven: usize,
    /// The deadline that stands in [`State::deadlines`].
    pub(super) noted: Option<Deadline>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct SubscriberId(pub(super) u64);

/// The locked state. It wakes the wakers once the lock is free again, because some executors poll at
/// once, on the same thread.
pub(super) struct Locked<'a> {
    // In this order: fields are dropped in the order of their declaration.
    pub(super) state: MutexGuard<'a, State>,
    pub(super) woken: Woken,
}

/// Wakers that are woken when this is dropped.
#[derive(Default)]
pub(super) struct Woken(Vec<Waker>);

impl Deref for Locked<'_> {
    type Target = State;

    fn deref(&self) -> &State {
        &self.state
    }
}

impl DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut State {
        &mut self.state
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        if !self.state.woken.0.is_empty() {
            self.woken = std::mem::take(&mut self.state.woken);
        }
    }
}

impl Drop for Woken {
    fn drop(&mut self) {
        // Nearly always nobody.
        if !self.0.is_empty() {
            std::mem::take(&mut self.0).into_iter().for_each(Waker::wake);
        }
    }
}

impl State {
    /// Notifies the subscribers of what changed in a room, and notes when the room has something to do
    /// next.
    pub(super) fn settle(&mut self, room_id: &SharedRoom, now: Moment) {
        let Some(room) = self.rooms.get_mut(room_id) else {
            return;
        };
        let is_hidden = !self.hidden.is_empty() && self.hidden.contains::<RoomId>(room_id);
        let deltas = if is_hidden {
            room.map.advance(now);
            SmallVec::new()
        } else {
            room.map.poll_changes(now)
        };
        let next = room.map.next_deadline();
        let noted = std::mem::replace(&mut room.noted, next);
        let unproven = room.map.unproven_len();
        self.unproven = self.unproven + unproven - std::mem::replace(&mut room.unproven, unproven);
        if room.map.is_empty() {
            self.rooms.remove(room_id);
            if is_hidden {
                self.hidden.remove::<RoomId>(room_id);
            }
        }
        if noted != next {
            if let Some(noted) = noted {
                self.deadlines.remove(&(noted, room_id.clone()));
            }
            if let Some(next) = next {
                self.deadlines.insert((next, room_id.clone()));
            }
        }
        self.tell(room_id, &deltas);
    }

    pub(super) fn advance(&mut self, now: Moment) {
        while let Some((deadline, room_id)) = self.deadlines.first()
            && deadline.is_over(now)
        {
            let room_id = room_id.clone();
            self.settle(&room_id, now);
        }
    }

    /// Makes a room's changes visible, and notifies the subscribers.
    pub(super) fn tell(&mut self, room_id: &SharedRoom, deltas: &[Delta]) {
        if deltas.is_empty() {
            return;
        }
        if !self.visible.contains_key(room_id) {
            self.visible.insert(room_id.clone(), Shown::default());
        }
        if let Some(shown) = self.visible.get_mut(room_id) {
            deltas.iter().for_each(|delta| shown.handle_delta(delta));
            if shown.is_empty() {
                self.visible.remove(room_id);
            }
        }
        for subscriber in self.subscribers.values_mut() {
            self.woken.0.extend(subscriber.handle_deltas(room_id, deltas));
        }
    }

    pub(super) fn snapshot(&self, filter: &Filter, now: Moment) -> Snapshot {
        Snapshot::new(self.visible.clone(), filter.clone(), now)
    }

    pub(super) fn next_deadline(&self) -> Option<Deadline> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    pub(super) fn set_timer(&mut self) {
        if self.timer.as_ref().is_some_and(|(_, known)| *known != self.next_deadline())
            && let Some((waker, _)) = self.timer.take()
        {
            self.woken.0.push(waker);
        }
    }
}
