//! Ignored senders, and rooms that we left.

use super::*;

#[test]
fn an_ignored_senders_entries_hide_and_come_back() {
    let mut room = Room::new();
    room.section(&event("$a"));
    room.section(&event("$b").by(BOB));
    room.changes();
    room.ignore(&[ALICE]);
    assert_eq!(room.changes(), ["-$a ignored"]);
    assert_eq!(room.live(), ["$b"]);
    let key = StickyKey::new(UserId::parse(ALICE).unwrap(), "com.example.t", "k");
    assert!(room.map.get(room.now, &key).is_none());
    // Meanwhile another event becomes the value.
    room.section(&event("$a2").sent(1));
    assert_eq!(room.changes(), [""; 0]);
    room.ignore(&[]);
    assert_eq!(room.changes(), ["+$a2"]);
}

#[test]
fn an_ignored_senders_entries_end_silently() {
    let mut room = Room::new();
    room.section(&event("$a"));
    room.changes();
    room.ignore(&[ALICE]);
    room.changes();
    room.pass(secs(60));
    assert_eq!(room.changes(), [""; 0]);
    room.ignore(&[]);
    assert_eq!(room.changes(), [""; 0]);
}

#[test]
fn a_left_room_is_forgotten_and_says_so() {
    let mut room = Room::new();
    room.section(&event("$b").key("b"));
    room.section(&event("$a").key("a"));
    room.section(&event("$e").encrypted("s"));
    room.redact("$unknown");
    room.changes();
    let gone: Vec<_> = room.map.handle_left().iter().map(told).collect();
    assert_eq!(gone, ["-$a left", "-$b left"]);
    assert!(room.map.is_empty());
    assert_eq!(room.map.next_deadline(), None);
    assert_eq!(room.live(), [""; 0]);
}

#[test]
fn a_left_room_still_knows_ignored_users() {
    let mut room = Room::new();
    room.ignore(&[ALICE]);
    room.map.handle_left();
    room.section(&event("$a"));
    assert_eq!(room.live(), [""; 0]);
}
