//! Law 5: events without a key.

use super::*;

#[test]
fn an_unkeyed_event_is_an_entry_of_its_own() {
    let mut room = Room::new();
    room.section(&event("$b").unkeyed());
    room.section(&event("$a").unkeyed());
    room.section(&event("$keyed").key("zzz"));
    assert_eq!(room.live(), ["$keyed", "$a", "$b"], "keyed before unkeyed");
    room.redact("$a");
    assert_eq!(room.live(), ["$keyed", "$b"]);
    room.pass(secs(60));
    assert_eq!(room.live(), [""; 0]);
}

#[test]
fn a_key_that_is_no_string_is_none() {
    for key in [json!(5), json!(null), json!({ "a": 1 }), json!(["k"]), json!(true)] {
        let mut room = Room::new();
        room.section(&event("$a").with("/content", json!({ "msc4354_sticky_key": key })));
        let entries = room.map.entries(room.now);
        assert_eq!(entries.len(), 1, "unkeyed, so not a removal: {key}");
        assert_eq!(entries[0].sticky_key(), None);
    }
}

#[test]
fn an_unkeyed_event_does_not_meet_a_key_that_is_spelled_as_its_id() {
    let mut room = Room::new();
    room.section(&event("$a").unkeyed());
    room.section(&event("$b").key("$a"));
    room.section(&event("$c").key("$a").sent(1).removal());
    assert_eq!(room.live(), ["$a"]);
}
