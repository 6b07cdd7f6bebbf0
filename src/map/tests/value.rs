//! Law 1: the value of a key.

use super::*;

#[test]
fn the_highest_intended_end_is_the_value() {
    // The order in which the events come makes no difference.
    let events = [
        event("$a").sent(0).lasting(60_000),
        event("$b").sent(30).lasting(60_000),
        event("$c").sent(50).lasting(20_000),
    ];
    for order in orders(&events) {
        let mut room = Room::new();
        for event in &order {
            room.section(event);
            room.section(event);
        }
        assert_eq!(room.live(), ["$b"]);
    }
}

#[test]
fn equal_intended_ends_are_decided_by_event_id() {
    let events = [event("$a"), event("$c"), event("$b").sent(10).lasting(50_000)];
    for order in orders(&events) {
        let mut room = Room::new();
        for event in &order {
            room.section(event);
        }
        assert_eq!(room.live(), ["$c"]);
    }
}

#[test]
fn rank_counts_the_duration_unclamped() {
    let mut room = Room::new();
    room.section(&event("$two_hours").lasting(7_200_000));
    room.section(&event("$later").sent(1_800).lasting(3_600_000));
    assert_eq!(room.live(), ["$two_hours"]);
}

#[test]
fn rank_saturates_and_then_the_event_id_decides() {
    let mut room = Room::new();
    room.section(&event("$b").lasting(u64::MAX));
    room.section(&event("$a").sent(100).lasting(u64::MAX - 1));
    assert_eq!(room.live(), ["$b"]);
}

#[test]
fn keys_differ_by_sender_type_and_sticky_key() {
    let mut room = Room::new();
    room.section(&event("$1"));
    room.section(&event("$2").by(BOB));
    room.section(&event("$3").of_type("com.example.other"));
    room.section(&event("$4").key(""));
    room.section(&event("$5").key("K"));
    assert_eq!(room.live(), ["$3", "$4", "$5", "$1", "$2"]);
}

#[test]
fn the_unstable_of_two_keys_counts() {
    let mut room = Room::new();
    room.section(&event("$a").with("/content/sticky_key", "other"));
    let key = StickyKey::new(UserId::parse(ALICE).unwrap(), "com.example.t", "k");
    assert!(room.map.get(room.now, &key).is_some());
}

#[test]
fn only_sticky_events_are_kept() {
    let mut room = Room::new();
    assert_eq!(room.section(&event("$a").without("/msc4354_sticky")), Admission::NotSticky);
    let negative = event("$b").with("/msc4354_sticky/duration_ms", -1);
    assert_eq!(room.section(&negative), Admission::NotSticky);
    assert!(room.map.is_empty());
}

#[test]
fn section_and_timeline_make_no_difference() {
    let mut room = Room::new();
    assert_eq!(room.timeline(&event("$a")), Admission::Kept);
    assert_eq!(room.section(&event("$a")), Admission::Repeated);
    assert_eq!(room.live(), ["$a"]);
}

#[test]
fn a_superseded_event_is_no_change() {
    let mut room = Room::new();
    room.section(&event("$b").sent(10));
    assert_eq!(room.changes(), ["+$b"]);
    room.section(&event("$a"));
    assert_eq!(room.changes(), [""; 0]);
}
