//! Law 2: expiry.

use super::*;

#[test]
fn the_remaining_time_counts_from_receipt() {
    let mut room = Room::new();
    room.section(&event("$a").ttl(10_000));
    room.pass(Duration::from_millis(9_999));
    assert_eq!(room.live(), ["$a"]);
    room.pass(Duration::from_millis(1));
    assert_eq!(room.live(), [""; 0]);
    assert_eq!(room.changes(), [""; 0], "it was never told");
}

#[test]
fn an_expiry_is_told_with_its_reason() {
    let mut room = Room::new();
    room.section(&event("$a"));
    assert_eq!(room.changes(), ["+$a"]);
    room.pass(secs(3_600));
    assert_eq!(room.changes(), ["-$a expired"]);
}

#[test]
fn remaining_time_is_at_most_an_hour() {
    for ttl in [json!(3_600_001), json!(u64::MAX)] {
        let mut room = Room::new();
        room.section(&event("$a").ttl(ttl));
        room.pass(Duration::from_millis(3_599_999));
        assert_eq!(room.live(), ["$a"]);
        room.pass(Duration::from_millis(1));
        assert_eq!(room.live(), [""; 0]);
    }
}

#[test]
fn only_a_natural_remaining_time_counts() {
    for ttl in
        [json!(-1), json!(1.5), json!("60000"), json!(null), json!(true), json!({}), json!([1])]
    {
        let odd = event("$a").sent(0).lasting(60_000).ttl(ttl.clone());
        let mut room = Room::new();
        room.pass(secs(20));
        room.section(&odd);
        room.pass(secs(39));
        assert_eq!(room.live(), ["$a"], "{ttl}");
        room.pass(secs(1));
        assert_eq!(room.live(), [""; 0], "{ttl}");

        let mut room = Room::new();
        assert_eq!(room.timeline(&odd), Admission::NotSticky, "{ttl}");
    }
}

#[test]
fn a_section_event_counts_from_the_earlier_start() {
    // Without a remaining time, it counts from its origin or its receipt.
    let mut room = Room::new();
    room.section(&event("$future").key("f").sent(1_000).without_ttl());
    room.section(&event("$now").key("n").without_ttl());
    room.pass(secs(59));
    assert_eq!(room.live(), ["$future", "$now"]);
    room.pass(secs(1));
    assert_eq!(room.live(), [""; 0]);
}

#[test]
fn a_bare_timeline_event_is_over() {
    // It has no remaining time.
    let mut room = Room::new();
    assert_eq!(room.timeline(&event("$a").without_ttl()), Admission::NotSticky);
    assert_eq!(room.live(), [""; 0]);
}

#[test]
fn nothing_remaining_is_over() {
    let mut room = Room::new();
    assert_eq!(room.section(&event("$a").ttl(0)), Admission::NotSticky);
    assert_eq!(room.live(), [""; 0]);
}

#[test]
fn the_earliest_end_of_any_delivery_counts() {
    for (first, second) in [(30_000, 50_000), (50_000, 30_000)] {
        let mut room = Room::new();
        room.section(&event("$a").ttl(first));
        room.section(&event("$a").ttl(second));
        room.pass(Duration::from_millis(29_999));
        assert_eq!(room.live(), ["$a"]);
        room.pass(Duration::from_millis(1));
        assert_eq!(room.live(), [""; 0]);
    }
}

#[test]
fn a_repeat_with_jitter_is_no_change() {
    let mut room = Room::new();
    room.section(&event("$a"));
    room.changes();
    for ttl in [59_990, 60_010, 59_980] {
        assert_eq!(room.section(&event("$a").ttl(ttl)), Admission::Repeated);
    }
    assert_eq!(room.changes(), [""; 0]);
    assert_eq!(room.map.next_deadline().unwrap().left(room.now).as_millis(), 59_980);
}

#[test]
fn an_ended_event_stays_ended() {
    // A cache delivers it again with more time left.
    let mut room = Room::new();
    room.section(&event("$a").ttl(10_000));
    room.pass(secs(11));
    assert_eq!(room.live(), [""; 0]);
    assert_eq!(room.section(&event("$a").ttl(50_000)), Admission::NotSticky);
    assert_eq!(room.live(), [""; 0]);
}

#[test]
fn an_event_over_at_receipt_stays_over() {
    let mut room = Room::new();
    room.section(&event("$a").ttl(0));
    assert_eq!(room.section(&event("$a").ttl(50_000)), Admission::NotSticky);
}

#[test]
fn the_next_event_follows_an_ended_value() {
    let mut room = Room::new();
    // Its clock is in the future: it outranks, and the server ends it first all the same.
    room.section(&event("$ahead").sent(1_000).lasting(10_000));
    room.section(&event("$b").lasting(60_000));
    assert_eq!(room.changes(), ["+$ahead"]);
    room.pass(secs(10));
    assert_eq!(room.changes(), ["$ahead>$b"]);
    room.pass(secs(50));
    assert_eq!(room.changes(), ["-$b expired"]);
}

#[test]
fn a_wall_clock_that_jumps_moves_no_end() {
    let mut room = Room::new();
    room.section(&event("$a"));
    let set_back = Moment::new(secs(1_059), secs(0));
    assert_eq!(room.map.entries(set_back).len(), 1);
    let set_forward = Moment::new(secs(1_059), secs(u32::MAX.into()));
    assert_eq!(room.map.entries(set_forward).len(), 1);
}
