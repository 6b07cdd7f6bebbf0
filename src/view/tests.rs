#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod decryption;
mod departures;
mod handles;
mod streams;
mod views;

use std::{
    collections::HashSet,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll, Wake, Waker},
};

use eyeball_im::VectorDiff;
use futures_core::Stream;
use ruma::{EventId, OwnedRoomId, RoomId, UserId, room_id};
use serde_json::json;

use super::*;
use crate::{
    event::{Encryption, RemovalReason, StickyKey},
    map::{Limits, ReceivedVia},
    testing::{ALICE, BOB, EventJson, ManualClock, debug, event, raw, secs},
    time::{Clock, Deadline},
};

fn room() -> &'static RoomId {
    room_id!("!one:hs")
}

fn other_room() -> &'static RoomId {
    room_id!("!two:hs")
}

/// The maps, and the clock that they read.
struct World {
    clock: ManualClock,
    maps: EphemeralMaps,
}

impl World {
    fn new() -> Self {
        Self::with_limits(Limits::default())
    }

    fn with_limits(limits: Limits) -> Self {
        let clock = ManualClock::new();
        Self { maps: EphemeralMaps::new(clock.clone(), limits), clock }
    }

    /// One response with these events of the first room.
    fn receive(&self, events: &[EventJson]) {
        self.receive_in(&[(room(), events)]);
    }

    /// One response with these events of these rooms.
    fn receive_in(&self, rooms: &[(&RoomId, &[EventJson])]) {
        self.maps.handle(rooms.iter().map(|(room_id, events)| {
            let arrivals = events.iter().map(|event| Arrival::Event(event.raw())).collect();
            self.delivery(room_id, arrivals)
        }));
    }

    fn redact(&self, event_id: &str) {
        let redaction = Arrival::Redaction(EventId::parse(event_id).unwrap());
        self.maps.handle([self.delivery(room(), vec![redaction])]);
    }

    fn delivery(&self, room_id: &RoomId, arrivals: Vec<Arrival>) -> Delivery {
        let received = self.clock.now();
        Delivery { room_id: room_id.to_owned(), received, via: ReceivedVia::Section, arrivals }
    }

    fn ignore(&self, senders: &[&str]) {
        let ignored: HashSet<_> =
            senders.iter().map(|sender| UserId::parse(sender).unwrap()).collect();
        self.maps.handle_ignored(ignored);
    }

    fn seen(&self) -> Vec<String> {
        ids(self.maps.view().snapshot().iter())
    }
}

fn ids(entries: impl IntoIterator<Item = Entry>) -> Vec<String> {
    entries.into_iter().map(|entry| entry.event_id().to_string()).collect()
}

/// A change in words: `+$new`, `$old>$new`, `-$old reason`.
fn told(change: Option<Change>) -> Vec<String> {
    let Some(change) = change else {
        return Vec::new();
    };
    assert!(!change.entries.is_empty(), "a change is never empty");
    change
        .entries
        .iter()
        .map(|entry| match entry {
            EntryChange::Added(entry) => format!("+{}", entry.event_id()),
            EntryChange::Updated { entry, previous } => {
                format!("{}>{}", previous.event_id(), entry.event_id())
            }
            EntryChange::Removed { entry, reason } => {
                format!("-{} {}", entry.event_id(), reason.as_str())
            }
        })
        .collect()
}

fn key(sticky_key: &str) -> StickyKey {
    StickyKey::new(UserId::parse(ALICE).unwrap(), "com.example.t", sticky_key)
}

/// A waker that counts.
#[derive(Default)]
struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

/// A task that polls when it is told to.
#[derive(Default)]
struct Task(Arc<Wakes>);

impl Task {
    fn poll<S: Stream + Unpin>(&self, stream: &mut S) -> Poll<Option<S::Item>> {
        let waker = Waker::from(self.0.clone());
        Pin::new(stream).poll_next(&mut Context::from_waker(&waker))
    }

    /// Returns what the stream has at once.
    fn ready<S: Stream + Unpin>(&self, stream: &mut S) -> S::Item {
        match self.poll(stream) {
            Poll::Ready(Some(item)) => item,
            Poll::Ready(None) => panic!("the stream ended"),
            Poll::Pending => panic!("nothing was told"),
        }
    }

    fn poll_next_deadline(
        &self,
        maps: &EphemeralMaps,
        known: Option<Deadline>,
    ) -> Poll<Option<Deadline>> {
        let waker = Waker::from(self.0.clone());
        maps.poll_next_deadline(&mut Context::from_waker(&waker), known)
    }

    fn wakes(&self) -> usize {
        self.0.0.load(SeqCst)
    }
}

#[derive(Debug, PartialEq, serde::Deserialize)]
struct Status {
    status: String,
}

impl StickyContent for Status {
    const TYPE: &str = "com.example.status";
}

fn status(event_id: &str, status: serde_json::Value) -> EventJson {
    event(event_id).of_type(Status::TYPE).with("/content/status", status)
}
