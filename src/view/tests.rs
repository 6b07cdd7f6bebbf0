#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

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

    /// What the stream has at once.
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

// Snapshot and stream.

#[test]
fn a_snapshot_and_its_stream_are_one_value() {
    let world = World::new();
    world.receive(&[event("$a").key("a")]);
    let mut subscription = world.maps.view().subscribe();
    world.receive(&[event("$b").key("b")]);
    assert_eq!(ids(subscription.snapshot.iter()), ["$a"]);
    assert_eq!(
        told(subscription.changes.next_now()),
        ["+$b"],
        "what came before is not told again"
    );
}

#[test]
fn a_snapshot_does_not_change_while_the_map_goes_on() {
    let world = World::new();
    world.receive(&[event("$a")]);
    let snapshot = world.maps.view().snapshot();
    world.receive(&[event("$b").sent(1), event("$c").key("c")]);
    world.clock.jump(secs(3_600));
    world.maps.advance();
    assert_eq!(ids(snapshot.iter()), ["$a"]);
    assert_eq!(snapshot.len(), 1);
    assert!(world.seen().is_empty());
}

#[test]
fn entries_are_ordered_by_room_type_sender_and_key_with_unkeyed_last() {
    let world = World::new();
    let events = [
        event("$9").unkeyed(),
        event("$8").unkeyed(),
        event("$1").key("zz"),
        event("$2").key(""),
        event("$3").by(BOB),
        event("$4").by(BOB).of_type("a.type"),
    ];
    world.receive_in(&[(other_room(), &[event("$0")]), (room(), &events)]);
    let view = world.maps.view();
    let order = ["$4", "$2", "$1", "$8", "$9", "$3", "$0"];
    assert_eq!(ids(view.snapshot().iter()), order);
    assert_eq!(ids(view.subscribe_list().entries), order);
}

#[test]
fn a_change_names_its_entries_in_the_order_of_entries() {
    let world = World::new();
    let mut changes = world.maps.view().subscribe().changes;
    world.receive_in(&[
        (other_room(), &[event("$0")]),
        (room(), &[event("$9").unkeyed(), event("$2").key("b"), event("$1").key("a")]),
    ]);
    assert_eq!(told(changes.next_now()), ["+$1", "+$2", "+$9", "+$0"]);
}

#[test]
fn an_expired_event_is_never_visible_before_a_timer_ran() {
    let world = World::new();
    world.receive(&[event("$a")]);
    let mut early = world.maps.view().subscribe();
    let mut list = world.maps.view().subscribe_list();
    world.clock.jump(secs(3_600));
    let view = world.maps.view();
    assert!(view.snapshot().is_empty());
    assert_eq!(view.snapshot().len(), 0);
    assert_eq!(view.get(&key("k")), None);
    assert!(view.subscribe().snapshot.is_empty());
    assert_eq!(told(early.changes.next_now()), ["-$a expired"]);
    let diffs = Task::default().ready(&mut list.diffs);
    assert_eq!(diffs, [VectorDiff::Remove { index: 0 }]);
}

#[test]
fn each_reader_alone_sees_no_ghost() {
    let readers: [fn(&World) -> bool; 4] = [
        |world| world.maps.view().snapshot().is_empty(),
        |world| world.maps.view().get(&key("k")).is_none(),
        |world| world.maps.view().subscribe().snapshot.is_empty(),
        |world| world.maps.view().subscribe_list().entries.is_empty(),
    ];
    for reader in readers {
        let world = World::new();
        world.receive(&[event("$a")]);
        world.clock.jump(secs(60));
        assert!(reader(&world));
    }
}

// One response, one change.

#[test]
fn one_response_is_one_change_over_all_its_rooms() {
    let world = World::new();
    let mut changes = world.maps.view().subscribe().changes;
    let task = Task::default();
    assert!(task.poll(&mut changes).is_pending());
    world.receive_in(&[
        (room(), &[event("$a"), event("$b").key("b")]),
        (other_room(), &[event("$c")]),
    ]);
    assert_eq!(task.wakes(), 1);
    let change = Some(task.ready(&mut changes));
    assert_eq!(told(change), ["+$b", "+$a", "+$c"]);
    assert!(task.poll(&mut changes).is_pending());
}

#[test]
fn a_response_is_told_by_its_net_effect() {
    let world = World::new();
    world.receive(&[event("$a")]);
    let mut changes = world.maps.view().subscribe().changes;
    world.receive(&[
        event("$b").sent(1),
        event("$c").sent(2),
        event("$new").key("n"),
        event("$gone").key("n").sent(1).removal(),
    ]);
    assert_eq!(told(changes.next_now()), ["$a>$c"]);
}

#[test]
fn an_entry_that_expired_and_is_refreshed_by_one_response_is_an_update() {
    let world = World::new();
    world.receive(&[event("$a")]);
    let mut changes = world.maps.view().subscribe().changes;
    world.clock.jump(secs(60));
    world.receive(&[event("$b").sent(60)]);
    assert_eq!(told(changes.next_now()), ["$a>$b"]);
}

#[test]
fn a_malformed_event_costs_the_rest_of_its_response_nothing() {
    let world = World::new();
    world.receive(&[
        event("$a").key("a"),
        event("$x").with("/sender", 5),
        event("$y").with("/content", "text"),
        event("$b").key("b"),
    ]);
    assert_eq!(world.seen(), ["$a", "$b"]);
}

// Silence.

#[test]
fn nothing_is_sent_when_nothing_visible_changed() {
    let world = World::new();
    world.receive(&[event("$b").sent(10)]);
    let mut changes = world.maps.view().subscribe().changes;
    let task = Task::default();
    assert!(task.poll(&mut changes).is_pending());

    world.receive(&[event("$b").sent(10).ttl(59_950)]);
    world.receive(&[event("$b").sent(10).ttl(59_990)]);
    world.receive(&[event("$a").sent(5)]);
    world.receive(&[event("$gone").sent(6).removal()]);
    world.receive(&[event("$e").encrypted("s")]);
    world.receive(&[event("$x").without("/msc4354_sticky")]);
    world.receive(&[]);
    world.receive(&[event("$new").key("n"), event("$gone_too").key("n").sent(1).removal()]);
    world.redact("$a");
    world.redact("$unknown");
    world.ignore(&[BOB]);
    world.maps.handle_left(other_room());
    world.maps.advance();

    assert_eq!(task.wakes(), 0);
    assert!(task.poll(&mut changes).is_pending());
}

#[test]
fn what_came_and_went_before_a_slow_subscriber_looked_is_nothing() {
    let world = World::new();
    let mut changes = world.maps.view().subscribe().changes;
    world.receive(&[event("$a")]);
    world.redact("$a");
    world.receive(&[event("$b").key("b")]);
    world.clock.jump(secs(60));
    assert_eq!(told(changes.next_now()), [""; 0]);
}

#[test]
fn a_value_that_is_back_before_a_slow_subscriber_looked_is_nothing() {
    let world = World::new();
    world.receive(&[event("$a")]);
    let mut changes = world.maps.view().subscribe().changes;
    world.receive(&[event("$b").sent(1)]);
    world.redact("$b");
    world.ignore(&[ALICE]);
    world.ignore(&[]);
    assert_eq!(told(changes.next_now()), [""; 0]);
}

// Who is slow.

#[test]
fn a_slow_subscriber_gets_one_merged_change() {
    let world = World::new();
    world.receive(&[event("$a1").key("a"), event("$b1").key("b"), event("$c1").key("c")]);
    let mut changes = world.maps.view().subscribe().changes;
    for n in 2..=1_000 {
        world.receive(&[event(&format!("$a{n}")).key("a").sent(n)]);
    }
    world.receive(&[event("$b2").key("b").sent(1).removal(), event("$d1").key("d")]);
    world.redact("$c1");
    assert_eq!(told(changes.next_now()), ["$a1>$a1000", "-$b1 removed", "-$c1 redacted", "+$d1"]);
    assert_eq!(told(changes.next_now()), [""; 0]);
}

#[test]
fn a_removal_names_the_entry_that_the_subscriber_knew() {
    let world = World::new();
    world.receive(&[event("$a")]);
    let mut changes = world.maps.view().subscribe().changes;
    world.receive(&[event("$b").sent(1)]);
    world.redact("$b");
    world.redact("$a");
    assert_eq!(told(changes.next_now()), ["-$a redacted"]);
}

#[test]
fn a_removal_that_was_followed_by_another_reason_tells_the_last() {
    let world = World::new();
    world.receive(&[event("$a")]);
    let mut changes = world.maps.view().subscribe().changes;
    world.redact("$a");
    world.receive(&[event("$b").sent(1)]);
    world.receive(&[event("$gone").sent(2).removal()]);
    assert_eq!(told(changes.next_now()), ["-$a removed"]);
}

#[test]
fn each_subscriber_is_told_against_what_it_knew() {
    let world = World::new();
    let mut first = world.maps.view().subscribe().changes;
    world.receive(&[event("$a")]);
    let mut second = world.maps.view().subscribe().changes;
    world.receive(&[event("$b").sent(1)]);
    assert_eq!(told(second.next_now()), ["$a>$b"]);
    assert_eq!(told(first.next_now()), ["+$b"]);
}

// Why an entry left.

#[test]
fn an_entry_says_why_it_left() {
    for (reason, leave) in [
        (
            RemovalReason::Expired,
            (|world| {
                world.clock.jump(secs(60));
                world.maps.advance();
            }) as fn(&World),
        ),
        (RemovalReason::Removed, |world| world.receive(&[event("$g").sent(1).removal()])),
        (RemovalReason::Redacted, |world| world.redact("$a")),
        (RemovalReason::Ignored, |world| world.ignore(&[ALICE])),
        (RemovalReason::RoomLeft, |world| world.maps.handle_left(room())),
    ] {
        let world = World::new();
        world.receive(&[event("$a")]);
        let mut changes = world.maps.view().subscribe().changes;
        leave(&world);
        let change = changes.next_now().unwrap();
        assert_eq!(change.told_at, world.clock.now());
        let [EntryChange::Removed { entry, reason: because }] = change.entries.as_slice() else {
            panic!("{change:?}")
        };
        assert_eq!((entry.event_id().as_str(), *because), ("$a", reason));
        assert!(world.seen().is_empty());
    }
}

#[test]
fn an_entry_that_was_over_before_its_room_was_left_has_expired() {
    let world = World::new();
    world.receive(&[event("$a"), event("$b").key("b").lasting(120_000)]);
    let mut changes = world.maps.view().subscribe().changes;
    world.clock.jump(secs(60));
    world.maps.handle_left(room());
    assert_eq!(told(changes.next_now()), ["-$b left", "-$a expired"]);
}

#[test]
fn leaving_a_room_leaves_the_others_alone() {
    let world = World::new();
    world.receive_in(&[(room(), &[event("$a")]), (other_room(), &[event("$b")])]);
    world.maps.handle_left(room());
    assert_eq!(world.seen(), ["$b"]);
    assert_eq!(world.maps.rooms(), [other_room()]);
    assert_eq!(world.maps.stats(room()), RoomStats::default());
}

#[test]
fn ignoring_reaches_rooms_that_are_known_later() {
    let world = World::new();
    world.ignore(&[ALICE]);
    world.receive(&[event("$a"), event("$b").by(BOB)]);
    assert_eq!(world.seen(), ["$b"]);
    world.ignore(&[]);
    assert_eq!(world.seen(), ["$a", "$b"]);
}

// After a sleep.

#[test]
fn after_a_sleep_what_ended_takes_no_place_from_the_first_response() {
    let world = World::with_limits(Limits { per_sender: 2 });
    world.receive(&[event("$1").key("1"), event("$2").key("2")]);
    let received = world.clock.now();
    world.clock.jump(secs(3_600));
    // Received before the sleep, handed over after it.
    let late = event("$3").key("3").ttl(3_601_000).raw();
    let arrivals = vec![Arrival::Event(late)];
    let via = ReceivedVia::Section;
    let delivery = Delivery { room_id: room().to_owned(), received, via, arrivals };
    world.maps.handle([
        delivery,
        world.delivery(room(), vec![Arrival::Event(event("$4").key("4").raw())]),
    ]);
    assert_eq!(world.seen(), ["$4"], "an hour is the most, from the moment of receipt");
    assert_eq!(world.maps.stats(room()).dropped, 0);
}

#[test]
fn responses_that_are_handed_over_out_of_order_stop_nothing() {
    let world = World::new();
    let earlier = world.delivery(room(), vec![redaction("$b")]);
    world.clock.jump(secs(10));
    world.maps.handle([world.delivery(room(), vec![redaction("$a")])]);
    world.maps.handle([earlier]);
    world.clock.jump(secs(3_595));
    world.maps.advance();
    world.clock.jump(secs(10));
    world.maps.advance();
    assert_eq!(world.maps.next_deadline(), None);
    assert!(world.maps.rooms().is_empty());
}

fn redaction(event_id: &str) -> Arrival {
    Arrival::Redaction(EventId::parse(event_id).unwrap())
}

// Filters.

#[test]
fn a_view_lets_through_its_room_type_and_sender() {
    let world = World::new();
    world.receive_in(&[
        (room(), &[event("$1"), event("$2").by(BOB), event("$3").of_type("z.other")]),
        (other_room(), &[event("$4")]),
    ]);
    let all = world.maps.view();
    let views = [
        (all.clone(), vec!["$1", "$2", "$3", "$4"]),
        (all.clone().in_room(room().to_owned()), vec!["$1", "$2", "$3"]),
        (all.clone().of_type("com.example.t"), vec!["$1", "$2", "$4"]),
        (all.clone().by_sender(UserId::parse(BOB).unwrap()), vec!["$2"]),
        (all.clone().of_type("z.other").in_room(room().to_owned()), vec!["$3"]),
        (all.clone().of_type("z.other").in_room(other_room().to_owned()), vec![]),
        (all.in_room(room_id!("!none:hs").to_owned()), vec![]),
    ];
    for (view, expected) in views {
        assert_eq!(ids(view.snapshot().iter()), expected);
        assert_eq!(view.snapshot().len(), expected.len());
        assert_eq!(view.snapshot().is_empty(), expected.is_empty());
        assert_eq!(ids(view.subscribe_list().entries), expected);
    }
}

#[test]
fn a_view_is_only_told_of_what_it_lets_through() {
    let world = World::new();
    let all = world.maps.view();
    let mut bobs = all.clone().by_sender(UserId::parse(BOB).unwrap()).subscribe().changes;
    let mut others = all.clone().of_type("z.other").subscribe().changes;
    let mut two = all.in_room(other_room().to_owned()).subscribe().changes;
    let task = Task::default();
    for changes in [&mut bobs, &mut others, &mut two] {
        assert!(task.poll(changes).is_pending());
    }
    world.receive(&[event("$1")]);
    assert_eq!(task.wakes(), 0);
    world.receive(&[event("$2").by(BOB)]);
    assert_eq!(task.wakes(), 1);
    assert_eq!(told(bobs.next_now()), ["+$2"]);
    assert_eq!(told(others.next_now()), [""; 0]);
    assert_eq!(told(two.next_now()), [""; 0]);
}

#[test]
fn what_is_there_for_a_key_is_found() {
    let world = World::new();
    world.receive_in(&[
        (room(), &[event("$a").key("a")]),
        (other_room(), &[event("$a2").key("a"), event("$b").key("b")]),
    ]);
    let view = world.maps.view();
    let id = |entry: Option<Entry>| entry.map(|entry| entry.event_id().to_string());
    for (sticky_key, expected) in [("a", Some("$a")), ("b", Some("$b")), ("c", None)] {
        let expected = expected.map(str::to_owned);
        assert_eq!(id(view.get(&key(sticky_key))), expected);
        assert_eq!(id(view.snapshot().get(&key(sticky_key))), expected);
    }
    let two = view.clone().in_room(other_room().to_owned());
    assert_eq!(id(two.get(&key("a"))), Some("$a2".to_owned()));
    assert_eq!(id(view.of_type("other").get(&key("a"))), None);
}

#[test]
fn senders_are_named_once_each() {
    let world = World::new();
    world.receive_in(&[
        (room(), &[event("$1").by(BOB), event("$2"), event("$3").key("3")]),
        (other_room(), &[event("$4").by(BOB)]),
    ]);
    assert_eq!(world.maps.view().snapshot().senders(), [ALICE, BOB]);
}

// Lists.

#[test]
fn diffs_that_are_applied_one_after_another_give_the_snapshot() {
    let world = World::new();
    world.receive(&[event("$b").key("b"), event("$d").key("d"), event("$f").key("f")]);
    let mut list = world.maps.view().subscribe_list();
    let task = Task::default();
    let steps: [&dyn Fn(); 5] = [
        &|| world.receive(&[event("$a").key("a"), event("$c").key("c"), event("$g").key("g")]),
        &|| {
            world.receive(&[
                event("$d2").key("d").sent(1),
                event("$b2").key("b").sent(1).removal(),
                event("$e").key("e"),
            ]);
        },
        &|| world.receive_in(&[(other_room(), &[event("$z")]), (room(), &[event("$y").unkeyed()])]),
        &|| world.ignore(&[ALICE]),
        &|| world.ignore(&[]),
    ];
    for step in steps {
        step();
        let diffs = task.ready(&mut list.diffs);
        assert!(!diffs.is_empty());
        for diff in diffs {
            diff.apply(&mut list.entries);
        }
        assert_eq!(ids(list.entries.clone()), world.seen());
        assert!(task.poll(&mut list.diffs).is_pending());
    }
}

// Typed views.

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

#[test]
fn a_typed_view_reads_contents_and_shows_what_is_none_with_its_error() {
    let world = World::new();
    world.receive(&[
        status("$1", json!("here")),
        status("$2", json!(5)).key("odd"),
        event("$3").key("other type"),
    ]);
    let view = world.maps.view().read_as::<Status>();
    let entries = view.snapshot();
    assert_eq!(entries.len(), 2);
    assert_eq!(entries[0].content().unwrap().status, "here");
    assert!(entries[1].content().is_err());
    assert_eq!(entries[1].event_id(), "$2");
    let key = StickyKey::new(UserId::parse(ALICE).unwrap(), Status::TYPE, "k");
    let (entry, content) = view.get(&key).unwrap().into_parts();
    assert_eq!(entry.event_id(), "$1");
    assert_eq!(content.unwrap(), Status { status: "here".to_owned() });
}

#[test]
fn a_typed_stream_tells_as_the_plain_one_does() {
    let world = World::new();
    world.receive(&[status("$1", json!("here"))]);
    let mut subscription = world.maps.view().read_as::<Status>().subscribe();
    assert_eq!(subscription.snapshot.len(), 1);
    let task = Task::default();

    world.receive(&[
        status("$2", json!("away")).sent(1),
        status("$3", json!(null)).key("n"),
        event("$other").key("other type"),
    ]);
    let change = task.ready(&mut subscription.changes);
    let [TypedChange::Updated(away), TypedChange::Added(odd)] = change.as_slice() else {
        panic!("{change:?}")
    };
    assert_eq!(away.content().unwrap().status, "away");
    assert!(odd.content().is_err());

    world.receive(&[event("$gone").of_type(Status::TYPE).sent(2).removal()]);
    let change = task.ready(&mut subscription.changes);
    let [TypedChange::Removed { entry, reason }] = change.as_slice() else { panic!("{change:?}") };
    assert_eq!((entry.event_id().as_str(), *reason), ("$2", RemovalReason::Removed));
    assert!(task.poll(&mut subscription.changes).is_pending());
}

#[test]
fn deep_content_is_kept_and_only_reading_it_fails() {
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let text = event("$deep").of_type(Status::TYPE).with("/content/status", "DEEP").text();
    let text = text.replace(r#""DEEP""#, &deep);
    let world = World::new();
    let arrivals = vec![Arrival::Event(raw(text)), Arrival::Event(event("$b").raw())];
    world.maps.handle([world.delivery(room(), arrivals)]);
    assert_eq!(world.seen(), ["$deep", "$b"]);
    let entries = world.maps.view().read_as::<Status>().snapshot();
    assert!(entries[0].content().is_err());
    assert!(entries[0].event().content::<serde_json::Value>().is_err());
    assert!(entries[0].content_raw().unwrap().get().contains("[[[["));
}

// Encrypted events.

#[test]
fn a_late_room_key_brings_what_waited() {
    let world = World::new();
    let mut changes = world.maps.view().subscribe().changes;
    let outer = event("$e").encrypted("s");
    world.receive(std::slice::from_ref(&outer));
    assert_eq!(told(changes.next_now()), [""; 0]);
    assert_eq!(
        world.maps.stats(room()),
        RoomStats { events: 1, pending_decryption: 1, dropped: 0 }
    );
    let pending = world.maps.pending_decryption(room(), Some("s"));
    assert_eq!(pending.len(), 1);
    assert_eq!(needs_decryption(&world, &outer), [true]);

    let decrypted = Arrival::Decrypted {
        outer: pending[0].raw().to_owned(),
        clear: event("$e").raw(),
        encryption: Encryption::Plaintext,
    };
    world.maps.handle([world.delivery(room(), vec![decrypted])]);
    assert_eq!(told(changes.next_now()), ["+$e"]);
    assert_eq!(needs_decryption(&world, &outer), [false]);
    assert!(world.maps.pending_decryption(room(), None).is_empty());
}

fn needs_decryption(world: &World, event: &EventJson) -> Vec<bool> {
    let event = event.raw();
    world.maps.needs_decryption([(room(), &*event)])
}

#[test]
fn a_response_is_asked_about_at_once() {
    // Each event has an answer of its own, in the order of the events: whether decryption can tell
    // something new about it.
    let world = World::new();
    world.receive(&[event("$known").encrypted("s")]);
    let known = Arrival::Decrypted {
        outer: event("$known").encrypted("s").raw(),
        clear: event("$known").raw(),
        encryption: Encryption::Plaintext,
    };
    world.maps.handle([world.delivery(room(), vec![known])]);
    let clear = event("$clear").raw();
    let known = event("$known").encrypted("s").raw();
    let new = event("$new").encrypted("s").raw();
    let elsewhere = room_id!("!elsewhere:hs");
    let events = [(room(), &*clear), (room(), &*new), (room(), &*known), (elsewhere, &*known)];
    assert_eq!(world.maps.needs_decryption(events), [false, true, false, true]);
    assert_eq!(world.maps.needs_decryption([(room(), &*clear)]), [false]);
    assert_eq!(world.maps.needs_decryption([]), [false; 0]);
}

#[test]
fn a_redaction_while_waiting_is_not_undone_by_the_room_key() {
    let world = World::new();
    let mut changes = world.maps.view().subscribe().changes;
    let outer = event("$e").encrypted("s");
    world.receive(std::slice::from_ref(&outer));
    world.redact("$e");
    world.receive(std::slice::from_ref(&outer));
    let decrypted = Arrival::Decrypted {
        outer: outer.raw(),
        clear: event("$e").raw(),
        encryption: Encryption::Plaintext,
    };
    world.maps.handle([world.delivery(room(), vec![decrypted])]);
    assert_eq!(told(changes.next_now()), [""; 0]);
    assert!(world.seen().is_empty());
}

// Deadlines and handles.

#[test]
fn the_timer_is_woken_when_the_next_deadline_is_another() {
    let world = World::new();
    let timer = Task::default();
    assert!(timer.poll_next_deadline(&world.maps, None).is_pending());
    world.receive(&[event("$a").lasting(60_000)]);
    assert_eq!(timer.wakes(), 1);
    let Poll::Ready(Some(minute)) = timer.poll_next_deadline(&world.maps, None) else {
        panic!("nothing to wait for")
    };
    assert_eq!(minute.left(world.clock.now()), secs(60));

    assert!(timer.poll_next_deadline(&world.maps, Some(minute)).is_pending());
    world.receive(&[event("$b").key("b").lasting(120_000)]);
    world.receive(&[event("$a").lasting(60_000)]);
    assert_eq!(timer.wakes(), 1, "a later deadline changes nothing");
    world.receive(&[event("$c").key("c").lasting(30_000)]);
    assert_eq!(timer.wakes(), 2);
    let Poll::Ready(Some(sooner)) = timer.poll_next_deadline(&world.maps, Some(minute)) else {
        panic!("nothing to wait for")
    };
    assert_eq!(sooner.left(world.clock.now()), secs(30));

    assert!(timer.poll_next_deadline(&world.maps, Some(sooner)).is_pending());
    world.clock.jump(secs(30));
    world.maps.advance();
    assert_eq!(timer.wakes(), 3);
    assert!(timer.poll_next_deadline(&world.maps, Some(sooner)).is_ready());
}

#[test]
fn the_timer_is_woken_when_the_next_deadline_is_gone() {
    let world = World::new();
    world.receive(&[event("$a")]);
    let known = world.maps.next_deadline();
    let timer = Task::default();
    assert!(timer.poll_next_deadline(&world.maps, known).is_pending());
    world.maps.handle_left(room());
    assert_eq!(timer.wakes(), 1);
    assert_eq!(timer.poll_next_deadline(&world.maps, known), Poll::Ready(None));
}

#[test]
fn an_expiry_wakes_subscribers_when_the_timer_advances() {
    let world = World::new();
    world.receive(&[event("$a")]);
    let mut changes = world.maps.view().subscribe().changes;
    let task = Task::default();
    assert!(task.poll(&mut changes).is_pending());
    world.clock.jump(secs(60));
    world.maps.advance();
    assert_eq!(task.wakes(), 1);
    let change = Some(task.ready(&mut changes));
    assert_eq!(told(change), ["-$a expired"]);
}

#[test]
fn a_room_of_which_nothing_is_left_costs_nothing() {
    let world = World::new();
    world.receive(&[event("$a")]);
    world.clock.jump(secs(60));
    world.maps.advance();
    // It is remembered that it ended, for an hour.
    assert_eq!(world.maps.stats(room()).events, 0);
    world.clock.jump(secs(3_600));
    world.maps.advance();
    assert!(world.maps.rooms().is_empty());
    assert_eq!(world.maps.next_deadline(), None);
}

#[test]
fn a_room_without_sticky_events_costs_nothing() {
    let world = World::new();
    world.receive(&[event("$a").without("/msc4354_sticky")]);
    assert!(world.maps.rooms().is_empty());
    assert_eq!(world.maps.next_deadline(), None);
}

#[test]
fn a_dropped_subscription_is_gone() {
    let world = World::new();
    let subscription = world.maps.view().subscribe();
    let list = world.maps.view().subscribe_list();
    let typed = world.maps.view().read_as::<Status>().subscribe();
    assert_eq!(world.maps.subscribers(), 3);
    drop((subscription, list, typed));
    assert_eq!(world.maps.subscribers(), 0);
}

#[test]
fn views_and_streams_keep_what_they_are_told_to_keep() {
    let world = World::new();
    let keeper = Arc::new(());
    let view = world.maps.view().with_keeper(keeper.clone());
    let narrowed = view.clone().in_room(room().to_owned());
    drop(view);
    assert!(Arc::strong_count(&keeper) > 1);
    let changes = narrowed.subscribe().changes;
    let diffs = narrowed.subscribe_list().diffs;
    let typed = narrowed.read_as::<Status>().subscribe().changes;
    assert_eq!(Arc::strong_count(&keeper), 4);
    drop((changes, diffs, typed));
    assert_eq!(Arc::strong_count(&keeper), 1);
}

/// A waker that looks at the map at once, on the same thread, as some executors do.
struct LooksAtOnce(EphemeralMaps);

impl Wake for LooksAtOnce {
    fn wake(self: Arc<Self>) {
        assert!(!self.0.view().snapshot().is_empty());
    }
}

#[test]
fn wakers_are_woken_outside_the_lock() {
    let world = World::new();
    let waker = Waker::from(Arc::new(LooksAtOnce(world.maps.clone())));
    let mut context = Context::from_waker(&waker);
    let mut changes = world.maps.view().subscribe().changes;
    assert!(Pin::new(&mut changes).poll_next(&mut context).is_pending());
    assert!(world.maps.poll_next_deadline(&mut context, None).is_pending());
    world.receive(&[event("$a")]);
}

#[test]
fn nothing_shows_an_events_text_in_debug() {
    let world = World::new();
    let secret = "syd_secret";
    let own = event("$a")
        .with("/unsigned/org.matrix.msc4140.delay_id", secret)
        .with("/content/body", "private words");
    let mut subscription = world.maps.view().subscribe();
    let mut list = world.maps.view().subscribe_list();
    let delivery = world.delivery(room(), vec![Arrival::Event(own.raw())]);
    let decrypted = Arrival::Decrypted {
        outer: own.raw(),
        clear: own.raw(),
        encryption: Encryption::Plaintext,
    };
    let mut shown = vec![debug(&delivery), debug(&decrypted)];
    world.maps.handle([delivery]);
    let view = world.maps.view();
    shown.push(debug(&world.maps));
    shown.push(debug(&view));
    shown.push(debug(&view.snapshot()));
    shown.push(debug(&view.subscribe()));
    shown.push(debug(&view.subscribe_list()));
    shown.push(debug(&subscription.changes.next_now()));
    shown.push(debug(&subscription));
    let diffs = Some(Task::default().ready(&mut list.diffs));
    shown.push(debug(&diffs));
    shown.push(debug(&list));
    shown.push(debug(&view.clone().read_as::<Status>()));
    for shown in shown {
        assert!(!shown.contains(secret) && !shown.contains("private"), "{shown}");
    }
}

#[test]
fn entries_know_their_room() {
    let world = World::new();
    world.receive_in(&[(other_room(), &[event("$a")])]);
    let entry = world.maps.view().snapshot().iter().next().unwrap();
    let room_id: OwnedRoomId = entry.room_id().to_owned();
    assert_eq!(room_id, other_room());
    assert_eq!(entry.expires_in(world.clock.now()), secs(60));
}

/// A waker whose task looks at the maps when it is dropped, as one that owns its task does.
struct Owning(EphemeralMaps);

impl Wake for Owning {
    fn wake(self: Arc<Self>) {}
}

impl Drop for Owning {
    fn drop(&mut self) {
        self.0.advance();
    }
}

#[test]
#[expect(clippy::disallowed_methods, reason = "a deadlock is to be seen from outside")]
fn nothing_of_a_callers_runs_under_the_lock() {
    let (done, is_done) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let world = World::new();
        let maps = world.maps.clone();
        let mut changes = maps.view().subscribe().changes;
        for _ in 0..2 {
            let waker = Waker::from(Arc::new(Owning(maps.clone())));
            let mut cx = Context::from_waker(&waker);
            assert!(Pin::new(&mut changes).poll_next(&mut cx).is_pending());
            assert!(maps.poll_next_deadline(&mut cx, None).is_pending());
        }
        let looking = [world.delivery(room(), vec![Arrival::Event(event("$a").raw())])];
        maps.handle(looking.into_iter().inspect(|_| assert!(maps.view().snapshot().is_empty())));
        done.send(told(changes.next_now())).unwrap();
    });
    let told = is_done.recv_timeout(std::time::Duration::from_secs(20));
    assert_eq!(told.expect("it is locked for ever"), ["+$a"]);
}

#[cfg(feature = "client")]
#[test]
fn a_hidden_room_is_seen_once_it_is_revealed() {
    let world = World::new();
    world.maps.hide(vec![room().to_owned()]);
    let mut changes = world.maps.view().subscribe().changes;
    world.receive(&[event("$short").key("short").lasting(1_000), event("$a")]);
    world.receive(&[event("$b").key("b")]);
    world.redact("$b");
    world.clock.jump(secs(2));
    world.maps.advance();
    assert!(world.maps.view().snapshot().is_empty());
    assert_eq!(told(changes.next_now()), [""; 0]);

    world.maps.reveal(room());
    assert_eq!(told(changes.next_now()), ["+$a"]);
    assert_eq!(world.maps.hidden(), Vec::<OwnedRoomId>::new());
    // What is to be seen already is not hidden again.
    world.maps.hide(vec![room().to_owned()]);
    assert_eq!(world.maps.view().snapshot().len(), 1);
    assert!(world.maps.hidden().is_empty());
}

#[cfg(feature = "client")]
#[test]
fn a_hidden_room_is_forgotten_with_all_in_it() {
    let world = World::new();
    world.maps.hide(vec![room().to_owned(), other_room().to_owned()]);
    world.receive_in(&[(room(), &[event("$a")]), (other_room(), &[event("$b")])]);
    world.maps.handle_left(room());
    assert_eq!(world.maps.hidden(), [other_room()]);
    // Both its entry and the memory of it are over.
    world.clock.jump(secs(60));
    world.maps.advance();
    world.clock.jump(secs(3_600));
    world.maps.advance();
    assert!(world.maps.hidden().is_empty() && world.maps.rooms().is_empty());
}
