//! The maps, with one subscriber that takes each change.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use matrix_sdk_sticky::{
    map::{Limits, ReceivedVia},
    time::{Clock, Moment},
    view::{Arrival, Change, Changes, Delivery, EphemeralMaps, Subscription},
};
use ruma::{OwnedRoomId, RoomId};
use serde_json::value::RawValue;

use crate::corpus::{self, HOUR_MS, Ids, ROOM};

/// When the events of a [`Watched::room`] were sent and received.
pub const NOW_MS: u64 = 1_790_000_000_000;

/// The maps, with one subscriber.
#[derive(Debug)]
pub struct Watched {
    /// The maps.
    pub maps: EphemeralMaps,
    changes: Changes,
}

impl Watched {
    /// Maps without a room.
    pub fn new(clock: impl Clock + 'static) -> Self {
        let maps = EphemeralMaps::new(clock, Limits::default());
        let Subscription { changes, .. } = maps.view().subscribe();
        Self { maps, changes }
    }

    /// Makes one room of this many entries. One ends in each millisecond, in the order of their keys.
    pub fn room(entries: usize) -> (Self, Arc<SetClock>) {
        let clock = Arc::new(SetClock::new(NOW_MS));
        let mut watched = Self::new(clock.clone());
        let mut ids = Ids::new(0);
        for key in 0..entries {
            let left = HOUR_MS / 2 + key as u64;
            let sent = NOW_MS - HOUR_MS + left;
            let event = corpus::raw(&corpus::event(&mut ids, key, sent, left));
            watched.arrives(watched.delivery(event));
        }
        (watched, clock)
    }

    /// One event as it comes over sync.
    pub fn delivery(&self, event: Box<RawValue>) -> Delivery {
        let received = self.maps.now();
        let arrivals = vec![Arrival::Event(event)];
        Delivery { room_id: room_id(), received, via: ReceivedVia::Section, arrivals }
    }

    /// Hands in a response. The subscriber takes the change.
    pub fn arrives(&mut self, delivery: Delivery) -> Option<Change> {
        self.maps.handle([delivery]);
        self.look()
    }

    /// Does what the timer does. The subscriber takes the change.
    pub fn advance(&mut self) -> Option<Change> {
        self.maps.advance();
        self.look()
    }

    /// Takes the subscriber's change.
    pub fn look(&mut self) -> Option<Change> {
        self.changes.next_now()
    }
}

#[allow(clippy::expect_used, reason = "a constant")]
fn room_id() -> OwnedRoomId {
    RoomId::parse(ROOM).expect("a room id")
}

/// A clock that stands still until it is moved.
#[derive(Debug)]
pub struct SetClock(AtomicU64);

impl SetClock {
    /// Sets the clock, in milliseconds since the Unix epoch.
    pub fn new(unix_ms: u64) -> Self {
        Self(AtomicU64::new(unix_ms))
    }

    /// Moves the clock forward.
    pub fn forward(&self, milliseconds: u64) {
        self.0.fetch_add(milliseconds, Ordering::Relaxed);
    }
}

impl Clock for SetClock {
    fn now(&self) -> Moment {
        let now = Duration::from_millis(self.0.load(Ordering::Relaxed));
        Moment::new(now, now)
    }
}
