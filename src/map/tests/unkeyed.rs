//! Law 5: events without a key.

use super::*;

#[test]
fn an_unkeyed_event_is_its_own_entry() {
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
fn a_key_must_be_a_string() {
    for key in [json!(5), json!(null), json!({ "a": 1 }), json!(["k"]), json!(true)] {
        let mut room = Room::new();
        room.section(&event("$a").with("/content", json!({ "msc4354_sticky_key": key })));
        let entries = room.map.entries(room.now);
        assert_eq!(entries.len(), 1, "unkeyed, so not a removal: {key}");
        assert_eq!(entries[0].sticky_key(), None);
    }
}

#[test]
fn an_event_id_is_never_a_key() {
    // An unkeyed event does not meet a key that is spelled as its id.
    let mut room = Room::new();
    room.section(&event("$a").unkeyed());
    room.section(&event("$b").key("$a"));
    room.section(&event("$c").key("$a").sent(1).removal());
    assert_eq!(room.live(), ["$a"]);
}
