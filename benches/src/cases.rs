//! What each row of the speed table begins with.

use std::sync::Arc;

use matrix_sdk_sticky::view::Delivery;
use serde_json::value::RawValue;

use crate::{
    SetClock, Watched,
    corpus::{self, HOUR_MS, Ids},
    watched::NOW_MS,
};

/// An event as it came.
pub type Event = Box<RawValue>;

/// An event of a key, sent so many milliseconds ago.
pub fn event(key: usize, ago_ms: u64) -> Event {
    let mut ids = Ids::new(0x5eed ^ key as u64 ^ ago_ms);
    corpus::raw(&corpus::event(&mut ids, key, NOW_MS - ago_ms, HOUR_MS - ago_ms))
}

fn due(watched: Watched, event: Event) -> (Watched, Delivery) {
    let delivery = watched.delivery(event);
    (watched, delivery)
}

/// Key 10 joins.
pub fn join() -> Event {
    event(10, 1_000)
}

/// A room of ten in which key 10 is new.
pub fn joins() -> (Watched, Delivery) {
    due(Watched::room(10).0, join())
}

/// A room of which key 5 is refreshed.
pub fn refreshed(entries: usize) -> (Watched, Delivery) {
    due(Watched::room(entries).0, event(5, 1_000))
}

/// Key 5's refresh is there when an older event comes.
pub fn superseded() -> (Watched, Delivery) {
    let (mut watched, refresh) = refreshed(10);
    watched.arrives(refresh);
    due(watched, event(5, 2_000))
}

/// Key 5's refresh comes a second time.
pub fn redelivered() -> (Watched, Delivery) {
    let (mut watched, refresh) = refreshed(10);
    watched.arrives(refresh);
    due(watched, event(5, 1_000))
}

/// A crowd of which one ends each millisecond, after so many of them.
pub fn crowd(entries: usize, forward_ms: u64) -> (Watched, Arc<SetClock>) {
    let (mut watched, clock) = Watched::room(entries);
    clock.forward(HOUR_MS / 2 - 1);
    watched.advance();
    clock.forward(forward_ms);
    (watched, clock)
}
