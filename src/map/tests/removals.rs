//! Law 3: removals.

use super::*;

#[test]
fn a_removal_in_either_spelling_removes() {
    for content in [
        json!({ "sticky_key": "k" }),
        json!({ "msc4354_sticky_key": "k" }),
        json!({ "sticky_key": "k", "msc4354_sticky_key": "k" }),
        json!({ "sticky_key": "other", "msc4354_sticky_key": "k" }),
    ] {
        let mut room = Room::new();
        room.section(&event("$a"));
        assert_eq!(room.changes(), ["+$a"]);
        room.section(&event("$gone").sent(1).with("/content", content));
        assert_eq!(room.changes(), ["-$a removed"]);
        assert_eq!(room.live(), [""; 0]);
    }
}

#[test]
fn a_removal_that_is_outranked_removes_nothing() {
    let mut room = Room::new();
    room.section(&event("$a").sent(10));
    room.section(&event("$gone").removal());
    assert_eq!(room.live(), ["$a"]);
}

#[test]
fn a_late_event_revives_no_removed_key() {
    let mut room = Room::new();
    room.section(&event("$gone").sent(10).removal());
    room.section(&event("$a"));
    assert_eq!(room.live(), [""; 0]);
    assert_eq!(room.changes(), [""; 0]);
}

#[test]
fn an_ended_removal_uncovers_its_key() {
    let mut room = Room::new();
    room.section(&event("$a").lasting(60_000));
    room.section(&event("$gone").sent(100).lasting(10_000).removal());
    assert_eq!(room.changes(), [""; 0]);
    room.pass(secs(10));
    assert_eq!(room.changes(), ["+$a"]);
}

#[test]
fn a_redacted_removal_brings_back_what_it_hid() {
    let mut room = Room::new();
    room.section(&event("$a"));
    room.section(&event("$gone").sent(1).removal());
    assert_eq!(room.changes(), [""; 0]);
    room.redact("$gone");
    assert_eq!(room.changes(), ["+$a"]);
}
