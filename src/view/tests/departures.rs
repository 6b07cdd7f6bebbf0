//! Why an entry left, and what a sleep leaves behind.

use super::*;

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
fn an_entry_over_before_leaving_has_expired() {
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
fn after_a_sleep_ended_entries_take_no_quota() {
    let world = World::with_limits(Limits { max_events_per_sender: 2 });
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
fn responses_may_come_out_of_order() {
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
