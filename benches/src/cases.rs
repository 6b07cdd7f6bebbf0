//! The state in which each row of the speed table begins.

use std::sync::Arc;

use matrix_sdk_sticky::{
    rtc::{Roster, RtcChange, RtcSnapshot},
    view::{Change, Delivery},
};
use serde_json::{Value, json, value::RawValue};

use crate::{
    SetClock, Watched,
    corpus::{self, HOUR_MS, Ids},
    watched::NOW_MS,
};

/// An event as a server sent it.
pub type Event = Box<RawValue>;

/// A room, and responses of one event each that are due.
#[derive(Debug)]
pub struct Due {
    watched: Watched,
    deliveries: Vec<Delivery>,
    changes: Vec<Option<Change>>,
}

impl Due {
    fn new(watched: Watched, events: impl IntoIterator<Item = Event>) -> Self {
        let deliveries = events.into_iter().map(|event| watched.delivery(event)).collect();
        Self { watched, deliveries, changes: Vec::with_capacity(EVENTS) }
    }

    /// Hands in the responses one after another. The subscriber looks after each.
    #[must_use]
    pub fn arrive(mut self) -> Self {
        for delivery in self.deliveries.drain(..) {
            self.changes.push(self.watched.arrives(delivery));
        }
        self
    }
}

/// How many events are due in each case. Why not one? The occasional work of the allocator would count
/// for it.
pub const EVENTS: usize = 10;

/// An event of a key, sent about this many milliseconds ago: no two people act at once.
fn event(key: usize, ago_ms: u64) -> Event {
    corpus::raw(&event_json(key, ago_ms))
}

fn event_json(key: usize, ago_ms: u64) -> Value {
    let ago_ms = ago_ms + key as u64 * 7 % 1_000;
    let mut ids = Ids::new(0x5eed ^ key as u64 ^ ago_ms);
    corpus::event(&mut ids, key, NOW_MS - ago_ms, HOUR_MS - ago_ms)
}

/// A leave as Element Call sends it.
fn leave(key: usize, ago_ms: u64) -> Event {
    let mut event = event_json(key, ago_ms);
    let content = &event["content"];
    let (slot_id, sticky_key) = (&content["slot_id"], &content["msc4354_sticky_key"]);
    event["content"] = json!({ "slot_id": slot_id, "msc4354_sticky_key": sticky_key });
    corpus::raw(&event)
}

/// Ten more join.
pub fn joins() -> Vec<Event> {
    (10..10 + EVENTS).map(|key| event(key, 1_000)).collect()
}

/// Ten keys of a room, far from each other, are refreshed.
fn refreshes(entries: usize, ago_ms: u64) -> Vec<Event> {
    (0..EVENTS).map(|number| event(number * entries / EVENTS, ago_ms)).collect()
}

/// Ten join a room of ten.
pub fn raw_to_map() -> Due {
    Due::new(Watched::room(10).0, joins())
}

/// Ten keys of a room are refreshed.
pub fn refreshed(entries: usize) -> Due {
    Due::new(Watched::room(entries).0, refreshes(entries, 1_000))
}

/// Ten keys have been refreshed when older events of theirs come.
pub fn superseded() -> Due {
    Due::new(refreshed(10).arrive().watched, refreshes(10, 3_000))
}

/// The refreshes of ten keys come a second time.
pub fn redelivered() -> Due {
    Due::new(refreshed(10).arrive().watched, refreshes(10, 1_000))
}

/// A crowd of entries, one of which ends in each millisecond from the next one on.
pub fn crowd(entries: usize) -> Crowd {
    let (mut watched, clock) = Watched::room(entries);
    clock.forward(HOUR_MS / 2 - 1);
    watched.advance();
    Crowd { watched, clock, changes: Vec::with_capacity(EVENTS) }
}

/// A room of many entries, and its clock.
#[derive(Debug)]
pub struct Crowd {
    watched: Watched,
    clock: Arc<SetClock>,
    changes: Vec<Option<Change>>,
}

impl Crowd {
    /// Runs the timer this often, each time this much later. The subscriber looks after each.
    #[must_use]
    pub fn advance(mut self, step_ms: u64) -> Self {
        for _ in 0..EVENTS {
            self.clock.forward(step_ms);
            self.changes.push(self.watched.advance());
        }
        self
    }
}

/// A MatrixRTC session, and what is due to change in it.
#[derive(Debug)]
pub struct Meeting {
    watched: Watched,
    roster: Roster,
    due: Vec<Change>,
    told: Vec<(Vec<RtcChange>, RtcSnapshot)>,
}

/// What members of a session do.
#[derive(Clone, Copy, Debug)]
pub enum Doing {
    /// Ten refresh their memberships.
    Refresh,
    /// Ten more join.
    Join,
    /// Ten leave.
    Leave,
}

/// A session of this many members, two devices of each user. Ten are about to do something.
pub fn meeting(members: usize, doing: Doing) -> Meeting {
    let mut watched = Watched::room(members).0;
    let now = watched.maps.now();
    let mut roster = Roster::new();
    roster.handle_encryption(false);
    roster.handle_snapshot(&watched.maps.view().snapshot());
    assert_eq!(roster.poll_changes(now).len(), members, "all have joined");
    let events = match doing {
        Doing::Refresh => refreshes(members, 1_000),
        Doing::Join => (members..members + EVENTS).map(|key| event(key, 1_000)).collect(),
        Doing::Leave => (0..EVENTS).map(|n| leave(n * members / EVENTS, 1_000)).collect(),
    };
    let deliveries: Vec<_> = events.into_iter().map(|event| watched.delivery(event)).collect();
    let due = deliveries.into_iter().filter_map(|delivery| watched.arrives(delivery)).collect();
    Meeting { watched, roster, due, told: Vec::with_capacity(EVENTS) }
}

impl Meeting {
    /// Hands in each change. After each, the subscriber keeps the session as it is then.
    #[must_use]
    pub fn goes_on(mut self) -> Self {
        let now = self.watched.maps.now();
        for change in self.due.drain(..) {
            self.roster.handle_change(&change);
            let changes = self.roster.poll_changes(now);
            self.told.push((changes, self.roster.snapshot(now)));
        }
        self
    }
}
