//! A snapshot, and the stream of changes that follows it.

use super::*;

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
fn a_snapshot_never_changes() {
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
fn entries_have_a_stable_order() {
    // Entries are ordered by room, type, sender and key, with unkeyed events last.
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
fn a_change_lists_entries_in_order() {
    let world = World::new();
    let mut changes = world.maps.view().subscribe().changes;
    world.receive_in(&[
        (other_room(), &[event("$0")]),
        (room(), &[event("$9").unkeyed(), event("$2").key("b"), event("$1").key("a")]),
    ]);
    assert_eq!(told(changes.next_now()), ["+$1", "+$2", "+$9", "+$0"]);
}

#[test]
fn an_expired_event_needs_no_timer() {
    // An expired entry is never visible, even before a timer ran.
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
fn one_response_is_one_change() {
    // The change covers all rooms of the response.
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
fn an_expired_and_refreshed_entry_is_updated() {
    // One response brings both.
    let world = World::new();
    world.receive(&[event("$a")]);
    let mut changes = world.maps.view().subscribe().changes;
    world.clock.jump(secs(60));
    world.receive(&[event("$b").sent(60)]);
    assert_eq!(told(changes.next_now()), ["$a>$b"]);
}

#[test]
fn a_malformed_event_costs_its_response_nothing() {
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
fn an_unseen_visit_is_no_change() {
    // The entry came and went before a slow subscriber looked.
    let world = World::new();
    let mut changes = world.maps.view().subscribe().changes;
    world.receive(&[event("$a")]);
    world.redact("$a");
    world.receive(&[event("$b").key("b")]);
    world.clock.jump(secs(60));
    assert_eq!(told(changes.next_now()), [""; 0]);
}

#[test]
fn an_unseen_return_is_no_change() {
    // The value was back before a slow subscriber looked.
    let world = World::new();
    world.receive(&[event("$a")]);
    let mut changes = world.maps.view().subscribe().changes;
    world.receive(&[event("$b").sent(1)]);
    world.redact("$b");
    world.ignore(&[ALICE]);
    world.ignore(&[]);
    assert_eq!(told(changes.next_now()), [""; 0]);
}

// Slow subscribers.

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
fn a_removal_names_the_known_entry() {
    let world = World::new();
    world.receive(&[event("$a")]);
    let mut changes = world.maps.view().subscribe().changes;
    world.receive(&[event("$b").sent(1)]);
    world.redact("$b");
    world.redact("$a");
    assert_eq!(told(changes.next_now()), ["-$a redacted"]);
}

#[test]
fn the_last_reason_of_a_removal_counts() {
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
