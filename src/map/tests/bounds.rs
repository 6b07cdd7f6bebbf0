//! Law 6: bounds of the memory.

use super::*;

#[test]
fn a_full_quota_keeps_what_came_first() {
    // It does not affect other senders.
    let mut room = Room::keeping(3);
    for n in 0..3 {
        assert_eq!(room.section(&event(&format!("$a{n}")).key(&n.to_string())), Admission::Kept);
    }
    assert_eq!(room.section(&event("$late").key("9").sent(9)), Admission::Full { first: true });
    assert_eq!(room.section(&event("$later").unkeyed()), Admission::Full { first: false });
    assert_eq!(room.section(&event("$bob").by(BOB)), Admission::Kept);
    assert_eq!(room.live(), ["$a0", "$a1", "$a2", "$bob"]);
    assert_eq!(room.map.dropped(), 2);
}

#[test]
fn a_full_sender_can_still_refresh_and_remove() {
    let mut room = Room::keeping(1);
    room.section(&event("$a"));
    assert_eq!(room.section(&event("$b").sent(1)), Admission::Kept);
    assert_eq!(room.live(), ["$b"]);
    assert_eq!(room.section(&event("$gone").sent(2).removal()), Admission::Kept);
    assert_eq!(room.live(), [""; 0]);
}

#[test]
fn every_kind_of_event_takes_quota() {
    // Removals, unkeyed events, and events that miss their room key.
    let mut room = Room::keeping(3);
    room.section(&event("$gone").key("1").removal());
    room.section(&event("$unkeyed").unkeyed());
    room.section(&event("$waiting").encrypted("s"));
    assert_eq!(room.section(&event("$a").key("2")), Admission::Full { first: true });
    assert_eq!(room.section(&event("$e").encrypted("s")), Admission::Full { first: false });
}

#[test]
fn what_ends_makes_room_again() {
    let mut room = Room::keeping(1);
    room.section(&event("$a").key("1").ttl(1_000));
    room.pass(secs(1));
    // No timer ran, and an event that is over takes no quota all the same.
    assert_eq!(room.section(&event("$b").key("2")), Admission::Kept);
    assert_eq!(room.live(), ["$b"]);
}

#[test]
fn a_full_quota_warns_once() {
    // It warns again once the map knew nothing of the sender.
    let mut room = Room::keeping(2);
    room.section(&event("$a").key("1").ttl(1_000));
    room.section(&event("$b").key("2"));
    assert_eq!(room.section(&event("$c").key("3")), Admission::Full { first: true });
    room.pass(secs(1));
    assert_eq!(room.section(&event("$c").key("3").ttl(3_600_000)), Admission::Kept);
    assert_eq!(room.section(&event("$d").key("4")), Admission::Full { first: false });
    room.pass(secs(3_600));
    room.section(&event("$e").key("1"));
    room.section(&event("$f").key("2"));
    assert_eq!(room.section(&event("$g").key("3")), Admission::Full { first: true });
}

#[test]
fn a_key_keeps_its_value_and_32_others() {
    let mut room = Room::new();
    // The lowest event comes first: the 33 above it push it out.
    for n in 0..=MAX_OTHERS_PER_KEY as u64 + 1 {
        assert_eq!(room.section(&event(&format!("$e{n:02}")).sent(n)), Admission::Kept);
    }
    assert_eq!(room.map.known(), MAX_OTHERS_PER_KEY + 1);
    assert_eq!(room.section(&event("$e00").sent(0)), Admission::Outranked);
    for n in (2..=MAX_OTHERS_PER_KEY + 1).rev() {
        assert_eq!(room.live(), [format!("$e{n:02}")]);
        room.redact(&format!("$e{n:02}"));
    }
    assert_eq!(room.live(), ["$e01"], "the 32nd other is there");
    room.redact("$e01");
    assert_eq!(room.live(), [""; 0], "the 33rd is not");
}

#[test]
fn a_redaction_outlives_its_dropped_event() {
    let mut room = Room::new();
    room.section(&event("$old"));
    room.redact("$old");
    for n in 0..=MAX_OTHERS_PER_KEY as u64 {
        room.section(&event(&format!("$e{n:02}")).sent(n + 1));
    }
    assert_eq!(room.map.known(), MAX_OTHERS_PER_KEY + 1);
    assert_eq!(room.section(&event("$old")), Admission::NotSticky);
}

#[test]
fn redacted_events_are_dropped_first() {
    let mut room = Room::new();
    for n in 0..=MAX_OTHERS_PER_KEY as u64 {
        room.section(&event(&format!("$r{n:02}")).sent(100 + n));
        room.redact(&format!("$r{n:02}"));
    }
    assert_eq!(room.section(&event("$a")), Admission::Kept);
    assert_eq!(room.live(), ["$a"]);
}

#[test]
fn an_entry_dropped_below_removals_was_removed() {
    let mut room = Room::new();
    room.section(&event("$a"));
    assert_eq!(room.changes(), ["+$a"]);
    for n in 0..=MAX_OTHERS_PER_KEY as u64 {
        room.section(&event(&format!("$gone{n:02}")).sent(n + 1).removal());
    }
    assert_eq!(room.changes(), ["-$a removed"]);
}

#[test]
fn there_is_one_deadline_for_each_known_event() {
    let mut room = Room::new();
    for n in 0..1_000 {
        room.section(&event("$a").ttl(60_000 - n));
    }
    assert_eq!(room.map.ends.len(), 1);
    room.section(&event("$b").sent(1));
    room.section(&event("$c").unkeyed());
    assert_eq!(room.map.ends.len(), 3);
    room.pass(secs(60));
    room.changes();
    assert_eq!(room.map.ends.len(), 0);
    assert_eq!((room.map.cells.len(), room.map.senders.len(), room.map.types.len()), (0, 0, 0));
}

#[test]
fn a_map_that_is_never_polled_stays_small() {
    let mut room = Room::new();
    for n in 0..10_000_u64 {
        room.section(&event("$e").with("/event_id", format!("$e{n}")).sent(n).ttl(10));
        room.pass(Duration::from_millis(10));
        room.live();
    }
    assert!(room.map.touched.len() < 100, "{}", room.map.touched.len());
}

#[test]
fn repeated_changes_are_one_delta() {
    // The map was only read while the key changed.
    let mut room = Room::new();
    for n in 0..1_000 {
        let key = (n % 10).to_string();
        room.section(&event(&format!("$e{n}")).key(&key).sent(n));
        room.live();
    }
    assert!(room.map.touched.len() < 100, "{}", room.map.touched.len());
    let mut changes = room.changes();
    changes.sort();
    let last: Vec<_> = (990..1_000).map(|n| format!("+$e{n}")).collect();
    assert_eq!(changes, last);
}

#[test]
fn freed_cells_leave_nothing_touched() {
    let mut room = Room::new();
    for n in 0..100 {
        room.section(&event(&format!("$e{n}")).key(&n.to_string()).ttl(10));
    }
    room.pass(Duration::from_millis(10));
    room.live();
    assert!(room.map.touched.is_empty(), "{}", room.map.touched.len());
}

#[test]
fn an_event_without_effect_touches_nothing() {
    let mut room = Room::new();
    room.section(&event("$value").sent(10).lasting(90_000));
    room.changes();
    // An event comes and ends below the value ..
    room.section(&event("$below").ttl(1_000));
    assert!(room.map.touched.is_empty());
    room.pass(secs(1));
    room.live();
    assert!(room.map.touched.is_empty());
    // .. and a redacted event that ends above it.
    room.section(&event("$above").sent(60).ttl(1_000));
    room.redact("$above");
    room.changes();
    room.pass(secs(1));
    assert_eq!(room.live(), ["$value"]);
    assert!(room.map.touched.is_empty());
}

#[test]
fn an_unpolled_end_keeps_no_quota() {
    // A cell that only shows an ended entry needs quota again for a new event.
    let mut room = Room::keeping(1);
    room.section(&event("$a").key("1").ttl(1_000));
    assert_eq!(room.changes(), ["+$a"]);
    room.pass(secs(1));
    assert_eq!(room.section(&event("$b").key("2")), Admission::Kept);
    assert_eq!(room.section(&event("$c").key("1")), Admission::Full { first: true });
    assert_eq!(room.changes(), ["-$a expired", "+$b"]);
}

#[test]
fn a_returned_key_takes_quota_once() {
    // It came back before its end was polled.
    let mut room = Room::keeping(2);
    room.section(&event("$a").key("1").ttl(1_000));
    room.changes();
    room.pass(secs(1));
    assert_eq!(room.section(&event("$b").key("2").ttl(9_000)), Admission::Kept);
    assert_eq!(room.section(&event("$c").key("1").ttl(1_000)), Admission::Kept);
    assert_eq!(room.section(&event("$d").key("3")), Admission::Full { first: true });
    // When the key ends again, the sender's other events still count.
    room.pass(secs(1));
    assert_eq!(room.section(&event("$e").key("4")), Admission::Kept);
    assert_eq!(room.section(&event("$f").key("5")), Admission::Full { first: false });
    assert_eq!(room.live(), ["$b", "$e"]);
}

#[test]
fn a_room_out_of_cells_takes_no_keys() {
    let mut room = Room::new();
    room.section(&event("$a").key("1"));
    room.map.cells.give_out(MAX_CELLS);
    for dropped in 1..3 {
        assert_eq!(room.section(&event("$b").by(BOB)), Admission::Full { first: false });
        assert_eq!(room.map.dropped(), dropped);
    }
    assert_eq!(room.section(&event("$c").key("1").sent(1)), Admission::Kept);
    assert_eq!(room.live(), ["$c"]);
}

#[test]
fn events_share_one_sender_and_type() {
    // They do so for as long as the map knows one of them.
    let mut room = Room::new();
    room.section(&event("$a").key("1").ttl(1_000));
    room.section(&event("$b").key("2"));
    room.pass(secs(1));
    assert_eq!(room.live(), ["$b"]);
    room.section(&event("$c").key("3"));
    let entries = room.map.entries(room.now);
    let texts =
        |event: &StickyEvent| (event.sender().as_str().as_ptr(), event.event_type().as_ptr());
    assert_eq!(texts(&entries[0]), texts(&entries[1]));
}

#[test]
fn a_map_is_empty_when_it_remembers_nothing() {
    let mut room = Room::new();
    assert!(room.map.is_empty());
    room.section(&event("$a").ttl(1_000));
    assert!(!room.map.is_empty(), "an event");
    room.pass(secs(1));
    room.live();
    assert!(!room.map.is_empty(), "an event that has ended");
    room.pass(secs(3_600));
    room.live();
    assert!(room.map.is_empty());
}

#[test]
fn events_that_end_together_leave_together() {
    let mut room = Room::new();
    room.section(&event("$a").ttl(5_000));
    room.section(&event("$b").sent(1).ttl(5_000));
    assert_eq!(room.map.ends.len(), 1);
    assert_eq!(room.changes(), ["+$b"]);
    room.pass(secs(5));
    assert_eq!(room.changes(), ["-$b expired"]);
    assert_eq!((room.map.known(), room.map.ends.len()), (0, 0));
}

#[test]
fn a_shared_end_survives_its_twin() {
    // Another event of the same end is brought forward, and this one still ends in time.
    let mut room = Room::new();
    let (value, other) = (event("$b").sent(1), event("$a"));
    room.section(&value.clone().ttl(5_000));
    room.section(&other.ttl(5_000));
    room.section(&value.ttl(2_000));
    assert_eq!(room.changes(), ["+$b"]);
    room.pass(secs(2));
    assert_eq!(room.changes(), ["$b>$a"]);
    room.pass(secs(3));
    assert_eq!(room.changes(), ["-$a expired"]);
    assert_eq!(room.map.ends.len(), 0);
}

#[test]
fn an_event_older_than_the_epoch_ends() {
    // The event was received before all known ones, and ends in time.
    let mut room = Room::new();
    let earlier = room.now;
    room.pass(secs(30));
    room.section(&event("$a").key("1").ttl(60_000));
    // It is handed over late: all three are over.
    for (id, ttl) in [("$c", 1_000), ("$d", 2_000), ("$d", 1_500)] {
        let text = event(id).key("2").ttl(ttl).raw();
        room.map.handle_event(earlier, ReceivedVia::Section, text).unwrap();
    }
    assert_eq!(room.changes(), ["+$a"]);
    assert_eq!((room.map.known(), room.map.ends.len()), (1, 1));
}
