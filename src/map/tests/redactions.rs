//! Law 4: redactions.

use super::*;

#[test]
fn a_redaction_leaves_the_key_to_others() {
    let mut room = Room::new();
    room.section(&event("$a"));
    room.section(&event("$b").sent(1));
    assert_eq!(room.changes(), ["+$b"]);
    room.redact("$b");
    assert_eq!(room.changes(), ["$b>$a"]);
    room.redact("$a");
    assert_eq!(room.changes(), ["-$a redacted"]);
}

#[test]
fn a_redaction_that_comes_first_counts() {
    let mut room = Room::new();
    room.redact("$a");
    assert_eq!(room.section(&event("$a")), Admission::NotSticky);
    assert_eq!(room.live(), [""; 0]);
}

#[test]
fn a_late_copy_stays_redacted() {
    let mut room = Room::new();
    room.section(&event("$a"));
    room.redact("$a");
    room.changes();
    assert_eq!(room.section(&event("$a")), Admission::Repeated);
    assert_eq!(room.live(), [""; 0]);
}

#[test]
fn a_late_copy_stays_redacted_after_its_end() {
    let mut room = Room::new();
    room.section(&event("$a").ttl(1_000));
    room.redact("$a");
    room.pass(secs(2));
    room.changes();
    assert_eq!(room.section(&event("$a")), Admission::NotSticky);
}

#[test]
fn redacting_a_superseded_event_changes_nothing() {
    let mut room = Room::new();
    room.section(&event("$a"));
    room.section(&event("$b").sent(1));
    room.changes();
    room.redact("$a");
    assert_eq!(room.changes(), [""; 0]);
    room.redact("$b");
    assert_eq!(room.changes(), ["-$b redacted"]);
}

#[test]
fn what_comes_below_a_redacted_event_is_told() {
    let mut room = Room::new();
    room.section(&event("$high").sent(10));
    room.redact("$high");
    room.changes();
    room.section(&event("$a"));
    assert_eq!(room.changes(), ["+$a"]);
}

#[test]
fn what_ends_below_a_redacted_event_is_told() {
    let mut room = Room::new();
    room.section(&event("$high").sent(10).lasting(90_000));
    room.redact("$high");
    room.section(&event("$a").sent(5).lasting(40_000));
    room.section(&event("$b").lasting(44_000).ttl(50_000));
    assert_eq!(room.changes(), ["+$a"]);
    room.pass(secs(40));
    assert_eq!(room.changes(), ["$a>$b"]);
    room.pass(secs(10));
    assert_eq!(room.changes(), ["-$b expired"]);
}

#[test]
fn a_redaction_names_its_target_either_way() {
    // The target stands at the top level or in the content.
    let redaction = event("$r").by(BOB).of_type("m.room.redaction").without("/msc4354_sticky");
    for redaction in
        [redaction.clone().with("/redacts", "$a"), redaction.with("/content/redacts", "$a")]
    {
        let mut room = Room::new();
        room.section(&event("$a"));
        assert_eq!(room.timeline(&redaction), Admission::NotSticky);
        assert_eq!(room.live(), [""; 0]);
    }
}

#[test]
fn a_sticky_redaction_redacts_and_stays() {
    let mut room = Room::new();
    room.section(&event("$a"));
    let redaction = event("$r").of_type("m.room.redaction").unkeyed().with("/redacts", "$a");
    assert_eq!(room.section(&redaction), Admission::Kept);
    assert_eq!(room.live(), ["$r"]);
}

#[test]
fn another_type_with_a_redacts_field_redacts_nothing() {
    let mut room = Room::new();
    room.section(&event("$a"));
    room.section(&event("$b").key("b").with("/redacts", "$a").with("/content/redacts", "$a"));
    assert_eq!(room.live(), ["$b", "$a"]);
}

#[test]
fn redacted_because_redacts_the_known_event() {
    let mut room = Room::new();
    room.section(&event("$a"));
    assert_eq!(room.changes(), ["+$a"]);
    let redacted = event("$a")
        .without("/msc4354_sticky")
        .with("/content", json!({}))
        .with("/unsigned/redacted_because", json!({ "event_id": "$r" }));
    assert_eq!(room.section(&redacted), Admission::NotSticky);
    assert_eq!(room.changes(), ["-$a redacted"]);
}

#[test]
fn a_redaction_is_forgotten_after_an_hour() {
    let mut room = Room::new();
    room.redact("$a");
    room.pass(Duration::from_millis(3_599_999));
    assert_eq!(room.section(&event("$a")), Admission::NotSticky);
    room.pass(Duration::from_millis(1));
    assert_eq!(room.section(&event("$a")), Admission::Kept);
}

#[test]
fn the_newest_thousand_redactions_are_kept() {
    let mut room = Room::new();
    for n in 0..=MAX_REDACTIONS {
        room.redact(&format!("$r{n}"));
    }
    assert_eq!(room.section(&event("$r0").key("0")), Admission::Kept, "the oldest fell out");
    assert_eq!(room.section(&event("$r1").key("1")), Admission::NotSticky);
    assert_eq!(room.section(&event(&format!("$r{MAX_REDACTIONS}")).key("2")), Admission::NotSticky);
}

#[test]
fn remembered_redactions_end_after_an_hour() {
    let mut room = Room::new();
    room.redact("$a");
    assert!(!room.map.is_empty());
    let deadline = room.map.next_deadline().unwrap();
    assert_eq!(deadline.left(room.now), secs(3_600));
    room.pass(secs(3_600));
    room.changes();
    assert!(room.map.is_empty());
    assert_eq!(room.map.next_deadline(), None);
}

#[test]
fn a_poll_leaves_no_deadline_over() {
    // A response that was received first can be handed over second.
    let mut room = Room::new();
    let earlier = room.now;
    room.pass(secs(10));
    room.redact("$a");
    room.map.handle_redaction(earlier, <&EventId>::try_from("$b").unwrap());
    room.pass(secs(3_595));
    room.changes();
    assert!(!room.map.next_deadline().unwrap().is_over(room.now));
}
